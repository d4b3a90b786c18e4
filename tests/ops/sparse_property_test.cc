// The properties that sparse prefill must have, by the numbers of docs/kernels/elastic.md
// ("Properties"). Each has one test here, but 19 (the loader: models/prefill_test.cc).
#include <optional>

#include "sparse_support.h"
#include "tests/support/sanitized.h"

namespace weft {
namespace {

using Plan = SparseWorld::Plan;
using Choice = SparseWorld::Choice;
constexpr auto kFull = HeadKind::kFull, kBlocks = HeadKind::kBlocks,
               kStreaming = HeadKind::kStreaming;
constexpr int64_t kBlock = HeadPlan::kBlock;
constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBf16};

SparseShape shape_of(int length, KvFormat format = KvFormat::kF32, int block_size = 64) {
  return {.attn = {4, 2, 64, 0.125f}, .format = format, .block_size = block_size, .length = length};
}

void keep(const SparseWorld& world, Plan& plan, int64_t head, int64_t b, int64_t c) {
  world.words(plan, head, b)[c / 32] |= static_cast<int32_t>(1u << (c % 32));
}

/// Lists of a third of the blocks.
void keep_some(const SparseWorld& world, Plan& plan, uint64_t seed) {
  for (int64_t h = 0; h < world.shape().attn.q_heads; ++h) {
    for (int64_t b = 0; b < world.row_blocks(); ++b) {
      for (int64_t c = 0; c < b; ++c) {
        const auto index = static_cast<uint64_t>((h * 64 + b) * 64 + c);
        if (philox4x32(seed, index, 3)[0] % 3 == 0) keep(world, plan, h, b, c);
      }
    }
  }
}

bool same(const SparseWorld::Output& a, const SparseWorld::Output& b) {
  return a.out.same_bits(b.out) && a.lse.same_bits(b.lse);
}

/// A row's output by a mask of tokens, in f64, from what was written to an f32 cache.
template <class Sees>
std::vector<double> masked_row(SparseWorld& world, int64_t head, int64_t row, Sees&& sees) {
  const AttnShape& a = world.shape().attn;
  const int64_t d = a.head_dim, g = head / (a.q_heads / a.kv_heads);
  const float* q = world.q().data.data() + (row * a.q_heads + head) * d;
  std::vector<double> out(static_cast<size_t>(d), 0.0), weights(static_cast<size_t>(row + 1), 0.0);
  double total = 0;
  for (int64_t j = 0; j <= row; ++j) {
    if (!sees(j)) continue;
    const float* k = world.k().data.data() + (j * a.kv_heads + g) * d;
    double s = 0;
    for (int64_t i = 0; i < d; ++i) s += double{q[i]} * k[i];
    total += weights[static_cast<size_t>(j)] = std::exp(s * double{a.scale});
  }
  for (int64_t j = 0; j <= row; ++j) {
    const float* v = world.v().data.data() + (j * a.kv_heads + g) * d;
    const double w = weights[static_cast<size_t>(j)] / total;
    for (int64_t i = 0; i < d; ++i) out[static_cast<size_t>(i)] += w * v[i];
  }
  return out;
}

/// The largest difference of a row from masked_row().
template <class Sees>
double row_error(SparseWorld& world, const SparseWorld::Output& got, int64_t head, int64_t row,
                 Sees&& sees) {
  const std::vector<double> want = masked_row(world, head, row, sees);
  const AttnShape& a = world.shape().attn;
  const float* out = got.out.data.data() + (row * a.q_heads + head) * a.head_dim;
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(out[i] - want[i]));
  return worst;
}

class SparseProperty : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(SparseProperty);

TEST_P(SparseProperty, P01AllHeadsFullIsTheDenseKernel) {
  for (const KvFormat format : kFormats) {
    for (const int length : {1, 127, 128, 129, 700}) {
      SparseWorld world(ops_, stream_, shape_of(length, format), 5);
      const Plan full = world.plan_of(kFull);
      EXPECT_TRUE(same(world.attend(&full, 0, length), world.attend(nullptr, 0, length))) << length;
    }
  }
}

