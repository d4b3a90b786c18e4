// Quantised KV caches on the GPU: codes and scales are those of kernels/kv_codes.h, bit for bit, at
// the places that kernels/cuda/kv_format.h tells.

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/kv_codes.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr int kBlock = 16;
constexpr int kMaxDim = 256;

bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}
float value_of(uint32_t pattern) {
  return bf16_to_float(static_cast<bf16>(pattern & 0xFFFFu));
}

/// All 65,536 bf16 patterns in two orders.
std::vector<float> rows_of_patterns() {
  std::vector<float> rows;
  for (uint32_t i = 0; i < 65536; ++i) rows.push_back(value_of(i));  // of one magnitude and sign
  for (uint32_t i = 0; i < 65536; ++i) {
    rows.push_back(value_of(i * 40503));  // of all, most with a NaN or an infinity
  }
  return rows;
}

/// All 65,536 bf16 patterns in groups of 64, each with `high` and `low`: what lies between them is
/// stored with their scale, what lies beyond in groups of its own. A value that is not finite is
/// alone among kMaxDim finite ones.
std::vector<float> rows_between(float high, float low) {
  std::vector<float> rows;
  const auto finish = [&](size_t multiple) {
    while (rows.size() % multiple != 0) rows.push_back(0);
  };
  for (const bool between : {true, false}) {
    for (uint32_t i = 0; i < 65536; ++i) {
      const float x = value_of(i);
      if (!std::isfinite(x) || (low <= x && x <= high) != between) continue;
      if (rows.size() % kKvInt4Group == 0) {
        rows.push_back(high);
        rows.push_back(low);
      }
      rows.push_back(x);
    }
    finish(kMaxDim);
  }
  for (uint32_t i = 0; i < 65536; ++i) {
    if (std::isfinite(value_of(i))) continue;
    rows.resize(rows.size() + kMaxDim, low);
    rows[rows.size() - 1 - i % kMaxDim] = value_of(i);
  }
  return rows;
}

/// A row as it lies in the cache.
struct Row {
  std::vector<uint8_t> codes;  // bytes
  std::vector<float> scales;
};

