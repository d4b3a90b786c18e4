// The properties of docs/kernels/elastic.md ("Properties") of the selection and the router on a
// GPU, by their numbers: those that the tests against the oracle don't show already. Attention's
// are in attention_plan_test.cc.

#include <array>
#include <bit>

#include "kernels/count_args.h"
#include "tests/ops_cuda/sparse_support.h"

namespace weft {
namespace {

constexpr HeadKind kFull = HeadKind::kFull, kBlocks = HeadKind::kBlocks,
                   kStreaming = HeadKind::kStreaming;

/// The lists of one piece.
struct PieceLists {
  PieceLists(const Selection& selection, const Piece& piece)
      : lists(SelectStep(selection, {piece}).run()),
        row_blocks(piece.rows / HeadPlan::kBlock + 1) {}
  const std::vector<int32_t>& words() const { return lists.words[0]; }
  const std::vector<int32_t>& counts() const { return lists.counts[0]; }
  /// Those of a row, of fewer than 32 blocks.
  int32_t word(int head, int row) const { return words()[at(head, row)]; }
  int32_t count(int head, int row) const { return counts()[at(head, row)]; }
  float mass(int head, int row) const { return lists.mass[at(head, row)]; }
  size_t at(int head, int row) const { return static_cast<size_t>(head * row_blocks + row); }
  Lists lists;
  int row_blocks;
};

bool same_row(const PieceLists& a, int head_a, const PieceLists& b, int head_b, int row) {
  return a.word(head_a, row) == b.word(head_b, row) &&
         a.count(head_a, row) == b.count(head_b, row) && a.mass(head_a, row) == b.mass(head_b, row);
}

// A small norm makes the softmax peaked: few blocks hold the mass.
constexpr float kPeaked = 0.2f;

TEST(SparseGpuProperty, P03AThresholdOfOneAndMoreIsFull) {
  for (const Heads& heads : {Heads{4, 2, 128}, Heads{2, 2, 256}}) {
    for (const float threshold : {1.0f, 1.5f}) {
      const PieceLists all({.heads = heads, .thresholds = {threshold}, .norm = kPeaked},
                           {1, 0, 1500});
      for (int h = 0; h < heads.q; ++h) {
        for (int b = 0; b < 12; ++b) {
          EXPECT_EQ(all.word(h, b), (2 << b) - 1) << threshold;
          EXPECT_EQ(all.count(h, b), b + 1);
        }
      }
    }
    // And attention over those lists is the dense kernel, bit for bit.
    const std::vector<Piece> piece = {{1, 0, 1500}};
    EXPECT_TRUE(Step(heads, {}, piece, {.kinds = {kBlocks}, .density = 100}).run() ==
                Step(heads, {}, piece).run());
  }
}

TEST(SparseGpuProperty, P06MoreMassNeverLosesABlock) {
  for (const int stride : {4, 8, 16}) {
    std::vector<PieceLists> before;
    double least = 0;
    for (const float threshold : {0.0f, 0.2f, 0.4f, 0.6f, 0.8f, 0.9f, 0.95f, 0.99f, 1.0f}) {
      PieceLists now(
          {.heads = {4, 2, 128}, .stride = stride, .thresholds = {threshold}, .norm = kPeaked},
          {1, 1024, 1500});
      double density = 0;
      for (int h = 0; h < 4; ++h) {
        for (int row = 0; row * HeadPlan::kBlock < 1500; ++row) {
          density += now.count(h, row);
          if (before.empty()) continue;
          EXPECT_EQ(before[0].word(h, row) & ~now.word(h, row), 0) << threshold;
          EXPECT_GE(now.mass(h, row), before[0].mass(h, row) - 1e-6f);
        }
      }
      EXPECT_GE(density, least);
      if (threshold == 0.8f) {  // not all of one size
        EXPECT_LT(least, density);
      }
      least = density;
      before.clear();
      before.push_back(std::move(now));
    }
  }
}

TEST(SparseGpuProperty, P09HeadsAndPagesMayComeInAnyOrder) {
  const Selection selection{.heads = {6, 3, 128},
                            .thresholds = {0.6f, 0.9f, 0.8f, 0.3f, 0.95f, 0.7f},
                            .kinds = {kBlocks, kBlocks, kStreaming, kFull, kFull, kBlocks},
                            .norm = kPeaked};
  const Piece piece{1, 256, 1100};
  const PieceLists want(selection, piece);
  for (const int rotate : {1, 2}) {
    Selection turned = selection;
    turned.rotate = rotate;
    const PieceLists got(turned, piece);
    for (int h = 0; h < 6; ++h) {
      const int from = (h + 2 * rotate) % 6;
      if (selection.kinds[static_cast<size_t>(from)] != kBlocks) continue;
      for (int row = 0; row * HeadPlan::kBlock < 1100; ++row) {
        EXPECT_TRUE(same_row(got, h, want, from, row)) << "head " << h << " row " << row;
      }
    }
  }
  for (const int block_size : {16, 64, 128}) {
    for (const uint64_t order : {1, 2}) {
      Selection paged = selection;
      paged.block_size = block_size;
      paged.order = order;
      const PieceLists got(paged, piece);
      EXPECT_EQ(got.words(), want.words()) << block_size << " order " << order;
      EXPECT_EQ(got.counts(), want.counts()) << block_size << " order " << order;
    }
  }
}

TEST(SparseGpuProperty, P12TheNormDividesTheScores) {
  for (const int stride : {4, 8, 16}) {
    const Selection plain{.heads = {4, 2, 128}, .stride = stride, .thresholds = {0.6f}};
    Selection normed = plain, scaled = plain;
    normed.norm = 0.25f;
    scaled.q_scale = 4;
    const Piece piece{1, 0, 1300};
    const PieceLists a(normed, piece), b(scaled, piece), unscaled(plain, piece);
    EXPECT_EQ(a.words(), b.words());
    EXPECT_EQ(a.counts(), b.counts());
    EXPECT_EQ(a.mass(3, 9), b.mass(3, 9));
    EXPECT_NE(a.words(), unscaled.words());
    // A norm that rounds, against the oracle.
    normed.norm = 0.37f;
    SelectStep step(normed, {piece});
    step.check(step.run());
  }
}

const std::vector<int> kLengths = {1, 99, 100, 101, 150, 199, 200, 201};

TEST(SparseGpuProperty, P13TheRouterDecidesForEveryLengthAndEveryRowOfTheTable) {
  const std::pair<HeadKind, HeadKind> modes[] = {
      {kFull, kBlocks}, {kFull, kStreaming}, {kBlocks, kStreaming}, {kBlocks, kBlocks}};
  std::vector<std::vector<int>> calls = {kLengths};
  for (const int length : kLengths) calls.push_back({length});
  for (const auto& [retrieval, sparse] : modes) {
    for (const float lean : {1.0f, 0.0f, -1.0f}) {  // no lean: sparse
      const auto want = static_cast<int32_t>(lean > 0 ? retrieval : sparse);
      for (const std::vector<int>& lengths : calls) {
        Routing routing({.dim = 64,
                         .kv_heads = 2,
                         .group = 3,
                         .bias = {0.5f, 0.5f + lean},
                         .retrieval = retrieval,
                         .sparse = sparse,
                         .zero_last = true},
                        lengths);
        routing.run();
        EXPECT_EQ(routing.kinds, std::vector<int32_t>(lengths.size() * 6, want)) << "lean " << lean;
        for (size_t i = 0; i < routing.logits.size(); ++i) {
          EXPECT_EQ(routing.logits[i], i % 2 == 0 ? 0.5f : 0.5f + lean);
        }
      }
    }
  }
}

TEST(SparseGpuProperty, P14ThePublishedQuirkIsThatOfTheFirstBlocksAlone) {
  for (const float threshold : {0.3f, 0.6f, 0.9f}) {
    const Selection clean{.heads = {4, 2, 128}, .thresholds = {threshold}, .norm = kPeaked};
    Selection quirk = clean;
    quirk.quirk_blocks = 7;
    const Piece piece{1, 0, 1500};
    const PieceLists a(clean, piece), b(quirk, piece);
    int larger = 0;
    for (int h = 0; h < 4; ++h) {
      for (int row = 0; row * HeadPlan::kBlock < 1500; ++row) {
        const int32_t word = b.word(h, row);
        if (row >= 7) {
          EXPECT_TRUE(same_row(a, h, b, h, row)) << row;
        }
        EXPECT_EQ(a.word(h, row) & ~word, 0) << "not a superset " << row;
        EXPECT_EQ(b.count(h, row), std::popcount(static_cast<uint32_t>(word)));
        EXPECT_TRUE((word & 1) != 0 && (word >> row & 1) != 0 && word >> row >> 1 == 0) << row;
        larger += b.count(h, row) > a.count(h, row) ? 1 : 0;
      }
    }
    EXPECT_GT(larger, 0);
    SelectStep step(quirk, {piece});
    step.check(step.run());
  }
}

// SelectStep has NaN in all pages but those of its keys, after them in their last page, in V, in
// keys and rows of heads without lists and behind the last row: P16 goes over it with the oracle.
TEST(SparseGpuProperty, P15WhatNobodySeesNeverReachesAListOrAKind) {
  for (const int stride : {4, 16}) {
    const Selection selection{.heads = {4, 2, 128}, .stride = stride, .norm = kPeaked};
    Selection poisoned = selection;
    poisoned.nan_from = 1024 + 5 * HeadPlan::kBlock;  // keys and rows after a block of rows
    const Piece piece{1, 1024, 1000};
    const PieceLists want(selection, piece), got(poisoned, piece);
    for (int h = 0; h < 4; ++h) {
      for (int row = 0; row < 5; ++row) EXPECT_TRUE(same_row(got, h, want, h, row)) << row;
    }
  }
  Router router;
  Routing clean(router, {777, 150, 201, 512});
  clean.run();
  router.poisoned = true;
  Routing poisoned(router, {777, 150, 201, 512});
  poisoned.run();
  EXPECT_EQ(poisoned.logits, clean.logits);
  EXPECT_EQ(poisoned.kinds, clean.kinds);
  for (const float x : poisoned.logits) ASSERT_TRUE(std::isfinite(x));
}

TEST(SparseGpuProperty, P16AHundredRandomShapes) {
  SelectStep::Agreement with;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const auto draw = [&](uint64_t what, int n) {
      return static_cast<int>(philox4x32(seed, what, 9)[0] % static_cast<uint32_t>(n));
    };
    const int kv_heads = 1 + draw(0, 3), group = 1 + draw(1, 4);
    Selection selection;
    selection.heads = {kv_heads * group, kv_heads, 8 * (1 + draw(2, 32))};
    selection.stride = 4 << draw(3, 3);
    selection.block_size = 16 << draw(4, 4);
    selection.norm = std::array{1.0f, 0.3f, 0.1f}[static_cast<size_t>(draw(5, 3))];
    selection.quirk_blocks = draw(6, 4) == 0 ? 1 + draw(7, 6) : 0;
    selection.order = draw(8, 3) == 0 ? 0 : seed + 1;
    selection.q_gap = 8 * draw(9, 5);
    selection.page_gap = 64 * draw(10, 3);
    selection.thresholds.clear();
    for (int i = 0; i < 3; ++i) {
      selection.thresholds.push_back(0.1f * static_cast<float>(draw(20 + i, 11)));
    }
    selection.kinds.clear();
    for (int h = 0; h < selection.heads.q; ++h) {
      const int kind = draw(30 + static_cast<uint64_t>(h), 4);
      selection.kinds.push_back(kind < 2 ? kBlocks : kind == 2 ? kFull : kStreaming);
    }
    std::vector<Piece> pieces;
    for (int i = 0; i <= draw(11, 3); ++i) {
      const auto at = static_cast<uint64_t>(50 + 3 * i);
      pieces.push_back({seed * 4 + static_cast<uint64_t>(i), 128 * draw(at, 8),
                        draw(at + 1, draw(at + 2, 6) == 0 ? 900 : 200)});
    }
    SelectStep step(selection, pieces);
    step.compare(step.run(), with);
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
  }
  EXPECT_GE(with.equal * 100, with.all * 99) << with.equal << " of " << with.all;
  EXPECT_GT(with.all, 500);
}

TEST(SparseGpuProperty, P16AHundredRandomRouters) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const auto draw = [&](uint64_t what, int n) {
      return static_cast<int>(philox4x32(seed, what, 10)[0] % static_cast<uint32_t>(n));
    };
    const Router router{.dim = 8 * (1 + draw(0, draw(1, 4) == 0 ? 32 : 12)),
                        .kv_heads = 1 + draw(2, 8),
                        .group = 1 + draw(3, 8)};
    std::vector<int> lengths;
    for (int i = 0; i <= draw(4, 4); ++i)
      lengths.push_back(draw(5 + static_cast<uint64_t>(i), 300));
    expect_oracle(router, lengths);
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
  }
}

