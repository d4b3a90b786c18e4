#include "gdn_world.h"

namespace weft {
namespace {

class Gdn : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(Gdn);

const GdnShape kShapes[] = {{1, 1, 32, 48, 4}, {2, 4, 128, 128, 4}, {2, 8, 64, 64, 4},
                            {4, 4, 16, 16, 2}, {1, 3, 128, 64, 4},  {1, 2, 256, 32, 3},
                            {1, 2, 64, 32, 4}};

TEST_P(Gdn, ChunksAndStepsMatchTheRecurrence) {
  for (const GdnShape& shape : kShapes) {
    for (const int rows : {1, 2, 63, 64, 65, 127, 128, 1000}) {
      if (rows == 1000 && shape.key_dim * shape.value_dim > 2048)
        continue;  // the oracle takes its time
      for (const int prompt : {1, 0}) {
        World ours(shape, rows, 3), oracle(shape, rows, 3);
        const std::vector<Part> parts = {{rows, 2, 5}};
        const Floats got = run(ops_, stream_, ours, 0, parts, prompt);
        const Floats want = run(ref_ops(), stream_, oracle, 0, parts, prompt);
        EXPECT_LT(relative_l2(got.data, want.data), kTolerance) << rows << " prompt " << prompt;
        EXPECT_LT(relative_l2(ours.slot_of(5), oracle.slot_of(5)), kTolerance) << rows;
      }
    }
  }
}

TEST_P(Gdn, HeadsMatchTheRecurrence) {
  for (const auto& [hk, hv] :
       {std::pair{1, 1}, {2, 8}, {4, 16}, {16, 16}, {16, 32}, {16, 48}, {16, 64}}) {
    for (const int mode : {0, 1, 2, 3}) {  // decode and prompt, in fp32 and on tiles
      const int prompt = mode % 2;
      const GdnShape shape = mode < 2 ? GdnShape{hk, hv, 32, 48, 4} : GdnShape{hk, hv, 64, 32, 4};
      World ours(shape, 70, 15), oracle(shape, 70, 15);
      const std::vector<Part> parts = {{65, 2, 5}, {0, 1, 3}, {5, 4, 4}};
      const Floats got = run(ops_, stream_, ours, 0, parts, 3 * prompt);
      const Floats want = run(ref_ops(), stream_, oracle, 0, parts, 3 * prompt);
      EXPECT_LT(relative_l2(got.data, want.data), kTolerance) << hk << "/" << hv;
      EXPECT_LT(relative_l2(ours.states.data, oracle.states.data), kTolerance) << hk << "/" << hv;
    }
  }
}

TEST_P(Gdn, ReplayedTokensFollowTheirPromptInTheSameStep) {
  // The prompts of two sequences, then a token of another and generated ones of the first, whose
  // state is that after its prompt. Several threads, again and again: nothing may begin too early.
  const GdnShape shape{2, 4, 64, 64, 4};
  const std::vector<Part> parts = {{200, -1, 2}, {40, -1, 3}, {1, 4, 4}, {9, 2, 2}, {2, 3, 5}};
  World oracle(shape, 252, 21);
  const Floats want = run(ref_ops(), stream_, oracle, 0, parts, 2);
  for (int i = 0; i < 20; ++i) {
    World ours(shape, 252, 21);
    const Floats got = run(ops_, stream_, ours, 0, parts, 2);
    ASSERT_LT(relative_l2(got.data, want.data), kTolerance) << i;
    ASSERT_LT(relative_l2(ours.states.data, oracle.states.data), kTolerance) << i;
    ASSERT_LT(relative_l2(ours.windows.data, oracle.windows.data), kTolerance) << i;
  }
}

/// `from`, with a key head for each value head: hv's is `map(hv)`.
template <class Map>
World expanded(const World& from, Map&& map) {
  const GdnShape& s = from.shape;
  World to({s.value_heads, s.value_heads, s.key_dim, s.value_dim, s.conv_width}, from.rows, 1,
           from.slots);
  const int64_t kd = s.key_dim, old_c = from.channels(), new_c = to.channels();
  const auto channel = [&](int64_t c) {
    if (c >= 2 * s.value_heads * kd) return c - 2 * (s.value_heads - s.key_heads) * kd;
    const int64_t part = c / (s.value_heads * kd), head = c / kd % s.value_heads;
    return (part * s.key_heads + map(head)) * kd + c % kd;
  };
  const auto rows = [&](const Floats& old, Floats& into, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t c = 0; c < new_c; ++c) {
        into.data[static_cast<size_t>(t * new_c + c)] =
            old.data[static_cast<size_t>(t * old_c + channel(c))];
      }
    }
  };
  rows(from.qkv, to.qkv, from.rows);
  rows(from.windows, to.windows, from.slots * (s.conv_width - 1));
  for (int64_t c = 0; c < new_c; ++c) {
    std::copy_n(from.conv.data.begin() + channel(c) * s.conv_width, s.conv_width,
                to.conv.data.begin() + c * s.conv_width);
  }
  for (const auto& [old, into] : {std::pair{&from.a, &to.a},
                                  {&from.b, &to.b},
                                  {&from.a_log, &to.a_log},
                                  {&from.dt_bias, &to.dt_bias},
                                  {&from.states, &to.states}}) {
    std::copy(old->data.begin(), old->data.end(), into->data.begin());
  }
  return to;
}

