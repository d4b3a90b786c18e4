#pragma once

// How a consumer warp of attention_decode puts chunks together: the tree over absolute chunk
// numbers, what a share's borders leave to the second kernel, and the output.

#include "kernels/cuda/attention_decode_ring.h"

namespace weft::cuda::decode {

/// One thread's part of 8 rows: rows 2 (lane % 4) + {0, 1}, two columns of each 16 (m) of the
/// warp's quarter of the head (Tree::column): o[m] is {first column: rows 0, 1; second: rows 0, 1}.
template <int M>
struct TileState {
  float o[M][4];
  float top[2], sum[2];

  __device__ __forceinline__ void fold(const TileState& other) {
    Factors f[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) f[h] = fold_factors(top[h], sum[h], other.top[h], other.sum[h]);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) o[m][j] = fold_value(o[m][j], other.o[m][j], f[j % 2]);
    }
  }
};
/// Of N tiles of 8 rows.
template <int M, int N>
struct State {
  TileState<M> tile[N];

  __device__ __forceinline__ void fold(const State& other) {
#pragma unroll
    for (int n = 0; n < N; ++n) tile[n].fold(other.tile[n]);
  }
};

template <class Format, int D, int N>
class Tree {
 protected:
  static constexpr int kColumns = D / kWarps;  // of a warp
  static constexpr int kM = kColumns / 16;
  /// Registers of a fragment that a word of codes becomes.
  static constexpr int kPairs = 16 / Format::kBits;
  static constexpr int kUnitDims = 8 * kPairs;                         // of 16 bytes
  static constexpr int kUnitTiles = kPairs == 1 ? 1 : kUnitDims / 16;  // of 16 columns
  using Partial = State<kM, N>;

  const DecodeParams& p;
  const Plan& plan;
  const int lane, warp, block;
  Partial node;  // of the chunks since the last multiple of 8

  __device__ Tree(const DecodeParams& params, const Plan& the_plan, int at_warp)
      : p(params),
        plan(the_plan),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(at_warp),
        block(static_cast<int>(blockIdx.x)) {}

  /// Whether the node that has the chunk began before the run: its chunks are left for the second
  /// kernel.
  static __device__ __forceinline__ bool is_cut(const Run& run, int chunk) {
    return chunk / kFan * kFan < run.begin;
  }
  /// Chunk `chunk` of row tile n; chunks come in order.
  __device__ __forceinline__ void add_tile(const Run& run, int chunk, int n,
                                           const TileState<kM>& of_chunk) {
    if (is_cut(run, chunk)) {
      store(run, of_chunk, n, 0, chunk % kFan);
    } else if (chunk % kFan == 0) {
      node.tile[n] = of_chunk;
    } else {
      node.tile[n].fold(of_chunk);
    }
  }
  /// After all tiles of chunk `chunk`, climbs the tree: a node joins its parent when the parent
  /// begins in this run, and is left for the second kernel otherwise.
  __device__ __forceinline__ void end_chunk(const Run& run, int chunk, Partial* upper) {
    if (!is_cut(run, chunk) && (chunk % kFan == kFan - 1 || chunk + 1 == run.chunks)) {
      climb(run, chunk / kFan, chunk + 1, upper);
    }
  }
  /// The nodes that the end of the run leaves unfinished.
  __device__ __forceinline__ void flush(const Run& run, const Partial* upper) {
    int64_t span = kFan;
    for (int level = 1; span / kFan <= run.end; ++level, span *= kFan) {
      // The open node of this level: it began in this run, and has a complete child.
      if (run.end / span * span < run.begin || run.end % span / (span / kFan) == 0) continue;
      // Not `level == 1 ? node : ...`: the choice of an address would put all state in local
      // memory.
      if (level > 1) node = upper[level - 1];
      store(run, node, level - 1, 0);
    }
  }

 private:
  /// From the complete node `index` of level 1, which ends at chunk `end`. upper[i] is the open
  /// node of level i + 1.
  __device__ __forceinline__ void climb(const Run& run, int index, int end, Partial* upper) {
    int64_t span = kFan;  // chunks of a node of this level
    for (int level = 1;; ++level, span *= kFan, index /= kFan) {
      if (run.begin == 0 && run.end == run.chunks && span >= run.chunks) {
        write(run, node);
        return;
      }
      if (index / kFan * kFan * span < run.begin) {
        store(run, node, level, index % kFan);
        return;
      }
      if (index % kFan == 0) {
        upper[level] = node;
      } else {
        upper[level].fold(node);
      }
      if (index % kFan != kFan - 1 && end < run.chunks) return;
      node = upper[level];
    }
  }

  __device__ __forceinline__ int column(int m, int j) const {
    if constexpr (kPairs == 1) return warp * kColumns + m * 16 + lane / 4 + j / 2 * 8;
    const int tile = warp * kM + m, pair = tile % kUnitTiles * 2 + j / 2;
    return tile / kUnitTiles * kUnitDims + lane / 8 * 2 * kPairs + pair * 2 + lane / 4 % 2;
  }
  __device__ __forceinline__ void store(const Run& run, const Partial& x, int level, int child) {
#pragma unroll
    for (int n = 0; n < N; ++n) store(run, x.tile[n], n, level, child);
  }
  __device__ __forceinline__ void store(const Run& run, const TileState<kM>& x, int n, int level,
                                        int child) {
    float* to = p.partials + partial_offset(p, D, block, level, child);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = n * 8 + lane % 4 * 2 + h;
      if (row >= run.rows) continue;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        to[row * D + column(m, 0)] = x.o[m][h];
        to[row * D + column(m, 2)] = x.o[m][h + 2];
      }
      if (warp == 0 && lane < 4) {
        *reinterpret_cast<float2*>(to + p.partial_rows * D + 2 * row) = {x.top[h], x.sum[h]};
      }
    }
  }
  __device__ __forceinline__ void write(const Run& run, const Partial& x) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = n * 8 + lane % 4 * 2 + h;
        if (row >= run.rows) continue;
        const QRow at = locate(p, run, row);
        __nv_bfloat16* to = p.out + at.token * p.out_row + at.head * p.out_head;
        const float scale = inverse(x.tile[n].sum[h]);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int j = h; j < 4; j += 2) {
            if (column(m, j) >= p.head_dim) continue;
            float value = x.tile[n].o[m][j] * scale;
            if constexpr (Format::kScaled && !Format::kZeros) {
              value *= column_scale(p, run.kv_head, column(m, j));
            }
            to[column(m, j)] = __float2bfloat16(value);
          }
        }
      }
    }
  }
};

}  // namespace weft::cuda::decode
