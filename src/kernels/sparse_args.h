#pragma once

// Sparse attention of prompts (Elastic-Attention, arXiv 2601.17367; XAttention, arXiv 2503.16428):
// what each head sees, and who decides it. Letters as in args.h.

#include <cstdint>
#include <span>

#include "tensor/view.h"

namespace weft {

/// The codes of the Block-Sparse-Attention library.
enum class HeadKind : int32_t { kStreaming = -1, kFull = 0, kBlocks = 1 };

/// What the heads see in prompt rows; decode rows see everything. Rows and keys are cut into blocks
/// of 128 at absolute multiples; a row of block b sees those keys up to its own position that lie
///   kFull       in any block
///   kStreaming  in a block c < sink_blocks or c > b - window_blocks
///   kBlocks     in block b, or in a block c < b whose bit is set
struct HeadPlan {
  static constexpr int kBlock = 128;
  TensorView kinds;  ///< [rows, H] i32: HeadKind
  TensorView rows;   ///< [S] i32: the row of `kinds` of a segment; undefined: segment s has row s
  int sink_blocks = 1, window_blocks = 16;
  /// [S, H, row blocks, words] i32, contiguous: bit c % 32 of word c / 32 of row block
  /// b - kv_start / 128. Undefined if no head is of kind kBlocks.
  TensorView blocks;
  TensorView
      counts;  ///< [S, H, row blocks] i32: the bits set, of which the longest-first order is made
  bool long_lists = false;  ///< a hint: most blocks may be in a list; changes no result
};

/// The kind of a head of a segment, where plans are host memory.
inline int32_t& kind_of(const TensorView& kinds, const TensorView& rows, int64_t segment,
                        int64_t head) {
  const int64_t row = rows.defined() ? rows.ptr<int32_t>()[segment * rows.stride[0]] : segment;
  return kinds.row<int32_t>(row)[head];
}

/// Does a row at `position` see `key` (at most its own position) of a segment that begins at
/// `kv_start`? `kinds` and `blocks` of the plan are host memory.
inline bool sees(const HeadPlan& plan, int64_t segment, int64_t head, int64_t kv_start,
                 int64_t position, int64_t key) {
  const int64_t b = position / HeadPlan::kBlock, c = key / HeadPlan::kBlock;
  const int32_t kind = kind_of(plan.kinds, plan.rows, segment, head);
  if (kind == static_cast<int32_t>(HeadKind::kFull)) return true;
  if (kind == static_cast<int32_t>(HeadKind::kStreaming)) {
    return c < plan.sink_blocks || c > b - plan.window_blocks;
  }
  const int64_t row = b - kv_start / HeadPlan::kBlock;
  const int32_t* words = plan.blocks.row<int32_t>(segment) + head * plan.blocks.stride[1] +
                         row * plan.blocks.stride[2];
  return b == c || (words[c / 32] >> (c % 32) & 1) != 0;
}

/// The router of one layer of Elastic-Attention: x = K after its norm and before rope; p = the mean
/// of the first 100 and the last 100 rows of a segment (of all, each twice from 100 to 200 rows as
/// they overlap); f = F2 silu(F1 p); logits = R3 silu(R2 silu(R1 f)), every F and R with a bias.
/// Head g is retrieval if logits[1] > logits[0], sparse otherwise. A segment is a whole prompt.
struct RouterWeights {
  TensorView feature[2];       ///< F: [4 D, D], [D, 4 D], f32 (CUDA: bf16), contiguous
  TensorView feature_bias[2];  ///< f32
  TensorView router[3];        ///< R: [4 D, D], [D, 4 D], [2, D]
  TensorView router_bias[3];   ///< f32
};
struct RouterArgs {
  TensorView k;       ///< [T, G, D] before the norm
  TensorView k_norm;  ///< [D] f32 or undefined
  float eps = 1e-6f;
  RouterWeights weights;
  TensorView cu_q;  ///< [S + 1] i32
  int num_segments = 0;
  HeadKind retrieval = HeadKind::kFull, sparse = HeadKind::kBlocks;
  TensorView logits;                   ///< [S, G, 2] f32
  TensorView kinds;                    ///< [rows, H] i32: head h as kv head h / (H / G)
  TensorView rows;                     ///< [S] i32, as HeadPlan::rows
  static constexpr int kPooled = 100;  ///< rows at each end
};

struct AttnArgs;

/// XAttention: which blocks the heads of kind kBlocks see. With Z = stride and groups i, j of Z
/// rows and Z keys (at absolute multiples; what is beyond the segment counts as zeros):
///   a[i, j] = sum_t q[i Z + Z - 1 - t] . k[j Z + t] * scale / (Z norm), j <= i
///   s[b, c] = sum of softmax_j(a)[i, j] over the groups i of block b and j of block c
/// Of a row b: blocks 0 and b, then the others by falling s (ties: lower c first), as long as the
/// chosen hold less than threshold * sum_c s[b, c]. A threshold of 1 or more chooses all.
/// Segments begin at multiples of 128.
struct SelectArgs {
  /// q, kv, seqs and the prompt segments; of its plan, kinds are read, blocks and counts written
  /// (for heads of kind kBlocks alone).
  const AttnArgs* attention = nullptr;
  int stride = 16;  ///< Z: 4, 8 or 16
  float norm = 1;
  TensorView thresholds;  ///< [H] f32
  /// Rows of blocks before this one are chosen as the published code does in its first chunk, for
  /// comparisons with it: block 0 is one of the others, and these are weighed one late: the first
  /// of them is always chosen, a further one as long as b and the chosen others but the last hold
  /// too little. Block 0 is seen in any case.
  int quirk_blocks = 0;
  /// Of the segments: 1 where no head is of kind kBlocks, so that an op need not look; or empty.
  std::span<const int32_t> none;
  TensorView mass;  ///< [S, H, row blocks] f32: the share of sum_c s[b, c] chosen; or undefined
};

}  // namespace weft
