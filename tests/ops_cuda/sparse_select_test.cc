// XAttention's selection on the GPU: every list against the oracle's scores, in double.

#include "tests/ops_cuda/sparse_support.h"

namespace weft {
namespace {

Lists check(const Selection& selection, const std::vector<Piece>& pieces) {
  SelectStep step(selection, pieces);
  Lists lists = step.run();
  step.check(lists);
  return lists;
}

TEST(SparseSelect, SmallAgainstOracle) {
  check({.heads = {2, 1, 64}}, {{1, 0, 1}, {2, 0, 0}, {3, 128, 70}, {4, 0, 300}});
}

TEST(SparseSelect, StridesAgainstOracle) {
  for (const int stride : {4, 8, 16}) {
    // A small norm makes the softmax peaked: few blocks hold the mass.
    check({.heads = {4, 2, 128}, .stride = stride, .thresholds = {0.9f, 0.5f, 0.99f}, .norm = 0.2f},
          {{1, 0, 1283}, {2, 1024, 400}, {3, 0, 15}, {4, 256, 17}});
  }
}

TEST(SparseSelect, DimensionsAgainstOracle) {
  check({.heads = {2, 2, 256}, .block_size = 16, .norm = 0.3f}, {{1, 384, 520}});
  check({.heads = {3, 1, 80}, .stride = 8, .block_size = 128, .norm = 0.3f}, {{1, 0, 700}});
}

TEST(SparseSelect, LongAgainstOracle) {  // several tiles of groups both ways, words and bands
  check({.heads = {2, 1, 64}, .stride = 4, .norm = 0.1f}, {{1, 4096, 1300}});
}

TEST(SparseSelect, OtherHeadsAreLeftAlone) {
  check({.heads = {4, 2, 64},
         .kinds = {HeadKind::kFull, HeadKind::kBlocks, HeadKind::kStreaming, HeadKind::kBlocks}},
        {{1, 0, 400}});
}

TEST(SparseSelect, ThresholdOneChoosesAll) {
  check({.heads = {2, 1, 64}, .thresholds = {1.0f, 0.0f}}, {{1, 0, 900}});
}

TEST(SparseSelect, PublishedCodesFirstChunk) {
  for (const float threshold : {0.5f, 0.9f, 1.0f}) {
    check({.heads = {4, 2, 64}, .thresholds = {threshold}, .norm = 0.2f, .quirk_blocks = 9},
          {{1, 0, 1500}, {2, 0, 3}, {3, 640, 700}});
  }
}

TEST(SparseSelect, SameListsInChunksAndCompany) {
  const Selection selection{.heads = {4, 2, 128}, .norm = 0.2f};
  const Lists whole = SelectStep(selection, {{1, 0, 1500}}).run();
  const Lists parts = SelectStep(selection, {{7, 0, 90}, {1, 640, 860}, {8, 128, 1300}}).run();
  const int whole_rows = 1500 / 128 + 1, part_rows = 1300 / 128 + 1;
  for (int h = 0; h < 4; ++h) {
    for (int row = 0; row * 128 < 860; ++row) {
      const auto a = static_cast<size_t>(h * whole_rows + row + 5);
      const auto b = static_cast<size_t>(h * part_rows + row);
      EXPECT_EQ(whole.words[0][a], parts.words[1][b]) << h << " " << row;
      EXPECT_EQ(whole.counts[0][a], parts.counts[1][b]);
    }
  }
}

}  // namespace
}  // namespace weft