TEST_P(SparseProperty, P02ListsOfAllCausalBlocksAreFull) {
  for (const KvFormat format : kFormats) {
    for (const int length : {1, 128, 700}) {
      SparseWorld world(ops_, stream_, shape_of(length, format), 5);
      Plan all = world.plan_of(kBlocks);
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t b = 0; b < world.row_blocks(); ++b) {
          for (int64_t c = 0; c <= b; ++c) keep(world, all, h, b, c);
        }
      }
      EXPECT_TRUE(same(world.attend(&all, 0, length), world.attend(nullptr, 0, length))) << length;
    }
  }
}

TEST_P(SparseProperty, P03AThresholdOfOneIsFull) {
  for (const KvFormat format : kFormats) {
    for (const float threshold : {1.0f, 1.5f}) {
      SparseWorld world(ops_, stream_, shape_of(700, format), 5);
      Plan plan = world.plan_of(kBlocks);
      world.select(plan, 0, 700, {.threshold = threshold});
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t b = 0; b < world.row_blocks(); ++b) {
          EXPECT_EQ(plan.counts[static_cast<size_t>(h * world.row_blocks() + b)], b + 1);
        }
      }
      EXPECT_TRUE(same(world.attend(&plan, 0, 700), world.attend(nullptr, 0, 700)));
    }
  }
}

TEST_P(SparseProperty, P04SinkAndWindowAreTheMaskOfTheirTokens) {
  for (const int length : {1, 127, 128, 129, 255, 640, 4095, 4096, 4097}) {
    if (kSanitized && length > 640) break;
    SparseShape shape = shape_of(length);
    shape.attn = {2, 1, 16, 0.25f};
    SparseWorld world(ops_, stream_, shape, 3);
    for (const int sink : {0, 1, 2}) {
      for (const int window : {1, 2, 5, 16}) {
        Plan plan = world.plan_of(kStreaming);
        plan.sink = sink;
        plan.window = window;
        const auto got = world.attend(&plan, 0, length);
        // All rows of short prompts; of long ones some, those beside the blocks' ends among them.
        for (int64_t row = 0; row < length; ++row) {
          const bool edge = row % kBlock <= 0 || row % kBlock == kBlock - 1;
          if (length > 300 && row % 509 != 0 && row + 1 != length && !(edge && row % 1024 < kBlock))
            continue;
          const int64_t b = row / kBlock;
          EXPECT_LT(
              row_error(world, got, row % 2, row,
                        [&](int64_t j) { return j / kBlock < sink || j / kBlock > b - window; }),
              1e-5)
              << length << " sink " << sink << " window " << window << " row " << row;
        }
      }
    }
  }
}

TEST_P(SparseProperty, P05AWindowThatHoldsThePromptIsFull) {
  for (const KvFormat format : kFormats) {
    for (const int length : {1, 128, 129, 700}) {
      SparseWorld world(ops_, stream_, shape_of(length, format), 5);
      const auto dense = world.attend(nullptr, 0, length);
      Plan plan = world.plan_of(kStreaming);
      for (const auto& [sink, window] : {std::pair(0, 0), {0, 3}, {1, 0}}) {
        plan.sink = sink;
        plan.window = static_cast<int>(world.row_blocks()) + window;
        EXPECT_TRUE(same(world.attend(&plan, 0, length), dense)) << length;
      }
      plan.sink = static_cast<int>(world.row_blocks());
      plan.window = 1;
      EXPECT_TRUE(same(world.attend(&plan, 0, length), dense)) << length;
    }
  }
}

constexpr float kThresholds[] = {0.0f, 0.2f, 0.4f, 0.6f, 0.8f, 0.9f, 0.95f, 0.99f, 1.0f};

TEST_P(SparseProperty, P06MoreMassNeverLosesABlock) {
  for (const int stride : {4, 8, 16}) {
    SparseWorld world(ops_, stream_, shape_of(1400, KvFormat::kBf16), 8);
    Plan before;
    double least = 0;
    for (const float threshold : kThresholds) {
      Plan plan = world.plan_of(kBlocks);
      world.select(plan, 0, 1400, {.stride = stride, .threshold = threshold});
      for (size_t i = 0; i < before.words.size(); ++i) {
        EXPECT_EQ(before.words[i] & ~plan.words[i], 0) << threshold;
      }
      const double density = std::accumulate(plan.counts.begin(), plan.counts.end(), 0.0);
      EXPECT_GE(density, least);
      least = density;
      before = plan;
    }
  }
}

