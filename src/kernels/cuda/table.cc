#include <algorithm>

#include "kernels/count_args.h"
#include "kernels/cuda/attention_prepared.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft {
namespace {

TensorView part(const TensorView& view, int64_t border, bool prompt) {
  if (!view.defined()) return view;
  return prompt ? view.rows(0, border) : view.rows(border, view.dim(0));
}

/// Rows [0, prompt_rows) of `args`, or the others.
LinearArgs part(const LinearArgs& args, bool prompt) {
  const int64_t rows = args.x.dim(0), border = std::clamp<int64_t>(args.prompt_rows, 0, rows);
  LinearArgs out = args;
  for (TensorView* view : {&out.x, &out.out, &out.norm.x, &out.norm.residual, &out.norm.out}) {
    *view = part(*view, border, prompt);
  }
  out.prompt_rows = prompt ? border : 0;
  return out;
}

MoeArgs part(const MoeArgs& args, bool prompt) {
  const int64_t rows = args.x.dim(0), border = std::clamp<int64_t>(args.prompt_rows, 0, rows);
  MoeArgs out = args;
  for (TensorView* view : {&out.x, &out.ids, &out.weights, &out.out}) {
    *view = part(*view, border, prompt);
  }
  return out;
}

QkvPrepareArgs part(const QkvPrepareArgs& args, int64_t border, bool prompt) {
  QkvPrepareArgs out = args;
  RopePositions& at = out.positions;
  for (TensorView* view :
       {&out.q, &out.k, &out.v, &out.kv_slot, &at.index, &at.delta, &at.triples}) {
    *view = part(*view, border, prompt);
  }
  return out;
}

void linear(Stream& stream, const LinearArgs& args) {
  // Drafts decide no bit of an answer: their head has one arithmetic.
  if (args.weight->shape.format == WeightFormat::kDraft4) return cuda::draft_logits(stream, args);
  LinearArgs prompt = part(args, true), decode = part(args, false);
  if (args.norm.weight.defined()) {
    // A product that norms its rows itself saves a kernel; the bits are the same.
    const bool prompt_norms = prompt.x.dim(0) > 0 && cuda::linear_prompt_norms(prompt);
    const bool decode_norms = decode.x.dim(0) > 0 && cuda::linear_decode_norms(decode);
    if (!prompt_norms && !decode_norms) {
      cuda::rms_norm(stream, args.norm);
    } else if (!prompt_norms || !decode_norms) {
      cuda::rms_norm(stream, prompt_norms ? decode.norm : prompt.norm);
    }
    if (!prompt_norms) prompt.norm = {};
    if (!decode_norms) decode.norm = {};
  }
  // Routers stay f32 and have one arithmetic.
  if (args.weight->shape.format == WeightFormat::kF32) {
    LinearArgs all = args;
    all.norm = {};
    if (args.x.dim(0) > 0) cuda::linear_decode(stream, all);
    return;
  }
  if (prompt.x.dim(0) > 0) cuda::linear_prompt(stream, prompt);
  if (decode.x.dim(0) > 0) cuda::linear_decode(stream, decode);
}

bool linear_pair(Stream& stream, const LinearArgs& first, const LinearArgs& second) {
  const LinearArgs gate_up = part(first, true), down = part(second, true);
  if (gate_up.x.dim(0) == 0 || !cuda::linear_prompt_pairs(gate_up, down)) return false;
  cuda::linear_prompt_pair(stream, gate_up, down);
  linear(stream, part(first, false));
  linear(stream, part(second, false));
  return true;
}

bool linear_prepare(Stream& stream, const LinearArgs& args, const QkvPrepareArgs& prepare) {
  const LinearArgs prompt = part(args, true);
  const int64_t rows = prompt.x.dim(0);
  const QkvPrepareArgs prepared = part(prepare, rows, true);
  if (rows == 0 || !cuda::linear_prompt_prepares(prompt, prepared)) return false;
  cuda::linear_prompt_prepare(stream, prompt, prepared);
  linear(stream, part(args, false));
  cuda::qkv_prepare(stream, part(prepare, rows, false));
  return true;
}

TensorView weight_rows(const Weight& weight) {
  if (weight.shape.format != WeightFormat::kBf16) return {};
  TensorView rows(weight.data, DType::kBF16, {weight.shape.n, weight.shape.k});
  rows.stride[0] = (weight.shape.k + 7) / 8 * 8;
  return rows;
}

void moe(Stream& stream, const MoeArgs& args) {
  const MoeArgs prompt = part(args, true), decode = part(args, false);
  if (prompt.x.dim(0) > 0) cuda::moe_prompt(stream, prompt);
  if (decode.x.dim(0) > 0) cuda::moe_decode(stream, decode);
}

void attention(Stream& stream, const AttnArgs& args) {
  if (args.num_prompt_segments > 0) {
    (args.kv.shape.format == KvFormat::kBf16 ? cuda::attention_prompt
                                             : cuda::attention_prompt_gathered)(stream, args);
  }
  if (args.seqs.num_segments > args.num_prompt_segments) cuda::attention_decode(stream, args);
}

bool attention_linear(Stream& stream, const AttnArgs& args, const LinearArgs& out) {
  const LinearArgs prompt = part(out, true);
  if (args.num_prompt_segments == 0 || prompt.x.dim(0) == 0 ||
      !cuda::attention_linear_prompt_pairs(args, prompt)) {
    return false;
  }
  cuda::attention_linear_prompt(stream, args, prompt);
  if (args.seqs.num_segments > args.num_prompt_segments) cuda::attention_decode(stream, args);
  linear(stream, part(out, false));
  return true;
}

}  // namespace

