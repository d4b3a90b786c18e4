// linear_prompt and moe_prompt with int8, int4 and fp8 weights against the oracle, and their
// exactness: a row's bits are its own.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ops_cuda/pinned.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4,
                                     WeightFormat::kFp8Block};

/// Relative error of a product: rounding of weights to bf16, of x to e4m3.
double tolerance(WeightFormat format) {
  return format == WeightFormat::kFp8Block ? 4e-2 : 5e-3;
}

/// Experts packed on the device, and what they hold for the oracle.
struct PackedWeight {
  PackedWeight(WeightFormat format, int64_t experts, int64_t n, int64_t k, uint64_t seed)
      : values(static_cast<size_t>(experts * n * k)) {
    weight.shape = {format, n, k, experts};
    weight.expert_bytes = cuda::weight_bytes(weight.shape);
    memory = DeviceTensor(DType::kU8, {experts * weight.expert_bytes});
    memory.poison();
    weight.data = static_cast<std::byte*>(memory.view.data);
    const PinnedTensor pinned(DType::kBF16, {experts * n, k},
                              random_bf16(experts * n * k, seed, 0.1f));
    CudaTestStream stream(1 << 20);
    for (int64_t e = 0; e < experts; ++e) {
      const std::vector<TensorView> pieces = {pinned.view.rows(e * n, e * n + n)};
      cuda::pack_weight(stream, weight, e, pieces);
    }
    stream.sync();
    for (int64_t e = 0; e < experts; ++e) {
      cuda::unpack_weight(weight, e, {values.data() + e * n * k, DType::kF32, {n, k}});
    }
    oracle.shape = {WeightFormat::kF32, n, k, experts};
    oracle.data = reinterpret_cast<std::byte*>(values.data());
    oracle.expert_bytes = n * k * 4;
  }
  std::vector<float> values;
  DeviceTensor memory;
  Weight weight, oracle;
};

struct Case {
  int64_t m, n, k;
  Epilogue epilogue = Epilogue::kStore;
  DType out = DType::kBF16;
  bool bias = false;
};

void check(WeightFormat format, const Case& c) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << " " << c.m << " x " << c.n
                                  << " x " << c.k << " epilogue " << static_cast<int>(c.epilogue));
  PackedWeight w(format, 1, c.n, c.k, 7);
  const int64_t columns = c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
  const int64_t x_stride = (c.k + 7) / 8 * 8;
  std::vector<float> x = random_bf16(c.m * c.k, 8);
  std::vector<float> x_buffer(static_cast<size_t>(c.m * x_stride), NAN);
  for (int64_t i = 0; i < c.m; ++i) {
    std::copy_n(x.begin() + i * c.k, c.k, x_buffer.begin() + i * x_stride);
  }
  const DeviceTensor dx(DType::kBF16, {c.m, x_stride}, x_buffer);
  std::vector<float> bias = random_bf16(c.n, 9);
  const DeviceTensor dbias(DType::kF32, {c.n}, bias);
  std::vector<float> expected(static_cast<size_t>(c.m * columns), NAN);
  if (c.epilogue == Epilogue::kAdd) expected = random_bf16(c.m * columns, 10);
  const DeviceTensor out(c.out, {c.m, columns}, expected);

  CudaTestStream stream;
  LinearArgs args;
  args.x = dx.view.columns(0, c.k);
  args.weight = &w.weight;
  if (c.bias) args.bias = dbias.view;
  args.out = out.view;
  args.epilogue = c.epilogue;
  cuda::linear_prompt(stream, args);
  stream.sync();
  Stream& native = stream;
  EXPECT_LE(native.scratch().peak(), cuda::linear_prompt_scratch(w.weight.shape, c.epilogue, c.m));

  if (c.epilogue != Epilogue::kAdd) std::fill(expected.begin(), expected.end(), 0.0f);
  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, 1 << 20).value());
  Stream host(pool, scratch);
  LinearArgs oracle;
  oracle.x = TensorView(x.data(), DType::kF32, {c.m, c.k});
  oracle.weight = &w.oracle;
  if (c.bias) oracle.bias = TensorView(bias.data(), DType::kF32, {c.n});
  oracle.out = TensorView(expected.data(), DType::kF32, {c.m, columns});
  oracle.epilogue = c.epilogue;
  ref_ops().linear(host, oracle);
  EXPECT_LT(relative_l2(out.floats(), expected), tolerance(format));
}

