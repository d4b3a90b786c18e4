#include "runtime/toy_model.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/ref/ref.h"

namespace weft {
namespace {

constexpr uint64_t kEmpty = 0x243F6A8885A308D3u;
constexpr uint64_t kPoisoned = 0xDEADu;

uint64_t mix(uint64_t h, uint64_t x) {
  h = (h ^ x) * 0x9E3779B97F4A7C15u;
  return h ^ h >> 29;
}

uint64_t extend(uint64_t h, int32_t id, const int32_t* position, bool prompt) {
  if (h == kPoisoned || id == ToyModel::kPoison) return kPoisoned;
  h = mix(h, static_cast<uint64_t>(id));
  for (int axis = 0; axis < 3; ++axis) h = mix(h, static_cast<uint64_t>(position[axis]) + 7);
  return mix(h, prompt ? 1 : 2);
}

/// 16 bits a float: exact.
void store_hash(uint64_t h, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(h >> (16 * i) & 0xFFFF);
}

uint64_t load_hash(const float* in) {
  uint64_t h = 0;
  for (int i = 0; i < 4; ++i) h |= static_cast<uint64_t>(in[i]) << (16 * i);
  return h;
}

}  // namespace

ToyModel::ToyModel() {
  spec_.hidden = kHidden;
  spec_.vocab = kVocab;
  specs_ = {PagedSpec{KvFormat::kF32, 1, 8, kBlockSize}, StateSpec{GdnShape{1, 1, 2, 2, 4}}};
}

TensorView ToyModel::hidden(StepContext& context) const {
  const StepBatch& batch = context.batch;
  const int64_t rows = batch.num_rows();
  TensorView out(context.arena.take(rows * kHidden * 4), DType::kF32, {rows, kHidden});
  const auto& kv = std::get<PagedKv>(context.kv.layer(LayerId{0}));
  const auto& state = std::get<StateSlots>(context.kv.layer(LayerId{1}));
  const auto entry = [&](int64_t slot) {
    return reinterpret_cast<uint64_t*>(kv.data + slot / kBlockSize * kv.block_bytes) +
           slot % kBlockSize;
  };
  for (int s = 0; s < batch.seqs.num_segments; ++s) {
    const bool prompt = s < batch.num_prompt_segments;
    const int64_t begin = batch.seqs.cu_q.ptr<int32_t>()[s];
    const int64_t end = batch.seqs.cu_q.ptr<int32_t>()[s + 1];
    CHECK(prompt == (begin < batch.prompt_rows));
    const int64_t first = batch.seqs.kv_start.ptr<int32_t>()[s];
    const int32_t* table = batch.seqs.block_table.row<int32_t>(s);
    const int32_t read = batch.read_slot.ptr<int32_t>()[s];
    uint64_t h = kEmpty;
    if (first > 0) {
      const int64_t before = first - 1;
      h = *entry(int64_t{table[before / kBlockSize]} * kBlockSize + before % kBlockSize);
      uint64_t carried;
      std::memcpy(&carried, state.conv.row<float>(read), sizeof(carried));
      CHECK(carried == h, "state and cache disagree");
    }
    for (int64_t row = begin; row < end; ++row) {
      const int32_t id = batch.ids.ptr<int32_t>()[row];
      CHECK(id != kPanic, "asked for");
      h = extend(h, id, ref::position_of(batch.positions, row).data(), prompt);
      const int64_t at = first + row - begin;
      const int64_t slot = batch.kv_slot.ptr<int64_t>()[row];
      CHECK(slot == int64_t{table[at / kBlockSize]} * kBlockSize + at % kBlockSize);
      *entry(slot) = h;
      store_hash(h, out.row<float>(row));
    }
    const int32_t write = batch.write_slot.ptr<int32_t>()[s];
    std::memcpy(state.conv.row<float>(write), &h, sizeof(h));
  }
  if (context.asked == nullptr) return out;
  const TensorView& asked = context.asked->rows;
  for (int64_t i = 0; i < asked.dim(0); ++i) {  // ascending
    std::memmove(out.row<float>(i), out.row<float>(asked.ptr<int32_t>()[i]), kHidden * 4);
  }
  return out.rows(0, asked.dim(0));
}

void ToyModel::logits(StepContext&, TensorView rows, int64_t prompt_rows, TensorView out) const {
  for (int64_t i = 0; i < rows.dim(0); ++i) {
    row_logits(rows.row<float>(i), i < prompt_rows, out.row<float>(i));
  }
}

void ToyModel::row_logits(const float* hidden, bool prompt, float* out) {
  const uint64_t h = load_hash(hidden);
  for (int64_t v = 0; v < kVocab; ++v) {
    const uint64_t x = mix(mix(h, static_cast<uint64_t>(v)), prompt ? 3 : 4);
    out[v] = static_cast<float>(x >> 40) * 0x1.0p-22f;
    if (v >= kPanic) out[v] = -std::numeric_limits<float>::infinity();
    if (h == kPoisoned) out[v] = std::numeric_limits<float>::quiet_NaN();
  }
}

void ToyModel::expected_hidden(const Request& request, const std::vector<int32_t>& tokens,
                               float* out) {
  uint64_t h = kEmpty;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool prompt = i < request.prompt.size();
    const int32_t index = static_cast<int32_t>(i) + (prompt ? 0 : request.rope_delta);
    std::array<int32_t, 3> position = {index, index, index};
    if (prompt && !request.positions.empty()) position = request.positions[i];
    h = extend(h, tokens[i], position.data(), prompt);
  }
  store_hash(h, out);
}

}  // namespace weft
