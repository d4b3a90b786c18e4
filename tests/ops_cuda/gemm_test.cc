// linear_prompt against the oracle, and its exactness: a row's bits are its own.

#include <algorithm>
#include <cmath>

#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

/// A bf16 weight in the layout of cuda_ops.h, and the same values for the oracle.
struct TestWeight : WeightPair {
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
};

void check(const LinearCase& c) {
  const TestWeight w(c.n, c.k, 7);
  check_linear({.op = cuda::linear_prompt, .tolerance = c.out == DType::kF32 ? 2e-5 : 3e-3}, w, c);
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
  check_no_rows(cuda::linear_prompt, TestWeight(64, 64, 1).weight);
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

void check_pieces(Epilogue epilogue, DType out, int64_t n, int64_t k) {
  check_linear_pieces(cuda::linear_prompt, TestWeight(n, k, 3).weight, epilogue, out,
                      {{1, 2, 61, 64, 100, 128, 129, 300, 515, 1000}});
}

TEST(LinearPrompt, BitsDoNotDependOnRows) {
  check_pieces(Epilogue::kStore, DType::kBF16, 4096, 1024);
  check_pieces(Epilogue::kStore, DType::kF32, 1000, 4096);
  check_pieces(Epilogue::kAdd, DType::kF32, 4096, 512);
  check_pieces(Epilogue::kSiluMul, DType::kBF16, 8192, 512);
}

}  // namespace
}  // namespace weft
