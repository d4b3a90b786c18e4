// moe_prompt against the oracle; a token's bits are its own.

#include <algorithm>

#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

/// Experts in the bf16 layout of cuda_ops.h, and the same values for the oracle.
struct Experts : WeightPair {
  Experts(int64_t count, int64_t n, int64_t k, uint64_t seed)
      : values(random_bf16(count * n * k, seed, 0.1f)),
        device(DType::kBF16, {count, n * k + kGap}, spaced(count, n * k)) {
    weight.shape = {WeightFormat::kBf16, n, k, count};
    weight.data = static_cast<std::byte*>(device.view.data);
    weight.expert_bytes = (n * k + kGap) * 2;
    oracle.shape = {WeightFormat::kF32, n, k, count};
    oracle.data = reinterpret_cast<std::byte*>(values.data());
    oracle.expert_bytes = n * k * 4;
  }
  std::vector<float> spaced(int64_t count, int64_t size) const {
    std::vector<float> out(static_cast<size_t>(count * (size + kGap)), 1e30f);
    for (int64_t e = 0; e < count; ++e) {
      std::copy_n(values.begin() + e * size, size, out.begin() + e * (size + kGap));
    }
    return out;
  }
  static constexpr int64_t kGap = 64;
  std::vector<float> values;
  DeviceTensor device;
};

void check(const MoeCase& c) {
  const Experts gate_up(c.experts, 2 * c.inner, c.hidden, 1);
  const Experts down(c.experts, c.hidden, c.inner, 2);
  check_moe({.op = cuda::moe_prompt,
             .tolerance = 6e-3,
             .scratch_bytes = cuda::moe_prompt_scratch(gate_up.weight.shape, c.tokens, c.top_k)},
            gate_up, down, c);
}

TEST(MoePrompt, Small) {
  check({1, 64, 32, 4, 2});
  check({5, 72, 40, 3, 3, true});
  check({130, 64, 72, 5, 2, false, DType::kBF16});
  check({33, 136, 64, 40, 7, true, DType::kBF16});
}

TEST(MoePrompt, Shapes) {
  check({1, 256, 128, 8, 8});
  check({300, 256, 192, 64, 6});
  check({700, 512, 136, 128, 8, true});
  check({512, 256, 128, 4, 1, false, DType::kF32, 2});  // one busy expert, three without tokens
  check({129, 128, 64, 512, 10});
  check({2000, 512, 384, 3, 2, true, DType::kBF16, 0});
}

TEST(MoePrompt, NoTokens) {
  const Experts gate_up(2, 64, 32, 1), down(2, 32, 32, 2);
  check_no_tokens(cuda::moe_prompt, gate_up.weight, down.weight);
}

TEST(MoePrompt, BitsDoNotDependOnTokens) {
  const MoeCase c{900, 512, 256, 16, 4};
  const Experts gate_up(c.experts, 2 * c.inner, c.hidden, 1);
  const Experts down(c.experts, c.hidden, c.inner, 2);
  check_moe_pieces(cuda::moe_prompt, gate_up.weight, down.weight, c, {{600, 1, 99, 200}});
}

}  // namespace
}  // namespace weft
