#pragma once

// The main kernel of attention_decode, and its consumers for formats of 8 and 16 bits: one .cu a
// format instantiates it. What it does is told in attention_decode.cu.

#include <algorithm>
#include <cfloat>
#include <climits>
#include <type_traits>

#include "kernels/args.h"
#include "kernels/cuda/attention_decode_tree.h"
#include "kernels/cuda/common/f16.h"

namespace weft::cuda::decode {

/// log2(x) by the special-function unit (error 2^-22); below 2^-126 minus infinity.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// The power of two of a magnitude's first bit, and its inverse.
struct PowerOfTwo {
  float power, inverse;
};
__device__ __forceinline__ PowerOfTwo power_of(float magnitude) {
  const uint32_t exponent = min(max(__float_as_uint(magnitude) >> 23, 1u), 253u);
  return {__uint_as_float(exponent << 23), __uint_as_float((254 - exponent) << 23)};
}

/// One of the 4 warps that compute. For the scores (keys x rows) a warp has 32 keys of the chunk,
/// for the outputs (columns x rows) a quarter of the columns; the weights between are exchanged in
/// shared memory. N: tiles of 8 rows.
template <class Format, int D, int N>
class Consumer : protected Tree<Format, D, N> {
 protected:
  using Base = Tree<Format, D, N>;
  using Base::kColumns, Base::kM, Base::kPairs, Base::kUnitDims, Base::kUnitTiles;
  using Base::p, Base::plan, Base::lane, Base::warp;
  using typename Base::Partial;

 public:
  using Memory = Shared<Format, D, N>;

  __device__ Consumer(const DecodeParams& params, const Plan& the_plan, Memory& memory, int at_warp)
      : Base(params, the_plan, at_warp), shared(memory) {}

  /// All of the share whose first run is `run`.
  __device__ __forceinline__ void consume(Run run, int end) {
    Partial upper[kMaxLevels];  // indexed at run time: in local memory, on the rare path
    find_rows(run);
    wait_for_predecessor();
    for (;;) {
      load_rows(run);
      for (int chunk = run.begin; chunk < run.end; ++chunk) {
        score(chunk * kKeys);
        multiply_values(run, chunk * kKeys);
#pragma unroll
        for (int n = 0; n < N; ++n) Base::add_tile(run, chunk, n, chunk_state.tile[n]);
        free_values();
        Base::end_chunk(run, chunk, upper);
      }
      if (run.end < run.chunks) Base::flush(run, upper);
      if (run.next == end) return;
      run = find_run(p, plan, run.segment, run.next, end);
      find_rows(run);
    }
  }

 protected:
  static constexpr int kBatch = D * N <= 256 ? 4 : (D * N <= 512 ? 2 : 1);  // as registers allow
  static constexpr int kKeyBatch = kBatch < kPairs ? kPairs : kBatch;
  using Tile = Tiles<Format, D>;
  static_assert(!Format::kZeros);
  /// Scales of channels are in q, as f16: bf16 would round them away.
  static constexpr bool kHalfKeys = std::is_same_v<Format, KvInt8>;

  Memory& shared;
  Cursor<Memory::kStages> ring{.parity = 0};
  const __nv_bfloat16* q_rows[N];
  uint32_t q[D / 16][N][2];
  int visible[N][2];  // keys that the thread's rows see
  int seen_by_all;    // keys
  Partial chunk_state;

  /// Not beside the products that read the stage: ptxas lets the arrival pass reads under way.
  /// Those have returned behind a barrier or a branch that needs what the products gave.
  __device__ __forceinline__ void free_stage(int stage) {
    __syncwarp();
    if (lane == 0) arrive(&shared.empty[stage]);
  }

