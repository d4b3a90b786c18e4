// linear_prompt and moe_prompt with int8, int4 and fp8 weights against the oracle, and their
// exactness: a row's bits are its own.

#include <algorithm>

#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4,
                                     WeightFormat::kFp8Block};

/// Relative error of a product: rounding of weights to bf16, of x to e4m3.
double tolerance(WeightFormat format) {
  return format == WeightFormat::kFp8Block ? 4e-2 : 5e-3;
}

PackedWeight packed(const WeightShape& shape, uint64_t seed) {
  return PackedWeight(shape, seed, {.scale = 0.1f});
}

void check(WeightFormat format, const LinearCase& c) {
  const PackedWeight w = packed({format, c.n, c.k, 1}, 7);
  check_linear({.op = cuda::linear_prompt,
                .x_scale = 1,
                .tolerance = tolerance(format),
                .scratch_bytes = cuda::linear_prompt_scratch(w.weight.shape, c.epilogue, c.m)},
               w, c);
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
    check_no_rows(cuda::linear_prompt, packed({format, 64, 64, 1}, 1).weight);
  }
}

void check_pieces(WeightFormat format, Epilogue epilogue, DType out, int64_t n, int64_t k) {
  check_linear_pieces(cuda::linear_prompt, packed({format, n, k, 1}, 3).weight, epilogue, out,
                      {{1, 2, 13, 32, 64, 77, 128, 129, 300, 554}});
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
      const PackedWeight wide = packed({format, 192, k, 1}, 3);
      const PackedWeight narrow = packed({format, 64, 96, 1}, 4);
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

// ---- Drafts

/// A head that only drafts have: the weights' own error is not in it.
TEST(PromptFormats, DraftHead) {
  for (const LinearCase& c : {LinearCase{1, 520, 256, Epilogue::kStore, DType::kF32},
                              LinearCase{7, 1, 8, Epilogue::kStore, DType::kF32},
                              LinearCase{33, 521, 1032, Epilogue::kStore, DType::kF32},
                              LinearCase{47, 65, 72, Epilogue::kStore, DType::kF32},
                              LinearCase{64, 70000, 64, Epilogue::kStore, DType::kF32},
                              LinearCase{131, 1024, 200, Epilogue::kStore, DType::kF32},
                              LinearCase{300, 384, 1100, Epilogue::kStore, DType::kF32}}) {
    const WeightShape shape{WeightFormat::kDraft4, c.n, c.k, 1};
    check_linear({.op = cuda::draft_logits,
                  .x_scale = 1,
                  .tolerance = 4e-2,
                  .scratch_bytes = cuda::linear_prompt_scratch(shape, c.epilogue, c.m)},
                 packed(shape, 7), c);
  }
}

/// Few rows have the product of decode, more of int4 one of their own.
TEST(PromptFormats, Drafts) {
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kBf16}) {
    for (const LinearCase& c :
         {LinearCase{1, 520, 256, Epilogue::kStore, DType::kF32},
          LinearCase{32, 130, 96, Epilogue::kStore, DType::kF32, true},
          LinearCase{33, 521, 1032, Epilogue::kStore, DType::kF32},
          LinearCase{47, 65, 72, Epilogue::kStore, DType::kF32, true, 16, 32},
          LinearCase{64, 4099, 520, Epilogue::kStore, DType::kF32, true},
          LinearCase{64, 70000, 64, Epilogue::kStore, DType::kF32}, LinearCase{131, 1024, 200},
          LinearCase{300, 384, 1100, Epilogue::kStore, DType::kF32}}) {
      const PackedWeight w = packed({format, c.n, c.k, 1}, 7);
      check_linear({.op = cuda::draft_logits,
                    .x_scale = 1,
                    .tolerance = tolerance(format),
                    .scratch_bytes = 0},
                   w, c);
    }
  }
}

// ---- Experts

void check_experts(WeightFormat format, const MoeCase& c) {
  const PackedWeight gate_up = packed(c.gate_up(format), 1), down = packed(c.down(format), 2);
  check_moe({.op = cuda::moe_prompt,
             .tolerance = 2 * tolerance(format),
             .scratch_bytes = cuda::moe_prompt_scratch(c.gate_up(format), c.tokens, c.top_k)},
            gate_up, down, c);
  check_moe_pieces(cuda::moe_prompt, gate_up.weight, down.weight, c,
                   {{1, 5, c.tokens / 2, c.tokens}});
}

/// Tokens alone, twos and all together, again and again over the same scratch memory.
TEST(PromptFormats, SmallMoeChains) {
  const MoeCase c = {40, 64, 64, 8, 3};
  std::vector<std::vector<int64_t>> cuts;
  for (int64_t size = 1; size <= 16; size += size % 5) {
    cuts.emplace_back(static_cast<size_t>((c.tokens + size - 1) / size), size);
  }
  for (const WeightFormat format : kFormats) {
    check_moe_pieces(cuda::moe_prompt, packed(c.gate_up(format), 1).weight,
                     packed(c.down(format), 2).weight, c, cuts);
  }
}

TEST(PromptFormats, SmallMoe) {
  for (const WeightFormat format : kFormats) {
    check_experts(format, {1, 8, 8, 2, 1});
    check_experts(format, {37, 72, 40, 5, 2});
    check_experts(format, {70, 136, 48, 8, 3});
  }
}

TEST(PromptFormats, Moe) {
  for (const WeightFormat format : kFormats) {
    check_experts(format, {300, 256, 192, 16, 4});
    check_experts(format, {194, 64, 64, 8, 3});
    check_experts(format, {700, 64, 64, 8, 3});     // large tiles of rows, beside small ones
    check_experts(format, {20, 1024, 512, 40, 4});  // more than a chunk of experts
  }
}

}  // namespace
}  // namespace weft