/// Mistakes that an implementation is likely to make: the oracle with each of them is far from what
/// the op does, so the tests that compare with the oracle would show it.
TEST_P(Gdn, PlantedMistakesAreSeen) {
  const GdnShape shape{2, 4, 64, 64, 4};
  for (const int prompt : {1, 0}) {
    const std::vector<Part> parts = {{70, 3, 5}, {9, 6, 1}};
    World base(shape, 79, 51);
    for (float& a_log : base.a_log.data) a_log = -4;  // long memory
    World ours = base;
    const Floats got = run(ops_, stream_, ours, 0, parts, 2 * prompt);
    const auto distance = [&](World world, const std::vector<Part>& with) {
      const Floats want = run(ref_ops(), stream_, world, 0, with, 2 * prompt);
      return std::min(relative_l2(got.data, want.data),
                      relative_l2(ours.slot_of(5), world.slot_of(5)));
    };
    EXPECT_LT(distance(base, parts), kTolerance);
    constexpr double kFar = 1e-2;

    World zeroed = base;
    std::fill(zeroed.states.data.begin(), zeroed.states.data.end(), 0.0f);
    EXPECT_GT(distance(zeroed, parts), kFar);

    World transposed = base;
    for (size_t i = 0; i < base.states.data.size(); ++i) {
      const size_t at = i % (64 * 64);
      transposed.states.data[i] = base.states.data[i - at + at % 64 * 64 + at / 64];
    }
    EXPECT_GT(distance(transposed, parts), kFar);

    World squeezed = base;
    for (Floats* gate : {&squeezed.a, &squeezed.b}) {
      for (size_t i = 4; i < 79 * 4; ++i) gate->data[i] = gate->data[i % 4];
    }
    EXPECT_GT(distance(squeezed, parts), kFar);

    EXPECT_GT(distance(base, {{70, 0, 5}, {9, 1, 1}}), kFar);  // the slot is the row of the step

    for (const bool tiled : {false, true}) {
      World more = expanded(base, [&](int64_t hv) { return tiled ? hv % 2 : hv / 2; });
      const Floats want = run(ref_ops(), stream_, more, 0, parts, 2 * prompt);
      const double out = relative_l2(got.data, want.data);
      const double state = relative_l2(ours.states.data, more.states.data);
      EXPECT_TRUE(tiled ? out > kFar && state > kFar : out < kTolerance && state < kTolerance);
    }
  }
}

/// bf16 states are rounded after every token (chunk of a prompt): 2^-9 each time.
TEST_P(Gdn, HalfStatesStayNearTheRecurrence) {
  for (const GdnShape& shape : {GdnShape{2, 4, 64, 64, 4}, {1, 2, 32, 48, 4}}) {
    World ours(shape, 240, 41);
    ours.halve_states();
    World rounded = ours, exact = ours;
    exact.half_states = false;
    const std::vector<Part> parts = {{128, -1, 0}, {70, 0, 1}, {1, 3, 3}, {41, 4, 4}, {0, 5, 6}};
    const Floats got = run(ops_, stream_, ours, 0, parts, 2);
    const Floats want = run(ref_ops(), stream_, rounded, 0, parts, 2);
    const Floats truth = run(ref_ops(), stream_, exact, 0, parts, 2);
    EXPECT_LT(relative_l2(got.data, want.data), 2e-3);
    EXPECT_LT(relative_l2(ours.states.data, rounded.states.data), 2e-3);
    EXPECT_LT(relative_l2(got.data, truth.data), 6e-3);
    EXPECT_EQ(ours.slot_of(6), rounded.slot_of(6));  // no tokens: a copy
    EXPECT_NE(got.data, truth.data);
  }
}

