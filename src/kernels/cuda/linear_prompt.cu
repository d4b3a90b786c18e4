// out (+)= x W^T + bias with prompt arithmetic: the product of the weight's format. int8 and int4
// become bf16 in chunks of rows that the L2 cache holds, each multiplied at once.
// docs/kernels/gemm.md.

#include <algorithm>

#include "kernels/cuda/best_of_parts.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_drafts.h"
#include "kernels/cuda/supports.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{32} << 20;  // of bf16 rows
constexpr int64_t kMostDecodedDrafts = 32;          // rows

int64_t bf16_row_bytes(const WeightShape& shape) {
  return ceil_div(shape.k, 8) * 16;
}

/// Columns of out that a chunk yields, a multiple of 256 unless it is all.
int64_t chunk_columns(const WeightShape& shape, Epilogue epilogue) {
  const int64_t halves = epilogue == Epilogue::kSiluMul ? 2 : 1;
  const int64_t fit = kChunkBytes / (bf16_row_bytes(shape) * halves) / 256 * 256;
  return std::min(shape.n / halves, std::max<int64_t>(fit, 256));
}

Gemm gemm_of(const LinearArgs& args) {
  const WeightShape& shape = args.weight->shape;
  Gemm gemm;
  gemm.a = args.x;
  gemm.b = args.weight->data;
  gemm.n = shape.n;
  gemm.b_row_bytes = weight_row_bytes(shape);
  gemm.bias = args.bias;
  gemm.out = args.out;
  gemm.epilogue = args.epilogue;
  return gemm;
}

void by_chunks(Stream& stream, const LinearArgs& args) {
  const WeightShape& shape = args.weight->shape;
  const bool silu_mul = args.epilogue == Epilogue::kSiluMul;
  const int64_t halves = silu_mul ? 2 : 1, columns = shape.n / halves;
  const int64_t chunk = chunk_columns(shape, args.epilogue);
  ArenaScope scope(stream.scratch());
  auto* rows =
      static_cast<std::byte*>(stream.scratch().take(chunk * halves * bf16_row_bytes(shape)));
  for (int64_t begin = 0; begin < columns; begin += chunk) {
    const int64_t count = std::min(chunk, columns - begin);
    for (int64_t half = 0; half < halves; ++half) {
      dequantize(stream, *args.weight,
                 {.first = half * columns + begin,
                  .rows = count,
                  .out = rows,
                  .out_row = half * count,
                  .out_rows = halves * count});
    }
    Gemm gemm = gemm_of(args);
    gemm.b = rows;
    gemm.n = halves * count;
    gemm.b_row_bytes = bf16_row_bytes(shape);
    gemm.out = args.out.columns(begin, begin + count);
    if (args.bias.defined()) {
      gemm.bias.data = args.bias.ptr<float>() + begin;
      gemm.bias_up = columns;
    }
    gemm_bf16(stream, gemm);
  }
}

/// x as the fp8 product takes it, in the stream's scratch memory.
QuantizedRows quantized_x(Stream& stream, const LinearArgs& args) {
  return linear_prompt_norms(args) ? quantize_norm(stream, args.norm)
                                   : quantize_rows(stream, args.x);
}

/// Whether x may be codes, which fit where its rows of bf16 would lie.
bool takes_codes(const LinearArgs& args) {
  const int64_t rows = args.x.dim(0), k = args.x.dim(1);
  return fp8_product_supports(args.weight->shape, args.epilogue) && args.x.contiguous() &&
         quantized_rows_bytes(rows, k) <= rows * k * dtype_size(args.x.dtype);
}
/// Whether rows of drafts have a product of their own.
bool drafts_alone(const LinearArgs& args) {
  return args.weight->shape.format == WeightFormat::kInt4 && args.x.dim(0) > kMostDecodedDrafts;
}

/// Greedy rows, more than 64, of a wide bf16 weight: their logits are not written. False: other
/// ones.
bool best_of_many(Stream& stream, const LinearArgs& args, const SampleArgs& choice) {
  const WeightShape& shape = args.weight->shape;
  if (args.x.dim(0) == 0 || args.x.dim(1) != shape.k || args.norm.weight.defined()) return false;
  DecodeGemm gemm;
  gemm.x = args.x;
  gemm.weight = args.weight;
  gemm.bias = args.bias;
  gemm.out = args.out;
  gemm.epilogue = args.epilogue;
  const DecodeCut cut = decode_cut(shape, args.epilogue, args.x.dim(0));
  if (!decode_takes_best(gemm, cut)) return false;
  sample_parts(stream, choice, decode_best(stream, gemm, cut));
  return true;
}

QuantizedRows codes_in_place(const LinearArgs& args) {
  CHECK(args.x.dim(1) == args.weight->shape.k, "linear: x is [T, K]");
  return quantized_rows_at(args.x.data, args.x.dim(0), args.x.dim(1));
}

}  // namespace

