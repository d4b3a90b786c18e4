// Gated delta rule on a GPU against the recurrence in double.

#include <algorithm>
#include <cmath>

#include "tests/ops_cuda/gdn_support.h"

namespace weft {
namespace {

// Outputs are rounded to bf16, which alone is 1.7e-3.
constexpr double kOutTolerance = 2e-3, kNormedTolerance = 3e-3;  // a prompt's are rounded twice
constexpr double kStepStateTolerance = 1e-5, kChunkStateTolerance = 1e-3;

GdnCall one(GdnChain chain, bool prompt) {
  return prompt ? GdnCall{{std::move(chain)}, {}} : GdnCall{{}, {std::move(chain)}};
}

void expect_recurrence(const GdnWorld& world, const GdnCall& call, int64_t slot,
                       const std::string& name) {
  GdnWorld ours = world, oracle = world;
  const std::vector<float> got = gdn_on_gpu(ours, call);
  const std::vector<float> want = gdn_in_double(oracle, call);
  EXPECT_LT(relative_l2(got, want), world.z.empty() ? kOutTolerance : kNormedTolerance) << name;
  EXPECT_LT(relative_l2(ours.states, oracle.states),
            call.prompt.empty() ? kStepStateTolerance : kChunkStateTolerance)
      << name;
  EXPECT_LT(relative_l2(rows_of(ours.states, ours.state_size(), slot, 1),
                        rows_of(oracle.states, ours.state_size(), slot, 1)),
            call.prompt.empty() ? kStepStateTolerance : kChunkStateTolerance)
      << name;
  EXPECT_TRUE(same_bits(ours.windows, oracle.windows)) << name;
}

TEST(GdnCuda, LengthsMatchTheRecurrence) {
  for (const int rows : {1, 2, 63, 64, 65, 127, 128, 200, 1000}) {
    for (const bool prompt : {true, false}) {
      expect_recurrence(GdnWorld({1, 2, 128, 128, 4}, rows, 3), one({{rows, 2, 5}}, prompt), 5,
                        std::to_string(rows) + (prompt ? " prompt" : " decode"));
    }
  }
}

TEST(GdnCuda, LongSequencesMatchTheRecurrence) {
  expect_recurrence(GdnWorld({1, 1, 128, 128, 4}, 4097, 3), one({{4097, -1, 0}}, true), 0,
                    "prompt");
  expect_recurrence(GdnWorld({1, 1, 128, 128, 4}, 20000, 4), one({{20000, 1, 0}}, false), 0,
                    "decode");
}

TEST(GdnCuda, HeadsMatchTheRecurrence) {
  for (const auto& [hk, hv] : {std::pair{1, 1},
                               {2, 8},
                               {4, 16},
                               {16, 16},
                               {16, 32},
                               {16, 48},
                               {16, 64},
                               {2, 4},
                               {1, 8},
                               {1, 12}}) {
    for (const bool prompt : {true, false}) {
      const int rows = prompt ? 70 : 5;
      expect_recurrence(GdnWorld({hk, hv, 128, 128, 4}, rows, 5, 3), one({{rows, 1, 1}}, prompt), 1,
                        std::to_string(hk) + "/" + std::to_string(hv) + (prompt ? " prompt" : ""));
    }
  }
}

TEST(GdnCuda, SmallAndOddShapesMatchTheRecurrence) {
  for (const GdnShape& shape : {GdnShape{2, 4, 64, 64, 4},
                                {2, 8, 64, 64, 4},
                                {1, 1, 32, 48, 4},
                                {4, 4, 16, 16, 2},
                                {1, 3, 128, 64, 4},
                                {1, 2, 256, 32, 3},
                                {1, 2, 64, 128, 4},
                                {2, 2, 24, 40, 4},
                                {1, 2, 128, 128, 2},
                                {1, 1, 256, 256, 4}}) {
    for (const bool prompt : {true, false}) {
      expect_recurrence(GdnWorld(shape, 67, 6), one({{67, 2, 5}}, prompt), 5,
                        std::to_string(shape.key_dim) + "x" + std::to_string(shape.value_dim));
    }
  }
}

TEST(GdnCuda, ManyChainsAndSegmentsMatchTheRecurrence) {
  const GdnShape shape{2, 4, 128, 128, 4};
  // Prompts with checkpoints, empty segments, a decode chain that goes on from a prompt chain of
  // the same step, rows that write nothing.
  const GdnCall call{
      {{{64, -1, 0}, {128, 0, 1}, {30, 1, 2}}, {{5, 3, 3}}, {{0, 4, 5}}, {{100, -1, -1}}},
      {{{1, 2, 2}}, {{3, 6, 6}, {1, 6, 7}}, {{0, -1, -1}}, {{2, -1, -1}}}};
  expect_recurrence(GdnWorld(shape, call.rows(), 7), call, 2, "many");
}

/// What the other tests compare with would show these: each is far from what the kernels do.
TEST(GdnCuda, PlantedMistakesAreSeen) {
  const GdnShape shape{2, 4, 128, 128, 4};
  for (const bool prompt : {true, false}) {
    const GdnChain first = {{70, 3, 5}}, second = {{9, 6, 1}};
    const GdnCall call = prompt ? GdnCall{{first, second}, {}} : GdnCall{{}, {first, second}};
    GdnWorld ours(shape, call.rows(), 51);
    for (float& a_log : ours.a_log) a_log = -4;  // long memory
    const GdnWorld world = ours;
    const std::vector<float> got = gdn_on_gpu(ours, call);
    for (const GdnMistake mistake :
         {GdnMistake::kZeroedState, GdnMistake::kTransposedState, GdnMistake::kTiledHeads,
          GdnMistake::kSqueezedGates, GdnMistake::kSlotOfBlocks}) {
      GdnWorld oracle = world;
      const std::vector<float> wrong = gdn_in_double(oracle, call, mistake);
      EXPECT_GT(relative_l2(got, wrong), 20 * kOutTolerance) << static_cast<int>(mistake);
      EXPECT_GT(relative_l2(ours.states, oracle.states), 20 * kChunkStateTolerance)
          << static_cast<int>(mistake);
    }
  }
}

TEST(GdnCuda, OutputsTakeTheLayersNorm) {
  const GdnCall call{
      {{{64, -1, 0}, {7, 0, 1}}, {{3, 2, 2}}},
      {{{1, 3, 3}}, {{8, 4, 4}}, {{0, 5, 5}, {9, 5, 6}}, {{25, 7, -1}}, {{0, -1, -1}}}};
  for (const GdnShape& shape : {GdnShape{2, 4, 128, 128, 4},
                                {1, 1, 128, 128, 4},
                                {1, 3, 128, 128, 4},
                                {40, 80, 128, 128, 4},
                                {2, 8, 64, 64, 4},
                                {1, 2, 32, 48, 4}}) {
    for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kSigmoid}) {
      GdnWorld world(shape, call.rows(), 31);
      world.add_norm(32);
      world.activation = activation;
      expect_recurrence(world, call, 6, std::to_string(shape.value_heads));
    }
  }
}

