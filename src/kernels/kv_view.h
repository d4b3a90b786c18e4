#pragma once

#include <cstdint>
#include <string_view>

#include "tensor/view.h"

namespace weft {

/// How K and V are stored. The backend's kv_format.h is the only code that knows a layout.
enum class KvFormat : uint8_t {
  kF32,
  kBf16,
  kInt8Dynamic,  ///< int8 and a scale a token and head (kv_codes.h)
  kFp8Block,     ///< e4m3 and a scale a token and head
  kInt8,         ///< int8, static scales (PagedKv::k_scale, v_scale)
  kFp8,          ///< e4m3, static scales
  kInt4,         ///< 4 bits, a scale with a zero point a token, head and 64 dims
};

/// What users call a format: "bfloat16", "int8_dynamic", ...
constexpr std::string_view kv_format_name(KvFormat format) {
  switch (format) {
    case KvFormat::kF32: return "float32";
    case KvFormat::kBf16: return "bfloat16";
    case KvFormat::kInt8Dynamic: return "int8_dynamic";
    case KvFormat::kFp8Block: return "fp8_block";
    case KvFormat::kInt8: return "int8";
    case KvFormat::kFp8: return "fp8";
    case KvFormat::kInt4: return "int4";
  }
  return "?";
}
/// Whether each row (token and head) has a scale of its own, which lies in its block.
[[gnu::always_inline]] constexpr bool kv_has_row_scales(KvFormat format) {
  return format == KvFormat::kInt8Dynamic || format == KvFormat::kFp8Block ||
         format == KvFormat::kInt4;
}
/// Whether the scales are constants of the layer.
[[gnu::always_inline]] constexpr bool kv_has_static_scales(KvFormat format) {
  return format == KvFormat::kInt8 || format == KvFormat::kFp8;
}

/// Shape of the KV cache of one layer.
struct KvShape {
  KvFormat format = KvFormat::kBf16;
  int heads = 0;          ///< G
  int head_dim = 0;       ///< D, of K and of V
  int block_size = 64;    ///< B tokens a block; a multiple of 16
  int planned_heads = 0;  ///< H of a layer whose router's decisions are kept; 0: there is none
};

/// The paged cache of one layer as kernels see it: block b of the layer starts at
/// data + b * block_bytes and holds K and V (and, for quantised formats, their scales and zero
/// points) of B tokens and all heads, in the backend's layout.
struct PagedKv {
  KvShape shape;
  std::byte* data = nullptr;
  int64_t block_bytes = 0;
  int64_t num_blocks = 0;
  /// [G, D] what the codes of a channel are multiplied by, on the device; of formats with static
  /// scales alone.
  const float* k_scale = nullptr;
  const float* v_scale = nullptr;
  /// [num_blocks, H] i32: what heads see of the prompt (HeadKind) whose first block this is.
  /// Undefined without a router.
  TensorView kinds;
};

/// Recurrent state of one gated-delta-rule layer.
struct StateSlots {
  TensorView conv;  ///< [slots, W-1, C] f32: the last rows before the convolution; gdn_slots.h
  /// [slots, HV, V, K] f32, or bf16: then S is rounded (nearest even) after every token of a decode
  /// segment and after every chunk of 64 tokens of a prompt segment.
  TensorView recurrent;
};

}  // namespace weft
