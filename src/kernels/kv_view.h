#pragma once

#include <cstdint>

#include "tensor/view.h"

namespace weft {

/// How K and V are stored. The backend's kv_format_* is the only code that knows a layout.
enum class KvFormat : uint8_t {
  kF32,
  kBf16,
  kInt8Dynamic,  ///< int8 and a scale a token and head (kv_codes.h)
  kFp8Block,     ///< e4m3 and a scale a token and head
};

/// Shape of the KV cache of one layer.
struct KvShape {
  KvFormat format = KvFormat::kBf16;
  int heads = 0;        ///< G
  int head_dim = 0;     ///< D, of K and of V
  int block_size = 64;  ///< B tokens a block; a multiple of 16
};

/// The paged cache of one layer as kernels see it: block b of the layer starts at
/// data + b * block_bytes and holds K and V (and, for quantised formats, their scales and zero
/// points) of B tokens and all heads, in the backend's layout.
struct PagedKv {
  KvShape shape;
  std::byte* data = nullptr;
  int64_t block_bytes = 0;
  int64_t num_blocks = 0;
};

/// Recurrent state of one gated-delta-rule layer.
struct StateSlots {
  TensorView conv;       ///< [slots, W-1, C] f32: the last W-1 rows before the convolution
  TensorView recurrent;  ///< [slots, HV, V, K] f32
};

}  // namespace weft