TEST_P(SparseProperty, P07TheChosenHoldTheMassAndNoneCouldBeSpared) {
  SparseWorld world(ops_, stream_, shape_of(1100), 8),
      oracle(ref_ops(), stream_, shape_of(1100), 8);
  for (const int stride : {4, 16}) {
    for (const float threshold : {0.3f, 0.6f, 0.9f}) {
      Plan plan = world.plan_of(kBlocks);
      const Choice choice{.stride = stride, .threshold = threshold};
      const std::vector<float> mass = world.select(plan, 0, 1100, choice);
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t b = 0; b < world.row_blocks(); ++b) {
          const std::vector<double> scores = oracle.scores(h, b, choice);
          const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
          double held = 0, last = 2, best_left = 0;
          for (int64_t c = 0; c <= b; ++c) {
            const double s = scores[static_cast<size_t>(c)] / total;
            if (world.kept(plan, h, b, c)) {
              held += s;
              if (c > 0 && c < b) last = std::min(last, s);
            } else {
              best_left = std::max(best_left, s);
            }
          }
          EXPECT_GE(held, threshold - 1e-5);
          EXPECT_NEAR(held, mass[static_cast<size_t>(h * world.row_blocks() + b)], 1e-5);
          // Without the least of those not forced it is too little, and no other is larger.
          if (last > 1) continue;
          EXPECT_LT(held - last, threshold + 1e-5);
          EXPECT_LE(best_left, last + 1e-5);
        }
      }
    }
  }
}

TEST_P(SparseProperty, P08BlockZeroAndTheDiagonalAreKeptAndNothingAboveIt) {
  for (const int length : {1, 129, 1400}) {
    SparseWorld world(ops_, stream_, shape_of(length, KvFormat::kBf16), 8);
    for (const float threshold : kThresholds) {
      for (const int quirk : {0, 4}) {
        Plan plan = world.plan_of(kBlocks);
        world.select(plan, 0, length, {.threshold = threshold, .quirk_blocks = quirk});
        for (int64_t h = 0; h < 4; ++h) {
          for (int64_t b = 0; b < world.row_blocks(); ++b) {
            EXPECT_TRUE(world.kept(plan, h, b, 0) && world.kept(plan, h, b, b));
            int32_t count = 0;
            for (int64_t c = 0; c < 32 * world.num_words(); ++c) {
              EXPECT_FALSE(c > b && world.kept(plan, h, b, c));
              count += world.kept(plan, h, b, c);
            }
            EXPECT_EQ(count, plan.counts[static_cast<size_t>(h * world.row_blocks() + b)]);
          }
        }
      }
    }
  }
}

const std::vector<HeadKind> kMixed = {kBlocks, kBlocks, kStreaming, kFull};

TEST_P(SparseProperty, P09HeadsMayComeInAnyOrder) {
  for (const KvFormat format : kFormats) {
    SparseShape shape = shape_of(700, format), turned = shape;
    shape.attn = turned.attn = {6, 3, 64, 0.125f};
    turned.rotate = 1;
    SparseWorld world(ops_, stream_, shape, 5), other(ops_, stream_, turned, 5);
    Plan plan = world.plan_of({kBlocks, kBlocks, kStreaming, kFull, kFull, kBlocks});
    Plan moved = other.plan_of({kStreaming, kFull, kFull, kBlocks, kBlocks, kBlocks});
    world.select(plan, 0, 700, {.threshold = 0.6f});
    other.select(moved, 0, 700, {.threshold = 0.6f});
    const auto a = world.attend(&plan, 0, 700), b = other.attend(&moved, 0, 700);
    const int64_t d = 64, rows = world.row_blocks();
    for (int64_t h = 0; h < 6; ++h) {
      const int64_t from = (h + 2) % 6;  // by one kv head
      for (int64_t r = 0; r < rows; ++r) {
        EXPECT_EQ(moved.counts[static_cast<size_t>(h * rows + r)],
                  plan.counts[static_cast<size_t>(from * rows + r)]);
        for (int64_t c = 0; c < rows; ++c) {
          EXPECT_EQ(other.kept(moved, h, r, c), world.kept(plan, from, r, c));
        }
      }
      for (int64_t p = 0; p < 700; ++p) {
        ASSERT_EQ(std::memcmp(b.out.data.data() + (p * 6 + h) * d,
                              a.out.data.data() + (p * 6 + from) * d, size_t{64} * sizeof(float)),
                  0)
            << "head " << h << " row " << p;
      }
    }
  }
}

