#include "tests/golden/driver.h"

#include <algorithm>
#include <numeric>

#include "nn/linear.h"

namespace weft::testing {
namespace {

constexpr int64_t kBlockSize = 64;
constexpr int64_t kSlots = 3;

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

Result<std::unique_ptr<Driver>> Driver::load(const std::string& dir, const Options& options) {
  std::unique_ptr<Driver> out(new Driver());
  out->options_ = options;
  out->pool_ = std::make_unique<ThreadPool>(options.num_threads);
  const DeviceKind device = options.ops->device;
  if (device == DeviceKind::kCuda) out->gpu_.emplace(TRY(GpuStream::create()));
  out->stream_ = std::make_unique<Stream>(*out->pool_, out->scratch_,
                                          out->gpu_ ? out->gpu_->native() : nullptr);
  const ModelConfig config = TRY(load_config(dir));
  ModelSpec spec = TRY(parse_model(config.config));
  TRY(apply_prefill(options.prefill, spec));
  const Checkpoint checkpoint = TRY(Checkpoint::open(dir));
  adapt_to_checkpoint(spec, checkpoint);
  KvLayers kv_scales;
  if (kv_has_static_scales(options.kv_format)) kv_scales = unit_kv_scales(spec, options.kv_format);
  const LoadOptions load{.format = options.format,
                         .kv_format = options.kv_format,
                         .kv_scales = std::move(kv_scales),
                         .block_size = kBlockSize,
                         .max_model_len = options.max_len,
                         .num_threads = options.num_threads,
                         .images = options.images,
                         .max_image_patches = 1024};
  out->model_ = TRY(Model::load(spec, &checkpoint, load, *out->stream_, *options.ops));
  const int64_t arena_bytes = out->model_->arena_bytes(options.max_len);
  const int64_t logit_bytes = options.max_len * (spec.vocab + 2 * spec.hidden) * 4 + 256;
  out->arena_ = Arena(TRY(Buffer::allocate(device, arena_bytes + logit_bytes)));
  out->scratch_ = Arena(TRY(Buffer::allocate(device, arena_bytes)));
  out->inputs_ = Arena(TRY(Buffer::allocate(
      device, options.max_len * (64 + 4 * spec.hidden) + (options.images ? 16 << 20 : 0))));
  const int64_t num_blocks = options.max_len / kBlockSize;
  out->kv_ = std::make_unique<KvStore>(
      TRY(KvStore::create(out->model_->cache_specs(), *options.ops, num_blocks, kSlots)));
  for (int64_t i = 0; i < num_blocks; ++i) {  // 7 is coprime to every power of two
    out->blocks_.push_back(static_cast<int32_t>((i * 7 + 3) % num_blocks));
  }
  return out;
}

void Driver::reset() {
  num_computed_ = 0;
  slot_ = -1;
  rope_delta_ = 0;
  prompt_positions_.clear();
  features_.clear();
  image_token_ = -1;
  next_image_row_ = 0;
  hidden_rows_.clear();
}

void Driver::set_positions(std::vector<std::array<int32_t, 3>> prompt, int32_t rope_delta) {
  prompt_positions_ = std::move(prompt);
  rope_delta_ = rope_delta;
}

std::vector<float> Driver::encode(std::span<const VisionGrid> grids,
                                  std::span<const float> patches) {
  const VisionTower& tower = *model_->vision();
  const VisionSpec& spec = tower.spec();
  VisionPlan plan;
  plan_vision(spec, grids, plan);
  const int64_t n = plan.num_patches(), width = spec.patch_values();
  CHECK(static_cast<int64_t>(patches.size()) == n * width);
  std::vector<float> rows;
  for (const int32_t patch : plan.source) {
    rows.insert(rows.end(), patches.begin() + patch * width, patches.begin() + (patch + 1) * width);
  }
  const ArenaScope inputs(inputs_), scope(arena_);
  const auto ints = [&](const std::vector<int32_t>& values, std::initializer_list<int64_t> dims) {
    return values.empty() ? TensorView() : upload<int32_t>(values, DType::kI32, dims);
  };
  VisionBatch batch;
  batch.patches = upload_rows(rows, width);
  batch.positions = ints(plan.positions, {n, 2});
  batch.grid_ids = ints(plan.grid_ids, {n, 4});
  if (!plan.grid_weights.empty()) {
    batch.grid_weights = upload<float>(plan.grid_weights, DType::kF32, {n, 4});
  }
  batch.frames = ints(plan.frames, {std::ssize(plan.frames)});
  batch.windows = ints(plan.windows, {std::ssize(plan.windows)});
  batch.order = ints(plan.order, {std::ssize(plan.order)});
  batch.host_frames = plan.frames.data();
  batch.host_windows = plan.windows.data();
  Arena work(Buffer::allocate(options_.ops->device, tower.arena_bytes(*options_.ops, n)).value());
  VisionContext context{*stream_, *options_.ops, work};
  const int64_t tokens = n / spec.merge_patches();
  TensorView out(arena_.take(tokens * spec.feature_width() * dtype_size(options_.ops->activation)),
                 options_.ops->activation, {tokens, spec.feature_width()});
  tower.forward(context, batch, out);
  return download(out);
}

void Driver::set_images(std::vector<float> features, int32_t image_token) {
  features_ = std::move(features);
  image_token_ = image_token;
  next_image_row_ = 0;
}

std::vector<float> Driver::step(std::span<const int32_t> tokens, int64_t first, Kind kind,
                                int64_t last, const std::vector<float>* mtp_previous) {
  const int64_t rows = static_cast<int64_t>(tokens.size());
  CHECK(first + rows <= options_.max_len);
  std::vector<int32_t> ids(tokens.begin(), tokens.end()), index, delta, triples;
  std::vector<int64_t> kv_slot;
  for (int64_t i = first; i < first + rows; ++i) {
    const Position p = position(prompt_positions_, rope_delta_, i);
    index.push_back(static_cast<int32_t>(i));
    delta.push_back(p.t - index.back());
    triples.insert(triples.end(), {p.t, p.h, p.w});
    kv_slot.push_back(int64_t{blocks_[static_cast<size_t>(i / kBlockSize)]} * kBlockSize +
                      i % kBlockSize);
  }
  const std::vector<int32_t> cu = {0, static_cast<int32_t>(rows)};
  const std::vector<int32_t> start = {static_cast<int32_t>(first)};
  const std::vector<int32_t> read = {slot_}, write = {(slot_ + 1) % static_cast<int32_t>(kSlots)};
  const std::vector<int32_t> chains = {0, 1};
  if (!mtp_previous) slot_ = write[0];
  const ArenaScope inputs(inputs_);
  StepBatch batch;
  batch.ids = upload<int32_t>(ids, DType::kI32, {rows});
  batch.positions = {.index = upload<int32_t>(index, DType::kI32, {rows}),
                     .delta = upload<int32_t>(delta, DType::kI32, {rows}),
                     .triples = upload<int32_t>(triples, DType::kI32, {rows, 3})};
  batch.kv_slot = upload<int64_t>(kv_slot, DType::kI64, {rows});
  batch.seqs = {.cu_q = upload<int32_t>(cu, DType::kI32, {2}),
                .kv_start = upload<int32_t>(start, DType::kI32, {1}),
                .block_table = upload<int32_t>(blocks_, DType::kI32,
                                               {1, static_cast<int64_t>(blocks_.size())}),
                .num_segments = 1};
  batch.read_slot = upload<int32_t>(read, DType::kI32, {1});
  batch.write_slot = upload<int32_t>(write, DType::kI32, {1});
  batch.chains = upload<int32_t>(chains, DType::kI32, {2});
  batch.num_chains = 1;
  if (kind == Kind::kPrompt) {
    batch.prompt_rows = rows;
    batch.num_prompt_segments = batch.num_prompt_chains = 1;
    batch.num_deciding = first == 0 && has_prefill_router(model_->spec()) ? 1 : 0;
    batch.seqs.host_cu_q = cu.data();
    batch.seqs.host_kv_start = start.data();
    batch.seqs.host_block_table = blocks_.data();
  }

  std::vector<int32_t> image_rows;
  std::vector<ImageRun> runs;
  for (int64_t i = 0; i < rows && kind == Kind::kPrompt; ++i) {
    if (image_token_ < 0 || tokens[static_cast<size_t>(i)] != image_token_) continue;
    if (runs.empty() || runs.back().row + runs.back().count != i) {
      runs.push_back({.row = i, .first = std::ssize(image_rows)});
    }
    ++runs.back().count;
    image_rows.push_back(next_image_row_++);
  }
  if (!runs.empty()) {
    batch.images = {.features = upload_rows(features_, model_->vision()->spec().feature_width()),
                    .rows = upload<int32_t>(image_rows, DType::kI32, {std::ssize(image_rows)}),
                    .runs = runs};
  }

  const ArenaScope scope(arena_);
  const bool on_host = options_.ops->device == DeviceKind::kCpu;
  StepContext context{*stream_, *options_.ops, arena_, batch, *kv_, on_host ? &plans_ : nullptr};
  const int64_t width = model_->spec().hidden;
  std::vector<float>& kept = mtp_previous ? mtp_hidden_ : hidden_rows_;
  last = std::min(last, rows);
  std::vector<int32_t> wanted(static_cast<size_t>(last));
  std::iota(wanted.begin(), wanted.end(), static_cast<int32_t>(rows - last));
  const AskedRows asked{upload<int32_t>(wanted, DType::kI32, {last}),
                        kind == Kind::kPrompt ? last : 0};
  if (!model_->spec().mtp) context.asked = &asked;  // the module goes over all rows
  TensorView hidden;
  if (mtp_previous) {
    hidden = model_->mtp_hidden(context, upload_rows(*mtp_previous, width));
    kept.clear();
  } else {
    hidden = model_->hidden(context);
  }
  const std::vector<float> values = download(hidden);
  kept.insert(kept.end(), values.begin(), values.end());
  TensorView out = take_rows_f32(arena_, last, vocab());
  const int64_t computed = hidden.dim(0);
  model_->logits(context, hidden.rows(computed - last, computed), asked.prompt_rows, out);
  return download(out);
}

template <class T>
TensorView Driver::upload(const std::vector<T>& values, DType dtype,
                          std::initializer_list<int64_t> dims) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  void* data = inputs_.take(bytes);
  copy_bytes(*stream_, data, values.data(), bytes);
  synchronize(*stream_);
  return {data, dtype, dims};
}

/// Rows of `width` in the activation type.
TensorView Driver::upload_rows(const std::vector<float>& values, int64_t width) {
  const int64_t rows = static_cast<int64_t>(values.size()) / width;
  if (options_.ops->activation == DType::kF32)
    return upload<float>(values, DType::kF32, {rows, width});
  std::vector<bf16> rounded;
  for (const float value : values) rounded.push_back(float_to_bf16(value));
  return upload<bf16>(rounded, DType::kBF16, {rows, width});
}

/// A contiguous f32 or bf16 tensor of the device.
std::vector<float> Driver::download(const TensorView& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.size()));
  std::vector<bf16> narrow;
  void* data = out.data();
  if (tensor.dtype == DType::kBF16) {
    narrow.resize(out.size());
    data = narrow.data();
  }
  copy_bytes(*stream_, data, tensor.data, tensor.bytes());
  synchronize(*stream_);
  std::transform(narrow.begin(), narrow.end(), out.begin(), bf16_to_float);
  return out;
}

