// Packing: what unpack_weight gives back, format by format, beside the oracle's.

#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.h"
#include "tests/ops_cuda/pinned.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

/// Weights with rows of very different size, zeros and signs.
std::vector<float> values_for(int64_t n, int64_t k, DType dtype) {
  std::vector<float> out = random_bf16(n * k, 5);
  for (int64_t i = 0; i < n * k; ++i) {
    float& x = out[static_cast<size_t>(i)];
    if (i / k % 5 == 1) x *= 1e-3f;
    if (i / k % 7 == 2 || i % 97 == 0) x = 0.0f;
    if (i / k % 11 == 3) x *= 4096.0f;
    if (dtype == DType::kBF16) x = bf16_to_float(float_to_bf16(x));
    if (dtype == DType::kF16) x = f16_to_float(float_to_f16(x));
  }
  return out;
}

using Unpack = void(const Weight&, int64_t, TensorView);

std::vector<float> unpacked(Unpack* unpack, const Weight& weight, int64_t expert) {
  std::vector<float> out(static_cast<size_t>(weight.shape.n * weight.shape.k));
  unpack(weight, expert, {out.data(), DType::kF32, {weight.shape.n, weight.shape.k}});
  return out;
}

/// Packs pieces of these rows into the last of three experts on the device and with the oracle.
void check(WeightFormat format, DType source, std::vector<int64_t> rows, int64_t k) {
  int64_t n = 0;
  for (const int64_t r : rows) n += r;
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << " from " << dtype_name(source)
                                  << " " << n << " x " << k);
  const WeightShape shape{format, n, k, 3};
  const std::vector<float> values = values_for(n, k, source);
  const PinnedTensor pinned(source, {n, k}, values);
  std::vector<TensorView> pieces;
  int64_t begin = 0;
  for (const int64_t r : rows) {
    pieces.push_back(pinned.view.rows(begin, begin + r));
    begin += r;
  }

  Weight weight{.shape = shape, .expert_bytes = cuda::weight_bytes(shape)};
  DeviceTensor memory(DType::kU8, {3 * weight.expert_bytes});
  memory.poison();
  weight.data = static_cast<std::byte*>(memory.view.data);
  CudaTestStream stream;
  cuda::pack_weight(stream, weight, 2, pieces);
  stream.sync();
  const std::vector<std::byte> bytes = memory.bytes();
  for (int64_t i = 0; i < 2 * weight.expert_bytes; ++i) {
    ASSERT_EQ(bytes[static_cast<size_t>(i)], std::byte{0xFF}) << "wrote into another expert";
  }
  const std::vector<float> got = unpacked(cuda::unpack_weight, weight, 2);

  if (format == WeightFormat::kFp8Block) {
    begin = 0;
    for (const int64_t r : rows) {
      for (int64_t i = 0; i < r * k; ++i) {
        const int64_t row = i / k, column = i % k;
        float amax = 0;  // of the block of this element
        for (int64_t a = row / 128 * 128; a < std::min(r, row / 128 * 128 + 128); ++a) {
          for (int64_t b = column / 128 * 128; b < std::min(k, column / 128 * 128 + 128); ++b) {
            amax = std::max(amax, std::fabs(values[static_cast<size_t>((begin + a) * k + b)]));
          }
        }
        const auto at = static_cast<size_t>(begin * k + i);
        // Half a step of the value's binade, or of the subnormals.
        const float allowed = std::max(std::fabs(values[at]) / 15.9f, amax / 448 / 1000);
        ASSERT_LE(std::fabs(got[at] - values[at]), allowed) << at;
      }
      begin += r;
    }
    return;
  }
  Weight oracle{.shape = {format, n, k, 1}};
  std::vector<std::byte> host(static_cast<size_t>(ref_ops().weight_bytes(oracle.shape)));
  oracle.data = host.data();
  ThreadPool pool(4);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, 1 << 20).value());
  Stream host_stream(pool, scratch);
  ref_ops().pack_weight(host_stream, oracle, 0, pieces);
  const std::vector<float> expected = unpacked(ref::unpack_weight, oracle, 0);
  EXPECT_EQ(0, std::memcmp(got.data(), expected.data(), got.size() * 4));
}

