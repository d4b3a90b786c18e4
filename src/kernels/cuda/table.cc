#include <algorithm>

#include "kernels/cuda/attention_prepared.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft {
namespace {

/// Rows [0, prompt_rows) of x and out in `args`, or the others.
LinearArgs part(const LinearArgs& args, bool prompt) {
  const int64_t rows = args.x.dim(0), border = std::clamp<int64_t>(args.prompt_rows, 0, rows);
  LinearArgs out = args;
  out.norm = {};  // done
  out.x = prompt ? args.x.rows(0, border) : args.x.rows(border, rows);
  out.out = prompt ? args.out.rows(0, border) : args.out.rows(border, rows);
  return out;
}

MoeArgs part(const MoeArgs& args, bool prompt) {
  const int64_t rows = args.x.dim(0), border = std::clamp<int64_t>(args.prompt_rows, 0, rows);
  MoeArgs out = args;
  for (TensorView* view : {&out.x, &out.ids, &out.weights, &out.out}) {
    *view = prompt ? view->rows(0, border) : view->rows(border, rows);
  }
  return out;
}

void linear(Stream& stream, const LinearArgs& args) {
  if (args.norm.weight.defined()) {
    // A product that norms its rows itself saves a kernel; the bits are the same.
    if (args.prompt_rows == 0 && args.x.dim(0) > 0 && cuda::linear_decode_norms(args)) {
      return cuda::linear_decode(stream, args);
    }
    cuda::rms_norm(stream, args.norm);
  }
  // Routers stay f32 and have one arithmetic.
  if (args.weight->shape.format == WeightFormat::kF32) {
    LinearArgs all = args;
    all.norm = {};
    if (args.x.dim(0) > 0) cuda::linear_decode(stream, all);
    return;
  }
  const LinearArgs prompt = part(args, true), decode = part(args, false);
  if (prompt.x.dim(0) > 0) cuda::linear_prompt(stream, prompt);
  if (decode.x.dim(0) > 0) cuda::linear_decode(stream, decode);
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

}  // namespace

const OpTable* cuda_ops() {
  static constexpr SampleOps kSampling{
      .sample = cuda::sample, .reset_counts = cuda::reset_counts, .feed_tokens = cuda::feed_tokens};
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
  };
  static constexpr OpTable kOps{
      .name = "cuda-sm90a",
      .device = DeviceKind::kCuda,
      .activation = DType::kBF16,
      .sampling = &kSampling,
      .vision = &kVision,
      .sparse = &kSparse,
      .fp8_blocks = true,
      .choices = cuda::kernel_choices,
      .pack_rows = cuda::pack_rows,
      .prepared_attention = cuda::attention_prepared,
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