  /// What the run's rows see and where they are.
  __device__ __forceinline__ void find_rows(const Run& run) {
    seen_by_all = p.kv_start[run.segment] + run.first_row / p.group + 1;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = n * 8 + lane % 4 * 2 + h;
        visible[n][h] = row < run.rows
                            ? p.kv_start[run.segment] + (run.first_row + row) / p.group + 1
                            : INT_MAX;
      }
      const int row = n * 8 + lane / 4;
      const QRow at = locate(p, run, min(row, run.rows - 1));
      q_rows[n] = row < run.rows ? p.q + at.token * p.q_row + at.head * p.q_head : nullptr;
    }
  }
  /// Codes come kPairs pairs to a thread: the products run over dimensions in that order, and q
  /// follows.
  static __device__ __forceinline__ int q_column(int k, int half, int lane) {
    if constexpr (kPairs == 1) return k * 16 + half * 8 + lane % 4 * 2;
    return k / kUnitTiles * kUnitDims + lane % 4 * 2 * kPairs + k % kUnitTiles * 4 + half * 2;
  }
  __device__ __forceinline__ void load_rows(const Run& run) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = q_column(k, half, lane);
          q[k][n][half] = q_rows[n] != nullptr && column < p.head_dim
                              ? *reinterpret_cast<const uint32_t*>(q_rows[n] + column)
                              : 0u;
        }
      }
    }
    if constexpr (kHalfKeys) halve_rows(run);
  }
  /// q, times the channels' scales of K, as f16: each row by the power of two that makes its
  /// largest value 2^12 to 2^13, and that meets its scores again. What a row's scores are
  /// multiplied by and begin with goes to the warp's shared memory: registers are short.
  __device__ __forceinline__ void halve_rows(const Run& run) {
    const float* scale = p.k_scale + int64_t{run.kv_head} * p.head_dim;
    const auto each_pair = [&](const auto& body) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float2 of = {1, 1};
          const int column = q_column(k, half, lane);
          if (p.channels && column < p.head_dim) {
            of = *reinterpret_cast<const float2*>(scale + column);
          }
#pragma unroll
          for (int n = 0; n < N; ++n) {
            uint32_t& pair = q[k][n][half];
            body(n, pair, __uint_as_float(pair << 16) * of.x,
                 __uint_as_float(pair & 0xFFFF0000u) * of.y);
          }
        }
      }
    };
    float largest[N] = {};
    each_pair([&](int n, uint32_t&, float low, float high) {
      largest[n] = fmaxf(largest[n], fmaxf(fabsf(low), fabsf(high)));
    });
    float inverse[N], sum[N] = {};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const PowerOfTwo of = power_of(max_of_quad(largest[n]) * 0x1p-12f);
      inverse[n] = of.inverse;
      if (lane % 4 == 0) {
        shared.scale_of_row[warp][n * 8 + lane / 4] = p.scale * Format::kKeyUnit * of.power;
      }
    }
    each_pair([&](int n, uint32_t& pair, float low, float high) {
      pair = pack_f16(low * inverse[n], high * inverse[n]);
      const float2 halves = __half22float2(f16_pair(pair));
      sum[n] += halves.x + halves.y;
    });
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float zero = -Format::kKeyZero / Format::kKeyUnit * sum_of_quad(sum[n]);
      if (lane % 4 == 0) shared.zero_of_row[warp][n * 8 + lane / 4] = zero;
    }
    __syncwarp();
  }
  /// Of the thread's rows of tile n.
  __device__ __forceinline__ float2 of_rows(const float (&values)[kWarps][8 * N], int n) const {
    return *reinterpret_cast<const float2*>(&values[warp][n * 8 + lane % 4 * 2]);
  }

  /// The weights of a chunk; top and sum of chunk_state.
  __device__ __forceinline__ void score(int first_key) {
    float s[2][N][4];  // the warp's keys 16 m + lane / 4 + {0, 8} x the thread's rows
    const int stage_of_keys = ring.stage;
    multiply_keys(s);
    ring.next();
    [[maybe_unused]] float inverses[2][2];  // of the scales of the thread's values
    if constexpr (Format::kScaled) {
      wait(&shared.full[ring.stage], ring.parity);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float of_value = key_scale(m, half), level = log2_approx(of_value);
          // Finite: a weight of 0 stays 0, whatever the scale of what a row doesn't see. In the
          // unit of the outputs.
          inverses[m][half] =
              fminf(fabsf(__fdividef(1.0f / Format::kValueUnit, of_value)), FLT_MAX);
#pragma unroll
          for (int n = 0; n < N; ++n) {
            float2 scale{p.scale, p.scale};
            if constexpr (kHalfKeys) scale = of_rows(shared.scale_of_row, n);
            float* of_key = &s[m][n][half * 2];
            of_key[0] = fmaf(of_key[0], scale.x, level);
            of_key[1] = fmaf(of_key[1], scale.y, level);
          }
        }
      }
    }
    const int last_key = first_key + kKeys;
    const bool masked = last_key > seen_by_all;
    if (masked) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int key = first_key + warp * 32 + m * 16 + lane / 4 + j / 2 * 8;
            if (key >= visible[n][j % 2]) s[m][n][j] = minus_infinity();
          }
        }
      }
    }
    weigh(s, inverses, stage_of_keys);
  }

  __device__ __forceinline__ void multiply_keys(float (&s)[2][N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float2 zero{0, 0};
      if constexpr (kHalfKeys) zero = of_rows(shared.zero_of_row, n);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        s[m][n][0] = s[m][n][2] = zero.x;
        s[m][n][1] = s[m][n][3] = zero.y;
      }
    }
    wait(&shared.full[ring.stage], ring.parity);
    const uint32_t base = shared_address(shared.ring[ring.stage]);
    const int key = warp * 32 + lane % 16;
    // Loads go ahead in batches: neither they nor the products may be reordered by the compiler.