int64_t linear_prompt_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  switch (shape.format) {
    case WeightFormat::kBf16:
    case WeightFormat::kF32: return 0;
    case WeightFormat::kFp8Block:
      if (fp8_product_supports(shape, epilogue)) return quantized_rows_bytes(rows, shape.k);
      break;
    case WeightFormat::kDraft4: return gemm_draft4_scratch(shape.k, rows);
    case WeightFormat::kInt8:
    case WeightFormat::kInt4: break;
  }
  return chunk_columns(shape, epilogue) * (epilogue == Epilogue::kSiluMul ? 2 : 1) *
             bf16_row_bytes(shape) +
         256;
}

void linear_prompt(Stream& stream, const LinearArgs& args) {
  const Weight& weight = *args.weight;
  const WeightShape& shape = weight.shape;
  CHECK(args.x.dim(1) == shape.k, "linear: x is [T, K]");
  CHECK(shape.format != WeightFormat::kF32, "linear: prompts have no f32 arithmetic of their own");
  CHECK(shape.format != WeightFormat::kDraft4, "linear: a head of drafts");
  if (args.x.dim(0) == 0) return;
  if (shape.format == WeightFormat::kBf16) return gemm_bf16(stream, gemm_of(args));
  if (!fp8_product_supports(shape, args.epilogue)) return by_chunks(stream, args);
  ArenaScope scope(stream.scratch());
  gemm_fp8(stream, gemm_of(args), quantized_x(stream, args), block_scales(weight));
}

void draft_logits(Stream& stream, const LinearArgs& args) {
  CHECK(args.x.dim(1) == args.weight->shape.k && args.epilogue == Epilogue::kStore &&
            !args.norm.weight.defined(),
        "linear: drafts");
  if (args.weight->shape.format == WeightFormat::kDraft4) {
    return args.x.dim(0) > 0 ? gemm_draft4(stream, gemm_of(args)) : void();
  }
  if (!drafts_alone(args)) return linear_decode(stream, args);
  gemm_int4_drafts(stream, gemm_of(args));
}

void draft_tokens(Stream& stream, const LinearArgs& args, const SampleArgs& choice) {
  const auto address = reinterpret_cast<uintptr_t>(args.out.data);
  const bool draft4 = args.weight->shape.format == WeightFormat::kDraft4 && args.x.dim(0) > 0;
  const bool direct = choice.only_greedy && (draft4 || drafts_alone(args)) &&
                      args.x.dim(0) <= kDraftRows && args.out.contiguous() &&
                      address % alignof(uint64_t) == 0 &&
                      gemm_int4_best_bytes(args.weight->shape.n) <= args.out.bytes();
  if (!direct) {
    if (choice.only_greedy && !draft4 && best_of_many(stream, args, choice)) return;
    draft_logits(stream, args);
    return sample(stream, choice);
  }
  auto* best = static_cast<uint64_t*>(args.out.data);
  const int parts = draft4 ? gemm_draft4_best(stream, gemm_of(args), best)
                           : gemm_int4_best(stream, gemm_of(args), best);
  sample_parts(stream, choice, {best, parts, kDraftRows});
}

bool linear_prompt_norms(const LinearArgs& args) {
  return args.norm.weight.defined() && fp8_product_supports(args.weight->shape, args.epilogue);
}

bool linear_prompt_pairs(const LinearArgs& first, const LinearArgs& second) {
  return first.epilogue == Epilogue::kSiluMul &&
         fp8_product_supports(first.weight->shape, first.epilogue) && takes_codes(second) &&
         quantized_product_pays(first.weight->shape, first.x.dim(0));
}

void linear_prompt_pair(Stream& stream, const LinearArgs& first, const LinearArgs& second) {
  CHECK(first.x.dim(1) == first.weight->shape.k && first.out.data == second.x.data,
        "linear: x is [T, K]");
  const QuantizedRows between = codes_in_place(second);
  {
    ArenaScope scope(stream.scratch());
    gemm_fp8_quantized(stream, gemm_of(first), quantized_x(stream, first),
                       block_scales(*first.weight), between);
  }
  gemm_fp8(stream, gemm_of(second), between, block_scales(*second.weight));
}

bool linear_prompt_prepares(const LinearArgs& linear, const QkvPrepareArgs& prepare) {
  return fp8_product_supports(linear.weight->shape, linear.epilogue) &&
         prepared_product_supports(gemm_of(linear), prepare);
}

void linear_prompt_prepare(Stream& stream, const LinearArgs& linear,
                           const QkvPrepareArgs& prepare) {
  ArenaScope scope(stream.scratch());
  gemm_fp8_prepared(stream, gemm_of(linear), quantized_x(stream, linear),
                    block_scales(*linear.weight), prepare);
}

bool attention_linear_prompt_pairs(const AttnArgs& attention, const LinearArgs& linear) {
  return attention_prompt_quantizes(attention.shape) && takes_codes(linear);
}

void attention_linear_prompt(Stream& stream, const AttnArgs& attention, const LinearArgs& linear) {
  CHECK(attention.out.data == linear.x.data);
  const QuantizedRows rows = codes_in_place(linear);
  (attention.kv.shape.format == KvFormat::kBf16
       ? attention_prompt_into
       : attention_prompt_gathered_into)(stream, attention, rows);
  gemm_fp8(stream, gemm_of(linear), rows, block_scales(*linear.weight));
}

}  // namespace weft::cuda