/// Static formats take the scales of the channels, `given`.
Row quantise(KvFormat format, const float* x, const std::vector<float>& given) {
  const int bits = kv_code_bits(format), word = 32 / bits, dim = static_cast<int>(given.size());
  Row row;
  row.codes.resize(static_cast<size_t>(dim * bits / 8));
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
    for (int d = 0; d < dim; ++d) {
      put(d, byte_code(x[d] * (1.0f / given[static_cast<size_t>(d)])));
    }
    return row;
  }
  const int group = format == KvFormat::kInt4 ? kKvInt4Group : dim;
  for (int first = 0; first < dim; first += group) {
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

/// K and V rows of `given.size()` values each through qkv_prepare, `rows_a_call` at a time: codes
/// and scales bit for bit, and what kv_read_block gives near what came.
void expect_stores(KvFormat format, const std::vector<float>& rows, const std::vector<float>& given,
                   int64_t rows_a_call) {
  const auto dim = static_cast<int64_t>(given.size());
  const int64_t count = static_cast<int64_t>(rows.size()) / dim;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<int64_t> slots(static_cast<size_t>(count));
  std::iota(slots.begin(), slots.end(), 0);
  const DeviceTensor scales(DType::kF32, {1, dim}, given);
  const DeviceTensor k(DType::kBF16, {count, 1, dim}, rows), q(DType::kBF16, {count, 1, dim});
  const DeviceTensor slot(slots), index(std::vector<int32_t>(slots.size()));
  const DeviceTensor table(DType::kF32, {1}, {0.0f});
  const KvShape shape{format, 1, static_cast<int>(dim), kBlock};
  const int64_t bytes = cuda::kv_block_bytes(shape);
  const int64_t row_bytes = dim * kv_code_bits(format) / 8;
  const int row_scales = kv_scales_per_row(format, shape.head_dim);
  EXPECT_EQ(bytes, 2 * kBlock * (row_bytes + row_scales * 4));
  DeviceTensor pool(DType::kU8, {blocks, bytes});
  pool.poison();
  CudaTestStream stream;
  QkvPrepareArgs args;
  args.rope.cos_sin = table.view;
  args.rope.axis = {table.view.data, DType::kU8, {1}};
  args.kv = {shape, static_cast<std::byte*>(pool.view.data), bytes, blocks};
  args.kv.k_scale = args.kv.v_scale = scales.view.ptr<float>();
  for (int64_t begin = 0; begin < count; begin += rows_a_call) {
    const int64_t end = std::min(begin + rows_a_call, count);
    args.q = q.view.rows(begin, end);
    args.k = args.v = k.view.rows(begin, end);
    args.positions.index = index.view.rows(begin, end);
    args.kv_slot = slot.view.rows(begin, end);
    cuda::qkv_prepare(stream, args);
  }
  stream.sync();
  const std::vector<std::byte> raw = pool.bytes();
  std::vector<float> read_k(static_cast<size_t>(kBlock * dim)), read_v = read_k;
  for (int64_t i = 0; i < count; ++i) {
    const Row want = quantise(format, rows.data() + i * dim, given);
    const std::byte* block = raw.data() + i / kBlock * bytes;
    if (i % kBlock == 0) {
      cuda::kv_read_block(args.kv, i / kBlock, {read_k.data(), DType::kF32, {kBlock, 1, dim}},
                          {read_v.data(), DType::kF32, {kBlock, 1, dim}});
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
        ASSERT_TRUE(same_bits(scale, of) || (std::isnan(scale) && std::isnan(of))) << "row " << i;
      }
      const float* read = (plane == 0 ? read_k : read_v).data() + i % kBlock * dim;
      for (int64_t d = 0; d < dim; ++d) {
        const float x = rows[static_cast<size_t>(i * dim + d)];
        if (kv_has_static_scales(format)) {
          const float scale = given[static_cast<size_t>(d)];
          const float most = kv_largest_code(format) * scale;
          const float clamped = std::isnan(x) ? 0.0f : std::clamp(x, -most, most);
          ASSERT_LE(std::fabs(read[d] - clamped), tolerance(format, clamped, scale))
              << "row " << i << ": " << x;
          continue;
        }
        const float scale = want.scales[static_cast<size_t>(d * row_scales / dim)];
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

constexpr int64_t kAtOnce = 1 << 20, kFewRows = 500;  // two kernels

// Every channel (int8) has its own scale.
TEST_P(KvFormatTest, StoresFindTheirChannels) {
  const KvFormat format = GetParam();
  for (const int dim : {64, 128, 256}) {
    SCOPED_TRACE(dim);
    std::vector<float> given;
    for (int d = 0; d < dim; ++d) {
      given.push_back(format == KvFormat::kInt8 ? 0.003f + 0.0007f * static_cast<float>(d % 13)
                                                : 0.0173f);
    }
    for (const int64_t rows : {kAtOnce, kFewRows}) {
      expect_stores(format, rows_of_patterns(), given, rows);
    }
  }
}

TEST_P(KvFormatTest, EveryInputAtEveryScaleIsBitForBit) {
  const KvFormat format = GetParam();
  struct Scale {
    float high, low;  // of the values that share a dynamic one
    float given;
  };
  for (const Scale& scale :
       {Scale{1, -1, 1}, Scale{0.7f, -0.2f, 0x1p-7f}, Scale{448, 0, 0.0123f}, Scale{0, -127, 3.3f},
        Scale{3.7e-5f, -9e-5f, 3.7e-5f}, Scale{1e-30f, -1e-38f, 1e-20f},
        Scale{3e38f, -3e38f, 1e34f}, Scale{0, 0, 1e-37f}}) {
    SCOPED_TRACE(testing::Message() << scale.high << " " << scale.low << " " << scale.given);
    const std::vector<float> rows = rows_between(bf16_to_float(float_to_bf16(scale.high)),
                                                 bf16_to_float(float_to_bf16(scale.low)));
    for (const int64_t at_once : {kAtOnce, kFewRows}) {
      expect_stores(format, rows, std::vector<float>(128, scale.given), at_once);
    }
  }
}

}  // namespace
}  // namespace weft
