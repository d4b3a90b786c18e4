// linear_decode against the oracle in every weight format, and its exactness: a row's bits are its
// own, whatever rows are beside it.

#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kInt8,
                                     WeightFormat::kInt4, WeightFormat::kFp8Block};

void check(WeightFormat format, const LinearCase& c) {
  const PackedWeight w({format, c.n, c.k, 1}, 7);
  check_linear({.op = cuda::linear_decode,
                .tolerance = c.out == DType::kF32 ? 2e-5 : 4e-3,
                .scratch_bytes = cuda::linear_decode_scratch(w.weight.shape, c.epilogue, c.m)},
               w, c);
}

/// A test a format: racecheck takes minutes for all of them.
class LinearDecodeOf : public testing::TestWithParam<WeightFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, LinearDecodeOf, testing::ValuesIn(kFormats),
                         [](const auto& info) { return std::to_string(info.index); });

TEST_P(LinearDecodeOf, SmallShapes) {
  check(GetParam(), {1, 8, 8});
  check(GetParam(), {1, 1, 8});
  check(GetParam(), {7, 3, 13});
  check(GetParam(), {8, 64, 64});
  check(GetParam(), {9, 65, 72});
  check(GetParam(), {17, 63, 200});
  check(GetParam(), {5, 128, 64, Epilogue::kStore, DType::kF32, true});
  check(GetParam(), {33, 40, 136, Epilogue::kSiluMul, DType::kBF16});
  check(GetParam(), {3, 96, 136, Epilogue::kSiluMul, DType::kF32, true});
  check(GetParam(), {3, 256, 136, Epilogue::kSiluMul, DType::kBF16, true});
  check(GetParam(), {67, 60, 88, Epilogue::kAdd, DType::kF32, true});
  check(GetParam(), {67, 60, 88, Epilogue::kAdd, DType::kBF16, true});
  check(GetParam(), {67, 1, 88, Epilogue::kAdd, DType::kF32});
  check(GetParam(), {9, 48, 64, Epilogue::kStore, DType::kBF16, false, 16, 32});
}

TEST(LinearDecode, NoRows) {
  check_no_rows(cuda::linear_decode, PackedWeight({WeightFormat::kBf16, 64, 64, 1}, 1).weight);
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

/// More rows than 64 and a large bf16 weight have a kernel of their own.
TEST(LinearDecode, ManyRows) {
  const auto check_bf16 = [](const LinearCase& c) { check(WeightFormat::kBf16, c); };
  check_bf16({65, 2048, 64});
  check_bf16({200, 2051, 1088, Epilogue::kAdd, DType::kF32, true});
  check_bf16({129, 2500, 640, Epilogue::kStore, DType::kBF16, true, 64, 128});
  check_bf16({300, 6144, 192, Epilogue::kStore, DType::kF32});
  check_bf16({190, 2310, 640, Epilogue::kAdd, DType::kBF16});
  check_bf16({97, 2600, 448, Epilogue::kSiluMul, DType::kBF16, true});
  check_bf16({256, 20600, 128, Epilogue::kSiluMul, DType::kF32, true});
}

void check_pieces(WeightFormat format, Epilogue epilogue, DType out, int64_t n, int64_t k) {
  const PackedWeight w({format, n, k, 1}, 3, {.unpack = false});
  check_linear_pieces(
      cuda::linear_decode, w.weight, epilogue, out,
      {{1, 2, 3, 8, 9, 16, 17, 32, 33, 64, 65, 6}, {128, 127, 1}, {100, 5, 48, 103}});
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
    check_pieces(format, Epilogue::kSiluMul, DType::kBF16, 24576, 1024);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 4096, 4160);  // fewer stages of x than of W
    check_pieces(format, Epilogue::kStore, DType::kBF16, 6144, 2112);
    check_pieces(format, Epilogue::kStore, DType::kBF16, 2056, 2112);
    check_pieces(format, Epilogue::kStore, DType::kF32, 64, 4096);  // beta, alpha
    // The tiny hybrid models of tests/noninterference.
    check_pieces(format, Epilogue::kSiluMul, DType::kBF16, 192, 64);
    check_pieces(format, Epilogue::kStore, DType::kBF16, 64, 96);
    check_pieces(format, Epilogue::kStore, DType::kBF16, 1536, 64);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 64, 512);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 64, 256);
  }
}

/// A product that norms its rows itself has the bits of rms_norm() and a product.
void check_normed(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  SCOPED_TRACE(testing::Message() << rows << " x " << shape.n << " x " << shape.k);
  const PackedWeight w(shape, 3, {.unpack = false});
  const int64_t columns = epilogue == Epilogue::kSiluMul ? shape.n / 2 : shape.n;
  const DeviceTensor x(DType::kF32, {rows, shape.k + 8},
                       random_bf16(rows * (shape.k + 8), 4, 3.0f));
  const DeviceTensor weight(DType::kF32, {shape.k}, random_bf16(shape.k, 5));
  DeviceTensor normed(DType::kBF16, {rows, shape.k});
  DeviceTensor alone(DType::kBF16, {rows, columns}), fused(DType::kBF16, {rows, columns});
  normed.poison();
  alone.poison();
  fused.poison();
  LinearArgs args;
  args.x = normed.view;
  args.weight = &w.weight;
  args.epilogue = epilogue;
  args.out = fused.view;
  args.norm = {.x = x.view.columns(0, shape.k),
               .residual = {},
               .weight = weight.view,
               .out = normed.view,
               .eps = 1e-5f};
  CudaTestStream stream;
  ASSERT_TRUE(cuda::linear_decode_norms(args));
  cuda::linear_decode(stream, args);
  cuda::rms_norm(stream, args.norm);
  args.norm = {};
  args.out = alone.view;
  cuda::linear_decode(stream, args);
  stream.sync();
  EXPECT_TRUE(alone.bytes() == fused.bytes());
}

TEST(LinearDecode, NormedRowsHaveTheBitsOfTheNorm) {
  for (const int64_t rows : {1, 2, 3, 7, 8}) {
    check_normed({WeightFormat::kBf16, 4096, 1024, 1}, Epilogue::kStore, rows);
    check_normed({WeightFormat::kBf16, 6144, 1024, 1}, Epilogue::kSiluMul, rows);
    check_normed({WeightFormat::kBf16, 1000, 832, 1}, Epilogue::kStore, rows);
  }
  check_normed({WeightFormat::kBf16, 777, 1920, 1}, Epilogue::kStore, 1);
  check_normed({WeightFormat::kBf16, 3000, 2048, 1}, Epilogue::kSiluMul, 1);
}

TEST(LinearDecode, SmallNormedRows) {
  check_normed({WeightFormat::kBf16, 40, 192, 1}, Epilogue::kStore, 3);
  check_normed({WeightFormat::kBf16, 48, 64, 1}, Epilogue::kSiluMul, 1);
}

}  // namespace
}  // namespace weft
