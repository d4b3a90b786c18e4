// Rows that become e4m3 codes where they are made, by a norm or by a product, beside the same rows
// made bf16 first and quantised then: the same bits.

#include <algorithm>

#include "tests/ops_cuda/kv_world.h"
#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

struct NormCase {
  int64_t rows, width;
  DType x = DType::kF32;
  bool residual = false;
};

void check_norm(const NormCase& c) {
  SCOPED_TRACE(testing::Message() << c.rows << " x " << c.width << (c.residual ? " added" : ""));
  std::vector<float> values = random_bf16(c.rows * c.width, 1, 3);
  for (int64_t i = 0; i < std::min<int64_t>(c.width, 128); ++i) values[static_cast<size_t>(i)] = 0;
  const DeviceTensor x(c.x, {c.rows, c.width}, values);
  const DeviceTensor weight(DType::kF32, {c.width}, random_bf16(c.width, 2));
  const std::vector<float> before = random_bf16(c.rows * c.width, 3);
  const DeviceTensor sums[2] = {{DType::kF32, {c.rows, c.width}, before},
                                {DType::kF32, {c.rows, c.width}, before}};
  DeviceTensor normed[2] = {{DType::kBF16, {c.rows, c.width}}, {DType::kBF16, {c.rows, c.width}}};
  normed[1].poison();
  const std::vector<std::byte> poisoned = normed[1].bytes();
  const auto norm = [&](int i) {
    return RmsNormArgs{.x = x.view,
                       .residual = c.residual ? sums[i].view : TensorView(),
                       .weight = weight.view,
                       .out = normed[i].view};
  };
  CudaTestStream stream;
  cuda::rms_norm(stream, norm(0));
  const HostRows expected =
      download(stream, cuda::quantize_rows(stream, normed[0].view), c.rows, c.width);
  const HostRows got = download(stream, cuda::quantize_norm(stream, norm(1)), c.rows, c.width);
  EXPECT_TRUE(got == expected);
  EXPECT_TRUE(sums[0].bytes() == sums[1].bytes());
  EXPECT_TRUE(normed[1].bytes() == poisoned);
}

TEST(Fp8Rows, OfANorm) {
  check_norm({1, 8});
  check_norm({3, 136});
  check_norm({2, 264, DType::kBF16, true});
  check_norm({70, 2560});
  check_norm({70, 2560, DType::kBF16, true});
  check_norm({5, 4104, DType::kF32, true});
  check_norm({5, 5120});
  check_norm({3, 9000});
  check_norm({2, 20480, DType::kBF16});
}

TEST(Fp8Rows, OfAttentionOverAQuantisedCache) {
  for (const int dim : {128, 256}) {
    for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kInt4, KvFormat::kFp8}) {
      KvWorld({format, {4, 2, dim}}, {{1, 0, 131}, {2, 64, 70}}, 3).check_codes();
    }
  }
}

struct PairCase {
  int64_t rows, inner, k;
  bool bias = false;
};

void check_product(const PairCase& c) {
  SCOPED_TRACE(testing::Message() << c.rows << " x " << c.inner << " x " << c.k);
  const PackedWeight w({WeightFormat::kFp8Block, 2 * c.inner, c.k, 1}, 5,
                       {.scale = 0.1f, .unpack = false});
  const int64_t stride = (c.k + 7) / 8 * 8;
  const DeviceTensor x(DType::kBF16, {c.rows, stride}, random_bf16(c.rows * stride, 6));
  const DeviceTensor bias(DType::kF32, {2 * c.inner}, random_bf16(2 * c.inner, 7));
  const DeviceTensor act(DType::kBF16, {c.rows, c.inner});
  const DeviceTensor codes(DType::kF32, {cuda::quantized_rows_bytes(c.rows, c.inner) / 4});
  cuda::Gemm gemm;
  gemm.a = x.view.columns(0, c.k);
  gemm.b = w.weight.data;
  gemm.n = 2 * c.inner;
  gemm.b_row_bytes = (c.k + 15) / 16 * 16;
  gemm.epilogue = Epilogue::kSiluMul;
  if (c.bias) gemm.bias = bias.view;
  gemm.out = act.view;
  CudaTestStream stream;
  const cuda::QuantizedRows qx = cuda::quantize_rows(stream, gemm.a);
  const cuda::BlockScales scales = cuda::block_scales(w.weight);
  cuda::gemm_fp8(stream, gemm, qx, scales);
  const HostRows expected =
      download(stream, cuda::quantize_rows(stream, act.view), c.rows, c.inner);
  const cuda::QuantizedRows out = cuda::quantized_rows_at(codes.view.data, c.rows, c.inner);
  gemm.out = {};
  cuda::gemm_fp8_quantized(stream, gemm, qx, scales, out);
  EXPECT_TRUE(download(stream, out, c.rows, c.inner) == expected);
}

