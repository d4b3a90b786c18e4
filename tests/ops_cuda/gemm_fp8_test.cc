// The block-scaled fp8 product against the oracle on the same codes and scales.

#include <algorithm>
#include <cmath>

#include "kernels/cuda/gemm.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

float e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

/// Nearest e4m3 value, ties to the even code, by search.
float e4m3_rounded(float x) {
  int best = 0;
  const float magnitude = std::fabs(x);
  for (int code = 1; code < 0x7f; ++code) {
    const float now = std::fabs(e4m3_value(static_cast<uint8_t>(code)) - magnitude);
    const float then = std::fabs(e4m3_value(static_cast<uint8_t>(best)) - magnitude);
    if (now < then || (now == then && code % 2 == 0)) best = code;
  }
  return std::copysign(e4m3_value(static_cast<uint8_t>(best)), x);
}

struct Case {
  int64_t m, n, k;
  Epilogue epilogue = Epilogue::kStore;
  DType out = DType::kF32;
  int64_t scale_rows = 128;  ///< rows of the weight that share their scales, a multiple of 16
};

struct Problem {
  explicit Problem(const Case& c)
      : groups((c.n + 15) / 16), blocks_k((c.k + 127) / 128), stride((c.k + 15) / 16 * 16) {
    std::vector<int32_t> raw(static_cast<size_t>(c.n * stride / 4));
    for (size_t i = 0; i < raw.size(); ++i) {
      raw[i] = static_cast<int32_t>(philox4x32(21, i, 0)[0] & 0xBFBFBFBFu);  // no NaN, moderate
    }
    const std::vector<float> drawn = random_bf16(groups * blocks_k, 22, 0.01f);
    std::vector<float> scales(drawn.size());
    for (int64_t i = 0; i < groups * blocks_k; ++i) {
      const int64_t first = i / blocks_k * 16 / c.scale_rows * c.scale_rows / 16;
      scales[static_cast<size_t>(i)] = drawn[static_cast<size_t>(first * blocks_k + i % blocks_k)];
    }
    values.resize(static_cast<size_t>(c.n * c.k));
    for (int64_t n = 0; n < c.n; ++n) {
      for (int64_t k = 0; k < c.k; ++k) {
        const int64_t at = n * stride + k;
        const auto code = static_cast<uint8_t>(
            static_cast<uint32_t>(raw[static_cast<size_t>(at / 4)]) >> (at % 4 * 8));
        values[static_cast<size_t>(n * c.k + k)] =
            e4m3_value(code) * scales[static_cast<size_t>(n / 16 * blocks_k + k / 128)];
      }
    }
    codes = DeviceTensor(raw);
    device_scales = DeviceTensor(DType::kF32, {groups, blocks_k}, scales);
  }
  void run(Stream& stream, const TensorView& x, const TensorView& out, const Case& c) const {
    ArenaScope scope(stream.scratch());
    cuda::Gemm gemm;
    gemm.a = x;
    gemm.b = static_cast<const std::byte*>(codes.view.data);
    gemm.n = c.n;
    gemm.b_row_bytes = stride;
    gemm.out = out;
    gemm.epilogue = c.epilogue;
    cuda::gemm_fp8(stream, gemm, cuda::quantize_rows(stream, x),
                   {device_scales.view.ptr<float>(), static_cast<int>(groups), blocks_k, 0});
  }
  int64_t groups, blocks_k, stride;
  std::vector<float> values;
  DeviceTensor codes, device_scales;
};

