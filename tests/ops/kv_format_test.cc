// Stores of every KV format: all bf16 inputs against formulas written down once more here, in
// double and by search, bit for bit; on the oracle and on every instruction set.
#include <algorithm>
#include <bit>
#include <cmath>

#include "support.h"

namespace weft {
namespace {

constexpr int kDim = 256;

/// The e4m3 value nearest to x, ties to the even code; beyond the largest it is the largest.
float nearest_e4m3(float x) {
  if (std::isnan(x)) return 0;
  const double magnitude = std::min(448.0, std::abs(static_cast<double>(x)));
  int best = 0;
  double error = 1e300;
  for (int code = 0; code <= 0x7E; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    const double e = std::abs(value - magnitude);
    if (e < error || (e == error && code % 2 == 0)) {
      best = code;
      error = e;
    }
  }
  const int exponent = best >> 3, mantissa = best & 7;
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(std::signbit(x) ? -value : value);
}

float clamp_round(float x, float low, float high) {
  if (std::isnan(x)) return 0;
  // No code is -0.
  return static_cast<float>(
      std::nearbyint(std::clamp(static_cast<double>(x), double{low}, double{high})) + 0.0);
}

/// Of values that share a scale of their own.
std::vector<float> expected_group(KvFormat format, const std::vector<float>& row) {
  std::vector<float> out;
  if (std::any_of(row.begin(), row.end(), [](float x) { return !std::isfinite(x); })) {
    return std::vector<float>(row.size(), kNaN);
  }
  const float low = std::min(0.0f, *std::min_element(row.begin(), row.end()));
  const float high = std::max(0.0f, *std::max_element(row.begin(), row.end()));
  if (format == KvFormat::kInt4) {
    const float half = std::max(0.5f * high - 0.5f * low, 1e-30f), inverse = 7.5f / half;
    const float zero = clamp_round(-low * inverse, 0, 15);
    // The scale's four lowest bits are the zero point.
    const float exact = half / 7.5f;
    const uint32_t bits = std::bit_cast<uint32_t>(exact) / 16 * 16 + static_cast<uint32_t>(zero);
    for (const float x : row) {
      const float code = std::clamp(clamp_round(x * inverse, -15, 15) + zero, 0.0f, 15.0f);
      out.push_back((code - zero) * std::bit_cast<float>(bits));
    }
    return out;
  }
  const float amax = std::max({high, -low, 1e-30f});
  const float most = format == KvFormat::kInt8Dynamic ? 127.0f : 448.0f;
  const float inverse = most / amax, scale = amax / most;
  for (const float x : row) {
    const float scaled = x * inverse;
    const float code =
        format == KvFormat::kInt8Dynamic ? clamp_round(scaled, -127, 127) : nearest_e4m3(scaled);
    out.push_back(code * scale);
  }
  return out;
}

/// What a cache gives back for `row`.
std::vector<float> expected(KvFormat format, const std::vector<float>& row, const float* scales) {
  std::vector<float> out;
  if (kv_has_static_scales(format)) {
    for (size_t i = 0; i < row.size(); ++i) {
      const float scaled = row[i] * (1.0f / scales[i]);
      const float code =
          format == KvFormat::kInt8 ? clamp_round(scaled, -127, 127) : nearest_e4m3(scaled);
      out.push_back(code * scales[i]);
    }
    return out;
  }
  const size_t part = format == KvFormat::kInt4 ? 64 : row.size();
  for (size_t first = 0; first < row.size(); first += part) {
    const auto begin = row.begin() + static_cast<int64_t>(first);
    const std::vector<float> values =
        expected_group(format, {begin, begin + static_cast<int64_t>(part)});
    out.insert(out.end(), values.begin(), values.end());
  }
  return out;
}

/// Rows [n, 1, kDim] through a cache and back: K rows are `rows`, V rows the same backwards.
struct RoundTrip {
  Floats k, v;
};
RoundTrip round_trip(const OpTable& ops, Stream& stream, KvFormat format,
                     const std::vector<std::vector<float>>& rows, const float* scales) {
  const auto n = static_cast<int64_t>(rows.size());
  constexpr int kBlock = 32;
  PagedKv kv{.shape = {format, 1, kDim, kBlock}};
  kv.block_bytes = ops.kv_block_bytes(kv.shape);
  kv.num_blocks = (n + kBlock - 1) / kBlock;
  kv.k_scale = kv.v_scale = scales;
  Buffer memory = Buffer::allocate(DeviceKind::kCpu, kv.block_bytes * kv.num_blocks).value();
  kv.data = memory.data();
  std::memset(kv.data, 0xFF, static_cast<size_t>(memory.bytes()));
  Floats k({n, 1, kDim}), v({n, 1, kDim}), q({n, 1, kDim});
  std::vector<int64_t> slots;
  Ints index(std::vector<int32_t>(static_cast<size_t>(n), 0));
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<float>& row = rows[static_cast<size_t>(i)];
    std::copy(row.begin(), row.end(), k.data.begin() + i * kDim);
    std::copy(row.rbegin(), row.rend(), v.data.begin() + i * kDim);
    slots.push_back(n - 1 - i);
  }
  QkvPrepareArgs args;
  args.q = q.view;
  args.k = k.view;
  args.v = v.view;
  args.kv = kv;
  uint8_t axis = 0;
  args.rope.axis = TensorView(&axis, DType::kU8, {0});
  args.positions.index = index.view;
  args.kv_slot = TensorView(slots.data(), DType::kI64, {n});
  ops.qkv_prepare(stream, args);
  RoundTrip out{Floats({kv.num_blocks * kBlock, 1, kDim}),
                Floats({kv.num_blocks * kBlock, 1, kDim})};
  for (int64_t b = 0; b < kv.num_blocks; ++b) {
    const auto part = [b](const Floats& x) { return x.view.rows(b * kBlock, (b + 1) * kBlock); };
    ops.kv_read_block(kv, b, part(out.k), part(out.v));
  }
  return out;
}

bool same_bits(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

void expect_stores(const OpTable& ops, Stream& stream, KvFormat format,
                   const std::vector<std::vector<float>>& rows, const std::string& what,
                   float scale = 1) {
  const std::vector<float> scales(kDim, scale);
  const RoundTrip got = round_trip(ops, stream, format, rows, scales.data());
  int64_t wrong = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    const std::vector<float> want = expected(format, rows[r], scales.data());
    const size_t at = (rows.size() - 1 - r) * kDim;
    for (size_t i = 0; i < kDim; ++i) {
      const bool fine = same_bits(got.k.data[at + i], want[i]) &&
                        same_bits(got.v.data[at + kDim - 1 - i], want[i]);
      if (fine || ++wrong > 3) continue;
      ADD_FAILURE() << kv_format_name(format) << " " << what << ": " << rows[r][i] << " gives K "
                    << got.k.data[at + i] << " V " << got.v.data[at + kDim - 1 - i] << ", not "
                    << want[i];
    }
  }
  EXPECT_EQ(wrong, 0) << kv_format_name(format) << " " << what;
}

/// Every bf16 number, 255 a row; the row's last value is `amax`, so that a scale holds for many.
std::vector<std::vector<float>> all_bf16(float amax) {
  std::vector<std::vector<float>> rows;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    if (rows.empty() || rows.back().size() == kDim - 1) rows.emplace_back();
    rows.back().push_back(bf16_to_float(static_cast<bf16>(bits)));
  }
  for (std::vector<float>& row : rows) {
    row.resize(kDim, 0.0f);
    row.back() = amax;
  }
  return rows;
}