std::vector<float> Driver::prefill(std::span<const int32_t> tokens, int64_t chunk, int64_t last) {
  const int64_t total = static_cast<int64_t>(tokens.size());
  if (chunk == 0) chunk = total;
  if (last < 0) last = total;
  if (chunk < total && has_prefill_router(model_->spec())) return layered(tokens, chunk, last);
  std::vector<float> out;
  for (int64_t begin = 0; begin < total; begin += chunk) {
    const int64_t end = std::min(begin + chunk, total);
    const int64_t wanted = std::clamp(end - (total - last), int64_t{0}, end - begin);
    const std::vector<float> logits =
        step(tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
             num_computed_, Kind::kPrompt, wanted, nullptr);
    num_computed_ += end - begin;
    out.insert(out.end(), logits.begin(), logits.end());
  }
  return out;
}

std::vector<int32_t> Driver::kinds() {
  std::vector<int32_t> out;
  for (size_t i = 0; i < model_->spec().layers.size(); ++i) {
    const TensorView kinds = std::get<PagedKv>(kv_->layer(LayerId{static_cast<int32_t>(i)})).kinds;
    std::vector<int32_t> layer(static_cast<size_t>(kinds.dim(1)));
    copy_bytes(*stream_, layer.data(), kinds.row<int32_t>(blocks_[0]), kinds.dim(1) * 4);
    synchronize(*stream_);
    out.insert(out.end(), layer.begin(), layer.end());
  }
  return out;
}

