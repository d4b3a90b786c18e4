#include "kernels/cpu/attention.h"
#include "kernels/cpu/gdn.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {

#define WEFT_STRING2(x) #x
#define WEFT_STRING(x) WEFT_STRING2(x)

const OpTable& ops() {
  static constexpr VisionOps kVision = {
      .layer_norm = layer_norm,
      .gelu = gelu,
      .interpolate = interpolate,
      .axial_rope = axial_rope,
      .segment_attention = segment_attention,
  };
  static constexpr SparseOps kSparse = {
      .route = route_heads,
      .select = select_blocks,
      .select_scratch = [](const AttnShape& shape, int stride, int64_t, int64_t num_keys,
                           int threads) -> int64_t {
        return select_scratch_bytes(shape, stride, num_keys, threads);
      },
  };
  static constexpr OpTable kOps = {
      .name = "cpu-" WEFT_STRING(WEFT_ISA_NS),
      .vision = &kVision,
      .sparse = &kSparse,
      .weight_bytes = weight_bytes,
      .pack_weight = pack_weight,
      .unpack_weight = unpack_weight,
      .weight_rows = packed_rows,
      .kv_block_bytes = kv_block_bytes,
      .kv_read_block = kv_read_block,
      .linear_scratch = [](const WeightShape& shape, Epilogue epilogue, int64_t rows,
                           int threads) -> int64_t {
        WeightShape part = shape;  // only gate and up are kept whole before they are combined
        if (epilogue != Epilogue::kSiluMul) part.n = 0;
        return linear_scratch_bytes(part, rows, threads);
      },
      .moe_scratch = moe_scratch_bytes,
      .gdn_scratch = [](const GdnShape& shape, int64_t, int64_t, int threads) -> int64_t {
        return gdn_scratch_bytes(shape, threads);
      },
      .attention_scratch = attention_scratch_bytes,
      .embed = embed,
      .rms_norm = rms_norm,
      .linear = linear,
      .moe_route = moe_route,
      .moe = moe,
      .add = add,
      .add_gated = add_gated,
      .mul_sigmoid = mul_sigmoid,
      .qkv_prepare = qkv_prepare,
      .attention = attention,
      .gdn = gdn,
      .gated_norm = gated_norm,
  };
  return kOps;
}

}  // namespace weft::WEFT_ISA_NS
