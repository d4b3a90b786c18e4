#include "kernels/ref/ref.h"

namespace weft {

const OpTable& ref_ops() {
  static constexpr VisionOps kVision{
      .layer_norm = ref::layer_norm,
      .gelu = ref::gelu,
      .interpolate = ref::interpolate,
      .axial_rope = ref::axial_rope,
      .segment_attention = ref::segment_attention,
  };
  static constexpr SparseOps kSparse{
      .route = ref::route_heads,
      .select = ref::select_blocks,
      .select_scratch = [](const AttnShape&, int, int64_t, int64_t, int) -> int64_t { return 0; },
  };
  static constexpr OpTable kOps{
      .name = "ref",
      .vision = &kVision,
      .sparse = &kSparse,
      .fp8_blocks = true,
      .weight_bytes = ref::weight_bytes,
      .pack_weight = ref::pack_weight,
      .unpack_weight = ref::unpack_weight,
      .weight_rows = [](const Weight&) -> TensorView { return {}; },
      .kv_block_bytes = ref::kv_block_bytes,
      .kv_read_block = ref::kv_read_block,
      .linear_scratch = [](const WeightShape&, Epilogue, int64_t, int) -> int64_t { return 0; },
      .moe_scratch = [](const WeightShape&, int64_t, int, int) -> int64_t { return 0; },
      .gdn_scratch = [](const GdnShape&, int64_t, int64_t, int) -> int64_t { return 0; },
      .attention_scratch = [](const AttnShape&, int64_t, int64_t) -> int64_t { return 0; },
      .embed = ref::embed,
      .rms_norm = ref::rms_norm,
      .linear = ref::linear,
      .moe_route = ref::moe_route,
      .moe = ref::moe,
      .add = ref::add,
      .add_gated = ref::add_gated,
      .mul_sigmoid = ref::mul_sigmoid,
      .qkv_prepare = ref::qkv_prepare,
      .attention = ref::attention,
      .gdn = ref::gdn,
      .gated_norm = ref::gated_norm,
  };
  return kOps;
}

}  // namespace weft