TEST(PromptFormats, SmallShapes) {
  for (const WeightFormat format : kFormats) {
    check(format, {1, 8, 8});
    check(format, {1, 1, 8});
    check(format, {7, 3, 13});
    check(format, {64, 64, 64});
    check(format, {129, 65, 72});
    check(format, {130, 257, 200});
    check(format, {5, 128, 64, Epilogue::kStore, DType::kF32, true});
    check(format, {33, 40, 136, Epilogue::kSiluMul});
    check(format, {33, 40, 136, Epilogue::kSiluMul, DType::kF32, true});
    check(format, {35, 160, 136, Epilogue::kSiluMul, DType::kBF16, true});
    check(format, {67, 60, 88, Epilogue::kAdd, DType::kF32, true});
  }
}

TEST(PromptFormats, Shapes) {
  for (const WeightFormat format : kFormats) {
    check(format, {300, 384, 1100});
    check(format, {65, 1030, 16384, Epilogue::kAdd, DType::kF32, true});  // two chunks
    check(format, {40, 1088, 16384, Epilogue::kSiluMul, DType::kF32, true});
    check(format, {1300, 2048, 256, Epilogue::kSiluMul});
  }
}

TEST(PromptFormats, NoRows) {
  for (const WeightFormat format : kFormats) {
    PackedWeight w(format, 1, 64, 64, 1);
    const DeviceTensor x(DType::kBF16, {1, 64}), out(DType::kBF16, {1, 64});
    CudaTestStream stream;
    LinearArgs args;
    args.x = x.view.rows(0, 0);
    args.weight = &w.weight;
    args.out = out.view.rows(0, 0);
    cuda::linear_prompt(stream, args);
    stream.sync();
  }
}

/// Rows computed all together and in pieces: the same bits.
void check_pieces(WeightFormat format, Epilogue epilogue, DType out_type, int64_t n, int64_t k) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << " " << n << " x " << k
                                  << " epilogue " << static_cast<int>(epilogue));
  constexpr int64_t kRows = 1300;
  const PackedWeight w(format, 1, n, k, 3);
  const int64_t columns = epilogue == Epilogue::kSiluMul ? n / 2 : n;
  const DeviceTensor x(DType::kBF16, {kRows, k}, random_bf16(kRows * k, 4));
  const std::vector<float> ones(static_cast<size_t>(kRows * columns), 1.0f);
  const DeviceTensor together(out_type, {kRows, columns}, ones),
      pieces(out_type, {kRows, columns}, ones);
  CudaTestStream stream;
  const auto run = [&](const TensorView& rows, const TensorView& out) {
    LinearArgs args;
    args.x = rows;
    args.weight = &w.weight;
    args.out = out;
    args.epilogue = epilogue;
    cuda::linear_prompt(stream, args);
  };
  run(x.view, together.view);
  int64_t begin = 0;
  for (const int64_t size : {1, 2, 13, 32, 64, 77, 128, 129, 300, 554}) {
    run(x.view.rows(begin, begin + size), pieces.view.rows(begin, begin + size));
    begin += size;
  }
  ASSERT_EQ(begin, kRows);
  stream.sync();
  EXPECT_TRUE(together.bytes() == pieces.bytes());
}

TEST(PromptFormats, BitsDoNotDependOnRows) {
  for (const WeightFormat format : kFormats) {
    check_pieces(format, Epilogue::kStore, DType::kBF16, 2304, 1024);
    check_pieces(format, Epilogue::kSiluMul, DType::kBF16, 2304, 1024);
    // The tiny hybrid models of tests/noninterference.
    check_pieces(format, Epilogue::kSiluMul, DType::kBF16, 192, 64);
    check_pieces(format, Epilogue::kStore, DType::kBF16, 64, 96);
    check_pieces(format, Epilogue::kStore, DType::kBF16, 1536, 64);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 64, 512);
    check_pieces(format, Epilogue::kAdd, DType::kF32, 64, 256);
  }
}

