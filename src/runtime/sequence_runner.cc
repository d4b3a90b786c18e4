#include "runtime/sequence_runner.h"

#include <algorithm>
#include <numeric>

#include "nn/linear.h"

namespace weft {
namespace {

constexpr int kBlockSize = 64;

TensorView ints(std::vector<int32_t>& values) {
  return {values.data(), DType::kI32, {std::ssize(values)}};
}

}  // namespace

Result<std::unique_ptr<SequenceRunner>> SequenceRunner::create(const Model& model, KvFormat format,
                                                               int64_t max_len, Stream& stream,
                                                               const OpTable& ops) {
  CHECK(ops.device == DeviceKind::kCpu);
  std::unique_ptr<SequenceRunner> out(new SequenceRunner(model, stream, ops));
  out->specs_.assign(model.cache_specs().begin(), model.cache_specs().end());
  for (CacheSpec& spec : out->specs_) {
    if (auto* paged = std::get_if<PagedSpec>(&spec)) {
      paged->format = format;
      paged->block_size = kBlockSize;
    }
  }
  const int64_t blocks = (max_len + kBlockSize - 1) / kBlockSize;
  out->kv_ = std::make_unique<KvStore>(TRY(KvStore::create(out->specs_, ops, blocks, 1)));
  out->blocks_.resize(static_cast<size_t>(blocks));
  std::iota(out->blocks_.begin(), out->blocks_.end(), 0);
  const int64_t logits = kStepRows * model.spec().vocab * 4 + 64;
  out->arena_ =
      Arena(TRY(Buffer::allocate(DeviceKind::kCpu, 2 * model.arena_bytes(kStepRows) + logits)));
  return out;
}

void SequenceRunner::run(std::span<const int32_t> tokens, const OnLogits& on_logits, bool mtp) {
  length_ = std::ssize(tokens);
  CHECK(length_ <= std::ssize(blocks_) * kBlockSize);
  for (int64_t first = 0; first < length_; first += kStepRows) {
    step(tokens, first, on_logits, mtp);
  }
}

void SequenceRunner::step(std::span<const int32_t> tokens, int64_t first, const OnLogits& on_logits,
                          bool mtp) {
  const int64_t rows = std::min(kStepRows, length_ - first);
  std::vector<int32_t> ids(tokens.begin() + first, tokens.begin() + first + rows);
  std::vector<int32_t> index(static_cast<size_t>(rows));
  std::iota(index.begin(), index.end(), static_cast<int32_t>(first));
  std::vector<int64_t> slots(index.begin(), index.end());  // blocks in order: slot = position
  std::vector<int32_t> cu = {0, static_cast<int32_t>(rows)}, start = {static_cast<int32_t>(first)};
  std::vector<int32_t> read = {first == 0 ? -1 : 0}, write = {0};
  StepBatch batch;
  batch.ids = ints(ids);
  batch.positions.index = ints(index);
  batch.kv_slot = {slots.data(), DType::kI64, {rows}};
  batch.seqs = {.cu_q = ints(cu),
                .kv_start = ints(start),
                .block_table = {blocks_.data(), DType::kI32, {1, std::ssize(blocks_)}},
                .num_segments = 1,
                .host_cu_q = cu.data(),
                .host_kv_start = start.data()};
  batch.read_slot = ints(read);
  batch.write_slot = ints(write);
  batch.prompt_rows = rows;
  batch.num_prompt_segments = 1;
  const ArenaScope scope(arena_);
  StepContext context{stream_, ops_, arena_, batch, *kv_};
  const TensorView hidden = model_.hidden(context);
  if (on_logits) {
    const ArenaScope logits_scope(arena_);
    const TensorView logits = take_rows_f32(arena_, rows, model_.spec().vocab);
    model_.logits(context, hidden, rows, logits);
    on_logits(first, logits);
  }
  if (!mtp || !model_.spec().mtp) return;
  // The module's row i has the token behind it; the last token of all stands in for its own.
  for (int64_t i = 0; i < rows; ++i) {
    ids[static_cast<size_t>(i)] = tokens[static_cast<size_t>(std::min(first + i + 1, length_ - 1))];
  }
  model_.mtp_hidden(context, hidden);
}

void SequenceRunner::read_cache(
    int layer, const std::function<void(int64_t token, const float* k, const float* v)>& visit) {
  const auto* kv = std::get_if<PagedKv>(&kv_->layer(LayerId{layer}));
  if (!kv) return;
  const int64_t width = int64_t{kv->shape.heads} * kv->shape.head_dim;
  std::vector<float> k(static_cast<size_t>(kBlockSize * width)), v(k.size());
  const auto view = [&](std::vector<float>& x) {
    return TensorView(x.data(), DType::kF32, {kBlockSize, kv->shape.heads, kv->shape.head_dim});
  };
  for (int64_t first = 0; first < length_; first += kBlockSize) {
    ops_.kv_read_block(*kv, first / kBlockSize, view(k), view(v));
    for (int64_t t = first; t < std::min(first + kBlockSize, length_); ++t) {
      visit(t, k.data() + (t - first) * width, v.data() + (t - first) * width);
    }
  }
}

}  // namespace weft