TEST_P(SparseProperty, P09CompanyAndPagesDontShow) {
  for (const KvFormat format : kFormats) {
    SparseWorld world(ops_, stream_, shape_of(900, format), 5);
    SparseWorld paged(ops_, stream_, shape_of(900, format), 5, 77);  // other pages
    const std::vector<int> cuts = {0, 128, 512, 640, 655};
    for (SparseWorld* w : {&world, &paged}) {
      Plan plan = world.plan_of(kMixed), alone = plan;
      w->select_cut(plan, cuts, {.threshold = 0.6f});  // four prompts in a call
      const auto all = w->attend_cut(&plan, cuts, 3);  // the last one decodes
      for (size_t s = 0; s + 1 < cuts.size(); ++s) {
        world.select(alone, cuts[s], cuts[s + 1], {.threshold = 0.6f});
        const auto one = world.attend(&alone, cuts[s], cuts[s + 1], s == 3);
        EXPECT_EQ(std::memcmp(one.out.data.data(),
                              all.out.data.data() + static_cast<size_t>(cuts[s]) * 4 * 64,
                              one.out.data.size() * sizeof(float)),
                  0)
            << "segment " << s;
      }
      EXPECT_EQ(plan.words, alone.words);
      EXPECT_EQ(plan.counts, alone.counts);
    }
  }
}

TEST_P(SparseProperty, P10ChunksAndPrefixesGiveTheSameListsAndBits) {
  for (const KvFormat format : kFormats) {
    SparseWorld world(ops_, stream_, shape_of(900, format), 5);
    Plan whole = world.plan_of(kMixed);
    world.select(whole, 0, 900, {.threshold = 0.7f});
    const auto want = world.attend(&whole, 0, 900);
    for (const int chunk : {128, 256, 384, 640}) {
      Plan cut = world.plan_of(kMixed);
      for (int at = 0; at < 900; at += chunk) {
        const int end = std::min(900, at + chunk);
        world.select(cut, at, end, {.threshold = 0.7f});
        const auto part = world.attend(&cut, at, end);
        EXPECT_EQ(std::memcmp(part.out.data.data(),
                              want.out.data.data() + static_cast<size_t>(at) * 4 * 64,
                              part.out.data.size() * sizeof(float)),
                  0)
            << chunk << " at " << at;
      }
      EXPECT_EQ(cut.words, whole.words) << chunk;
      EXPECT_EQ(cut.counts, whole.counts) << chunk;
    }
  }
}

TEST_P(SparseProperty, P11AQueryHeadReadsItsOwnKvHead) {
  SparseShape shape = shape_of(300);
  shape.attn = {6, 3, 64, 0.125f};
  SparseWorld world(ops_, stream_, shape, 5);
  for (const HeadKind kind : {kFull, kBlocks, kStreaming}) {
    Plan plan = world.plan_of(kind);
    plan.sink = plan.window = 1;
    keep_some(world, plan, 4);
    const auto got = world.attend(&plan, 0, 300);
    for (int64_t h = 0; h < 6; ++h) {
      for (const int64_t row : {0, 127, 128, 200, 299}) {
        const int64_t b = row / kBlock;
        EXPECT_LT(row_error(world, got, h, row,
                            [&](int64_t j) {
                              const int64_t c = j / kBlock;
                              return kind == kFull || c == b || (kind == kStreaming && c < 1) ||
                                     (kind == kBlocks && world.kept(plan, h, b, c));
                            }),
                  1e-5)
            << "head " << h << " row " << row;
      }
    }
  }
}

TEST_P(SparseProperty, P12TheNormDividesTheScores) {
  for (const int stride : {4, 8, 16}) {
    SparseWorld world(ops_, stream_, shape_of(700), 8), scaled(ops_, stream_, shape_of(700), 8);
    Plan a = world.plan_of(kBlocks), b = a, unscaled = a;
    world.select(a, 0, 700, {.stride = stride, .norm = 0.25f, .threshold = 0.6f});
    world.select(unscaled, 0, 700, {.stride = stride, .threshold = 0.6f});
    for (float& x : scaled.q().data) x *= 4;
    scaled.select(b, 0, 700, {.stride = stride, .threshold = 0.6f});
    EXPECT_EQ(a.words, b.words);
    EXPECT_NE(a.words, unscaled.words);
  }
}

