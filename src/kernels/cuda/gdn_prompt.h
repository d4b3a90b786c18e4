#pragma once

// What the two kernels of the chunked form hand each other (gdn_prompt.cu, gdn_chunks.cu), and the
// work list both go by. K = V = 128, W = 4. docs/kernels/gated_delta.md

#include "kernels/cuda/gdn.h"
#include "kernels/cuda/supports.h"

namespace weft::cuda {

constexpr int kGdnChunk = 64;
constexpr int kGdnDim = 128;

/// Results of the chunks' preparation, by chunk (all prompt segments' chunks in order) and head.
/// Tiles are f16, 64 rows of 128 bytes with 128-byte swizzle, as wgmma reads them.
struct GdnChunks {
  /// [chunk][key head]: k (columns 0-63, then 64-127), then K^-1/2 q, both normalised.
  std::byte* kq;
  /// [chunk][value head]: (I + A)^-1, then P.
  std::byte* tp;
  /// [chunk][value head] f32: -beta_i exp(G_i), exp(G_i), exp(G_last - G_i), each [64] with token i
  /// at gdn_gate_offset(i); exp(G_last) and padding [64].
  float* gates;
  /// [chunk][key head]: kGdnReady when all of the above of these heads is written.
  int* ready;
  int num_chunks;
};
constexpr int64_t kGdnTile = kGdnChunk * 128;  // bytes of 64 x 64
constexpr int64_t kGdnKqBytes = 4 * kGdnTile;
constexpr int64_t kGdnTpBytes = 2 * kGdnTile;
constexpr int kGdnGates = 4 * kGdnChunk;
constexpr int kGdnReady = 2;

/// All chunks of the prompt segments, in blocks that fill a multiprocessor each and not more of
/// them than `multiprocessors`; `ready` is zero before.
void gdn_prepare_chunks(Stream& stream, const GdnView& p, const GdnChunks& chunks,
                        int multiprocessors);

#ifdef __CUDACC__

/// Tokens 16 i + 2 q + {0, 1, 8, 9} side by side: what one thread of wgmma's layout has.
__device__ __forceinline__ int gdn_gate_offset(int token) {
  return token / 16 * 16 + token / 2 % 4 * 4 + token / 8 % 2 * 2 + token % 2;
}

__device__ __forceinline__ int gdn_num_chunks(const GdnView& p, int segment) {
  return (p.cu_q[segment + 1] - p.cu_q[segment] + kGdnChunk - 1) / kGdnChunk;
}

#endif  // __CUDACC__

}  // namespace weft::cuda