/// Products after each other over the same scratch memory, none waited for, beside each alone.
TEST(PromptFormats, SmallChains) {
  constexpr int kLinks = 60;
  for (const WeightFormat format : kFormats) {
    SCOPED_TRACE(weight_format_name(format));
    for (const int64_t k : {int64_t{64}, int64_t{96}, int64_t{400}}) {
      const PackedWeight wide(format, 1, 192, k, 3), narrow(format, 1, 64, 96, 4);
      const auto run = [&](Stream& stream, const TensorView& x, const TensorView& act,
                           const TensorView& out) {
        LinearArgs args;
        args.x = x;
        args.weight = &wide.weight;
        args.out = act;
        args.epilogue = Epilogue::kSiluMul;
        cuda::linear_prompt(stream, args);
        args.x = act;
        args.weight = &narrow.weight;
        args.out = out;
        args.epilogue = Epilogue::kStore;
        cuda::linear_prompt(stream, args);
      };
      const int64_t rows = 40 * kLinks;
      const DeviceTensor x(DType::kBF16, {rows, k}, random_bf16(rows * k, 6));
      const DeviceTensor act(DType::kBF16, {rows, 96}), alone_act(DType::kBF16, {rows, 96});
      const DeviceTensor out(DType::kF32, {rows, 64}), alone(DType::kF32, {rows, 64});
      CudaTestStream stream;
      int64_t begin = 0;
      for (int i = 0; i < kLinks; ++i) {
        const int64_t end = begin + 1 + i * 7 % 40;
        run(stream, x.view.rows(begin, end), act.view.rows(begin, end), out.view.rows(begin, end));
        begin = end;
      }
      stream.sync();
      for (int64_t row = 0; row < begin; row += 1 + row % 3) {
        const int64_t end = std::min(begin, row + 1 + row % 3);
        run(stream, x.view.rows(row, end), alone_act.view.rows(row, end),
            alone.view.rows(row, end));
        if (row % 16 == 0) stream.sync();
      }
      stream.sync();
      EXPECT_TRUE(out.bytes() == alone.bytes()) << "K = " << k;
    }
  }
}

// ---- Experts

struct MoeCase {
  int64_t tokens, hidden, inner, experts;
  int top_k;
};

std::vector<int32_t> choose(const MoeCase& c) {
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::vector<int32_t> all(static_cast<size_t>(c.experts));
    std::iota(all.begin(), all.end(), 0);
    for (size_t i = 0; i < static_cast<size_t>(c.top_k); ++i) {
      const auto r = philox4x32(11, static_cast<uint64_t>(t), i)[0];
      std::swap(all[i], all[i + r % (all.size() - i)]);
    }
    ids.insert(ids.end(), all.begin(), all.begin() + c.top_k);
  }
  return ids;
}

void check_moe(WeightFormat format, const MoeCase& c) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << ", " << c.tokens
                                  << " tokens, hidden " << c.hidden << ", inner " << c.inner << ", "
                                  << c.top_k << " of " << c.experts);
  PackedWeight gate_up(format, c.experts, 2 * c.inner, c.hidden, 1);
  PackedWeight down(format, c.experts, c.hidden, c.inner, 2);
  std::vector<float> x = random_bf16(c.tokens * c.hidden, 3);
  std::vector<float> weights = random_bf16(c.tokens * c.top_k, 4);
  std::vector<int32_t> ids = choose(c);
  const DeviceTensor dx(DType::kBF16, {c.tokens, c.hidden}, x);
  const DeviceTensor dweights(DType::kF32, {c.tokens, c.top_k}, weights);
  const DeviceTensor dids(ids);
  DeviceTensor out(DType::kF32, {c.tokens, c.hidden});
  DeviceTensor alone(DType::kF32, {c.tokens, c.hidden});
  out.poison();
  CudaTestStream stream;
  const auto run = [&](int64_t begin, int64_t end, const DeviceTensor& to) {
    MoeArgs args;
    args.x = dx.view.rows(begin, end);
    args.ids = TensorView(dids.view.data, DType::kI32, {c.tokens, c.top_k}).rows(begin, end);
    args.weights = dweights.view.rows(begin, end);
    args.gate_up = &gate_up.weight;
    args.down = &down.weight;
    args.out = to.view.rows(begin, end);
    cuda::moe_prompt(stream, args);
  };
  run(0, c.tokens, out);
  stream.sync();
  Stream& native = stream;
  EXPECT_LE(native.scratch().peak(),
            cuda::moe_prompt_scratch(gate_up.weight.shape, c.tokens, c.top_k));
  int64_t begin = 0;
  for (const int64_t size : {int64_t{1}, int64_t{5}, c.tokens / 2, c.tokens}) {
    const int64_t end = std::min(begin + size, c.tokens);
    run(begin, end, alone);
    begin = end;
  }
  stream.sync();
  EXPECT_TRUE(out.bytes() == alone.bytes());

  std::vector<float> expected(static_cast<size_t>(c.tokens * c.hidden));
  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, int64_t{64} << 20).value());
  Stream host(pool, scratch);
  MoeArgs oracle;
  oracle.x = TensorView(x.data(), DType::kF32, {c.tokens, c.hidden});
  oracle.ids = TensorView(ids.data(), DType::kI32, {c.tokens, c.top_k});
  oracle.weights = TensorView(weights.data(), DType::kF32, {c.tokens, c.top_k});
  oracle.gate_up = &gate_up.oracle;
  oracle.down = &down.oracle;
  oracle.out = TensorView(expected.data(), DType::kF32, {c.tokens, c.hidden});
  ref_ops().moe(host, oracle);
  EXPECT_LT(relative_l2(out.floats(), expected), 2 * tolerance(format));
}

