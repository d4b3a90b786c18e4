#include "nn/vision_tower.h"

#include <algorithm>
#include <cmath>

#include "base/align.h"
#include "device/gpu.h"

namespace weft {
namespace {

constexpr float kNormEps = 1e-6f;
/// Rows that go through a linear layer at once: bounds the memory of the widest ones. No bit
/// depends on it (docs/architecture.md, rule 1).
constexpr int64_t kTileRows = 4096;
/// Images are at most 200 times longer than wide (media/processing.h), and rounding to whole
/// patches may double that.
constexpr double kMaxAspect = 800;

/// Row strides of activations are multiples of 8.
int64_t padded(int64_t width) {
  return (width + 7) / 8 * 8;
}

TensorView take(VisionContext& context, int64_t rows, int64_t width, DType dtype) {
  void* data = context.arena.take(rows * padded(width) * dtype_size(dtype));
  return TensorView(data, dtype, {rows, padded(width)}).columns(0, width);
}
TensorView take(VisionContext& context, int64_t rows, int64_t width) {
  return take(context, rows, width, context.ops.activation);
}

/// [rows, width] as [rows / n, n * width]; the rows follow each other without gaps.
TensorView joined(const TensorView& x, int64_t n) {
  CHECK(x.stride[0] == x.dim(1) && x.dim(0) % n == 0);
  return {x.data, x.dtype, {x.dim(0) / n, x.dim(1) * n}};
}

template <class Body>
void for_tiles(int64_t rows, int64_t step, Body body) {
  for (int64_t begin = 0; begin < rows; begin += step) body(begin, std::min(begin + step, rows));
}

}  // namespace

void VisionNorm::declare(WeightPlan& plan, const std::string& name, int64_t width, bool rms) {
  plan.vector(weight_, VectorRole::kNorm, {{.name = name + ".weight", .shape = {width}}}, {width});
  if (rms) return;
  plan.vector(bias_, VectorRole::kBias, {{.name = name + ".bias", .shape = {width}}}, {width});
}

void VisionNorm::forward(VisionContext& context, TensorView x, TensorView residual,
                         TensorView out) const {
  if (bias_.defined()) {
    context.ops.vision->layer_norm(context.stream, {.x = x,
                                                    .residual = residual,
                                                    .weight = weight_,
                                                    .bias = bias_,
                                                    .out = out,
                                                    .eps = kNormEps});
    return;
  }
  context.ops.rms_norm(
      context.stream,
      {.x = x, .residual = residual, .weight = weight_, .out = out, .eps = kNormEps});
}

VisionTower::VisionTower(const VisionSpec& spec) : spec_(spec) {
  for (int i = 0; i < spec.depth; ++i) blocks_.push_back(std::make_unique<Block>());
  for (size_t i = 0; i < spec.deepstack.size(); ++i) {
    deepstack_.push_back(std::make_unique<Merger>());
  }
}

void VisionTower::declare(WeightPlan& plan, WeightFormat format, const std::string& prefix) {
  const int64_t hidden = spec_.hidden;
  std::vector<TensorPart> bias;
  if (!spec_.gated) bias = {{prefix + "patch_embed.proj.bias", {hidden}}};
  patch_.declare(plan, format,
                 {{.name = prefix + "patch_embed.proj.weight",
                   .shape = {hidden, spec_.channels, spec_.temporal_patch_size, spec_.patch_size,
                             spec_.patch_size},
                   .row_extents = 4}},
                 std::move(bias));
  if (spec_.num_positions > 0) {
    plan.table(grid_, {prefix + "pos_embed.weight", {spec_.num_positions, hidden}});
  }
  for (size_t i = 0; i < blocks_.size(); ++i) {
    declare_block(plan, format, prefix + "blocks." + std::to_string(i) + ".", *blocks_[i]);
  }
  declare_merger(plan, format, prefix + "merger.", merger_, /*behind=*/false);
  for (size_t i = 0; i < deepstack_.size(); ++i) {
    declare_merger(plan, format, prefix + "deepstack_merger_list." + std::to_string(i) + ".",
                   *deepstack_[i], /*behind=*/true);
  }
}

void VisionTower::declare_block(WeightPlan& plan, WeightFormat format, const std::string& p,
                                Block& block) const {
  const int64_t hidden = spec_.hidden, inner = spec_.inner;
  const auto linear = [&](Linear& target, const std::string& name, int64_t n, int64_t k) {
    target.declare(plan, format, {{p + name + ".weight", {n, k}}}, {{p + name + ".bias", {n}}});
  };
  block.norm1.declare(plan, p + "norm1", hidden, spec_.gated);
  linear(block.qkv, "attn.qkv", 3 * hidden, hidden);
  linear(block.proj, "attn.proj", hidden, hidden);
  block.norm2.declare(plan, p + "norm2", hidden, spec_.gated);
  if (!spec_.gated) {
    linear(block.up, "mlp.linear_fc1", inner, hidden);
    linear(block.down, "mlp.linear_fc2", hidden, inner);
    return;
  }
  const std::string gate = p + "mlp.gate_proj", up = p + "mlp.up_proj";
  block.up.declare(plan, format,
                   {{gate + ".weight", {inner, hidden}}, {up + ".weight", {inner, hidden}}},
                   {{gate + ".bias", {inner}}, {up + ".bias", {inner}}});
  linear(block.down, "mlp.down_proj", hidden, inner);
}

void VisionTower::declare_merger(WeightPlan& plan, WeightFormat format, const std::string& p,
                                 Merger& merger, bool behind) const {
  const int64_t wide = spec_.hidden * spec_.merge_patches();
  merger.norm_behind_merge = behind;
  merger.norm.declare(plan, p + (spec_.gated ? "ln_q" : "norm"), behind ? wide : spec_.hidden,
                      spec_.gated);
  const std::string fc1 = p + (spec_.gated ? "mlp.0" : "linear_fc1");
  const std::string fc2 = p + (spec_.gated ? "mlp.2" : "linear_fc2");
  merger.fc1.declare(plan, format, {{fc1 + ".weight", {wide, wide}}}, {{fc1 + ".bias", {wide}}});
  merger.fc2.declare(plan, format, {{fc2 + ".weight", {spec_.out_hidden, wide}}},
                     {{fc2 + ".bias", {spec_.out_hidden}}});
}

int64_t VisionTower::max_side(int64_t patches) {
  return static_cast<int64_t>(std::sqrt(static_cast<double>(patches) * kMaxAspect)) + 256;
}

int64_t VisionTower::rope_bytes(const VisionSpec& spec, int64_t patches) {
  return max_side(patches) * (spec.head_dim() / 4) * 2 * int64_t{sizeof(float)};
}

Result<> VisionTower::prepare(Stream& stream, const OpTable& ops, int64_t max_patches) {
  const int64_t positions = max_side(max_patches), quarter = spec_.head_dim() / 4;
  std::vector<float> table;
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < quarter; ++i) {
      const double frequency =
          std::pow(spec_.rope_theta, -2.0 * static_cast<double>(i) / (2.0 * quarter));
      const float angle = static_cast<float>(p) * static_cast<float>(frequency);
      table.push_back(std::cos(angle));
      table.push_back(std::sin(angle));
    }
  }
  rope_ = TRY(Buffer::allocate(ops.device, rope_bytes(spec_, max_patches)));
  copy_bytes(stream, rope_.data(), table.data(), static_cast<int64_t>(table.size() * 4));
  synchronize(stream);
  cos_sin_ = TensorView(rope_.data(), DType::kF32, {positions, quarter, 2});
  return {};
}

