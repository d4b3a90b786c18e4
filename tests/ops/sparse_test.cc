// Plans of heads in prompts: what a head sees, which blocks are chosen for it, and which heads are
// retrieval heads (kernels/sparse_args.h).
#include <algorithm>
#include <bit>
#include <fstream>
#include <functional>

#include "kernels/cpu/choose_blocks.h"
#include "kernels/ref/ref.h"
#include "sparse_support.h"

namespace weft {
namespace {

using Plan = SparseWorld::Plan;
constexpr auto kFull = HeadKind::kFull, kBlocks = HeadKind::kBlocks,
               kStreaming = HeadKind::kStreaming;

constexpr KvFormat kFormats[] = {KvFormat::kF32,      KvFormat::kBf16, KvFormat::kInt8Dynamic,
                                 KvFormat::kFp8Block, KvFormat::kInt8, KvFormat::kFp8,
                                 KvFormat::kInt4};

SparseShape shape_of(int length, KvFormat format = KvFormat::kF32, int block_size = 64) {
  return {.attn = {4, 2, 64, 0.125f}, .format = format, .block_size = block_size, .length = length};
}

void keep_some(const SparseWorld& world, Plan& plan, uint64_t seed) {
  for (int64_t h = 0; h < world.shape().attn.q_heads; ++h) {
    for (int64_t b = 0; b < world.row_blocks(); ++b) {
      for (int64_t c = 0; c < b; ++c) {
        const auto index = static_cast<uint64_t>((h * 64 + b) * 64 + c);
        if (philox4x32(seed, index, 3)[0] % 3 != 0) continue;
        world.words(plan, h, b)[c / 32] |= static_cast<int32_t>(1u << (c % 32));
      }
    }
  }
}

class SparsePrefill : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(SparsePrefill);

TEST_P(SparsePrefill, MatchesTheOracle) {
  const std::vector<HeadKind> mixed = {kFull, kBlocks, kStreaming, kBlocks};
  for (const KvFormat format : kFormats) {
    for (const int length : {1, 127, 128, 129, 255, 700}) {
      const SparseShape shape = shape_of(length, format, length == 255 ? 16 : 64);
      SparseWorld ours(ops_, stream_, shape, 5), oracle(ref_ops(), stream_, shape, 5);
      Plan plan = ours.plan_of(mixed);
      keep_some(ours, plan, 9);
      const auto got = ours.attend(&plan, 0, length), want = oracle.attend(&plan, 0, length);
      const double tolerance = format == KvFormat::kF32    ? 2e-6
                               : format == KvFormat::kBf16 ? 6e-3
                                                           : 2e-3;  // q is two bf16 there
      EXPECT_LT(relative_l2(got.out.data, want.out.data), tolerance)
          << kv_format_name(format) << " " << length;
      EXPECT_LT(relative_l2(got.lse.data, want.lse.data), tolerance) << length;
    }
  }
}

TEST_P(SparsePrefill, DecodeRowsSeeEverything) {
  SparseWorld world(ops_, stream_, shape_of(700), 5);
  const Plan nothing = world.plan_of(kBlocks);
  const auto planned = world.attend(&nothing, 640, 650, true);
  EXPECT_TRUE(planned.out.same_bits(world.attend(nullptr, 640, 650, true).out));
}

// ---- Which blocks are chosen

TEST_P(SparsePrefill, SelectionMatchesTheOracle) {
  for (const KvFormat format : kFormats) {
    for (const int stride : {4, 8, 16}) {
      for (const int length : {1, 100, 129, 515, 1100}) {
        const SparseShape shape = shape_of(length, format, stride == 8 ? 16 : 64);
        SparseWorld ours(ops_, stream_, shape, 5), oracle(ref_ops(), stream_, shape, 5);
        for (const float threshold : {0.5f, 0.9f, 1.0f}) {
          Plan got = ours.plan_of({kBlocks, kFull, kBlocks, kBlocks}), want = got;
          const SparseWorld::Choice choice{.stride = stride, .threshold = threshold};
          const std::vector<float> mass = ours.select(got, 0, length, choice);
          const std::vector<float> wanted = oracle.select(want, 0, length, choice);
          EXPECT_EQ(got.words, want.words) << length << " stride " << stride;
          EXPECT_EQ(got.counts, want.counts);
          for (size_t i = 0; i < mass.size(); ++i) {
            if (got.counts[i] == 0) continue;
            EXPECT_NEAR(mass[i], wanted[i], 1e-5);
          }
        }
      }
    }
  }
}

/// What the published code does in a chunk whose query blocks begin at key block `index`, on one
/// row: the forced ones are sorted first, a column counts by the sum of those two places before it.
std::vector<bool> published_choice(const std::vector<double>& scores, double threshold,
                                   bool first_chunk) {
  const size_t n = scores.size(), b = n - 1;
  std::vector<bool> forced(n, false);
  if (!first_chunk) forced[0] = true;
  forced[b] = true;
  double total = 0, forced_mass = 0;
  for (size_t c = 0; c < n; ++c) {
    total += scores[c];
    if (forced[c]) forced_mass += scores[c];
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) {
    const double a = forced[x] ? 1e5 * (1 + scores[x]) : scores[x];
    const double c = forced[y] ? 1e5 * (1 + scores[y]) : scores[y];
    return a > c;
  });
  std::vector<double> others;
  for (size_t c = 0; c < n; ++c) others.push_back(forced[c] ? 0 : scores[c]);
  std::sort(others.rbegin(), others.rend());
  std::vector<double> column = {0, forced_mass};
  column.insert(column.end(), others.begin(), others.end());
  std::vector<bool> kept = forced;
  double before = 0;
  for (size_t place = 0; place < n; ++place) {
    if (place > 0) before += column[place - 1];
    kept[before < threshold * total ? order[place] : 0] = true;
  }
  return kept;
}

TEST(BlockChoice, IsThePublishedOneWithAndWithoutItsQuirk) {
  int differences = 0;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const size_t n = 1 + philox4x32(seed, 0, 9)[0] % 60;
    const double threshold = 0.05 + 0.9 * uniform01(philox4x32(seed, 1, 9)[0]);
    std::vector<double> scores;
    std::vector<float> narrow;
    for (size_t i = 0; i < n; ++i) {
      narrow.push_back(std::pow(uniform01(philox4x32(seed, i, 10)[0]), 4.0f));
      scores.push_back(narrow.back());
    }
    for (const bool quirk : {false, true}) {
      const std::vector<bool> want = published_choice(scores, static_cast<float>(threshold), quirk);
      EXPECT_EQ(ref::choose_blocks(scores, static_cast<float>(threshold), quirk), want) << seed;
      std::vector<int32_t> order(n), words(2, -1);
      const ChosenBlocks chosen = choose_blocks({.scores = narrow.data(),
                                                 .row = static_cast<int64_t>(n) - 1,
                                                 .threshold = static_cast<float>(threshold),
                                                 .quirk = quirk,
                                                 .order = order.data(),
                                                 .words = words.data(),
                                                 .num_words = 2});
      for (size_t c = 0; c < 64; ++c) {
        EXPECT_EQ((words[c / 32] >> (c % 32) & 1) != 0, c < n && want[c]) << seed << " " << c;
      }
      EXPECT_EQ(chosen.count, std::count(want.begin(), want.end(), true));
      differences +=
          quirk && want != published_choice(scores, static_cast<float>(threshold), false);
    }
  }
  EXPECT_GT(differences, 100);
}