#pragma unroll
    for (int first = 0; first < D / 16; first += kKeyBatch) {
      uint32_t a[kKeyBatch][2][4];
#pragma unroll
      for (int i = 0; i < kKeyBatch; i += kPairs) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t codes[4];
          load_matrices(codes,
                        base + Tile::offset(key + m * 16, (first + i) / kPairs * 2 + lane / 16));
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if constexpr (kPairs == 1) {
              a[i][m][j] = codes[j];
            } else {
              uint32_t pairs[kPairs];
              widen</*Keys=*/true>(pairs, codes[j]);
#pragma unroll
              for (int x = 0; x < kPairs; ++x) {
                a[i + j / 2 * kUnitTiles + x / 2][m][j % 2 + x % 2 * 2] = pairs[x];
              }
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kKeyBatch; ++i) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < N; ++n) {
            multiply<kHalfKeys>(s[m][n], a[i][m], q[first + i][n]);
          }
        }
      }
    }
    if constexpr (Format::kScaled) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float scale = key_scale(m, j / 2);
#pragma unroll
          for (int n = 0; n < N; ++n) s[m][n][j] *= scale;
        }
      }
    }
  }
  /// Of the thread's keys of the stage.
  __device__ __forceinline__ float key_scale(int m, int half) const {
    return shared.scales[ring.stage][warp * 32 + m * 16 + lane / 4 + half * 8];
  }
  /// Codes of keys (to f16 or bf16) or of values (f16).
  template <bool Keys>
  static __device__ __forceinline__ void widen(uint32_t (&pairs)[kPairs], uint32_t word) {
    if constexpr (Keys && kHalfKeys) {
      pairs[0] = Format::template key_f16<0>(word);
      pairs[1] = Format::template key_f16<1>(word);
    } else if constexpr (Keys) {
      pairs[0] = Format::template widen<0>(word);
      pairs[1] = Format::template widen<1>(word);
    } else {
      pairs[0] = Format::template value_f16<0>(word);
      pairs[1] = Format::template value_f16<1>(word);
    }
  }
  template <bool Half>
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    if constexpr (Half) {
      mma_f16(d, a, b[0], b[1]);
    } else {
      mma_bf16(d, a, b[0], b[1]);
    }
  }

  /// Scores to weights in shared memory; top and sum of chunk_state. Where values have scales, the
  /// scores come as exponents of the weights times those, and top is of them: a weight that f16
  /// rounds to nothing is nothing beside the largest. The stage of the keys is free then.
  __device__ __forceinline__ void weigh(float (&s)[2][N][4], const float (&inverses)[2][2],
                                        int stage_of_keys) {
    const int my_row = lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float top[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[h] = fmaxf(fmaxf(s[0][n][h], s[0][n][h + 2]), fmaxf(s[1][n][h], s[1][n][h + 2]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
        }
      }
      if (lane < 4) {
        *reinterpret_cast<float2*>(&shared.tops[warp][n * 8 + my_row]) = {top[0], top[1]};
      }
    }
    barrier_sync(1, kWarps * 32);
    free_stage(stage_of_keys);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float all[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0, 0};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 of = *reinterpret_cast<const float2*>(&shared.tops[w][n * 8 + my_row]);
        all[0] = fmaxf(all[0], of.x);
        all[1] = fmaxf(all[1], of.y);
      }
      float shift[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& top_of_row = chunk_state.tile[n].top[h];
        top_of_row = Format::kScaled ? all[h] : __fmul_rn(all[h], p.scale);
        shift[h] = all[h] == minus_infinity() ? 0.0f : -top_of_row;
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (Format::kScaled) {
            s[m][n][j] = exp2_approx(__fadd_rn(s[m][n][j], shift[j % 2]));
            sum[j % 2] += __fmul_rn(s[m][n][j], inverses[m][j / 2]);
          } else {
            s[m][n][j] = exp2_approx(fmaf(s[m][n][j], p.scale, shift[j % 2]));
            sum[j % 2] += s[m][n][j];
          }
        }
      }
      store_weights(s, n);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], step);
        }
      }
      if (lane < 4) {
        *reinterpret_cast<float2*>(&shared.sums[warp][n * 8 + my_row]) = {sum[0], sum[1]};
      }
    }
    barrier_sync(1, kWarps * 32);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float2 of[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        of[w] = *reinterpret_cast<const float2*>(&shared.sums[w][n * 8 + my_row]);
      }
      chunk_state.tile[n].sum[0] = (of[0].x + of[1].x) + (of[2].x + of[3].x);
      chunk_state.tile[n].sum[1] = (of[0].y + of[1].y) + (of[2].y + of[3].y);
    }
  }

  __device__ __forceinline__ void store_weights(const float (&s)[2][N][4], int n) {
    uint32_t packed[4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* w = &s[m][n][half * 2];
        packed[2 * m + half] = Format::kScaled ? pack_f16(w[0], w[1]) : pack_bf16(w[0], w[1]);
      }
    }
    store_matrices<true>(
        shared_address(&shared.weights[n * 8 + lane % 8][warp * 32 + lane / 8 * 8]), packed);
  }

  /// The outputs of chunk_state = V^T x weights. A row's product takes keys that it doesn't see as
  /// 0, whatever the memory holds there (0 * NaN is NaN). In most steps of 16 keys all rows see the
  /// same keys; where the rows of several tokens don't, each token's rows get a product of their
  /// own. Codes of quantised formats are finite whatever they are: there weights of 0 suffice.
  __device__ __forceinline__ void multiply_values(const Run& run, int first_key) {
    const int first_limit = seen_by_all - first_key;
#pragma unroll
    for (auto& tile : chunk_state.tile) {
#pragma unroll
      for (auto& x : tile.o) x[0] = x[1] = x[2] = x[3] = 0;
    }
    wait(&shared.full[ring.stage], ring.parity);
    if (Format::kScaled || first_limit >= kKeys) {
#pragma unroll
      for (int k = 0; k < kKeys / 16; k += kBatch) multiply_steps<kBatch>(k);
    } else if constexpr (!Format::kScaled) {
      // Keys that all rows see, up to a multiple of 16; then masked steps.
      const int clean = max(first_limit, 0) / 16;
      for (int k = 0; k < clean; ++k) multiply_steps<1>(k);
      const int last_limit =
          p.kv_start[run.segment] + 1 - first_key + (run.first_row + run.rows - 1) / p.group;
      const int steps = min((last_limit + 15) / 16, kKeys / 16);
      for (int limit = first_limit; limit <= last_limit; ++limit) {
        for (int k = clean; k < steps; ++k) multiply_token(k, limit, limit + first_key);
      }
    }
  }
  /// The stage that multiply_values() read, once something was computed from chunk_state.
  __device__ __forceinline__ void free_values() {
    free_stage(ring.stage);
    ring.next();
  }
  /// Fragments of V^T: the warp's columns, 16 a tile m, x the keys of steps [k, k + Steps).
  template <int Steps>
  __device__ __forceinline__ void load_values(uint32_t (&a)[Steps][kM][4], int k) const {
    const uint32_t base = shared_address(shared.ring[ring.stage]);
    if constexpr (kPairs == 1) {
#pragma unroll
      for (int i = 0; i < Steps; ++i) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const int unit = (warp * kColumns + m * 16) / 8 + lane / 8 % 2;
          const int key = (k + i) * 16 + lane / 16 * 8 + lane % 8;
          load_matrices<true>(a[i][m], base + Tile::offset(key, unit));
        }
      }
    } else {
      // A word is pairs of keys, kPairs columns: of the first 8 keys of a step, then of the others.
      constexpr int kStep = kM < kUnitTiles ? kM : kUnitTiles, kAtOnce = Steps % 2 == 0 ? 2 : 1;
#pragma unroll
      for (int i = 0; i < Steps; i += kAtOnce) {
#pragma unroll
        for (int m = 0; m < kM; m += kStep) {
          const int tile = warp * kM + m;
          uint32_t codes[2 * kAtOnce];
          load_turned(codes,
                      base + Tile::offset((k + i) * 16 + lane % (16 * kAtOnce), tile / kUnitTiles));
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              uint32_t word = codes[j * 2 + half];
              if constexpr (kStep < kUnitTiles) word >>= tile % kUnitTiles * 2 * Format::kBits;
              uint32_t pairs[kPairs];
              widen</*Keys=*/false>(pairs, word);
#pragma unroll
              for (int x = 0; x < 2 * kStep; ++x) {
                a[i + j][m + x / 2][half * 2 + x % 2] = pairs[x];
              }
            }
          }
        }
      }
    }
  }
  __device__ __forceinline__ uint32_t weights_at(int k, int n) const {
    return shared_address(&shared.weights[n * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
  }
  /// Keys of steps [first, first + Steps).
  template <int Steps>
  __device__ __forceinline__ void multiply_steps(int first) {
    uint32_t a[Steps][kM][4], b[Steps][N][2];
    if constexpr (Format::kScaled && Steps % 2 == 0) {
#pragma unroll
      for (int i = 0; i < Steps; i += 2) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          uint32_t two[4];
          load_matrices(two, weights_at(first + i + lane / 16, n));
          b[i][n][0] = two[0];
          b[i][n][1] = two[1];
          b[i + 1][n][0] = two[2];
          b[i + 1][n][1] = two[3];
        }
      }
      load_values(a, first);
    } else {
#pragma unroll
      for (int i = 0; i < Steps; ++i) {
#pragma unroll
        for (int n = 0; n < N; ++n) load_matrices(b[i][n], weights_at(first + i, n));
        load_values(reinterpret_cast<uint32_t(&)[1][kM][4]>(a[i]), first + i);
      }
    }
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          multiply<Format::kScaled>(chunk_state.tile[n].o[m], a[i][m], b[i][n]);
        }
      }
    }
  }
  /// Step k for the rows that see `seen` keys, `limit` of them in the chunk.
  __device__ __forceinline__ void multiply_token(int k, int limit, int seen) {
    const int key = k * 16 + lane % 4 * 2;
    uint32_t keep[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      keep[half] =
          (key + 8 * half < limit ? 0xFFFFu : 0u) | (key + 8 * half + 1 < limit ? 0xFFFF0000u : 0u);
    }
    uint32_t steps[1][kM][4];
    load_values(steps, k);
    uint32_t(&a)[kM][4] = steps[0];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m][i] &= keep[i / 2];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        uint32_t b[2];
        load_matrices(b, weights_at(k, n));
        float(&o)[4] = chunk_state.tile[n].o[m];
        float product[4] = {o[0], o[1], o[2], o[3]};
        mma_bf16(product, a[m], b[0], b[1]);