std::vector<float> Driver::layered(std::span<const int32_t> tokens, int64_t piece, int64_t last) {
  const ArenaScope inputs(inputs_), scope(arena_);
  const int64_t total = static_cast<int64_t>(tokens.size()), width = model_->spec().hidden;
  std::vector<std::array<int32_t, 2>> cu;
  std::vector<int32_t> start;
  const auto batch_of = [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    std::vector<int32_t> ids, index, delta;
    std::vector<int64_t> kv_slot;
    for (int64_t i = begin; i < end; ++i) {
      ids.push_back(tokens[static_cast<size_t>(i)]);
      index.push_back(static_cast<int32_t>(i));
      delta.push_back(0);
      kv_slot.push_back(int64_t{blocks_[static_cast<size_t>(i / kBlockSize)]} * kBlockSize +
                        i % kBlockSize);
    }
    cu.push_back({0, static_cast<int32_t>(rows)});
    start.push_back(static_cast<int32_t>(begin));
    StepBatch batch;
    batch.ids = upload<int32_t>(ids, DType::kI32, {rows});
    batch.positions = {.index = upload<int32_t>(index, DType::kI32, {rows}),
                       .delta = upload<int32_t>(delta, DType::kI32, {rows})};
    batch.kv_slot = upload<int64_t>(kv_slot, DType::kI64, {rows});
    batch.seqs = {.cu_q = upload<int32_t>({0, static_cast<int32_t>(rows)}, DType::kI32, {2}),
                  .kv_start = upload<int32_t>({start.back()}, DType::kI32, {1}),
                  .block_table = upload<int32_t>(blocks_, DType::kI32,
                                                 {1, static_cast<int64_t>(blocks_.size())}),
                  .num_segments = 1};
    batch.prompt_rows = rows;
    batch.num_prompt_segments = 1;
    return batch;
  };
  std::vector<StepBatch> pieces;
  for (int64_t begin = 0; begin < total; begin += piece) {
    pieces.push_back(batch_of(begin, std::min(begin + piece, total)));
  }
  StepBatch ends = batch_of(0, std::min<int64_t>(total, 2 * RouterArgs::kPooled));
  ends.num_deciding = 1;
  ends.seqs.host_block_table = blocks_.data();
  for (size_t i = 0; i < pieces.size(); ++i) {
    pieces[i].seqs.host_cu_q = cu[i].data();
    pieces[i].seqs.host_kv_start = &start[i];
    pieces[i].seqs.host_block_table = blocks_.data();
  }
  const TensorView residual = take_rows_f32(arena_, total, width);
  const bool on_host = options_.ops->device == DeviceKind::kCpu;
  StepContext context{*stream_, *options_.ops, arena_, ends, *kv_, on_host ? &plans_ : nullptr};
  const int num_layers = static_cast<int>(model_->spec().layers.size());
  for (int layer = 0; layer < num_layers; ++layer) {
    model_->run_prompt_layers(context, {.pieces = pieces,
                                        .ends = &ends,
                                        .num_ends = ends.num_rows(),
                                        .residual = residual,
                                        .first_layer = layer,
                                        .last_layer = layer + 1});
  }
  last = std::min(last, total);
  const TensorView hidden = take_rows(context, last, width);
  model_->final_norm(context, residual.rows(total - last, total), hidden);
  TensorView out = take_rows_f32(arena_, last, vocab());
  model_->logits(context, hidden, last, out);
  num_computed_ = total;
  return download(out);
}