/// Distinct whole numbers, the scores of row `seed` of tests/data/xattn_choice.txt.
std::vector<float> fixture_scores(int64_t seed, size_t n) {
  std::vector<float> out;
  int64_t x = seed * 7919 + 1;
  while (out.size() < n) {
    x = (x * 1103515245 + 12345) % (int64_t{1} << 31);
    const auto root = static_cast<float>((x >> 8) % 1009);
    const float score = root * root + 1;
    if (std::find(out.begin(), out.end(), score) == out.end()) out.push_back(score);
  }
  return out;
}

/// The file has what find_blocks_chunked of github.com/mit-han-lab/x-attention (e379887, PyTorch)
/// chose: a line is a seed, the number of blocks, the threshold in thousandths, whether the row
/// stands in a first chunk, and the blocks as bits of a hexadecimal number.
TEST(BlockChoice, IsWhatThePublishedProgramChose) {
  std::ifstream file(std::string(WEFT_SOURCE_DIR) + "/tests/data/xattn_choice.txt");
  int64_t seed = 0;
  int n = 0, permille = 0, first = 0, rows = 0;
  uint64_t bits = 0;
  while (file >> std::dec >> seed >> n >> permille >> first >> std::hex >> bits) {
    SCOPED_TRACE(seed);
    ++rows;
    const std::vector<float> scores = fixture_scores(seed, static_cast<size_t>(n));
    const float threshold = static_cast<float>(permille) / 1000;
    const std::vector<bool> kept =
        ref::choose_blocks({scores.begin(), scores.end()}, threshold, first != 0);
    std::vector<int32_t> order(scores.size()), words(2, -1);
    const ChosenBlocks chosen = choose_blocks({.scores = scores.data(),
                                               .row = n - 1,
                                               .threshold = threshold,
                                               .quirk = first != 0,
                                               .order = order.data(),
                                               .words = words.data(),
                                               .num_words = 2});
    for (int c = 0; c < n; ++c) {
      EXPECT_EQ(kept[static_cast<size_t>(c)], (bits >> c & 1) != 0) << c;
      EXPECT_EQ((words[static_cast<size_t>(c / 32)] >> (c % 32) & 1) != 0, (bits >> c & 1) != 0)
          << c;
    }
    EXPECT_EQ(chosen.count, std::popcount(bits));
  }
  EXPECT_EQ(rows, 238);
}

