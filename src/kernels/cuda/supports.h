#pragma once

// What the kernels of the CUDA backend can do, by shape and format: asked by the ops that dispatch
// and by choices.cc, which tells it at load.

#include "kernels/args.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {

inline bool attention_supports(const AttnShape& s) {
  return s.head_dim > 0 && s.head_dim % 8 == 0 && s.head_dim <= 256;
}
/// The KV formats that attention reads, of prompts and in decode.
inline bool attention_reads(KvFormat format) {
  return format != KvFormat::kF32;
}
/// Heads are padded to the width of the kernel that serves them.
inline int attention_width(const AttnShape& s) {
  return s.head_dim <= 64 ? 64 : s.head_dim <= 128 ? 128 : 256;
}

/// The chunked form of the delta rule, for prompts.
inline constexpr int kGdnMaxGroup = 8;  // value heads a key head
inline bool gdn_chunks_support(const GdnShape& s) {
  return s.key_dim == 128 && s.value_dim == 128 && s.conv_width == 4 &&
         s.value_heads / s.key_heads <= kGdnMaxGroup;
}
/// The token-by-token kernel that keeps its state in registers.
inline bool gdn_decode_supports(const GdnShape& s) {
  return s.conv_width == 4 && s.key_dim == s.value_dim && (s.key_dim == 128 || s.key_dim == 64);
}

/// e4m3 products of prompts: the rows of W that a column tile takes begin with a group of scales.
inline bool fp8_product_supports(const WeightShape& shape, Epilogue epilogue) {
  return shape.format == WeightFormat::kFp8Block &&
         (epilogue != Epilogue::kSiluMul || shape.n / 2 % kFp8ScaleRows == 0);
}

/// Products of experts straight from int8 or int4 codes: halves of kSiluMul are whole tiles.
inline bool code_product_supports(const WeightShape& shape, Epilogue epilogue) {
  return (shape.format == WeightFormat::kInt8 || shape.format == WeightFormat::kInt4) &&
         shape.experts > 1 && (epilogue != Epilogue::kSiluMul || shape.n / 2 % kQuantTile == 0);
}

}  // namespace weft::cuda
