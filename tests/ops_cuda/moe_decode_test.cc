// moe_decode against the oracle; a token's bits are its own.

#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

struct PackedExperts {
  PackedExperts(WeightFormat format, const MoeCase& c)
      : gate_up(c.gate_up(format), 1, {.scale = 0.1f}), down(c.down(format), 2, {.scale = 0.1f}) {}
  PackedWeight gate_up, down;
};

void check(WeightFormat format, const MoeCase& c) {
  const PackedExperts w(format, c);
  check_moe({.op = cuda::moe_decode,
             .tolerance = 6e-3,
             .scratch_bytes = cuda::moe_decode_scratch(c.gate_up(format), c.tokens, c.top_k)},
            w.gate_up, w.down, c);
}

constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kInt8, WeightFormat::kInt4,
                                     WeightFormat::kFp8Block};

TEST(MoeDecode, Small) {
  for (const WeightFormat format : kFormats) {
    check(format, {1, 64, 32, 4, 2});
    check(format, {5, 72, 40, 3, 3, true});
    check(format, {33, 136, 64, 40, 7, true, DType::kBF16});
  }
}

TEST(MoeDecode, Shapes) {
  for (const WeightFormat format : kFormats) {
    check(format, {1, 256, 128, 128, 8});
    check(format, {64, 256, 192, 64, 6});
    check(format, {100, 512, 136, 16, 8, true});
    check(format, {90, 256, 128, 4, 1, false, DType::kF32, 2});  // one busy expert
    check(format, {129, 128, 64, 300, 10, true, DType::kBF16, 0});
  }
}

TEST(MoeDecode, NoTokens) {
  const PackedExperts w(WeightFormat::kBf16, {0, 32, 32, 2, 1});
  check_no_tokens(cuda::moe_decode, w.gate_up.weight, w.down.weight);
}

void check_pieces(WeightFormat format, const MoeCase& c, const std::vector<int64_t>& sizes) {
  const PackedExperts w(format, c);
  check_moe_pieces(cuda::moe_decode, w.gate_up.weight, w.down.weight, c, {sizes});
}

TEST(MoeDecode, BitsDoNotDependOnTokens) {
  for (const WeightFormat format : kFormats) {
    check_pieces(format, {200, 512, 256, 16, 4}, {1, 7, 64, 2, 126});
    check_pieces(format, {40, 64, 64, 8, 3}, std::vector<int64_t>(40, 1));
    check_pieces(format, {90, 64, 96, 8, 3}, {1, 3, 8, 9, 17, 2, 33, 17});
  }
}

}  // namespace
}  // namespace weft
