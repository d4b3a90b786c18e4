// Quantised KV caches on the GPU: codes and scales are those of kernels/kv_codes.h, bit for bit, at
// the places that kernels/cuda/kv_format.h tells.

#include <algorithm>
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

/// A row as it lies in the cache.
struct Row {
  std::vector<uint8_t> codes;  // bytes
  std::vector<float> scales;
};
/// Scales of the static formats: of channel `d`, the same for all of them in fp8.
float given_scale(KvFormat format, int d) {
  return format == KvFormat::kInt8 ? 0.003f + 0.0007f * static_cast<float>(d % 13) : 0.0173f;
}

Row quantise(KvFormat format, const float* x) {
  const int bits = kv_code_bits(format), word = 32 / bits;
  Row row;
  row.codes.resize(kDim * static_cast<size_t>(bits) / 8);
  const auto put = [&](int d, uint32_t code) {
    const int place = d / word * word + d % word / 2 + d % 2 * (word / 2);
    row.codes[static_cast<size_t>(place * bits / 8)] |=
        static_cast<uint8_t>(code << (place * bits % 8));
  };
  const auto byte_code = [&](float scaled) {
    return format == KvFormat::kInt8Dynamic || format == KvFormat::kInt8 ? kv_int8_code(scaled)
                                                                         : kv_fp8_code(scaled);
  };
  if (kv_has_static_scales(format)) {
    for (int d = 0; d < kDim; ++d) put(d, byte_code(x[d] * (1.0f / given_scale(format, d))));
    return row;
  }
  const int group = format == KvFormat::kInt4 ? kKvInt4Group : kDim;
  for (int first = 0; first < kDim; first += group) {
    float high = x[first], low = x[first];
    bool finite = true;
    for (int d = first; d < first + group; ++d) {
      finite = finite && std::isfinite(x[d]);
      high = std::max(high, x[d]);
      low = std::min(low, x[d]);
    }
    if (format == KvFormat::kInt4) {
      const KvInt4Scale scale = kv_int4_scale(high, low, finite);
      row.scales.push_back(scale.scale);
      for (int d = first; d < first + group; ++d) {
        put(d, kv_int4_code(x[d] * scale.inverse, scale.zero));
      }
      continue;
    }
    const float amax = finite ? std::max(high, -low) : std::numeric_limits<float>::infinity();
    const KvRowScale scale = kv_row_scale(amax, kv_largest_code(format));
    row.scales.push_back(scale.scale);
    for (int d = first; d < first + group; ++d) put(d, byte_code(x[d] * scale.inverse));
  }
  return row;
}

/// How far a value may be from what is read: half a step, and a little for three roundings.
float tolerance(KvFormat format, float x, float scale) {
  const bool fp8 = format == KvFormat::kFp8Block || format == KvFormat::kFp8;
  const float step = fp8 ? std::max(std::fabs(x) / 8, scale * 0x1p-9f) : scale;
  return 0.502f * step + 1e-30f;
}

class KvFormatTest : public testing::TestWithParam<KvFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, KvFormatTest,
                         testing::Values(KvFormat::kInt8Dynamic, KvFormat::kFp8Block,
                                         KvFormat::kInt8, KvFormat::kFp8, KvFormat::kInt4),
                         [](const auto& info) { return std::string(kv_format_name(info.param)); });

TEST_P(KvFormatTest, StoresAreBitForBit) {
  const KvFormat format = GetParam();
  const std::vector<float> rows = rows_of_all_inputs();
  const auto count = static_cast<int64_t>(rows.size()) / kDim;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<int64_t> slots(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) slots[static_cast<size_t>(i)] = i;
  std::vector<float> given;
  for (int d = 0; d < kDim; ++d) given.push_back(given_scale(format, d));
  const DeviceTensor scales(DType::kF32, {1, kDim}, given);
  const DeviceTensor k(DType::kBF16, {count, 1, kDim}, rows), q(DType::kBF16, {count, 1, kDim});
  const DeviceTensor slot(slots), index(std::vector<int32_t>(slots.size()));
  const DeviceTensor table(DType::kF32, {1}, {0.0f});
  const KvShape shape{format, 1, kDim, kBlock};
  const int64_t bytes = cuda::kv_block_bytes(shape);
  const int64_t row_bytes = kDim * kv_code_bits(format) / 8;
  const int row_scales = kv_scales_per_row(format, kDim);
  EXPECT_EQ(bytes, 2 * kBlock * (row_bytes + row_scales * 4));
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
  args.kv.k_scale = args.kv.v_scale = scales.view.ptr<float>();
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
      const std::byte* codes = block + (plane * kBlock + i % kBlock) * row_bytes;
      ASSERT_EQ(std::memcmp(codes, want.codes.data(), want.codes.size()), 0) << "row " << i;
      for (int g = 0; g < row_scales; ++g) {
        float scale;
        std::memcpy(
            &scale,
            block + 2 * kBlock * row_bytes + ((plane * row_scales + g) * kBlock + i % kBlock) * 4,
            4);
        const float of = want.scales[static_cast<size_t>(g)];
        ASSERT_TRUE(scale == of || (std::isnan(scale) && std::isnan(of))) << "row " << i;
      }
      const float* read = (plane == 0 ? read_k : read_v).data() + i % kBlock * kDim;
      for (int d = 0; d < kDim; ++d) {
        const float x = rows[static_cast<size_t>(i * kDim + d)];
        if (kv_has_static_scales(format)) {
          const float scale = given_scale(format, d), most = kv_largest_code(format) * scale;
          const float clamped = std::isnan(x) ? 0.0f : std::clamp(x, -most, most);
          ASSERT_LE(std::fabs(read[d] - clamped), tolerance(format, clamped, scale))
              << "row " << i << ": " << x;
          continue;
        }
        const float scale = want.scales[static_cast<size_t>(d * row_scales / kDim)];
        if (std::isnan(scale)) {
          ASSERT_TRUE(std::isnan(read[d])) << "row " << i;
        } else if (std::fabs(x) < 3e38f) {  // a zero point's step beyond that is infinite
          ASSERT_LE(std::fabs(read[d] - x), tolerance(format, x, scale))
              << "row " << i << ": " << x;
        }
      }
    }
  }
}

}  // namespace
}  // namespace weft