TEST(SparseGpuProperty, SmallPlansAreCounted) {
  constexpr int kHeads = 3, kRowBlocks = 4;
  const std::vector<int32_t> cu_q = {0, 400, 401, 401}, starts = {0, 2560, 128};
  const std::vector<int32_t> kinds = {1, 0, -1, -1, 1, 0, 0, 0, 0};
  std::vector<int32_t> counts(3 * kHeads * kRowBlocks, 1000);
  std::copy_n(std::begin({1, 2, 2, 3}), 4, counts.begin());
  counts[(kHeads + 1) * kRowBlocks] = 9;
  DeviceTensor d_cu_q(cu_q), d_starts(starts), d_kinds(kinds), d_counts(counts);
  DeviceTensor sums = upload_structs(std::vector<PlanCounters>{{1, 1, 1, 1, 1}});
  HeadPlan plan{.sink_blocks = 1, .window_blocks = 2};
  plan.kinds = TensorView(d_kinds.view.data, DType::kI32, {3, kHeads});
  plan.counts = TensorView(d_counts.view.data, DType::kI32, {3, kHeads, kRowBlocks});
  AttnArgs args;
  args.shape.q_heads = kHeads;
  args.num_prompt_segments = 3;
  args.seqs.cu_q = d_cu_q.view;
  args.seqs.kv_start = d_starts.view;
  CudaTestStream stream(64);
  cuda::count_plan(
      stream,
      {.attention = &args, .plan = &plan, .sums = static_cast<PlanCounters*>(sums.view.data)});
  stream.sync();
  // 400 rows: of 1 + 2 + 3 + 4 blocks the list 8, sink and window 1 + 2 + 3 + 3. One row of 21.
  const PlanCounters want{1 + 2, 1 + 2, 1 + 2, 1 + 8 + 10 + 9 + 3 + 9 + 21, 1 + 3 * 10 + 3 * 21};
  EXPECT_EQ(download<PlanCounters>(sums)[0], want);
}

TEST(SparseGpuProperty, P18MoreElementsThan32BitsCount) {
  constexpr int kRows = 300;
  const Selection near{.heads = {4, 2, 128}, .thresholds = {0.6f}, .norm = kPeaked};
  const Piece piece{1, 0, kRows};
  const PieceLists want(near, piece);
  EXPECT_LT(want.count(0, 2) + want.count(1, 2) + want.count(2, 2) + want.count(3, 2), 12);
  constexpr int64_t kMemory = int64_t{10} << 30;
  if (!has_free_memory(kMemory)) GTEST_SKIP() << "less than 10 GiB of device memory";
  for (const bool pages : {false, true}) {
    Selection far = near;
    if (pages) {
      far.page_gap = int64_t{7} << 27;  // 5 pages: 4.7e9 elements
    } else {
      far.q_gap = int64_t{15} << 20;  // 4.7e9 elements
    }
    const PieceLists got(far, piece);
    EXPECT_EQ(got.words(), want.words()) << (pages ? "pages" : "rows");
    EXPECT_EQ(got.counts(), want.counts());
    EXPECT_EQ(got.lists.mass[got.at(3, 2)], want.lists.mass[want.at(3, 2)]);
  }
}

}  // namespace
}  // namespace weft
