// The router of Elastic-Attention against the oracle, and bit for bit in other company.

#include "tests/ops_cuda/sparse_support.h"

namespace weft {
namespace {

TEST(SparseRouter, SmallAgainstOracle) {
  expect_oracle({.dim = 64, .kv_heads = 2, .group = 2}, {1, 0, 3});
}

TEST(SparseRouter, LengthsAgainstOracle) {
  expect_oracle({}, {1, 99, 100, 101, 150, 199, 200, 201, 0, 777});
  expect_oracle({.dim = 256, .kv_heads = 2, .group = 8}, {130, 3});
  expect_oracle({.dim = 256, .kv_heads = 6, .group = 1}, {130, 3, 7});
  expect_oracle({.dim = 40, .kv_heads = 3, .group = 1}, {230});
}

TEST(SparseRouter, BiasDecides) {
  for (const bool retrieval : {false, true}) {
    Routing routing({.bias = {retrieval ? -99.0f : 99.0f, 0}}, {300, 20});
    routing.run();
    for (const int32_t kind : routing.kinds) {
      EXPECT_EQ(kind, static_cast<int32_t>(retrieval ? HeadKind::kBlocks : HeadKind::kStreaming));
    }
  }
}

TEST(SparseRouter, SameBitsInAnyCompany) {
  Routing all({}, {150, 40, 1, 512});
  all.run();
  Routing other({}, {512, 0, 150});
  other.run();
  EXPECT_EQ(all.logits_of(3), other.logits_of(0));
  EXPECT_EQ(all.logits_of(0), other.logits_of(2));
  Routing alone({}, {512});  // clusters of other sizes
  alone.run();
  EXPECT_EQ(all.logits_of(3), alone.logits_of(0));
  Routing many({}, {512, 33, 34, 35, 36, 37, 38, 39, 150});
  many.run();
  EXPECT_EQ(alone.logits_of(0), many.logits_of(0));
  EXPECT_EQ(all.logits_of(0), many.logits_of(8));
}

}  // namespace
}  // namespace weft