int64_t VisionTower::arena_bytes(const OpTable& ops, int64_t patches) const {
  const int64_t size = dtype_size(ops.activation), merged = spec_.merge_patches();
  const int64_t tokens = patches / merged, hidden = spec_.hidden;
  const auto bytes = [](int64_t rows, int64_t width, int64_t element) {
    return aligned(rows * padded(width) * element);
  };
  const int64_t tile = std::min(patches, kTileRows);
  return bytes(patches, hidden, 4) + 4 * bytes(patches, hidden, size) +
         bytes(patches, 3 * hidden, size) + bytes(tile, std::max(spec_.inner, hidden), size) +
         2 * bytes(tokens, spec_.out_hidden, size) +
         bytes(std::min(tokens, kTileRows), merged * hidden, size) + 1024;
}

int64_t VisionTower::scratch_bytes(const OpTable& ops, int64_t patches, int num_threads) const {
  const StepQuery query{
      .ops = ops, .rows = std::min(patches, kTileRows), .num_threads = num_threads};
  int64_t bytes = patch_.scratch_bytes(query);
  const auto grow = [&](const Linear& linear, Epilogue epilogue = Epilogue::kStore) {
    bytes = std::max(bytes, linear.scratch_bytes(query, epilogue));
  };
  const Block& block = *blocks_.front();
  for (const Linear* linear : {&block.qkv, &block.proj, &block.down}) grow(*linear);
  grow(block.up, spec_.gated ? Epilogue::kSiluMul : Epilogue::kStore);
  grow(merger_.fc1);
  grow(merger_.fc2);
  return bytes;
}

bool VisionTower::sees_whole_frame(int layer) const {
  return spec_.window == 0 || std::find(spec_.full_layers.begin(), spec_.full_layers.end(),
                                        layer) != spec_.full_layers.end();
}