void check(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k);
  const Problem problem(c);
  const int64_t columns = c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
  const int64_t x_stride = (c.k + 7) / 8 * 8;
  std::vector<float> x = random_bf16(c.m * x_stride, 23);
  for (size_t i = 0; i < x.size() && i < 128; ++i) x[i] = 0;  // a block of zeros
  const DeviceTensor dx(DType::kBF16, {c.m, x_stride}, x);
  std::vector<float> expected = random_bf16(c.m * columns, 24);
  const DeviceTensor out(c.out, {c.m, columns}, expected);
  CudaTestStream stream;
  problem.run(stream, dx.view.columns(0, c.k), out.view, c);
  stream.sync();

  std::vector<float> rounded(static_cast<size_t>(c.m * c.k));
  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t begin = 0; begin < c.k; begin += 128) {
      const int64_t end = std::min(c.k, begin + 128);
      float largest = 0;
      for (int64_t k = begin; k < end; ++k) {
        largest = std::max(largest, std::fabs(x[static_cast<size_t>(m * x_stride + k)]));
      }
      for (int64_t k = begin; k < end && largest > 0; ++k) {
        const float value = x[static_cast<size_t>(m * x_stride + k)] * (448.0f / largest);
        rounded[static_cast<size_t>(m * c.k + k)] = e4m3_rounded(value) * (largest / 448.0f);
      }
    }
  }
  std::vector<float> values = problem.values;
  Weight weight;
  weight.shape = {WeightFormat::kF32, c.n, c.k, 1};
  weight.data = reinterpret_cast<std::byte*>(values.data());
  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, 1 << 20).value());
  Stream host(pool, scratch);
  LinearArgs oracle;
  oracle.x = TensorView(rounded.data(), DType::kF32, {c.m, c.k});
  oracle.weight = &weight;
  oracle.out = TensorView(expected.data(), DType::kF32, {c.m, columns});
  oracle.epilogue = c.epilogue;
  ref_ops().linear(host, oracle);
  // The tensor cores add fp8 products with about 14 bits.
  EXPECT_LT(relative_l2(out.floats(), expected), c.out == DType::kF32 ? 1e-3 : 3e-3);
}

TEST(GemmFp8, Small) {
  check({1, 8, 16});
  check({3, 1, 40});
  check({65, 130, 136});
  check({70, 128, 264, Epilogue::kSiluMul});
  check({129, 72, 256, Epilogue::kAdd});
  check({70, 160, 640, Epilogue::kSiluMul, DType::kF32, 16});
  check({70, 200, 648, Epilogue::kStore, DType::kF32, 48});
}

TEST(GemmFp8, Shapes) {
  check({257, 520, 520});
  check({300, 1024, 384, Epilogue::kSiluMul, DType::kBF16});
  check({300, 384, 384, Epilogue::kSiluMul, DType::kBF16});  // a half that ends inside a block
  check({2049, 4104, 136});
  check({1000, 8192, 256, Epilogue::kSiluMul, DType::kBF16});
  check({1920, 4352, 392, Epilogue::kAdd});
  check({1920, 4352, 392, Epilogue::kStore, DType::kBF16, 16});
  check({1920, 4448, 392, Epilogue::kSiluMul, DType::kBF16, 48});
}

TEST(GemmFp8, BitsDoNotDependOnRows) {
  for (const Epilogue epilogue : {Epilogue::kAdd, Epilogue::kSiluMul}) {
    constexpr int64_t kRows = 2300;
    const Case c{kRows, 4096, 1024, epilogue,
                 epilogue == Epilogue::kAdd ? DType::kF32 : DType::kBF16};
    const Problem problem(c);
    const int64_t columns = epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
    const DeviceTensor x(DType::kBF16, {kRows, c.k}, random_bf16(kRows * c.k, 4));
    const std::vector<float> ones(static_cast<size_t>(kRows * columns), 1.0f);
    const DeviceTensor together(c.out, {kRows, columns}, ones),
        pieces(c.out, {kRows, columns}, ones);
    CudaTestStream stream;
    problem.run(stream, x.view, together.view, c);
    int64_t begin = 0;
    for (const int64_t size : {1, 2, 61, 64, 100, 128, 129, 300, 515, 1000}) {
      problem.run(stream, x.view.rows(begin, begin + size), pieces.view.rows(begin, begin + size),
                  c);
      begin += size;
    }
    stream.sync();
    EXPECT_TRUE(together.bytes() == pieces.bytes());
  }
}

}  // namespace
}  // namespace weft
