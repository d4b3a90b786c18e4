// linear_decode against the oracle in every weight format, and its exactness: a row's bits are its
// own, whatever rows are beside it.

#include <algorithm>
#include <cmath>

#include "tests/ops_cuda/pinned.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kInt8,
                                     WeightFormat::kInt4, WeightFormat::kFp8Block};

/// A weight packed on the device, and what it holds for the oracle.
struct PackedWeight {
  PackedWeight(WeightFormat format, int64_t n, int64_t k, uint64_t seed, bool unpack = true) {
    weight.shape = {format, n, k, 1};
    weight.expert_bytes = cuda::weight_bytes(weight.shape);
    memory = DeviceTensor(DType::kU8, {weight.expert_bytes});
    memory.poison();
    weight.data = static_cast<std::byte*>(memory.view.data);
    const PinnedTensor pinned(DType::kBF16, {n, k}, random_bf16(n * k, seed));
    CudaTestStream stream(1 << 20);
    const std::vector<TensorView> pieces = {pinned.view};
    cuda::pack_weight(stream, weight, 0, pieces);
    stream.sync();
    if (!unpack) return;
    values.resize(static_cast<size_t>(n * k));
    cuda::unpack_weight(weight, 0, {values.data(), DType::kF32, {n, k}});
    oracle.shape = {WeightFormat::kF32, n, k, 1};
    oracle.data = reinterpret_cast<std::byte*>(values.data());
  }
  DeviceTensor memory;
  std::vector<float> values;
  Weight weight, oracle;
};

struct Case {
  int64_t m, n, k;
  Epilogue epilogue = Epilogue::kStore;
  DType out = DType::kBF16;
  bool bias = false;
  int64_t x_gap = 0, out_gap = 0;  ///< columns beside x and out in their buffers
};

void check(WeightFormat format, const Case& c) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << " " << c.m << " x " << c.n
                                  << " x " << c.k << " epilogue " << static_cast<int>(c.epilogue));
  PackedWeight w(format, c.n, c.k, 7);
  const int64_t columns = c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
  const int64_t x_stride = (c.k + 7) / 8 * 8 + c.x_gap;
  std::vector<float> x = random_bf16(c.m * c.k, 8, 0.25f);
  std::vector<float> x_buffer(static_cast<size_t>(c.m * x_stride), NAN);
  for (int64_t i = 0; i < c.m; ++i) {
    std::copy_n(x.begin() + i * c.k, c.k, x_buffer.begin() + i * x_stride + c.x_gap / 2);
  }
  const DeviceTensor dx(DType::kBF16, {c.m, x_stride}, x_buffer);
  std::vector<float> bias = random_bf16(c.n, 9);
  const DeviceTensor dbias(DType::kF32, {c.n}, bias);
  std::vector<float> expected(static_cast<size_t>(c.m * columns), NAN);
  if (c.epilogue == Epilogue::kAdd) expected = random_bf16(c.m * columns, 10);
  const int64_t out_stride = columns + c.out_gap;
  std::vector<float> out_buffer(static_cast<size_t>(c.m * out_stride), 77.0f);
  for (int64_t i = 0; i < c.m; ++i) {
    std::copy_n(expected.begin() + i * columns, columns,
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
  cuda::linear_decode(stream, args);
  stream.sync();
  Stream& native = stream;
  EXPECT_LE(native.scratch().peak(), cuda::linear_decode_scratch(w.weight.shape, c.epilogue, c.m));

  if (c.epilogue != Epilogue::kAdd) std::fill(expected.begin(), expected.end(), 0.0f);
  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, 1 << 20).value());
  Stream host(pool, scratch);
  LinearArgs oracle;
  oracle.x = TensorView(x.data(), DType::kF32, {c.m, c.k});
  oracle.weight = &w.oracle;
  if (c.bias) oracle.bias = TensorView(bias.data(), DType::kF32, {c.n});
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
  EXPECT_LT(relative_l2(got, expected), c.out == DType::kF32 ? 2e-5 : 4e-3);
}

TEST(LinearDecode, SmallShapes) {
  for (const WeightFormat format : kFormats) {
    check(format, {1, 8, 8});
    check(format, {1, 1, 8});
    check(format, {7, 3, 13});
    check(format, {8, 64, 64});
    check(format, {9, 65, 72});
    check(format, {17, 63, 200});
    check(format, {5, 128, 64, Epilogue::kStore, DType::kF32, true});
    check(format, {33, 40, 136, Epilogue::kSiluMul, DType::kBF16});
    check(format, {3, 96, 136, Epilogue::kSiluMul, DType::kF32, true});
    check(format, {3, 256, 136, Epilogue::kSiluMul, DType::kBF16, true});
    check(format, {67, 60, 88, Epilogue::kAdd, DType::kF32, true});
    check(format, {67, 60, 88, Epilogue::kAdd, DType::kBF16, true});
    check(format, {67, 1, 88, Epilogue::kAdd, DType::kF32});
    check(format, {9, 48, 64, Epilogue::kStore, DType::kBF16, false, 16, 32});
  }
}

