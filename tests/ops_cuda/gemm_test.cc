// linear_prompt against the oracle, and its exactness: a row's bits are its own.

#include <algorithm>
#include <cmath>

#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

/// A bf16 weight in the layout of cuda_ops.h, and the same values for the oracle.
struct TestWeight {
  TestWeight(int64_t n, int64_t k, uint64_t seed)
      : values(random_bf16(n * k, seed)), device(DType::kBF16, {n, (k + 7) / 8 * 8}, padded(n, k)) {
    weight.shape = {WeightFormat::kBf16, n, k, 1};
    weight.data = static_cast<std::byte*>(device.view.data);
    oracle.shape = {WeightFormat::kF32, n, k, 1};
    oracle.data = reinterpret_cast<std::byte*>(values.data());
  }
  std::vector<float> padded(int64_t n, int64_t k) const {
    const int64_t stride = (k + 7) / 8 * 8;
    std::vector<float> out(static_cast<size_t>(n * stride), NAN);  // padding must not be read
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(values.begin() + i * k, k, out.begin() + i * stride);
    }
    return out;
  }
  std::vector<float> values;
  DeviceTensor device;
  Weight weight, oracle;
};

struct Case {
  int64_t m, n, k;
  Epilogue epilogue = Epilogue::kStore;
  DType out = DType::kBF16;
  bool bias = false;
  int64_t x_gap = 0, out_gap = 0;  ///< columns beside x and out in their buffers
};

void check(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k << " epilogue "
                                  << static_cast<int>(c.epilogue));
  TestWeight w(c.n, c.k, 7);
  const int64_t columns = c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
  const int64_t x_stride = (c.k + 7) / 8 * 8 + c.x_gap;
  const std::vector<float> x = random_bf16(c.m * c.k, 8, 0.25f);
  std::vector<float> x_buffer(static_cast<size_t>(c.m * x_stride), NAN);
  for (int64_t i = 0; i < c.m; ++i) {
    std::copy_n(x.begin() + i * c.k, c.k, x_buffer.begin() + i * x_stride + c.x_gap / 2);
  }
  const DeviceTensor dx(DType::kBF16, {c.m, x_stride}, x_buffer);
  const std::vector<float> bias = random_bf16(c.n, 9);
  const DeviceTensor dbias(DType::kF32, {c.n}, bias);
  std::vector<float> before(static_cast<size_t>(c.m * columns), NAN);
  if (c.epilogue == Epilogue::kAdd) before = random_bf16(c.m * columns, 10);
  const int64_t out_stride = columns + c.out_gap;
  std::vector<float> out_buffer(static_cast<size_t>(c.m * out_stride), 77.0f);
  for (int64_t i = 0; i < c.m; ++i) {
    std::copy_n(before.begin() + i * columns, columns,
                out_buffer.begin() + i * out_stride + c.out_gap / 2);
  }
  const DeviceTensor dout(c.out, {c.m, out_stride}, out_buffer);

  CudaTestStream stream;
  LinearArgs args;
  args.x = dx.view.columns(c.x_gap / 2, c.x_gap / 2 + c.k);
  args.weight = &w.weight;
  if (c.bias) args.bias = dbias.view;
  args.out = dout.view.columns(c.out_gap / 2, c.out_gap / 2 + columns);
  args.epilogue = c.epilogue;
  cuda::linear_prompt(stream, args);
  stream.sync();

  std::vector<float> expected = before;
  if (c.epilogue != Epilogue::kAdd) std::fill(expected.begin(), expected.end(), 0.0f);
  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, 1 << 20).value());
  Stream host(pool, scratch);
  LinearArgs oracle;
  std::vector<float> x_host = x, bias_host = bias;
  oracle.x = TensorView(x_host.data(), DType::kF32, {c.m, c.k});
  oracle.weight = &w.oracle;
  if (c.bias) oracle.bias = TensorView(bias_host.data(), DType::kF32, {c.n});
  oracle.out = TensorView(expected.data(), DType::kF32, {c.m, columns});
  oracle.epilogue = c.epilogue;
  ref_ops().linear(host, oracle);

  const std::vector<float> all = dout.floats();
  std::vector<float> got(expected.size());
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < out_stride; ++j) {
      const float value = all[static_cast<size_t>(i * out_stride + j)];
      const int64_t at = j - c.out_gap / 2;
      if (at >= 0 && at < columns) {
        got[static_cast<size_t>(i * columns + at)] = value;
      } else {
        ASSERT_EQ(value, 77.0f) << "wrote beside its columns";
      }
    }
  }
  EXPECT_LT(relative_l2(got, expected), c.out == DType::kF32 ? 2e-5 : 3e-3);
}