TEST(PackWeight, SmallEveryFormatAndSource) {
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kInt8,
                                    WeightFormat::kInt4, WeightFormat::kFp8Block}) {
    for (const DType source : {DType::kBF16, DType::kF16, DType::kF32}) {
      check(format, source, {64}, 64);
      check(format, source, {1}, 8);
      check(format, source, {3}, 13);
      check(format, source, {16, 32, 5}, 72);
      check(format, source, {160, 160}, 136);
    }
  }
}

TEST(PackWeight, ManyRows) {
  for (const WeightFormat format :
       {WeightFormat::kBf16, WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kFp8Block}) {
    check(format, DType::kBF16, {256, 144}, 264);
  }
}

TEST(PackWeight, SmallFp8Checkpoint) {
  constexpr int64_t kK = 200;
  const std::vector<int64_t> rows = {144, 300};
  const WeightShape shape{WeightFormat::kFp8Block, 444, kK, 1};
  std::vector<PinnedTensor> tensors;
  std::vector<float> expected;
  uint32_t state = 1;
  for (const int64_t r : rows) {
    PinnedTensor codes(DType::kFP8E4M3, {r, kK}), scales(DType::kF32, {(r + 127) / 128, 2});
    for (int64_t i = 0; i < scales.view.size(); ++i) {
      scales.view.ptr<float>()[i] = 0.25f + static_cast<float>(i);
    }
    for (int64_t i = 0; i < r * kK; ++i) {
      state = state * 1664525u + 1013904223u;
      auto code = static_cast<uint8_t>(state >> 24);
      if ((code & 127) == 127) code = 0x38;  // no NaN
      codes.view.ptr<uint8_t>()[i] = code;
      const int e = code >> 3 & 15, m = code & 7;
      float value = e == 0 ? static_cast<float>(m) * 0x1p-9f
                           : std::ldexp(1.0f + static_cast<float>(m) / 8, e - 7);
      if (code & 128) value = -value;
      expected.push_back(value * scales.view.ptr<float>()[i / kK / 128 * 2 + i % kK / 128]);
    }
    tensors.push_back(std::move(codes));
    tensors.push_back(std::move(scales));
  }
  std::vector<TensorView> pieces;
  for (const PinnedTensor& t : tensors) pieces.push_back(t.view);
  Weight weight{.shape = shape, .expert_bytes = cuda::weight_bytes(shape)};
  DeviceTensor memory(DType::kU8, {weight.expert_bytes});
  memory.poison();
  weight.data = static_cast<std::byte*>(memory.view.data);
  CudaTestStream stream;
  cuda::pack_weight(stream, weight, 0, pieces);
  stream.sync();
  EXPECT_EQ(unpacked(cuda::unpack_weight, weight, 0), expected);
}

TEST(PackWeight, SmallByRows) {
  constexpr int64_t kN = 390, kK = 200;
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kInt8,
                                    WeightFormat::kInt4, WeightFormat::kFp8Block}) {
    SCOPED_TRACE(weight_format_name(format));
    const PinnedTensor pinned(DType::kBF16, {kN, kK}, values_for(kN, kK, DType::kBF16));
    Weight weight{.shape = {format, kN, kK, 1}};
    weight.expert_bytes = cuda::weight_bytes(weight.shape);
    const DeviceTensor whole(DType::kU8, {weight.expert_bytes});
    const DeviceTensor pieces(DType::kU8, {weight.expert_bytes});
    CudaTestStream stream;
    weight.data = static_cast<std::byte*>(whole.view.data);
    const std::vector<TensorView> all = {pinned.view};
    cuda::pack_weight(stream, weight, 0, all);
    weight.data = static_cast<std::byte*>(pieces.view.data);
    for (int64_t row = 0; row < kN; row += 256) {
      const std::vector<TensorView> some = {pinned.view.rows(row, std::min(row + 256, kN))};
      cuda::pack_rows(stream, weight, 0, row, some);
    }
    stream.sync();
    EXPECT_TRUE(whole.bytes() == pieces.bytes());
  }
}

}  // namespace
}  // namespace weft
