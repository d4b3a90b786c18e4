// Quantised KV caches on the GPU: codes and scales are those of kernels/kv_codes.h, bit for bit.

#include <cmath>
#include <limits>

#include "kernels/kv_codes.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr int kDim = 128, kBlock = 16;

/// Rows of kDim values: all 65,536 bf16 patterns in several orders, then rows of special values.
std::vector<float> rows_of_all_inputs() {
  std::vector<float> rows;
  const auto add = [&](uint32_t pattern) {
    rows.push_back(bf16_to_float(static_cast<bf16>(pattern & 0xFFFFu)));
  };
  for (uint32_t i = 0; i < 65536; ++i) add(i);          // of one magnitude and sign
  for (uint32_t i = 0; i < 65536; ++i) add(i * 40503);  // of all, most with a NaN or an infinity
  // Every pattern up to the magnitude that leads its row.
  for (const float lead : {1.0f, 448.0f, 3.7e-5f, 9.4e4f, 1e-30f, 3e38f}) {
    int in_row = 0;
    for (uint32_t i = 0; i < 65536; ++i) {
      const float x = bf16_to_float(static_cast<bf16>(i));
      if (!(std::fabs(x) <= lead)) continue;
      if (in_row++ % (kDim - 1) == 0) rows.push_back(bf16_to_float(float_to_bf16(lead)));
      rows.push_back(x);
    }
    while (rows.size() % kDim != 0) rows.push_back(0);
  }
  rows.resize(rows.size() + kDim);  // zeros
  for (const float x :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    rows.resize(rows.size() + kDim, 0.5f);
    rows[rows.size() - 77] = x;
  }
  return rows;
}

struct Row {
  std::vector<uint8_t> codes;
  float scale;
};
Row quantise(KvFormat format, const float* x) {
  float amax = 0;
  for (int i = 0; i < kDim; ++i) {
    if (!std::isfinite(x[i])) amax = std::numeric_limits<float>::infinity();
    amax = std::max(amax, std::fabs(x[i]));
  }
  const KvRowScale scale = kv_row_scale(amax, kv_largest_code(format));
  Row row;
  row.scale = scale.scale;
  for (int i = 0; i < kDim; ++i) {
    const float scaled = x[i] * scale.inverse;
    row.codes.push_back(format == KvFormat::kInt8Dynamic ? kv_int8_code(scaled)
                                                         : kv_fp8_code(scaled));
  }
  return row;
}

TEST(KvFormatTest, StoresAreBitForBit) {
  const std::vector<float> rows = rows_of_all_inputs();
  const auto count = static_cast<int64_t>(rows.size()) / kDim;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<int64_t> slots(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) slots[static_cast<size_t>(i)] = i;
  const DeviceTensor k(DType::kBF16, {count, 1, kDim}, rows), q(DType::kBF16, {count, 1, kDim});
  const DeviceTensor slot(slots), index(std::vector<int32_t>(slots.size()));
  const DeviceTensor table(DType::kF32, {1}, {0.0f});
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kFp8Block}) {
    const KvShape shape{format, 1, kDim, kBlock};
    const int64_t bytes = cuda::kv_block_bytes(shape);
    EXPECT_EQ(bytes, 2 * kBlock * (kDim + 4));
    DeviceTensor pool(DType::kU8, {blocks, bytes});
    pool.poison();
    CudaTestStream stream;
    QkvPrepareArgs args;
    args.q = q.view;
    args.k = args.v = k.view;
    args.rope.cos_sin = table.view;
    args.rope.axis = {table.view.data, DType::kU8, {1}};
    args.positions.index = index.view;
    args.kv_slot = slot.view;
    args.kv = {shape, static_cast<std::byte*>(pool.view.data), bytes, blocks};
    cuda::qkv_prepare(stream, args);
    stream.sync();
    const std::vector<std::byte> raw = pool.bytes();
    std::vector<float> read_k(kBlock * kDim), read_v = read_k;
    for (int64_t i = 0; i < count; ++i) {
      const Row want = quantise(format, rows.data() + i * kDim);
      const std::byte* block = raw.data() + i / kBlock * bytes;
      if (i % kBlock == 0) {
        cuda::kv_read_block(args.kv, i / kBlock, {read_k.data(), DType::kF32, {kBlock, 1, kDim}},
                            {read_v.data(), DType::kF32, {kBlock, 1, kDim}});
      }
      for (const int64_t plane : {0, 1}) {
        const std::byte* codes = block + (plane * kBlock + i % kBlock) * kDim;
        ASSERT_EQ(std::memcmp(codes, want.codes.data(), kDim), 0) << "row " << i;
        float scale;
        std::memcpy(&scale, block + 2 * kBlock * kDim + (plane * kBlock + i % kBlock) * 4, 4);
        ASSERT_TRUE(scale == want.scale || (std::isnan(scale) && std::isnan(want.scale)))
            << "row " << i;
        const float* read = (plane == 0 ? read_k : read_v).data() + i % kBlock * kDim;
        for (int d = 0; d < kDim; ++d) {
          const float x = rows[static_cast<size_t>(i * kDim + d)];
          if (std::isnan(want.scale)) {
            ASSERT_TRUE(std::isnan(read[d])) << "row " << i;
          } else {
            // Half a step of the code, and a little for three roundings.
            const float step = format == KvFormat::kInt8Dynamic
                                   ? scale
                                   : std::max(std::fabs(x) / 8, scale * 0x1p-9f);
            ASSERT_LE(std::fabs(read[d] - x), 0.502f * step + 1e-30f) << "row " << i << ": " << x;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace weft