TEST(Fp8Rows, OfAProduct) {
  check_product({1, 16, 16});
  check_product({3, 48, 136, true});
  check_product({65, 64, 128});
  check_product({129, 144, 264});
  check_product({300, 192, 640, true});
  check_product({2049, 1088, 384});
  check_product({1000, 9728, 256});
}

/// linear() of a norm, and linear_pair() behind one, with rows of both arithmetics, beside the ops
/// one by one.
void check_chain(const PairCase& c, int64_t prompt_rows) {
  SCOPED_TRACE(testing::Message() << c.rows << " x " << c.inner << " x " << c.k << ", prompts "
                                  << prompt_rows);
  const OpTable& ops = *cuda_ops();
  const PackedWeight gate_up({WeightFormat::kFp8Block, 2 * c.inner, c.k, 1}, 5,
                             {.scale = 0.1f, .unpack = false});
  const PackedWeight down({WeightFormat::kFp8Block, c.k, c.inner, 1}, 6,
                          {.scale = 0.1f, .unpack = false});
  const std::vector<float> before = random_bf16(c.rows * c.k, 7);
  const DeviceTensor residual[2] = {{DType::kF32, {c.rows, c.k}, before},
                                    {DType::kF32, {c.rows, c.k}, before}};
  const DeviceTensor weight(DType::kF32, {c.k}, random_bf16(c.k, 8));
  const DeviceTensor normed(DType::kBF16, {c.rows, c.k}), act(DType::kBF16, {c.rows, c.inner});
  CudaTestStream stream;
  const auto norm = [&](int i) {
    return RmsNormArgs{.x = residual[i].view, .weight = weight.view, .out = normed.view};
  };
  const auto first = [&] {
    return LinearArgs{.x = normed.view,
                      .weight = &gate_up.weight,
                      .out = act.view,
                      .epilogue = Epilogue::kSiluMul,
                      .prompt_rows = prompt_rows};
  };
  const auto second = [&](int i) {
    return LinearArgs{.x = act.view,
                      .weight = &down.weight,
                      .out = residual[i].view,
                      .epilogue = Epilogue::kAdd,
                      .prompt_rows = prompt_rows};
  };
  ops.rms_norm(stream, norm(0));
  ops.linear(stream, first());
  const std::vector<std::byte> expected = act.bytes();
  ops.linear(stream, second(0));
  LinearArgs whole = first();
  whole.norm = norm(1);
  ops.linear(stream, whole);
  EXPECT_TRUE(act.bytes() == expected);
  if (ops.linear_pair(stream, whole, second(1))) {
    EXPECT_GT(prompt_rows, 0);
  } else {
    ops.linear(stream, second(1));
  }
  stream.sync();
  EXPECT_TRUE(residual[0].bytes() == residual[1].bytes());
}

TEST(Fp8Rows, Chains) {
  check_chain({1, 64, 64}, 1);
  check_chain({70, 192, 64}, 70);
  check_chain({70, 192, 64}, 0);
  check_chain({300, 512, 256}, 231);
  check_chain({1030, 3072, 1024}, 1030);
  check_chain({1030, 3072, 1024}, 1024);
}

TEST(Fp8Rows, PairsOfLargeProducts) {
  const auto product = [](int64_t n, int64_t k, Epilogue epilogue, Weight& weight) {
    weight.shape = {WeightFormat::kFp8Block, n, k, 1};
    LinearArgs args;
    args.weight = &weight;
    args.x = TensorView(nullptr, DType::kBF16, {8192, k});
    args.out =
        TensorView(nullptr, DType::kBF16, {8192, epilogue == Epilogue::kSiluMul ? n / 2 : n});
    args.epilogue = epilogue;
    return args;
  };
  Weight up, down;
  EXPECT_TRUE(cuda::linear_prompt_pairs(product(19456, 2560, Epilogue::kSiluMul, up),
                                        product(2560, 9728, Epilogue::kAdd, down)));
  EXPECT_FALSE(cuda::linear_prompt_pairs(product(19456, 2560, Epilogue::kStore, up),
                                         product(2560, 19456, Epilogue::kAdd, down)));
}

}  // namespace
}  // namespace weft
