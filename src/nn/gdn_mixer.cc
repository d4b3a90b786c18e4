#include "nn/gdn_mixer.h"

#include <algorithm>
#include <cstring>

namespace weft {
namespace {

/// The two gates of a head are a few rows with a long reach: never below bf16.
WeightFormat gate_format(WeightFormat format) {
  return format == WeightFormat::kF32 ? WeightFormat::kF32 : WeightFormat::kBf16;
}

/// Copies the rows to keep: [q | k | v | b | a].
void keep(const KeptInputs& kept, LayerId layer, const TensorView& qkv, const TensorView& ba) {
  const TensorView& to = kept.layers[static_cast<size_t>(layer.value)];
  int64_t at = 0;
  for (const KeptInputs::Rows& rows : kept.rows) {
    for (int64_t row = rows.first; row < rows.first + rows.count; ++row, ++at) {
      auto* out = to.row<float>(at);
      std::memcpy(out, qkv.row<float>(row), static_cast<size_t>(qkv.dim(1)) * sizeof(float));
      std::memcpy(out + qkv.dim(1), ba.row<float>(row),
                  static_cast<size_t>(ba.dim(1)) * sizeof(float));
    }
  }
}

}  // namespace

void GdnMixer::declare(WeightPlan& plan, const std::string& prefix) {
  const std::string p = prefix + "linear_attn.";
  const int64_t hidden = options_.hidden, heads = spec_.shape.value_heads;
  if (spec_.grouped_projections) {
    declare_grouped(plan, p);
  } else {
    qkvz_.declare(plan, options_.format,
                  {{p + "in_proj_qkv.weight", {channels(), hidden}},
                   {p + "in_proj_z.weight", {value_width(), hidden}}});
    ba_.declare(
        plan, gate_format(options_.format),
        {{p + "in_proj_b.weight", {heads, hidden}}, {p + "in_proj_a.weight", {heads, hidden}}});
  }
  const int64_t width = spec_.shape.conv_width;
  plan.vector(conv_, VectorRole::kOther, {{p + "conv1d.weight", {channels(), 1, width}}},
              {channels(), width});
  plan.vector(a_log_, VectorRole::kOther, {{p + "A_log", {heads}}}, {heads});
  plan.vector(dt_bias_, VectorRole::kOther, {{p + "dt_bias", {heads}}}, {heads});
  norm_.declare(plan, p + "norm.weight", spec_.shape.value_dim, /*minus_one=*/false);
  out_.declare(plan, options_.format, {{p + "out_proj.weight", {hidden, value_width()}}});
}

/// Takes the groups of the key heads apart: all q, all k, all v, all z; all b, all a.
void GdnMixer::declare_grouped(WeightPlan& plan, const std::string& prefix) {
  const GdnShape& s = spec_.shape;
  const int64_t hidden = options_.hidden, values = s.value_heads / s.key_heads;
  const auto rows = [&](const std::string& name, std::initializer_list<int64_t> widths) {
    int64_t group = 0, offset = 0;
    for (const int64_t width : widths) group += width;
    std::vector<TensorPart> parts;
    for (const int64_t width : widths) {
      for (int h = 0; h < s.key_heads; ++h) {
        parts.push_back({prefix + name, {group * s.key_heads, hidden}, h * group + offset, width});
      }
      offset += width;
    }
    return parts;
  };
  qkvz_.declare(plan, options_.format,
                rows("in_proj_qkvz.weight",
                     {s.key_dim, s.key_dim, values * s.value_dim, values * s.value_dim}));
  ba_.declare(plan, gate_format(options_.format), rows("in_proj_ba.weight", {values, values}));
}

int64_t GdnMixer::arena_bytes(const StepQuery& query) const {
  return query.activation_bytes(channels() + value_width()) +
         query.f32_bytes(2 * spec_.shape.value_heads) + query.activation_bytes(value_width());
}

int64_t GdnMixer::scratch_bytes(const StepQuery& query) const {
  return std::max(
      {qkvz_.scratch_bytes(query), ba_.scratch_bytes(query),
       out_.scratch_bytes(query, Epilogue::kAdd),
       query.ops.gdn_scratch(spec_.shape, query.rows, query.max_seqs, query.num_threads)});
}

void GdnMixer::forward(StepContext& context, LayerId layer, const RmsNormArgs& norm,
                       TensorView residual) const {
  const ArenaScope scope(context.arena);
  const TensorView x = norm.out;
  context.ops.rms_norm(context.stream, norm);
  const int64_t rows = x.dim(0), heads = spec_.shape.value_heads, width = spec_.shape.value_dim;
  TensorView qkvz = take_rows(context, rows, channels() + value_width());
  TensorView ba = take_rows_f32(context.arena, rows, 2 * heads);
  TensorView mixed = take_rows(context, rows, value_width());
  qkvz_.forward(context, x, qkvz);
  ba_.forward(context, x, ba);
  const TensorView qkv = qkvz.columns(0, channels());
  if (context.kept != nullptr) keep(*context.kept, layer, qkv, ba);
  const StepBatch& batch = context.batch;
  const TensorView z = qkvz.columns(channels(), channels() + value_width());
  GdnArgs gdn = args(context, layer, qkv, ba);
  gdn.num_prompt_segments = batch.num_prompt_segments;
  gdn.chains = batch.chains;
  gdn.num_chains = batch.num_chains;
  gdn.num_prompt_chains = batch.num_prompt_chains;
  gdn.host_cu_q = batch.seqs.host_cu_q;
  gdn.out = mixed.split_last(heads, width);
  gdn.norm = {.z = z.split_last(heads, width),
              .weight = norm_.weight(),
              .eps = options_.eps,
              .activation = spec_.gate};
  context.ops.gdn(context.stream, gdn);
  out_.forward(context, mixed, residual, Epilogue::kAdd);
}

/// What forward and replay have in common.
GdnArgs GdnMixer::args(const StepContext& context, LayerId layer, TensorView qkv,
                       TensorView ba) const {
  const StepBatch& batch = context.batch;
  const int64_t heads = spec_.shape.value_heads;
  StateSlots state = std::get<StateSlots>(context.kv.layer(layer));
  // Kernels that know of kept rows are a little slower where there are none.
  if (!batch.kept_rows) state.conv.shape[1] = spec_.shape.conv_width - 1;
  return {.shape = spec_.shape,
          .qkv = qkv,
          .a = ba.columns(heads, 2 * heads),
          .b = ba.columns(0, heads),
          .conv = conv_,
          .a_log = a_log_,
          .dt_bias = dt_bias_,
          .state = state,
          .cu_q = batch.seqs.cu_q,
          .read_slot = batch.read_slot,
          .write_slot = batch.write_slot,
          .num_segments = batch.seqs.num_segments};
}

void GdnMixer::replay(StepContext& context, LayerId layer, const KeptInputs::Rows& rows) const {
  const TensorView kept = context.kept->layers[static_cast<size_t>(layer.value)].rows(
      rows.first, rows.first + rows.count);
  const GdnArgs gdn = args(context, layer, kept.columns(0, channels()),
                           kept.columns(channels(), channels() + 2 * spec_.shape.value_heads));
  context.ops.gdn(context.stream, gdn);
}

}  // namespace weft