void expect_all_stores(const OpTable& ops, Stream& stream) {
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt4}) {
    for (const float amax : {0.0f, 1.0f, 0.7f, -3.75f, 448.0f, 127.0f, 1e-38f, 3e38f}) {
      expect_stores(ops, stream, format, all_bf16(amax), "amax " + std::to_string(amax));
    }
  }
  for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp8}) {
    for (const float scale : {1.0f, 0.0078125f, 0.0123f, 3.3f, 1e-20f}) {
      expect_stores(ops, stream, format, all_bf16(0), "scale " + std::to_string(scale), scale);
    }
  }
}

class KvStores : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(KvStores);

TEST_P(KvStores, EveryBf16InputGivesTheCodeOfTheFormula) {
  expect_all_stores(ops_, stream_);
}

TEST(KvStoresOfTheOracle, EveryBf16InputGivesTheCodeOfTheFormula) {
  TestStream stream;
  expect_all_stores(ref_ops(), stream);
}

TEST_P(KvStores, RandomRowsAreThoseOfTheOracle) {
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt4}) {
    std::vector<std::vector<float>> rows;
    for (uint64_t r = 0; r < 400; ++r) {
      const float scale = std::ldexp(1.0f, static_cast<int>(r % 61) - 30);
      Floats row = random_floats({kDim}, 100 + r, scale);
      row.data.resize(kDim);
      if (r % 3 == 0) row.data[r % kDim] *= 1000;                          // an outlier channel
      if (r % 7 == 0) std::fill(row.data.begin(), row.data.end(), scale);  // a constant row
      if (r % 11 == 0) row.data.assign(kDim, 0.0f);
      if (r % 5 == 0) {  // one sign
        for (float& x : row.data) x = std::abs(x);
      }
      rows.push_back(row.data);
    }
    expect_stores(ops_, stream_, format, rows, "random");
  }
}