std::vector<float> Driver::decode(int32_t token) {
  return step({&token, 1}, num_computed_++, Kind::kDecode, 1, nullptr);
}

std::vector<int32_t> Driver::greedy(std::vector<float> logits, size_t count) {
  std::vector<int32_t> out;
  const size_t v = static_cast<size_t>(vocab());
  while (out.size() < count) {
    if (!out.empty()) logits = decode(out.back());
    out.push_back(argmax(std::span(logits).last(v)));
  }
  return out;
}

std::vector<float> Driver::mtp(std::span<const int32_t> tokens, int64_t first,
                               std::span<const float> previous, std::vector<float>* hidden) {
  const std::vector<float> rows(previous.begin(), previous.end());
  const Kind kind = tokens.size() > 1 ? Kind::kPrompt : Kind::kDecode;
  std::vector<float> logits = step(tokens, first, kind, static_cast<int64_t>(tokens.size()), &rows);
  if (hidden) *hidden = mtp_hidden_;
  return logits;
}

Driver::DraftLogits Driver::draft(std::span<const int32_t> prompt, int32_t next,
                                  std::span<const int32_t> drafts) {
  prefill(prompt, 0, 1);
  std::vector<int32_t> ids(prompt.begin() + 1, prompt.end());
  ids.push_back(next);
  DraftLogits out;
  std::vector<float> hidden;
  out.prompt = mtp(ids, 0, hidden_rows(), &hidden);
  out.steps.emplace_back(out.prompt.end() - vocab(), out.prompt.end());
  for (size_t i = 0; i + 1 < drafts.size(); ++i) {
    const std::vector<float> last(hidden.end() - model().spec().hidden, hidden.end());
    out.steps.push_back(
        mtp(drafts.subspan(i, 1), static_cast<int64_t>(ids.size() + i), last, &hidden));
  }
  return out;
}

}  // namespace weft::testing