TEST_P(Gdn, HalfStatesDontDependOnHowAStepIsCut) {
  const GdnShape shape{2, 4, 64, 64, 4};
  World base(shape, 300, 9);
  base.halve_states();
  World one = base, pieces = base;
  const Floats want = run(ops_, stream_, one, 0, {{300, 7, 0}}, 1);
  EXPECT_TRUE(
      run(ops_, stream_, pieces, 0, {{64, 7, 1}, {128, 1, 2}, {108, 2, 3}}, 3).same_bits(want));
  EXPECT_EQ(pieces.slot_of(3), one.slot_of(0));
  World together = base, alone = base;
  const Floats steps = run(ops_, stream_, together, 0, {{8, 3, 4}}, 0);
  for (int t = 0; t < 8; ++t) {
    const Floats out = run(ops_, stream_, alone, t, {{1, t == 0 ? 3 : 4, 4}}, 0);
    EXPECT_TRUE(std::equal(out.data.begin(), out.data.end(), steps.data.begin() + t * 4 * 64));
  }
  EXPECT_EQ(alone.slot_of(4), together.slot_of(4));
}

TEST_P(Gdn, PromptSplitsAtMultiplesOf64AreTheSameBits) {
  const GdnShape shape{2, 4, 64, 64, 4};
  World one(shape, 300, 9);
  const Floats want = run(ops_, stream_, one, 0, {{300, -1, 0}}, 1);
  for (const std::vector<int>& cuts : {std::vector<int>{64, 300}, {128, 192, 300}, {256, 300}}) {
    // In one call, chained through a slot; and in calls of their own, through changing slots.
    World chained(shape, 300, 9);
    std::vector<Part> parts;
    for (size_t i = 0; i < cuts.size(); ++i) {
      parts.push_back({cuts[i] - (i == 0 ? 0 : cuts[i - 1]), i == 0 ? -1 : static_cast<int>(i),
                       static_cast<int>(i) + 1});
    }
    const int last = parts.back().write;
    const Floats got = run(ops_, stream_, chained, 0, parts, static_cast<int>(parts.size()));
    EXPECT_TRUE(got.same_bits(want));
    EXPECT_EQ(chained.slot_of(last), one.slot_of(0));
    World calls(shape, 300, 9);
    int64_t row = 0;
    for (const Part& p : parts) {
      const Floats piece = run(ops_, stream_, calls, row, {p}, 1);
      EXPECT_EQ(std::memcmp(piece.data.data(), want.data.data() + row * 4 * 64,
                            static_cast<size_t>(p.rows * 4 * 64) * sizeof(float)),
                0);
      row += p.rows;
    }
    EXPECT_EQ(calls.slot_of(last), one.slot_of(0));
  }
}

TEST_P(Gdn, UnalignedSplitsCarryTheConvolutionWindow) {
  const GdnShape shape{2, 4, 64, 64, 4};
  World one(shape, 70, 9), oracle(shape, 70, 9);
  const Floats want = run(ref_ops(), stream_, oracle, 0, {{70, -1, 0}}, 1);
  for (const int first : {1, 2, 3, 4, 61}) {
    for (const int second : {1, 2, 3}) {
      World w(shape, 70, 9);
      const std::vector<Part> parts = {
          {first, -1, 1}, {second, 1, 1}, {0, 1, 2}, {70 - first - second, 2, 0}};
      const Floats got = run(ops_, stream_, w, 0, parts, 4);
      EXPECT_LT(relative_l2(got.data, want.data), kTolerance) << first << " " << second;
      EXPECT_LT(relative_l2(w.slot_of(0), oracle.slot_of(0)), kTolerance);
    }
  }
}