TEST_P(SparseProperty, P13TheRouterDecidesForEveryLengthAndEveryRowOfTheTable) {
  constexpr int64_t kHeads = 2, kGroup = 3, kDim = 16;
  Floats w1 = random_floats({4 * kDim, kDim}, 1), w2 = random_floats({kDim, 4 * kDim}, 2);
  Floats last({2, kDim}), wide({4 * kDim}), narrow({kDim}), bias({2});
  const std::pair<HeadKind, HeadKind> modes[] = {
      {kFull, kBlocks}, {kFull, kStreaming}, {kBlocks, kStreaming}, {kBlocks, kBlocks}};
  for (const int length : {1, 99, 100, 101, 150, 199, 200, 201}) {
    const Floats k = random_floats({length, kHeads, kDim}, 70, 3);
    Ints cu({0, length});
    for (const auto& [retrieval, sparse] : modes) {
      for (const float lean : {1.0f, 0.0f, -1.0f}) {
        bias.data[1] = lean;
        Floats logits({1, kHeads, 2}, kNaN);
        std::vector<int32_t> kinds(static_cast<size_t>(kHeads * kGroup), 7);
        ops_.sparse->route(stream_,
                           {.k = k.view,
                            .weights = {.feature = {w1.view, w2.view},
                                        .feature_bias = {wide.view, narrow.view},
                                        .router = {w1.view, w2.view, last.view},
                                        .router_bias = {wide.view, narrow.view, bias.view}},
                            .cu_q = cu.view,
                            .num_segments = 1,
                            .retrieval = retrieval,
                            .sparse = sparse,
                            .logits = logits.view,
                            .kinds = TensorView(kinds.data(), DType::kI32, {1, kHeads * kGroup})});
        const auto want = static_cast<int32_t>(lean > 0 ? retrieval : sparse);
        EXPECT_EQ(kinds, std::vector<int32_t>(static_cast<size_t>(kHeads * kGroup), want))
            << length << " lean " << lean;
      }
    }
  }
}

/// The first chunk of the published code, on scores: `tests/ops/sparse_test.cc` has its rule; here
/// the op takes it for the first blocks, and the clean rule from there on.
TEST_P(SparseProperty, P14ThePublishedQuirkIsThatOfTheFirstBlocksAlone) {
  SparseWorld world(ops_, stream_, shape_of(1400), 8),
      oracle(ref_ops(), stream_, shape_of(1400), 8);
  const Choice clean{.threshold = 0.6f}, quirk{.threshold = 0.6f, .quirk_blocks = 6};
  Plan a = world.plan_of(kBlocks), b = a;
  world.select(a, 0, 1400, clean);
  world.select(b, 0, 1400, quirk);
  int larger = 0;
  for (int64_t h = 0; h < 4; ++h) {
    for (int64_t row = 0; row < world.row_blocks(); ++row) {
      std::vector<bool> want = ref::choose_blocks(oracle.scores(h, row, quirk), 0.6, row < 6);
      for (int64_t c = 0; c <= row; ++c) {
        EXPECT_EQ(world.kept(b, h, row, c), want[static_cast<size_t>(c)]) << row << " " << c;
        if (row >= 6) {
          EXPECT_EQ(world.kept(a, h, row, c), world.kept(b, h, row, c));
        }
        larger += world.kept(b, h, row, c) && !world.kept(a, h, row, c);
        EXPECT_FALSE(world.kept(a, h, row, c) && !world.kept(b, h, row, c));  // a superset
      }
    }
  }
  EXPECT_GT(larger, 0);
}