const OpTable* cuda_ops() {
  static constexpr SampleOps kSampling{.sample = cuda::sample,
                                       .reset_counts = cuda::reset_counts,
                                       .feed_tokens = cuda::feed_tokens,
                                       .accept_drafts = cuda::accept_drafts,
                                       .extend_ngrams = cuda::extend_ngrams,
                                       .propose_ngrams = cuda::propose_ngrams};
  static constexpr VisionOps kVision{
      .layer_norm = cuda::layer_norm,
      .gelu = cuda::gelu,
      .interpolate = cuda::interpolate,
      .axial_rope = cuda::axial_rope,
      .segment_attention = cuda::segment_attention,
  };
  static constexpr SparseOps kSparse{
      .route = cuda::route_heads,
      .select = cuda::select_blocks,
      .select_scratch = [](const AttnShape& shape, int stride, int64_t rows, int64_t num_keys, int)
          -> int64_t { return cuda::select_blocks_scratch(shape, rows, num_keys, stride); },
      .count = cuda::count_plan,
  };
  static constexpr OpTable kOps{
      .name = "cuda-sm90a",
      .device = DeviceKind::kCuda,
      .activation = DType::kBF16,
      .sampling = &kSampling,
      .vision = &kVision,
      .sparse = &kSparse,
      .fp8_blocks = true,
      .draft_format = WeightFormat::kDraft4,
      .choices = cuda::kernel_choices,
      .pack_rows = cuda::pack_rows,
      .prepared_attention = cuda::attention_prepared,
      .linear_prepare = linear_prepare,
      .linear_pair = linear_pair,
      .attention_linear = attention_linear,
      .draft_tokens = cuda::draft_tokens,
      .weight_bytes = cuda::weight_bytes,
      .pack_weight = cuda::pack_weight,
      .unpack_weight = cuda::unpack_weight,
      .weight_rows = weight_rows,
      .kv_block_bytes = cuda::kv_block_bytes,
      .kv_read_block = cuda::kv_read_block,
      .linear_scratch = [](const WeightShape& shape, Epilogue epilogue, int64_t rows,
                           int) -> int64_t {
        return std::max(cuda::linear_prompt_scratch(shape, epilogue, rows),
                        cuda::linear_decode_scratch(shape, epilogue, rows));
      },
      .moe_scratch = [](const WeightShape& gate_up, int64_t rows, int top_k, int) -> int64_t {
        return std::max(cuda::moe_prompt_scratch(gate_up, rows, top_k),
                        cuda::moe_decode_scratch(gate_up, rows, top_k));
      },
      .gdn_scratch = [](const GdnShape& shape, int64_t rows, int64_t num_sequences,
                        int) -> int64_t { return cuda::gdn_scratch(shape, rows, num_sequences); },
      .attention_scratch = [](const AttnShape& shape, int64_t num_sequences,
                              int64_t num_keys) -> int64_t {
        return std::max(cuda::attention_prompt_scratch(shape, num_sequences, num_keys) +
                            cuda::kv_gather_scratch(shape, num_keys),
                        cuda::attention_decode_scratch(shape, num_sequences, num_keys));
      },
      .embed = cuda::embed,
      .rms_norm = cuda::rms_norm,
      .linear = linear,
      .moe_route = cuda::moe_route,
      .moe = moe,
      .add = cuda::add,
      .add_gated = cuda::add_gated,
      .mul_sigmoid = cuda::mul_sigmoid,
      .qkv_prepare = cuda::qkv_prepare,
      .attention = attention,
      .gdn = cuda::gdn,
      .gated_norm = cuda::gated_norm,
  };
  return &kOps;
}

}  // namespace weft