TEST_P(Gdn, VerifyingTokensIsDecodingThemOneByOne) {
  for (const GdnShape& shape : {GdnShape{2, 8, 64, 64, 4}, GdnShape{2, 4, 128, 128, 4}}) {
    for (const bool half : {false, true}) {
      World together(shape, 8, 21), alone(shape, 8, 21);
      if (half) together.halve_states();
      if (half) alone.halve_states();
      const Floats want = run(ops_, stream_, together, 0, {{8, 3, 4}}, 0);
      std::vector<float> got;
      for (int t = 0; t < 8; ++t) {
        const Floats out = run(ops_, stream_, alone, t, {{1, t == 0 ? 3 : 4, 4}}, 0);
        got.insert(got.end(), out.data.begin(), out.data.end());
      }
      EXPECT_EQ(got, want.data);
      EXPECT_EQ(alone.slot_of(4), together.slot_of(4));
      EXPECT_EQ(alone.slot_of(3), together.slot_of(3));  // the slot that was only read
    }
  }
}

TEST_P(Gdn, StatesAreTheSameBitsWithoutOutputs) {
  for (const GdnShape& shape : kShapes) {
    for (const bool half : {false, true}) {
      World with(shape, 12, 29), without(shape, 12, 29);
      if (half) with.halve_states();
      if (half) without.halve_states();
      without.states_only = true;
      for (World* w : {&with, &without})
        run(ops_, stream_, *w, 0, {{1, 1, 1}, {7, 2, 4}, {4, -1, 5}}, 0);
      EXPECT_EQ(with.states.data, without.states.data);
      EXPECT_EQ(with.windows.data, without.windows.data);
    }
  }
}

TEST_P(Gdn, LongDecodeSegmentsMatchShortOnes) {
  const GdnShape shape{1, 2, 32, 32, 4};
  World together(shape, 150, 22), alone(shape, 150, 22), unsaved(shape, 150, 22);
  const Floats want = run(ops_, stream_, together, 0, {{150, 3, 3}}, 0);
  const Floats got = run(ops_, stream_, alone, 0, {{70, 3, 1}, {80, 1, 3}}, 0);
  EXPECT_TRUE(got.same_bits(want));
  EXPECT_EQ(alone.slot_of(3), together.slot_of(3));
  EXPECT_TRUE(run(ops_, stream_, unsaved, 0, {{150, 3, -1}}, 0).same_bits(want));
}

TEST_P(Gdn, SlotsBatchAndThreadsDontShowInTheBits) {
  const GdnShape shape{4, 8, 32, 32, 4};
  // Two prompts and three decode rows, each from a slot of its own.
  const std::vector<Part> parts = {{70, 0, 0}, {5, -1, 1}, {1, 2, 2}, {1, 3, 3}, {2, 4, 5}};
  World base(shape, 79, 5);
  const Floats want = run(ops_, stream_, base, 0, parts, 2);
  for (const int threads : {1, 3}) {
    World w(shape, 79, 5);
    TestStream stream(threads);
    EXPECT_TRUE(run(ops_, stream, w, 0, parts, 2).same_bits(want));
    for (int64_t slot = 0; slot < 6; ++slot) EXPECT_EQ(w.slot_of(slot), base.slot_of(slot));
  }
  int64_t row = 0;
  for (size_t i = 0; i < parts.size(); ++i) {  // alone, and in another slot
    World w(shape, 79, 5);
    Part part = parts[i];
    if (part.read >= 0) {
      for (Floats* x : {&w.windows, &w.states}) {
        const int64_t n = x->view.stride[0];
        std::copy_n(x->data.begin() + part.read * n, n, x->data.begin() + 7 * n);
      }
      w.poison(part.read);
      part.read = 7;
    }
    const int write = part.write;
    part.write = 6;
    w.poison(6);
    const Floats got = run(ops_, stream_, w, row, {part}, i < 2 ? 1 : 0);
    EXPECT_EQ(std::memcmp(got.data.data(), want.data.data() + row * 8 * 32,
                          got.data.size() * sizeof(float)),
              0)
        << i;
    EXPECT_EQ(w.slot_of(6), base.slot_of(write)) << i;
    row += part.rows;
  }
}