TEST(LinearPrompt, SmallShapes) {
  check({1, 8, 8});
  check({1, 1, 8});
  check({7, 3, 13});
  check({64, 64, 64});
  check({129, 257, 72});
  check({130, 264, 200});
  check({5, 128, 64, Epilogue::kStore, DType::kF32, true});
  check({33, 40, 136, Epilogue::kSiluMul, DType::kBF16});
  check({33, 40, 136, Epilogue::kSiluMul, DType::kBF16, true});
  check({67, 60, 88, Epilogue::kAdd, DType::kF32, true});
  check({67, 60, 88, Epilogue::kAdd, DType::kBF16, true});
  check({67, 1, 88, Epilogue::kAdd, DType::kF32});
  check({9, 48, 64, Epilogue::kStore, DType::kBF16, false, 16, 32});
}

TEST(LinearPrompt, NoRows) {
  TestWeight w(64, 64, 1);
  const DeviceTensor x(DType::kBF16, {1, 64}), out(DType::kBF16, {1, 64});
  CudaTestStream stream;
  LinearArgs args;
  args.x = x.view.rows(0, 0);
  args.weight = &w.weight;
  args.out = out.view.rows(0, 0);
  cuda::linear_prompt(stream, args);
  stream.sync();
}

TEST(LinearPrompt, Shapes) {
  // Both tile widths, edges of tiles +-1, primes.
  for (const int64_t m : {1, 127, 128, 129, 255, 256, 257, 509}) check({m, 521, 128});
  check({2048, 4096, 64});
  check({2047, 4104, 320});
  check({2049, 4099, 64, Epilogue::kStore, DType::kF32});
  check({1025, 8200, 96, Epilogue::kSiluMul});
  check({1500, 8192, 512, Epilogue::kSiluMul, DType::kBF16, true});
  check({2500, 4096, 256, Epilogue::kAdd, DType::kF32, true, 64, 128});
  check({300, 256, 4096});
}

/// Rows of x computed all together, and again in pieces: the same bits.
void check_pieces(Epilogue epilogue, DType out_type, int64_t n, int64_t k) {
  constexpr int64_t kRows = 2300;
  TestWeight w(n, k, 3);
  const DeviceTensor x(DType::kBF16, {kRows, k}, random_bf16(kRows * k, 4));
  const int64_t columns = epilogue == Epilogue::kSiluMul ? n / 2 : n;
  const DeviceTensor together(out_type, {kRows, columns},
                              std::vector<float>(static_cast<size_t>(kRows * columns), 1.0f));
  const DeviceTensor pieces(out_type, {kRows, columns},
                            std::vector<float>(static_cast<size_t>(kRows * columns), 1.0f));
  CudaTestStream stream;
  LinearArgs args;
  args.weight = &w.weight;
  args.epilogue = epilogue;
  args.x = x.view;
  args.out = together.view;
  cuda::linear_prompt(stream, args);
  int64_t begin = 0;
  for (const int64_t size : {1, 2, 61, 64, 100, 128, 129, 300, 515, 1000}) {
    args.x = x.view.rows(begin, begin + size);
    args.out = pieces.view.rows(begin, begin + size);
    cuda::linear_prompt(stream, args);
    begin += size;
  }
  ASSERT_EQ(begin, kRows);
  stream.sync();
  EXPECT_TRUE(together.bytes() == pieces.bytes());
}

TEST(LinearPrompt, BitsDoNotDependOnRows) {
  check_pieces(Epilogue::kStore, DType::kBF16, 4096, 1024);
  check_pieces(Epilogue::kStore, DType::kF32, 1000, 4096);
  check_pieces(Epilogue::kAdd, DType::kF32, 4096, 512);
  check_pieces(Epilogue::kSiluMul, DType::kBF16, 8192, 512);
}

}  // namespace
}  // namespace weft
