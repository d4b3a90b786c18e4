#include <cstring>

#include "kernels/cpu/pack.h"
#include "kernels/cpu/simd.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth handing to another thread

void copy_row(const TensorView& table, int64_t id, int64_t hidden, float* out) {
  if (table.dtype == DType::kF32) {
    memcpy(out, static_cast<const float*>(table.data) + id * table.stride[0],
           static_cast<size_t>(hidden) * sizeof(float));
    return;
  }
  const bf16* row = static_cast<const bf16*>(table.data) + id * table.stride[0];
  int64_t i = 0;
  for (; i + kLanes <= hidden; i += kLanes) store(out + i, load_bf16(row + i));
  for (; i < hidden; ++i) {
    const uint32_t bits = static_cast<uint32_t>(row[i]) << 16;
    memcpy(out + i, &bits, sizeof(bits));
  }
}

/// A row out of packed panels (packed_rows()).
void gather_row(const TensorView& table, int64_t id, int64_t hidden, float* out) {
  const int64_t at = id / kPanelWidth * table.stride[0] + id % kPanelWidth * table.stride[1];
  if (table.dtype == DType::kF32) {
    const float* values = static_cast<const float*>(table.data) + at;
    for (int64_t i = 0; i < hidden; ++i) out[i] = values[i * table.stride[2]];
    return;
  }
  const bf16* pairs = static_cast<const bf16*>(table.data) + at;
  for (int64_t i = 0; i < hidden; ++i) {
    const uint32_t bits = static_cast<uint32_t>(pairs[i / 2 * table.stride[2] + i % 2]) << 16;
    memcpy(out + i, &bits, sizeof(bits));
  }
}

}  // namespace

void embed(Stream& stream, const EmbedArgs& args) {
  const int64_t hidden = args.out.shape[1];
  const bool packed = args.table.rank == 4;
  const int64_t vocab = packed ? args.table.shape[0] * kPanelWidth : args.table.shape[0];
  ISA_CHECK(args.table.dtype == DType::kF32 || args.table.dtype == DType::kBF16);
  const auto* ids = static_cast<const int32_t*>(args.ids.data);
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = ids[t * args.ids.stride[0]];
      ISA_CHECK(id >= 0 && id < vocab);
      float* out = static_cast<float*>(args.out.data) + t * args.out.stride[0];
      packed ? gather_row(args.table, id, hidden, out) : copy_row(args.table, id, hidden, out);
    }
  };
  stream.pool().for_each(args.ids.shape[0], 1 + kGrain / (hidden + 1), body);
}

}  // namespace weft::WEFT_ISA_NS