TEST_P(Gdn, DirtySlotsNeverLeak) {
  const GdnShape shape{2, 2, 32, 32, 4};
  World clean(shape, 130, 5), dirty(shape, 130, 5);
  for (int64_t slot = 0; slot < 8; ++slot) dirty.poison(slot);
  // A new sequence in a dirty slot, a row that writes nothing, empty segments.
  const std::vector<Part> parts = {{100, -1, 3}, {0, -1, 6}, {28, -1, -1}, {1, -1, 5}, {1, -1, -1}};
  const Floats want = run(ops_, stream_, clean, 0, parts, 3);
  const Floats got = run(ops_, stream_, dirty, 0, parts, 3);
  EXPECT_TRUE(got.same_bits(want));
  for (const int64_t slot : {3, 5, 6}) EXPECT_EQ(dirty.slot_of(slot), clean.slot_of(slot));
  for (float x : dirty.slot_of(6)) EXPECT_EQ(x, 0.0f);
  for (const int64_t slot : {0, 1, 2, 4, 7}) {
    for (float x : dirty.slot_of(slot)) EXPECT_TRUE(std::isnan(x));
  }
}

TEST_P(Gdn, ExtremeGatesStayFinite) {
  const GdnShape shape{1, 2, 64, 64, 4};
  for (const float a : {20.0f, -20.0f, 0.0f}) {
    for (const float b : {40.0f, -40.0f, 0.0f}) {
      for (const int prompt : {1, 0}) {
        World ours(shape, 130, 8);
        std::fill(ours.a_log.data.begin(), ours.a_log.data.end(), std::log(16.0f));
        for (size_t i = 0; i < ours.a.data.size(); ++i) {
          ours.a.data[i] = i % 3 == 0 ? -a : a;
          ours.b.data[i] = b;
        }
        World oracle = ours;
        const Floats got = run(ops_, stream_, ours, 0, {{130, 0, 1}}, prompt);
        const Floats want = run(ref_ops(), stream_, oracle, 0, {{130, 0, 1}}, prompt);
        EXPECT_LT(relative_l2(got.data, want.data), kTolerance) << a << " " << b;
        EXPECT_LT(relative_l2(ours.slot_of(1), oracle.slot_of(1)), kTolerance) << a << " " << b;
      }
    }
  }
}

TEST_P(Gdn, LongPromptsMatchTheRecurrence) {
  for (const GdnShape& shape : {GdnShape{1, 1, 32, 48, 4}, {1, 1, 64, 32, 4}}) {
    World ours(shape, 4097, 33), oracle(shape, 4097, 33);
    const Floats got = run(ops_, stream_, ours, 0, {{4097, 1, 0}}, 1);
    const Floats want = run(ref_ops(), stream_, oracle, 0, {{4097, 1, 0}}, 1);
    EXPECT_LT(relative_l2(got.data, want.data), kTolerance);
    EXPECT_LT(relative_l2(ours.slot_of(0), oracle.slot_of(0)), kTolerance);
  }
}

/// With the layer's norm: the norm of the outputs without it, in prompts, decode and both.
TEST_P(Gdn, NormIsThatOfTheOutputs) {
  for (const GdnShape& shape : {GdnShape{2, 4, 64, 32, 4}, {2, 4, 32, 48, 4}}) {
    for (const int prompts : {0, 2, 3}) {
      const std::vector<Part> parts = {{70, 0, 0}, {3, 1, 1}, {2, 2, 2}};
      World plain(shape, 75, 81), normed(shape, 75, 81);
      normed.with_norm = true;
      Floats want = run(ops_, stream_, plain, 0, parts, prompts);
      const Floats got = run(ops_, stream_, normed, 0, parts, prompts);
      want.data.push_back(0);
      ops_.gated_norm(
          stream_,
          {.x = want.view, .z = plain.z.view, .weight = plain.norm.view, .out = want.view});
      want.data.pop_back();
      EXPECT_TRUE(got.same_bits(want)) << prompts;
    }
  }
}