/// Rounded after every token or chunk: 2^-9 each time.
TEST(GdnCuda, HalfStatesStayNearTheRecurrence) {
  const GdnCall call{{{{128, -1, 0}, {70, 0, 1}}}, {{{1, 3, 3}}, {{12, 4, 4}}, {{0, 5, 5}}}};
  for (const GdnShape& shape :
       {GdnShape{2, 4, 128, 128, 4}, {40, 40, 128, 128, 4}, {1, 2, 64, 64, 4}}) {
    GdnWorld ours(shape, call.rows(), 41);
    ours.halve_states();
    GdnWorld oracle = ours;
    const std::vector<float> got = gdn_on_gpu(ours, call);
    EXPECT_LT(relative_l2(got, gdn_in_double(oracle, call)), 6e-3);
    EXPECT_LT(relative_l2(ours.states, oracle.states), 4e-3);
  }
}

TEST(GdnCuda, UnalignedSegmentsCarryTheWindow) {
  const GdnShape shape{1, 2, 128, 128, 4};
  const GdnWorld world(shape, 70, 9);
  for (const bool prompt : {true, false}) {
    for (const int first : {1, 2, 3, 4, 61}) {
      for (const int second : {1, 2, 3}) {
        const int rest = 70 - first - second;
        expect_recurrence(world,
                          one({{first, 2, 2}, {second, 2, 2}, {0, 2, 1}, {rest, 1, 0}}, prompt), 0,
                          std::to_string(first) + " " + std::to_string(second));
      }
    }
  }
}

/// Gates at their ends, in all combinations along the rows.
TEST(GdnCuda, ExtremeGatesStayFinite) {
  for (const float a : {20.0f, -20.0f, 0.0f}) {
    for (const float b : {40.0f, -40.0f, 0.0f}) {
      for (const bool prompt : {true, false}) {
        GdnWorld world({1, 2, 128, 128, 4}, 130, 8);
        std::fill(world.a_log.begin(), world.a_log.end(), std::log(16.0f));
        for (size_t i = 0; i < world.a.size(); ++i) {
          world.a[i] = i % 3 == 0 ? -a : a;
          world.b[i] = b;
        }
        expect_recurrence(world, one({{130, 0, 1}}, prompt), 1,
                          std::to_string(a) + " " + std::to_string(b));
      }
    }
  }
}

/// States and values far outside of 16-bit floats' range, and far inside.
TEST(GdnCuda, MagnitudesBeyondHalfPrecision) {
  for (const float scale : {1e8f, 3e4f, 1e-3f, 1e-10f}) {
    for (const bool prompt : {true, false}) {
      GdnWorld world({1, 2, 128, 128, 4}, 200, 8);
      const auto v = static_cast<size_t>(2 * 128);
      for (size_t i = 0; i < world.conv.size(); ++i) {
        if (i / 4 >= v) world.conv[i] *= scale;  // silu is no longer linear below 1, so be it
      }
      for (float& x : world.states) x *= scale;
      expect_recurrence(world, one({{200, 0, 1}}, prompt), 1, std::to_string(scale));
    }
  }
}

/// Equal keys and writes of full strength: the worst case of the triangular solve.
TEST(GdnCuda, EqualKeysAreSolvedStably) {
  GdnWorld world({1, 1, 128, 128, 4}, 192, 11);
  for (int64_t t = 0; t < world.rows; ++t) {
    std::copy_n(world.qkv.begin(), 256, world.qkv.begin() + t * world.channels());
  }
  std::fill(world.b.begin(), world.b.end(), 20.0f);
  std::fill(world.a.begin(), world.a.end(), -20.0f);
  expect_recurrence(world, one({{192, 0, 1}}, true), 1, "equal keys");
}

TEST(GdnCuda, SmallForSanitizers) {
  const GdnCall call{{{{70, -1, 0}}, {{64, 1, 1}, {3, 1, 2}}},
                     {{{1, 0, 0}}, {{2, 3, 3}}, {{0, -1, -1}}}};
  for (const GdnShape& shape :
       {GdnShape{1, 2, 128, 128, 4}, {1, 2, 64, 64, 4}, {1, 2, 32, 16, 4}}) {
    expect_recurrence(GdnWorld(shape, call.rows(), 12), call, 0, std::to_string(shape.key_dim));
  }
}

}  // namespace
}  // namespace weft