TEST(LinearDecode, NoRows) {
  PackedWeight w(WeightFormat::kBf16, 64, 64, 1);
  const DeviceTensor x(DType::kBF16, {1, 64}), out(DType::kBF16, {1, 64});
  CudaTestStream stream;
  LinearArgs args;
  args.x = x.view.rows(0, 0);
  args.weight = &w.weight;
  args.out = out.view.rows(0, 0);
  cuda::linear_decode(stream, args);
  stream.sync();
}

TEST(LinearDecode, Shapes) {
  for (const WeightFormat format : kFormats) {
    // Every split of K, edges of tiles of rows +-1, primes.
    for (const int64_t m : {1, 8, 15, 16, 31, 33, 64, 65, 130}) check(format, {m, 521, 1032});
    check(format, {2, 1024, 4104, Epilogue::kAdd, DType::kF32});
    check(format, {4, 4099, 520, Epilogue::kStore, DType::kF32, true});
    check(format, {37, 1536, 2048, Epilogue::kSiluMul, DType::kBF16});
    check(format, {70, 1024, 3000, Epilogue::kAdd, DType::kF32, true, 64, 128});
    check(format, {1, 20000, 264});
  }
}

/// Rows of x computed all together, and again in pieces, and in another order: the same bits.
void check_pieces(WeightFormat format, Epilogue epilogue, DType out_type, int64_t n, int64_t k) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << " " << n << " x " << k);
  constexpr int64_t kRows = 256;
  PackedWeight w(format, n, k, 3, false);
  const DeviceTensor x(DType::kBF16, {kRows, k}, random_bf16(kRows * k, 4));
  const int64_t columns = epilogue == Epilogue::kSiluMul ? n / 2 : n;
  const std::vector<float> ones(static_cast<size_t>(kRows * columns), 1.0f);
  const DeviceTensor together(out_type, {kRows, columns}, ones);
  CudaTestStream stream;
  LinearArgs args;
  args.weight = &w.weight;
  args.epilogue = epilogue;
  args.x = x.view;
  args.out = together.view;
  cuda::linear_decode(stream, args);
  stream.sync();
  const std::vector<std::vector<int64_t>> cuts = {
      {1, 2, 3, 8, 9, 16, 17, 32, 33, 64, 65, 6}, {128, 127, 1}, {100, 5, 48, 103}};
  for (const std::vector<int64_t>& sizes : cuts) {
    const DeviceTensor pieces(out_type, {kRows, columns}, ones);
    int64_t begin = 0;
    for (const int64_t size : sizes) {
      args.x = x.view.rows(begin, begin + size);
      args.out = pieces.view.rows(begin, begin + size);
      cuda::linear_decode(stream, args);
      begin += size;
    }
    ASSERT_EQ(begin, kRows);
    stream.sync();
    EXPECT_TRUE(together.bytes() == pieces.bytes());
  }
}

TEST(LinearDecode, BitsDoNotDependOnRows) {
  for (const WeightFormat format : kFormats) {
    for (const int64_t k : {16, 64, 96, 128, 160}) {
      check_pieces(format, Epilogue::kStore, DType::kF32, 64, k);
      check_pieces(format, Epilogue::kSiluMul, DType::kBF16, 192, k);
    }
    check_pieces(format, Epilogue::kStore, DType::kBF16, 4096, 1024);
    check_pieces(format, Epilogue::kStore, DType::kF32, 1000, 4096);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 1024, 3072);
    check_pieces(format, Epilogue::kSiluMul, DType::kF32, 6144, 1024);
    check_pieces(format, Epilogue::kStore, DType::kF32, 15400, 2048);  // many turns of the ring
    // The tiny hybrid models of tests/noninterference.
    check_pieces(format, Epilogue::kSiluMul, DType::kBF16, 192, 64);
    check_pieces(format, Epilogue::kStore, DType::kBF16, 64, 96);
    check_pieces(format, Epilogue::kStore, DType::kBF16, 1536, 64);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 64, 512);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 64, 256);
  }
}

}  // namespace
}  // namespace weft