void VisionTower::attend(VisionContext& context, const VisionBatch& batch, int layer,
                         TensorView qkv, TensorView out) const {
  const int64_t hidden = spec_.hidden, heads = spec_.heads, dim = spec_.head_dim();
  const auto part = [&](int64_t i) {
    return qkv.columns(i * hidden, (i + 1) * hidden).split_last(heads, dim);
  };
  const bool whole = sees_whole_frame(layer);
  const TensorView& bounds = whole ? batch.frames : batch.windows;
  context.ops.vision->axial_rope(
      context.stream,
      {.q = part(0), .k = part(1), .cos_sin = cos_sin_, .positions = batch.positions});
  context.ops.vision->segment_attention(
      context.stream, {.q = part(0),
                       .k = part(1),
                       .v = part(2),
                       .out = out.split_last(heads, dim),
                       .bounds = bounds,
                       .host_bounds = whole ? batch.host_frames : batch.host_windows,
                       .num_segments = static_cast<int>(bounds.dim(0) - 1),
                       .scale = 1.0f / std::sqrt(static_cast<float>(dim))});
}

void VisionTower::feed_forward(VisionContext& context, const Block& block, TensorView x,
                               TensorView out) const {
  const ArenaScope scope(context.arena);
  TensorView inner = take(context, x.dim(0), spec_.inner);
  if (spec_.gated) {
    block.up.forward(context.stream, context.ops, x, inner, Epilogue::kSiluMul);
  } else {
    block.up.forward(context.stream, context.ops, x, inner);
    context.ops.vision->gelu(context.stream, {.x = inner, .form = Gelu::kTanh});
  }
  block.down.forward(context.stream, context.ops, inner, out);
}

/// fc2(gelu(fc1(x))) of the joined patches.
void VisionTower::merge(VisionContext& context, const Merger& merger, TensorView normed,
                        TensorView out) const {
  for_tiles(normed.dim(0), kTileRows, [&](int64_t begin, int64_t end) {
    const ArenaScope scope(context.arena);
    TensorView inner = take(context, end - begin, normed.dim(1));
    merger.fc1.forward(context.stream, context.ops, normed.rows(begin, end), inner);
    context.ops.vision->gelu(context.stream, {.x = inner, .form = Gelu::kErf});
    merger.fc2.forward(context.stream, context.ops, inner, out.rows(begin, end));
  });
}

void VisionTower::forward(VisionContext& context, const VisionBatch& batch, TensorView out) const {
  const ArenaScope scope(context.arena);
  const int64_t patches = batch.patches.dim(0), hidden = spec_.hidden;
  const int64_t joins = spec_.merge_patches(), tokens = patches / joins;
  if (patches == 0) return;
  CHECK(out.dim(0) == tokens && out.dim(1) == spec_.feature_width());
  TensorView residual = take(context, patches, hidden, DType::kF32);
  TensorView qkv = take(context, patches, 3 * hidden), attended = take(context, patches, hidden);
  TensorView delta = take(context, patches, hidden), normed = take(context, patches, hidden);
  TensorView merged = take(context, tokens, spec_.out_hidden);
  patch_.forward(context.stream, context.ops, batch.patches, residual);
  if (spec_.num_positions > 0) {
    context.ops.vision->interpolate(
        context.stream,
        {.table = grid_, .ids = batch.grid_ids, .weights = batch.grid_weights, .out = residual});
  }
  const auto finish = [&](const Merger& merger, TensorView rows, int64_t column) {
    TensorView to = out.columns(column, column + spec_.out_hidden);
    merge(context, merger, rows, batch.order.defined() ? merged : to);
    if (!batch.order.defined()) return;
    context.ops.embed(context.stream, {.ids = batch.order, .table = merged, .out = to});
  };
  // What layer `layer - 1` gave is in the residual: it may be one that is merged too.
  const auto tap = [&](int layer) {
    for (size_t i = 0; i < deepstack_.size(); ++i) {
      if (spec_.deepstack[i] != layer) continue;
      const ArenaScope tap_scope(context.arena);
      TensorView rows = take(context, patches, hidden);
      deepstack_[i]->norm.forward(context, joined(residual, joins), {}, joined(rows, joins));
      finish(*deepstack_[i], joined(rows, joins), static_cast<int64_t>(i + 1) * spec_.out_hidden);
    }
  };
  for (int layer = 0; layer < spec_.depth; ++layer) {
    const Block& block = *blocks_[static_cast<size_t>(layer)];
    if (layer == 0) {
      block.norm1.forward(context, residual, {}, normed);
    } else {
      block.norm1.forward(context, delta, residual, normed);
      tap(layer - 1);
    }
    for_tiles(patches, kTileRows, [&](int64_t begin, int64_t end) {
      block.qkv.forward(context.stream, context.ops, normed.rows(begin, end), qkv.rows(begin, end));
    });
    attend(context, batch, layer, qkv, attended);
    for_tiles(patches, kTileRows, [&](int64_t begin, int64_t end) {
      TensorView part = normed.rows(begin, end), sum = delta.rows(begin, end);
      block.proj.forward(context.stream, context.ops, attended.rows(begin, end), sum);
      block.norm2.forward(context, sum, residual.rows(begin, end), part);
      feed_forward(context, block, part, sum);
    });
  }
  merger_.norm.forward(context, delta, residual, normed);
  tap(spec_.depth - 1);
  finish(merger_, joined(normed, joins), 0);
}

}  // namespace weft