TEST(BlockChoice, TiesGoToTheLowerBlock) {
  const std::vector<double> scores = {1, 2, 2, 2, 1};
  EXPECT_EQ(ref::choose_blocks(scores, 0.45), (std::vector<bool>{true, true, false, false, true}));
  EXPECT_EQ(ref::choose_blocks(scores, 0.51), (std::vector<bool>{true, true, true, false, true}));
}

// ---- The router

struct RouterWorld {
  static constexpr int64_t kHeads = 3, kGroup = 2, kDim = 32;
  Floats weights[5], biases[5], norm = random_floats({kDim}, 50);
  RouterWeights args;

  explicit RouterWorld(uint64_t seed) {
    const int64_t shapes[5][2] = {
        {4 * kDim, kDim}, {kDim, 4 * kDim}, {4 * kDim, kDim}, {kDim, 4 * kDim}, {2, kDim}};
    for (uint64_t i = 0; i < 5; ++i) {
      weights[i] = random_floats({shapes[i][0], shapes[i][1]}, seed + i, 0.4f);
      biases[i] = random_floats({shapes[i][0]}, seed + 10 + i, 0.4f);
    }
    for (int i = 0; i < 2; ++i) {
      args.feature[i] = weights[i].view;
      args.feature_bias[i] = biases[i].view;
    }
    for (int i = 0; i < 3; ++i) {
      args.router[i] = weights[i + 2].view;
      args.router_bias[i] = biases[i + 2].view;
    }
  }