TEST_P(SparseProperty, P15WhatNobodySeesNeverReachesAnOutput) {
  for (const KvFormat format : kFormats) {
    for (const int64_t victim : {1, 2, 3}) {
      SparseWorld clean(ops_, stream_, shape_of(690, format), 5);
      SparseWorld poisoned(ops_, stream_, shape_of(690, format), 5);
      Plan plan = clean.plan_of({kBlocks, kStreaming, kStreaming, kBlocks});
      plan.window = 1;
      for (const int64_t h : {0, 3}) {
        for (int64_t c = 0; c < 5; ++c) {
          if (c != victim) keep(clean, plan, h, 5, c);
        }
      }
      poisoned.poison(victim);  // NaN; beyond the sequence everything is NaN anyway
      const auto got = poisoned.attend(&plan, 640, 690);
      EXPECT_TRUE(same(got, clean.attend(&plan, 640, 690))) << victim;
      for (const float x : got.out.data) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

/// Random shapes, plans and cuts against the oracle; with a sanitizer (CI) nothing is read or
/// written beyond its end.
TEST_P(SparseProperty, P16AHundredRandomShapes) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const auto draw = [&](uint64_t what, int n) {
      return static_cast<int>(philox4x32(seed, what, 6)[0] % static_cast<uint32_t>(n));
    };
    SparseShape shape;
    const int kv_heads = 1 + draw(0, 3), group = 1 + draw(1, 4);
    shape.attn = {kv_heads * group, kv_heads, 16 << draw(2, 3), 0.2f};
    shape.format = kFormats[draw(3, 2)];
    shape.block_size = 16 << draw(4, 4);
    shape.length = 1 + draw(5, draw(6, 8) == 0 ? 700 : 200);
    SparseWorld ours(ops_, stream_, shape, seed), oracle(ref_ops(), stream_, shape, seed);
    std::vector<HeadKind> kinds;
    for (int h = 0; h < shape.attn.q_heads; ++h) {
      kinds.push_back(static_cast<HeadKind>(draw(10 + static_cast<uint64_t>(h), 3) - 1));
    }
    Plan plan = ours.plan_of(kinds);
    plan.sink = draw(7, 3);
    plan.window = 1 + draw(8, 3);
    const int blocks = static_cast<int>(ours.row_blocks());
    const int first = static_cast<int>(kBlock) * draw(9, blocks);
    ours.select(plan, first, shape.length,
                {.stride = 4 << draw(30, 3), .threshold = 0.1f * static_cast<float>(draw(31, 11))});
    const auto got = ours.attend(&plan, first, shape.length);
    const auto want = oracle.attend(&plan, first, shape.length);
    const double tolerance = shape.format == KvFormat::kF32 ? 4e-6 : 8e-3;
    EXPECT_LT(relative_l2(got.out.data, want.out.data), tolerance) << "seed " << seed;
    EXPECT_LT(relative_l2(got.lse.data, want.lse.data), tolerance) << "seed " << seed;
  }
}

TEST_P(SparseProperty, P17ACallGivesTheSameBitsEveryTimeAndOnAnyThreads) {
  for (const KvFormat format : kFormats) {
    Plan first;
    std::optional<SparseWorld::Output> out;
    for (const int threads : {2, 2, 1, 3, 2}) {
      TestStream stream(threads);
      SparseWorld world(ops_, stream, shape_of(900, format), 5);
      Plan plan = world.plan_of(kMixed);
      world.select(plan, 0, 900, {.threshold = 0.7f});
      auto got = world.attend(&plan, 0, 900);
      if (!out) {
        out = std::move(got);
        first = plan;
        continue;
      }
      EXPECT_EQ(plan.words, first.words);
      EXPECT_TRUE(same(got, *out));
    }
  }
}

TEST_P(SparseProperty, P18MoreElementsThan32BitsCount) {
  constexpr int kRows = 300;
  constexpr int64_t kApart = int64_t{9} << 20;  // elements: 300 of them are above 2^31
  static_assert(kRows * kApart > int64_t{1} << 31);
  const Expanse q(kRows * kApart * 4), out(kRows * kApart * 4);
  if (q.data() == nullptr || out.data() == nullptr) GTEST_SKIP() << "no address space";
  for (const KvFormat format : kFormats) {
    const SparseShape shape = shape_of(kRows, format);
    SparseWorld world(ops_, stream_, shape, 5), near(ops_, stream_, shape, 5);
    Plan want = near.plan_of(kMixed), plan = want;
    near.select(want, 0, kRows, {.threshold = 0.6f});
    const auto expected = near.attend(&want, 0, kRows);

    if (!world.spread_pages(int64_t{2} << 30)) GTEST_SKIP() << "no address space";
    world.q().view = q.spread(world.q(), kApart);
    world.select(plan, 0, kRows, {.threshold = 0.6f});
    EXPECT_EQ(plan.words, want.words);
    Floats far({kRows, 4, 64}, kNaN);
    const TensorView there = out.spread(far, kApart);
    world.attend_into(plan, there);
    for (int64_t r = 0; r < kRows; ++r) {
      ASSERT_EQ(std::memcmp(there.row<float>(r), expected.out.data.data() + r * 4 * 64,
                            size_t{4} * 64 * sizeof(float)),
                0)
          << r;
    }
  }
}

}  // namespace
}  // namespace weft