/// Tokens alone, twos and all together, again and again over the same scratch memory.
TEST(PromptFormats, SmallMoeChains) {
  constexpr int64_t kTokens = 40, kHidden = 64, kInner = 64, kExperts = 8, kTopK = 3;
  for (const WeightFormat format : kFormats) {
    SCOPED_TRACE(weight_format_name(format));
    const PackedWeight gate_up(format, kExperts, 2 * kInner, kHidden, 1);
    const PackedWeight down(format, kExperts, kHidden, kInner, 2);
    const std::vector<int32_t> chosen = choose({kTokens, kHidden, kInner, kExperts, kTopK});
    const DeviceTensor x(DType::kBF16, {kTokens, kHidden}, random_bf16(kTokens * kHidden, 3));
    const DeviceTensor weights(DType::kF32, {kTokens, kTopK}, random_bf16(kTokens * kTopK, 4));
    const DeviceTensor ids(chosen);
    const DeviceTensor together(DType::kF32, {kTokens, kHidden});
    CudaTestStream stream;
    const auto run = [&](int64_t begin, int64_t end, const TensorView& out) {
      MoeArgs args;
      args.x = x.view.rows(begin, end);
      args.ids = TensorView(ids.view.data, DType::kI32, {kTokens, kTopK}).rows(begin, end);
      args.weights = weights.view.rows(begin, end);
      args.gate_up = &gate_up.weight;
      args.down = &down.weight;
      args.out = out.rows(begin, end);
      cuda::moe_prompt(stream, args);
    };
    run(0, kTokens, together.view);
    stream.sync();
    for (int64_t size = 1; size <= 16; size += size % 5) {
      const DeviceTensor pieces(DType::kF32, {kTokens, kHidden});
      for (int64_t begin = 0; begin < kTokens; begin += size) {
        run(begin, std::min(begin + size, kTokens), pieces.view);
      }
      stream.sync();
      EXPECT_TRUE(together.bytes() == pieces.bytes()) << "by " << size;
    }
  }
}

TEST(PromptFormats, SmallMoe) {
  for (const WeightFormat format : kFormats) {
    check_moe(format, {1, 8, 8, 2, 1});
    check_moe(format, {37, 72, 40, 5, 2});
    check_moe(format, {70, 136, 48, 8, 3});
  }
}

TEST(PromptFormats, Moe) {
  for (const WeightFormat format : kFormats) {
    check_moe(format, {300, 256, 192, 16, 4});
    check_moe(format, {194, 64, 64, 8, 3});
    check_moe(format, {700, 64, 64, 8, 3});     // large tiles of rows, beside small ones
    check_moe(format, {20, 1024, 512, 40, 4});  // more than a chunk of experts
  }
}

}  // namespace
}  // namespace weft