  struct Result {
    Floats logits;
    std::vector<int32_t> kinds;
  };
  Result run(const OpTable& ops, Stream& stream, const Floats& k, std::vector<int32_t> cu) {
    const auto num = static_cast<int64_t>(cu.size()) - 1;
    Ints cu_q(std::move(cu));
    std::vector<int32_t> rows;  // the last one first
    for (int64_t s = 0; s < num; ++s) rows.push_back(static_cast<int32_t>(num - 1 - s));
    Ints row_of(rows);
    Result out{Floats({num, kHeads, 2}, kNaN),
               std::vector<int32_t>(static_cast<size_t>(num * kHeads * kGroup), 7)};
    ops.sparse->route(stream,
                      {.k = k.view,
                       .k_norm = norm.view,
                       .weights = args,
                       .cu_q = cu_q.view,
                       .num_segments = static_cast<int>(num),
                       .retrieval = kFull,
                       .sparse = kStreaming,
                       .logits = out.logits.view,
                       .kinds = TensorView(out.kinds.data(), DType::kI32, {num, kHeads * kGroup}),
                       .rows = row_of.view});
    return out;
  }
};

TEST_P(SparsePrefill, RouterMatchesTheOracleForEveryLength) {
  RouterWorld world(4);
  for (const int length : {1, 99, 100, 101, 150, 199, 200, 201, 333}) {
    const Floats k = random_floats({length + 40, RouterWorld::kHeads, RouterWorld::kDim}, 70, 3);
    const auto got = world.run(ops_, stream_, k, {0, length, length + 40});
    const auto want = world.run(ref_ops(), stream_, k, {0, length, length + 40});
    for (size_t i = 0; i + 1 < got.logits.data.size(); ++i) {
      EXPECT_NEAR(got.logits.data[i], want.logits.data[i], 1e-5) << length;
    }
    EXPECT_EQ(got.kinds, want.kinds);
    // Alone it is the same, bit for bit: kinds of segment 0 are in the last row.
    const auto alone = world.run(ops_, stream_, k, {0, length});
    EXPECT_EQ(std::memcmp(alone.logits.data.data(), got.logits.data.data(), 6 * sizeof(float)), 0);
    EXPECT_TRUE(std::equal(alone.kinds.begin(), alone.kinds.end(), got.kinds.begin() + 6));
  }
}

TEST_P(SparsePrefill, RouterTakesOnlyTheEndsOfAPromptAndEachTwiceWhereTheyOverlap) {
  RouterWorld world(4);
  Floats k = random_floats({300, RouterWorld::kHeads, RouterWorld::kDim}, 70, 3);
  const auto before = world.run(ops_, stream_, k, {0, 300});
  const size_t row = RouterWorld::kHeads * RouterWorld::kDim;
  for (size_t i = 100 * row; i < 200 * row; ++i) k.data[i] = 99;
  EXPECT_TRUE(before.logits.same_bits(world.run(ops_, stream_, k, {0, 300}).logits));
  k.data[99 * row] += 1;
  EXPECT_FALSE(before.logits.same_bits(world.run(ops_, stream_, k, {0, 300}).logits));
}

TEST_P(SparsePrefill, RouterChoosesByTheLargerLogitAndSparseOnATie) {
  const Floats k = random_floats({150, RouterWorld::kHeads, RouterWorld::kDim}, 70);
  const auto kinds_with = [&](float first, float second) {
    RouterWorld world(4);
    std::fill(world.weights[4].data.begin(), world.weights[4].data.end(), 0.0f);
    world.biases[4].data[0] = first;
    world.biases[4].data[1] = second;
    return world.run(ops_, stream_, k, {0, 150}).kinds;
  };
  const std::vector<int32_t> retrieval(6, static_cast<int32_t>(kFull));
  const std::vector<int32_t> sparse(6, static_cast<int32_t>(kStreaming));
  EXPECT_EQ(kinds_with(0, 1), retrieval);
  EXPECT_EQ(kinds_with(1, 0), sparse);
  EXPECT_EQ(kinds_with(0.5f, 0.5f), sparse);
}

}  // namespace
}  // namespace weft
