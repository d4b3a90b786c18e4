#pragma once

// The two kernels of segment_attention (vision_attention.cu, vision_attention_long.cu). A segment's
// length alone says which of them has it. docs/images.md

#include <cuda_bf16.h>

#include <cstdint>

#include "device/stream.h"

namespace weft::cuda {

struct SegmentAttnParams {
  const __nv_bfloat16 *q, *k, *v;
  __nv_bfloat16* out;
  const int32_t* bounds;
  int64_t q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head;
  int num_segments, head_dim, heads;
  float factor;  // scale * log2(e)
  // Rows of segments shorter than `from` or not shorter than `to` are another kernel's.
  int from, to;

#ifdef __CUDACC__
  /// A block's queries: of segment [begin, end) those from `first` on; begin == end beyond the
  /// last.
  struct Rows {
    int begin = 0, end = 0, first = 0;
  };
  /// Block number `block` where every segment has ceil(length / queries).
  __device__ __forceinline__ Rows rows_of(int block, int queries) const {
    for (int segment = 0; segment < num_segments; ++segment) {
      const int begin = bounds[segment], end = bounds[segment + 1];
      if (end - begin < from || end - begin >= to) continue;
      const int count = (end - begin + queries - 1) / queries;
      if (block < count) return {begin, end, begin + block * queries};
      block -= count;
    }
    return {};
  }
#endif
};

/// Heads of 65 to 80 dimensions, rows of 16 bytes; `rows` of q, `blocks` of kLongQueries.
constexpr int kLongQueries = 192;
void segment_attention_long(Stream& stream, const SegmentAttnParams& p, int64_t rows, int blocks);

}  // namespace weft::cuda