#pragma unroll
        for (int j = 0; j < 4; ++j) o[j] = visible[n][j % 2] == seen ? product[j] : o[j];
      }
    }
  }
};

/// Rows that belong to no segment.
__device__ inline void clear_rest(const DecodeParams& p) {
  const int width = p.head_dim / 8;
  for (int64_t row = p.cu_q[p.num_segments] + blockIdx.x; row < p.total_rows; row += gridDim.x) {
    for (int i = static_cast<int>(threadIdx.x); i < p.kv_heads * p.group * width;
         i += static_cast<int>(blockDim.x)) {
      *reinterpret_cast<uint4*>(p.out + row * p.out_row + i / width * p.out_head + i % width * 8) =
          uint4{};
    }
  }
}

/// `Consumer`: of one format, padded head dim and number of row tiles.
template <class Consumer>
__global__ __launch_bounds__(kWarps * 32 + 32, Consumer::Memory::kBlocks) void decode_kernel(
    const __grid_constant__ CUtensorMap map, const __grid_constant__ DecodeParams p) {
  using Memory = typename Consumer::Memory;
  extern __shared__ __align__(1024) unsigned char memory[];
  Memory& shared = *reinterpret_cast<Memory*>(memory);
  const int warp = warp_index();
  let_successor_begin();
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    for (int i = 0; i < Memory::kStages; ++i) {
      barrier_init(&shared.full[i], scales_are_stored<typename Memory::Format>(p) ? 32 : 1);
      barrier_init(&shared.empty[i], Memory::kReaders);
    }
    fence_barrier_init();
  }
  // The SeqMap comes from copies, which a programmatic launch never overtakes.
  const Plan plan(memory + sizeof(Memory), p.num_segments);
  make_plan(p, plan);
  const Shares shares(plan.starts[p.num_segments], p.num_blocks);
  const int block = static_cast<int>(blockIdx.x);
  const int begin = shares.begin(block), end = shares.begin(block + 1);
  if (begin == end) {
    wait_for_predecessor();
  } else {
    const Run run = find_run(p, plan, find_segment(p, plan, begin), begin, end);
    if (warp == kWarps) {
      produce(p, &map, plan, shared, {run, end});
    } else {
      Consumer(p, plan, shared, warp).consume(run, end);
    }
  }
  clear_rest(p);
}

