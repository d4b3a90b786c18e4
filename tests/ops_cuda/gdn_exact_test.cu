// Gated delta rule on a GPU: the same bits however a step is composed.

#include <cmath>

#include "kernels/cuda/common/launch.h"
#include "tests/ops_cuda/gdn_support.h"

namespace weft {
namespace {

const GdnShape kShapes[] = {{2, 4, 128, 128, 4},
                            {1, 1, 128, 128, 4},
                            {1, 3, 128, 128, 4},
                            {2, 8, 64, 64, 4},
                            {1, 2, 32, 48, 4}};

TEST(GdnCudaExact, PromptSplitsAtMultiplesOf64AreTheSameBits) {
  for (const GdnShape& shape : kShapes) {
    GdnWorld base(shape, 300, 9);
    if (shape.key_heads == 2) base.halve_states();
    GdnWorld whole = base;
    const std::vector<float> want = gdn_on_gpu(whole, {{{{300, 7, 0}}}, {}});
    for (const std::vector<int>& cuts :
         {std::vector<int>{64, 300}, {128, 192, 300}, {256, 300}, {64, 128, 192, 256, 300}}) {
      GdnWorld chained = base, calls = base;
      GdnChain chain;
      int read = 7, row = 0;
      for (const int cut : cuts) {
        const int write = static_cast<int>(chain.size()) + 1;
        chain.push_back({cut - row, read, write});
        GdnWorld piece = calls.cut(row, cut - row);
        const std::vector<float> got = gdn_on_gpu(piece, {{{chain.back()}}, {}});
        EXPECT_TRUE(same_bits(got, rows_of(want, base.out_width(), row, cut - row)));
        calls.windows = piece.windows;
        calls.states = piece.states;
        read = write;
        row = cut;
      }
      EXPECT_TRUE(same_bits(gdn_on_gpu(chained, {{chain}, {}}), want));
      EXPECT_TRUE(same_bits(chained.slot(read), whole.slot(0)));
      EXPECT_TRUE(same_bits(calls.slot(read), whole.slot(0)));
      for (int slot = 1; slot < read; ++slot) {
        EXPECT_TRUE(same_bits(chained.slot(slot), calls.slot(slot)));
      }
    }
  }
}

TEST(GdnCudaExact, VerifyingTokensIsDecodingThemOneByOne) {
  for (const GdnShape& shape : kShapes) {
    GdnWorld base(shape, 16, 21);
    for (const int rows : {2, 5, 8, 16, 10}) {
      if (rows == 10) base.add_norm(22);
      if (rows == 10) base.halve_states();
      GdnWorld together = base.cut(0, rows), alone = base;
      const std::vector<float> want = gdn_on_gpu(together, {{}, {{{rows, 3, 4}}}});
      for (int t = 0; t < rows; ++t) {
        GdnWorld step = base.cut(t, 1);
        step.windows = alone.windows;
        step.states = alone.states;
        const std::vector<float> got = gdn_on_gpu(step, {{}, {{{1, t == 0 ? 3 : 4, 4}}}});
        EXPECT_TRUE(same_bits(got, rows_of(want, base.out_width(), t, 1)));
        alone.windows = step.windows;
        alone.states = step.states;
      }
      for (int slot = 0; slot < 8; ++slot) {
        EXPECT_TRUE(same_bits(alone.slot(slot), together.slot(slot)));
      }
    }
  }
}

/// Segments that go on from where the one before them writes, and those that don't: one chain has
/// the bits of a call for each.
TEST(GdnCudaExact, StatesBetweenTheTokensOfAChain) {
  const GdnChain chain = {{1, 3, 5}, {1, 5, 6}, {0, 6, 7},  {2, 7, 0},  {0, 0, 1}, {9, 1, 1},
                          {1, 4, 4}, {1, 4, 3}, {1, -1, 2}, {1, 2, -1}, {1, -1, 6}};
  for (const GdnShape& shape : kShapes) {
    GdnWorld base(shape, 18, 23);
    for (const bool norm : {false, true}) {
      if (norm) base.add_norm(24);
      if (norm && shape.key_heads == 2) base.halve_states();
      for (const int empty : {0, 1, 400}) {  // chains besides; many have a kernel of their own
        GdnWorld together = base, apart = base;
        GdnCall call{{}, {chain}};
        call.decode.resize(1 + static_cast<size_t>(empty));
        const std::vector<float> want = gdn_on_gpu(together, call);
        int row = 0;
        for (const GdnPart& part : chain) {
          GdnWorld step = base.cut(row, part.rows);
          step.windows = apart.windows;
          step.states = apart.states;
          const std::vector<float> got = gdn_on_gpu(step, {{}, {{part}}});
          EXPECT_TRUE(same_bits(got, rows_of(want, base.out_width(), row, part.rows)));
          apart.windows = step.windows;
          apart.states = step.states;
          row += part.rows;
        }
        ASSERT_EQ(row, 18);
        for (int slot = 0; slot < 8; ++slot) {
          EXPECT_TRUE(same_bits(apart.slot(slot), together.slot(slot))) << slot;
        }
      }
    }
  }
}

/// Steps of a sequence whose drafts are not all right: n rows, of which the first m count.
struct Verified {
  int n, m;
};

/// The outputs of such steps and of one row behind them, in slot 7 at last, by states that are gone
/// through one after the other.
std::vector<float> plain_steps(GdnWorld& world, std::span<const Verified> steps) {
  std::vector<float> out;
  int read = 3, first = 0;
  const auto call = [&](const GdnPart& part) {
    GdnWorld step = world.cut(first, part.rows);
    const std::vector<float> got = gdn_on_gpu(step, {{}, {{part}}});
    world.windows = step.windows;
    world.states = step.states;
    return got;
  };
  const auto add = [&](const std::vector<float>& more) {
    out.insert(out.end(), more.begin(), more.end());
  };
  for (const Verified& step : steps) {
    add(call({step.n, read, -1}));
    call({step.m, read, 5});
    read = 5;
    first += step.n;
  }
  add(call({1, read, 7}));
  return out;
}

TEST(GdnCudaExact, KeptRowsAreGoneThroughInTheNextStep) {
  const std::vector<std::vector<Verified>> runs = {
      {{4, 1}, {4, 4}}, {{4, 4}, {4, 2}, {1, 1}}, {{16, 16}, {16, 9}}, {{5, 3}, {9, 9}, {2, 1}},
      {{8, 8}, {8, 1}}, {{3, 0}, {1, 1}},         {{16, 8}, {1, 0}},   {{2, 2}, {6, 6}, {7, 2}}};
  for (const GdnShape& shape : kShapes) {
    GdnWorld base(shape, 40, 25);
    base.add_kept_rows(16);
    for (const bool norm : {false, true}) {
      if (norm) base.add_norm(26);
      if (norm && shape.key_heads == 2) base.halve_states();
      for (const int empty : {0, 400}) {  // chains besides; many have a kernel of their own
        for (const std::vector<Verified>& run : runs) {
          GdnWorld plain = base, world = base;
          plain.kept.clear();
          const std::vector<float> want = plain_steps(plain, run);
          std::vector<float> got;
          int first = 0, read = 3;
          for (size_t i = 0; i <= run.size(); ++i) {
            const bool last = i == run.size();
            const int rows = last ? 1 : run[i].n;
            GdnCall call{{}, {{{rows, read, last ? 7 : keep_in(4)}}}};
            call.decode.resize(1 + static_cast<size_t>(empty));
            GdnWorld step = world.cut(first, rows);
            const std::vector<float> out = gdn_on_gpu(step, call);
            got.insert(got.end(), out.begin(), out.end());
            world.windows = step.windows;
            world.states = step.states;
            world.kept = step.kept;
            first += rows;
            if (!last) read = read_with_kept(4, run[i].m);
          }
          EXPECT_TRUE(same_bits(got, want));
          EXPECT_TRUE(same_bits(world.slot(7), plain.slot(7)));
          for (const int slot : {0, 1, 2, 3, 5, 6}) {
            EXPECT_TRUE(same_bits(world.slot(slot), base.slot(slot))) << slot;
          }
        }
      }
    }
  }
}

/// Many chains with kept rows, each in its slot, against each alone.
TEST(GdnCudaExact, KeptRowsOfManyChains) {
  constexpr int kChains = 70, kRows = 9;
  for (const GdnShape& shape : {GdnShape{4, 8, 128, 128, 4}, {4, 12, 128, 128, 4}}) {
    GdnCall calls[3];
    for (int i = 0; i < kChains; ++i) {
      const int n = 1 + i % kRows, m = 1 + i * 5 % n, more = 1 + i * 3 % 8, then = 1 + i % more;
      const bool drafts = i % 11 != 10;
      calls[0].decode.push_back({{n, i, drafts ? keep_in(i) : i}});
      calls[1].decode.push_back({{more, drafts ? read_with_kept(i, m) : i, keep_in(i)}});
      calls[2].decode.push_back({{1, read_with_kept(i, then), i}});
    }
    GdnWorld together(shape, kChains * kRows, 73, kChains);
    together.add_kept_rows(kRows);
    together.add_norm(74);
    if (shape.value_heads == 12) together.halve_states();
    GdnWorld apart = together;
    for (const GdnCall& call : calls) {
      const std::vector<float> want = gdn_on_gpu(together, call);
      int64_t row = 0;
      for (int i = 0; i < kChains; ++i) {
        const GdnChain& chain = call.decode[static_cast<size_t>(i)];
        if (i % 7 == 3) {
          GdnWorld alone = apart.cut(row, chain[0].rows);
          EXPECT_TRUE(same_bits(gdn_on_gpu(alone, {{}, {chain}}),
                                rows_of(want, apart.out_width(), row, chain[0].rows)));
          EXPECT_TRUE(same_bits(alone.slot(i), together.slot(i))) << i;
          apart.windows = alone.windows;
          apart.states = alone.states;
          apart.kept = alone.kept;
        }
        row += chain[0].rows;
      }
    }
  }
}

TEST(GdnCudaExact, SmallKeptRowsForSanitizers) {
  for (const GdnShape& shape :
       {GdnShape{1, 2, 128, 128, 4}, {1, 2, 64, 64, 4}, {1, 2, 32, 16, 4}}) {
    for (const int empty : {0, 128}) {
      GdnWorld world(shape, 3, 27, 2);
      world.add_norm(28);
      GdnWorld plain = world;
      world.add_kept_rows(3);
      for (const GdnPart& part : {GdnPart{3, 0, keep_in(0)},
                                  {2, read_with_kept(0, 2), keep_in(0)},
                                  {1, read_with_kept(0, 1), 0}}) {
        GdnCall call{{}, {{part}}};
        call.decode.resize(1 + static_cast<size_t>(empty));
        gdn_on_gpu(world, call);
      }
      for (const GdnPart& part : {GdnPart{2, 0, 0}, {1, 0, 0}, {1, 0, 0}}) {
        gdn_on_gpu(plain, {{}, {{part}}});
      }
      EXPECT_TRUE(same_bits(world.slot(0), plain.slot(0)));
    }
  }
}

/// Two prompts and decode rows among each other, and each alone in other slots of a poisoned pool.
TEST(GdnCudaExact, NeighboursOrderAndSlotsDontShowInTheBits) {
  for (const GdnShape& shape : kShapes) {
    const GdnCall call{{{{70, 0, 0}}, {{200, -1, 1}}, {{64, 5, 6}}},
                       {{{1, 2, 2}}, {{1, 3, 3}}, {{2, 4, 4}}}};
    GdnWorld base(shape, call.rows(), 5, 10);
    base.add_norm(6);
    GdnWorld together = base;
    const std::vector<float> want = gdn_on_gpu(together, call);
    int64_t row = 0;
    for (const bool prompt : {true, false}) {
      for (const GdnChain& chain : prompt ? call.prompt : call.decode) {
        GdnPart part = chain[0];
        GdnWorld alone = base.cut(row, part.rows);
        if (part.read >= 0) alone.copy_slot(part.read, 8);
        for (const int slot : {0, 1, 2, 3, 4, 5, 6, 7, 9}) alone.poison(slot);
        const int write = part.write;
        part = {part.rows, part.read < 0 ? -1 : 8, 9};
        const std::vector<float> got =
            gdn_on_gpu(alone, prompt ? GdnCall{{{part}}, {}} : GdnCall{{}, {{part}}});
        EXPECT_TRUE(same_bits(got, rows_of(want, base.out_width(), row, part.rows)));
        EXPECT_TRUE(same_bits(alone.slot(9), together.slot(write)));
        row += part.rows;
      }
    }
  }
}

TEST(GdnCudaExact, ManyDecodeRowsAreEachAsAlone) {
  const GdnShape shape{2, 4, 128, 128, 4};
  GdnCall call;
  for (int i = 0; i < 67; ++i) call.decode.push_back({{1, i, i}});
  GdnWorld base(shape, 67, 13, 67);
  base.add_norm(14);
  GdnWorld together = base;
  const std::vector<float> want = gdn_on_gpu(together, call);
  for (const int i : {0, 1, 33, 66}) {
    GdnWorld alone = base.cut(i, 1);
    EXPECT_TRUE(
        same_bits(gdn_on_gpu(alone, {{}, {{{1, i, i}}}}), rows_of(want, base.out_width(), i, 1)));
    EXPECT_TRUE(same_bits(alone.slot(i), together.slot(i)));
  }
}

/// Many chains take another kernel than few: of one token, of several, of more than it convolves at
/// a time, of several segments, replayed and unsaved, empty.
TEST(GdnCudaExact, ManyChainsAreEachAsAlone) {
  struct Case {
    GdnShape shape;
    bool half, norm;
  };
  for (const auto& [shape, half, norm] : {Case{{4, 8, 128, 128, 4}, false, true},
                                          {{4, 4, 128, 128, 4}, true, false},
                                          {{4, 12, 128, 128, 4}, true, true}}) {
    constexpr int kChains = 70;
    GdnCall call;
    for (int i = 0; i < kChains; ++i) {
      const GdnChain kinds[] = {{{1, i, i}},
                                {{3, i, i}},
                                {{2, i, i}, {1, i, -1}},
                                {{9, i, i}},
                                {{0, -1, i}},
                                {{4, i, -1}},
                                {{2, -1, i}, {17, i, i}, {0, i, i}, {1, i, i}}};
      call.decode.push_back(kinds[i % 7]);
    }
    GdnWorld base(shape, call.rows(), 71, kChains);
    if (norm) base.add_norm(72);
    if (half) base.halve_states();
    GdnWorld together = base;
    const std::vector<float> want = gdn_on_gpu(together, call);
    int64_t row = 0;
    for (int i = 0; i < kChains; ++i) {
      const GdnCall own{{}, {call.decode[static_cast<size_t>(i)]}};
      if (i < 7 || i > 62) {
        GdnWorld alone = base.cut(row, own.rows());
        if (own.rows() > 0) {
          EXPECT_TRUE(
              same_bits(gdn_on_gpu(alone, own), rows_of(want, base.out_width(), row, own.rows())))
              << i;
          EXPECT_TRUE(same_bits(alone.slot(i), together.slot(i))) << i;
        } else {
          for (const float x : together.slot(i)) ASSERT_EQ(x, 0.0f);
        }
      }
      row += own.rows();
    }
  }
}

TEST(GdnCudaExact, DirtySlotsNeverLeak) {
  for (const GdnShape& shape : kShapes) {
    const GdnCall call{{{{100, -1, 3}}, {{0, -1, 6}}, {{28, -1, -1}}},
                       {{{1, -1, 5}}, {{1, -1, -1}}, {{0, -1, -1}}}};
    const GdnWorld base(shape, call.rows(), 5);
    GdnWorld clean = base, dirty = base;
    for (int64_t slot = 0; slot < 8; ++slot) dirty.poison(slot);
    const GdnWorld before = dirty;
    EXPECT_TRUE(same_bits(gdn_on_gpu(dirty, call), gdn_on_gpu(clean, call)));
    for (const int slot : {3, 5, 6}) EXPECT_TRUE(same_bits(dirty.slot(slot), clean.slot(slot)));
    for (const float x : dirty.slot(6)) EXPECT_EQ(x, 0.0f);
    for (const int slot : {0, 1, 2, 4, 7}) {
      EXPECT_TRUE(same_bits(dirty.slot(slot), before.slot(slot)));
    }
  }
}

TEST(GdnCudaExact, NothingToDo) {
  for (const GdnShape& shape : kShapes) {
    GdnWorld w(shape, 4, 1);
    const GdnWorld before = w;
    gdn_on_gpu(w, {{}, {}});
    const std::vector<float> out = gdn_on_gpu(w, {{{{0, 1, 1}}}, {{{0, 2, 2}}, {{0, -1, -1}}}});
    for (const float x : out) EXPECT_TRUE(std::isnan(x));  // rows of no segment aren't written
    for (int64_t slot = 0; slot < 8; ++slot) {
      EXPECT_TRUE(same_bits(w.slot(slot), before.slot(slot)));
    }
  }
}

/// A captured decode step replayed with other rows, other slots and padding.
TEST(GdnCudaExact, GraphsReplayWithFewerRows) {
  const GdnShape shape{2, 4, 128, 128, 4};
  const GdnWorld base(shape, 8, 17);
  const DeviceTensor qkv(DType::kBF16, {8, base.channels()}, base.qkv);
  const DeviceTensor a(DType::kF32, {8, 4}, base.a), b(DType::kF32, {8, 4}, base.b);
  const DeviceTensor conv(DType::kF32, {base.channels(), 4}, base.conv);
  const DeviceTensor a_log(DType::kF32, {4}, base.a_log), bias(DType::kF32, {4}, base.dt_bias);
  const DeviceTensor windows(DType::kF32, {8, 3, base.channels()}, base.windows);
  const DeviceTensor states(DType::kF32, {8, 4, 128, 128}, base.states);
  const DeviceTensor cu_q(std::vector<int32_t>(9, 0)), slots(std::vector<int32_t>(8, -1));
  const DeviceTensor chains(std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8});
  DeviceTensor out(DType::kBF16, {8, 4, 128});
  out.poison();
  GdnArgs args;
  args.shape = shape;
  args.qkv = qkv.view;
  args.a = a.view;
  args.b = b.view;
  args.conv = conv.view;
  args.a_log = a_log.view;
  args.dt_bias = bias.view;
  args.state = {windows.view, states.view};
  args.cu_q = cu_q.view;
  args.read_slot = args.write_slot = slots.view;
  args.num_segments = args.num_chains = 8;
  args.chains = chains.view;
  args.out = out.view;
  cudaStream_t native = nullptr;
  cuda::check(cudaStreamCreate(&native), "stream");
  ThreadPool pool(1);
  Arena scratch(Buffer::allocate(DeviceKind::kCuda, 1 << 20).value());
  Stream stream(pool, scratch, native);
  cuda::gdn(stream, args);  // loads the kernels; all segments are empty
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cuda::check(cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal), "capture");
  cuda::gdn(stream, args);
  cuda::check(cudaStreamEndCapture(native, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  const int32_t rows[9] = {0, 1, 2, 3, 3, 3, 3, 3, 3}, used[8] = {5, 0, 2, -1, -1, -1, -1, -1};
  cuda::check(cudaMemcpy(cu_q.view.data, rows, sizeof rows, cudaMemcpyHostToDevice), "rows");
  cuda::check(cudaMemcpy(slots.view.data, used, sizeof used, cudaMemcpyHostToDevice), "slots");
  for (int i = 0; i < 2; ++i) cuda::check(cudaGraphLaunch(exec, native), "replay");
  cuda::check(cudaStreamSynchronize(native), "replay");

  GdnWorld eager = base.cut(0, 3);
  const GdnCall call{{}, {{{1, 5, 5}}, {{1, 0, 0}}, {{1, 2, 2}}}};
  gdn_on_gpu(eager, call);
  const std::vector<float> want = gdn_on_gpu(eager, call), got = out.floats();
  EXPECT_TRUE(same_bits(rows_of(got, base.out_width(), 0, 3), want));
  for (const float x : rows_of(got, base.out_width(), 3, 5)) EXPECT_TRUE(std::isnan(x));
  EXPECT_TRUE(same_bits(states.floats(), eager.states));
  EXPECT_TRUE(same_bits(windows.floats(), eager.windows));
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(native);
}

TEST(GdnCudaExact, PoolsBeyond2To31Elements) {
  const GdnShape shape{1, 1, 128, 128, 4};
  const int slots = (1 << 17) + 2;  // 16384 elements of state each
  GdnWorld near(shape, 70, 4), cut = near.cut(0, 70);
  const std::vector<float> want = gdn_on_gpu(near, {{{{69, -1, 1}}}, {{{1, 1, 2}}}});
  const DeviceTensor qkv(DType::kBF16, {70, 384}, cut.qkv);
  const DeviceTensor a(DType::kF32, {70, 1}, cut.a), b(DType::kF32, {70, 1}, cut.b);
  const DeviceTensor conv(DType::kF32, {384, 4}, cut.conv);
  const DeviceTensor a_log(DType::kF32, {1}, cut.a_log), bias(DType::kF32, {1}, cut.dt_bias);
  const DeviceTensor windows(DType::kF32, {slots, 3, 384}),
      states(DType::kF32, {slots, 1, 128, 128});
  const std::vector<int32_t> rows = {0, 69, 70};
  const DeviceTensor cu_q(rows), read(std::vector<int32_t>{-1, slots - 1});
  const DeviceTensor write(std::vector<int32_t>{slots - 1, slots - 2});
  const DeviceTensor chains(std::vector<int32_t>{0, 1, 2}), out(DType::kBF16, {70, 1, 128});
  GdnArgs args;
  args.shape = shape;
  args.qkv = qkv.view;
  args.a = a.view;
  args.b = b.view;
  args.conv = conv.view;
  args.a_log = a_log.view;
  args.dt_bias = bias.view;
  args.state = {windows.view, states.view};
  args.cu_q = cu_q.view;
  args.read_slot = read.view;
  args.write_slot = write.view;
  args.num_segments = args.num_chains = 2;
  args.num_prompt_segments = args.num_prompt_chains = 1;
  args.chains = chains.view;
  args.host_cu_q = rows.data();
  args.out = out.view;
  CudaTestStream stream;
  cuda::gdn(stream, args);
  stream.sync();
  EXPECT_TRUE(same_bits(out.floats(), want));
}

}  // namespace
}  // namespace weft