// Codes lie elsewhere where a head is no multiple of 64 dims; every place is found again.
TEST_P(KvStores, EveryDimAndTokenIsFoundAgain) {
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt4,
                                KvFormat::kInt8, KvFormat::kFp8}) {
    for (const int dim : {32, 64, 96, 128, 160, 192, 256}) {
      for (const int block : {16, 32, 64}) {
        const KvShape shape{format, 2, dim, block};
        PagedKv ours{.shape = shape}, oracle{.shape = shape};
        const std::vector<float> scales(static_cast<size_t>(2 * dim), 0.01f);
        std::vector<Buffer> memory;
        const auto n = int64_t{2} * block;
        Floats k = random_floats({n, 2, dim}, 5), v = random_floats({n, 2, dim}, 6);
        Floats q({n, 1, dim});
        std::vector<int64_t> slots;
        for (int64_t i = 0; i < n; ++i) slots.push_back((i * 7 + 3) % n);
        Ints index(std::vector<int32_t>(static_cast<size_t>(n), 0));
        std::vector<float> got[2];
        for (const OpTable* ops : {&ops_, &ref_ops()}) {
          PagedKv& kv = ops == &ops_ ? ours : oracle;
          kv.block_bytes = ops->kv_block_bytes(shape);
          kv.num_blocks = 2;
          kv.k_scale = kv.v_scale = scales.data();
          memory.push_back(Buffer::allocate(DeviceKind::kCpu, kv.block_bytes * 2).value());
          kv.data = memory.back().data();
          QkvPrepareArgs args{.q = q.view, .k = k.view, .v = v.view, .kv = kv};
          uint8_t axis = 0;
          args.rope.axis = TensorView(&axis, DType::kU8, {0});
          args.positions.index = index.view;
          args.kv_slot = TensorView(slots.data(), DType::kI64, {n});
          ops->qkv_prepare(stream_, args);
          Floats back_k({n, 2, dim}), back_v({n, 2, dim});
          for (int64_t b = 0; b < 2; ++b) {
            ops->kv_read_block(kv, b, back_k.view.rows(b * block, (b + 1) * block),
                               back_v.view.rows(b * block, (b + 1) * block));
          }
          std::vector<float>& out = got[ops == &ops_ ? 0 : 1];
          out = back_k.data;
          out.insert(out.end(), back_v.data.begin(), back_v.data.end());
        }
        EXPECT_EQ(got[0], got[1]) << kv_format_name(format) << " D " << dim << " B " << block;
      }
    }
  }
}

TEST_P(KvStores, ARowThatIsNotFiniteIsNaNAndItsNeighboursAreNot) {
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt4}) {
    std::vector<std::vector<float>> rows(5, std::vector<float>(kDim, 0.5f));
    rows[1][17] = std::numeric_limits<float>::infinity();
    rows[3][255] = -kNaN;
    expect_stores(ops_, stream_, format, rows, "not finite");
  }
}

}  // namespace
}  // namespace weft