/// Boxes of the cache: as many keys as lie together, up to a tile.
template <class Memory>
CUtensorMap encode_cache(const AttnArgs& args, const DecodeParams& p) {
  using Format = typename Memory::Format;
  using Tile = Tiles<Format, Memory::kDim>;
  MapShape shape;
  shape.type = Format::kBits == 16 ? MapType::kBF16 : MapType::kE4M3;
  shape.swizzle = MapSwizzle::k128;
  shape.rank = 3;
  const bool several = Tile::kKeysARow > 1;
  shape.dims[0] = static_cast<uint64_t>(several ? 128 : p.head_dim * Format::kBits / 8) /
                  (Format::kBits == 16 ? 2 : 1);
  shape.dims[1] = static_cast<uint64_t>(2 * p.kv_heads * p.block_size / Tile::kKeysARow);
  shape.dims[2] = static_cast<uint64_t>(args.kv.num_blocks);
  shape.stride_bytes[0] = static_cast<uint64_t>(p.layout.row_bytes * Tile::kKeysARow);
  shape.stride_bytes[1] = static_cast<uint64_t>(args.kv.block_bytes);
  shape.box[0] = Tile::kElements;
  shape.box[1] = static_cast<uint32_t>(p.box_rows / Tile::kKeysARow);
  shape.box[2] = 1;
  return encode_map(args.kv.data, shape);
}

