#include "tests/golden/driver.h"

#include <algorithm>

#include "nn/linear.h"

namespace weft::testing {
namespace {

constexpr int64_t kBlockSize = 64;
constexpr int64_t kSlots = 3;

TensorView view(std::vector<int32_t>& data, std::initializer_list<int64_t> dims) {
  return {data.data(), DType::kI32, dims};
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

Result<std::unique_ptr<Driver>> Driver::load(const std::string& dir, const Options& options) {
  std::unique_ptr<Driver> out(new Driver());
  out->options_ = options;
  out->pool_ = std::make_unique<ThreadPool>(options.num_threads);
  out->stream_ = std::make_unique<Stream>(*out->pool_, out->scratch_);
  const ModelConfig config = TRY(load_config(dir));
  const ModelSpec spec = TRY(parse_model(config.config));
  const Checkpoint checkpoint = TRY(Checkpoint::open(dir));
  const LoadOptions load{.format = options.format,
                         .kv_format = options.kv_format,
                         .block_size = kBlockSize,
                         .max_model_len = options.max_len,
                         .num_threads = options.num_threads};
  out->model_ = TRY(Model::load(spec, &checkpoint, load, *out->stream_, *options.ops));
  const int64_t arena_bytes = out->model_->arena_bytes(options.max_len);
  const int64_t logit_bytes = rows_bytes(options.max_len, spec.vocab);
  out->arena_ = Arena(TRY(Buffer::allocate(DeviceKind::kCpu, arena_bytes + logit_bytes)));
  out->scratch_ = Arena(TRY(Buffer::allocate(DeviceKind::kCpu, arena_bytes)));
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
  hidden_rows_.clear();
}

void Driver::set_positions(std::vector<std::array<int32_t, 3>> prompt, int32_t rope_delta) {
  prompt_positions_ = std::move(prompt);
  rope_delta_ = rope_delta;
}

std::vector<float> Driver::step(std::span<const int32_t> tokens, int64_t first, Kind kind,
                                int64_t last, const std::vector<float>* mtp_previous) {
  const int64_t rows = static_cast<int64_t>(tokens.size());
  CHECK(first + rows <= options_.max_len);
  std::vector<int32_t> ids(tokens.begin(), tokens.end()), positions;
  std::vector<int64_t> kv_slot;
  for (int64_t i = first; i < first + rows; ++i) {
    const Position p = position(prompt_positions_, rope_delta_, i);
    positions.insert(positions.end(), {p.t, p.h, p.w});
    kv_slot.push_back(int64_t{blocks_[static_cast<size_t>(i / kBlockSize)]} * kBlockSize +
                      i % kBlockSize);
  }
  std::vector<int32_t> cu = {0, static_cast<int32_t>(rows)};
  std::vector<int32_t> start = {static_cast<int32_t>(first)};
  std::vector<int32_t> read = {slot_};
  std::vector<int32_t> write = {(slot_ + 1) % static_cast<int32_t>(kSlots)};
  if (!mtp_previous) slot_ = write[0];
  StepBatch batch;
  batch.ids = view(ids, {rows});
  batch.positions = view(positions, {rows, 3});
  batch.kv_slot = TensorView(kv_slot.data(), DType::kI64, {rows});
  batch.seqs = {.cu_q = view(cu, {2}),
                .kv_start = view(start, {1}),
                .block_table = view(blocks_, {1, static_cast<int64_t>(blocks_.size())}),
                .num_segments = 1};
  batch.read_slot = view(read, {1});
  batch.write_slot = view(write, {1});
  batch.prompt_rows = kind == Kind::kPrompt ? rows : 0;
  batch.num_prompt_segments = kind == Kind::kPrompt ? 1 : 0;

  const ArenaScope scope(arena_);
  StepContext context{*stream_, *options_.ops, arena_, batch, *kv_};
  const int64_t width = model_->spec().hidden;
  std::vector<float>& kept = mtp_previous ? mtp_hidden_ : hidden_rows_;
  TensorView hidden;
  if (mtp_previous) {
    std::vector<float> previous = *mtp_previous;
    hidden = model_->mtp_hidden(context, {previous.data(), DType::kF32, {rows, width}});
    kept.clear();
  } else {
    hidden = model_->hidden(context);
  }
  kept.insert(kept.end(), hidden.ptr<float>(), hidden.ptr<float>() + rows * width);
  last = std::min(last, rows);
  TensorView out = take_rows(arena_, last, vocab());
  model_->logits(context, hidden.rows(rows - last, rows), kind == Kind::kPrompt ? last : 0, out);
  return {out.ptr<float>(), out.ptr<float>() + last * vocab()};
}

std::vector<float> Driver::prefill(std::span<const int32_t> tokens, int64_t chunk, int64_t last) {
  const int64_t total = static_cast<int64_t>(tokens.size());
  if (chunk == 0) chunk = total;
  if (last < 0) last = total;
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

}  // namespace weft::testing