/// More threads than chains and key heads: value heads of one key head go to different threads,
/// which read the convolution windows that the segments change.
TEST_P(Gdn, ManyThreadsDontShowInTheBits) {
  for (const GdnShape& shape : {GdnShape{2, 8, 64, 32, 4}, {1, 6, 32, 48, 4}}) {
    const std::vector<Part> parts = {{66, 0, 0}, {0, 0, 3}, {2, 0, 0}, {1, 0, 1},
                                     {5, 1, 0},  {1, 0, 0}, {0, 0, 2}, {1, 0, -1}};
    World one(shape, 76, 91);
    TestStream alone(1), many(24);
    const Floats want = run(ops_, alone, one, 0, parts, 5);
    for (int repeat = 0; repeat < 3; ++repeat) {
      World w(shape, 76, 91);
      EXPECT_TRUE(run(ops_, many, w, 0, parts, 5).same_bits(want));
      for (int64_t slot = 0; slot < 8; ++slot) EXPECT_EQ(w.slot_of(slot), one.slot_of(slot));
    }
  }
}

/// Speculation by replay: verify without writing, then go on from what was accepted.
TEST_P(Gdn, AcceptingAnyNumberOfVerifiedTokensIsDecodingThem) {
  const GdnShape shape{1, 2, 64, 32, 4};
  for (const int drafts : {2, 8, 16}) {
    World base(shape, drafts, 23);
    World verify = base;
    const Floats verified = run(ops_, stream_, verify, 0, {{drafts, 3, -1}}, 0);
    EXPECT_EQ(verify.slot_of(3), base.slot_of(3));
    World plain = base;
    for (int m = 1; m <= drafts; ++m) {
      const Floats step = run(ops_, stream_, plain, m - 1, {{1, 3, 3}}, 0);
      EXPECT_TRUE(
          std::equal(step.data.begin(), step.data.end(), verified.data.begin() + (m - 1) * 64));
      World accepted = base;
      run(ops_, stream_, accepted, 0, {{m, 3, 3}}, 0);
      EXPECT_EQ(accepted.slot_of(3), plain.slot_of(3)) << m;
    }
  }
}

TEST_P(Gdn, LongDecodeDoesNotDrift) {
  const GdnShape shape{1, 1, 16, 16, 4};
  constexpr int kTokens = 100000;
  World ours(shape, kTokens, 31), oracle(shape, kTokens, 31);
  const Floats got = run(ops_, stream_, ours, 0, {{kTokens, -1, 0}}, 0);
  const Floats want = run(ref_ops(), stream_, oracle, 0, {{kTokens, -1, 0}}, 0);
  EXPECT_LT(relative_l2(got.data, want.data), kTolerance);
  EXPECT_LT(relative_l2(ours.slot_of(0), oracle.slot_of(0)), kTolerance);
}

TEST_P(Gdn, PoolsBeyond2To31Elements) {
  const GdnShape shape{1, 1, 16, 16, 4};
  const int slots = (1 << 23) + 2;  // 256 elements of state each
  Result<Buffer> states = Buffer::allocate(DeviceKind::kCpu, int64_t{slots} * 256 * 4);
  Result<Buffer> windows = Buffer::allocate(DeviceKind::kCpu, int64_t{slots} * 144 * 4);
  if (!states.ok() || !windows.ok()) GTEST_SKIP() << "no address space for the pool";
  const Buffer state_memory = std::move(states).value(), window_memory = std::move(windows).value();
  World near(shape, 70, 4), far(shape, 70, 4);
  far.states.view = TensorView(state_memory.data(), DType::kF32, {slots, 1, 16, 16});
  far.windows.view = TensorView(window_memory.data(), DType::kF32, {slots, 3, 48});
  const Floats want = run(ops_, stream_, near, 0, {{69, -1, 1}, {1, 1, 2}}, 1);
  const Floats got =
      run(ops_, stream_, far, 0, {{69, -1, slots - 1}, {1, slots - 1, slots - 2}}, 1);
  EXPECT_TRUE(got.same_bits(want));
}

TEST_P(Gdn, NothingToDo) {
  World w({1, 1, 16, 16, 4}, 1, 1);
  const World before = w;
  run(ops_, stream_, w, 0, {}, 0);
  run(ops_, stream_, w, 0, {{0, 1, 1}, {0, -1, -1}}, 1);
  for (int64_t slot = 0; slot < 8; ++slot) EXPECT_EQ(w.slot_of(slot), before.slot_of(slot));
}

}  // namespace
}  // namespace weft