template <class Consumer>
void launch_decode(Stream& stream, const AttnArgs& args, const DecodeParams& p) {
  using Memory = typename Consumer::Memory;
  const auto grid = static_cast<unsigned>(p.num_blocks);
  const auto plan = static_cast<size_t>(plan_bytes(p.num_segments));
  launch(stream,
         {.grid = dim3(grid),
          .block = dim3(kWarps * 32 + 32),
          .shared_bytes = sizeof(Memory) + plan,
          .overlap = true},
         decode_kernel<Consumer>, encode_cache<Memory>(args, p), p);
  merge(stream, p, Memory::kDim);
}

/// `Consumer` of a format, by padded head dim and number of row tiles.
template <template <int, int> class Consumer>
void launch_format(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim) {
  const auto choose = [&](auto narrow, auto middle, auto wide) {
    (p.tile_rows == 8 ? narrow : (p.tile_rows == 16 ? middle : wide))(stream, args, p);
  };
  if (padded_dim == 64) {
    choose(launch_decode<Consumer<64, 1>>, launch_decode<Consumer<64, 2>>,
           launch_decode<Consumer<64, 4>>);
  } else if (padded_dim == 128) {
    choose(launch_decode<Consumer<128, 1>>, launch_decode<Consumer<128, 2>>,
           launch_decode<Consumer<128, 4>>);
  } else {
    choose(launch_decode<Consumer<256, 1>>, launch_decode<Consumer<256, 2>>,
           launch_decode<Consumer<256, 2>>);
  }
}

}  // namespace weft::cuda::decode
