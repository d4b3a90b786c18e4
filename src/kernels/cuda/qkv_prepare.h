#pragma once

// The norm and rope of one head by one warp, for qkv_prepare.cu and for kernels that begin with
// qkv_prepare. Included by .cu files alone.

#include "kernels/args.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/kv_format.h"

namespace weft::cuda {

struct PrepareParams {
  __nv_bfloat16* q;
  const __nv_bfloat16 *k, *v;
  const float *q_norm, *k_norm;  // null: none
  const float* cos_sin;          // [positions][R / 2][2]
  const uint8_t* axis;
  const int32_t* index;    // [T]
  const int32_t* delta;    // [T]; null: 0
  const int32_t* triples;  // [T][3]; null: no row has axes apart
  const int64_t* kv_slot;
  std::byte* cache;
  KvBlockLayout layout;
  const float *k_scale, *v_scale;  // [G][D] of static formats; null: a scale a row
  float largest_code;
  int64_t q_row, q_head, k_row, k_head, v_row, v_head;
  int64_t block_bytes;  // of the cache
  int64_t num_items;    // of a warp each
  int q_heads, kv_heads, head_dim, rotary_dim, block_size;
  bool interleaved;
  float eps;
};

/// Where a token stands (RopePositions of args.h).
struct Position {
  int32_t t, h, w;
  bool apart;  ///< t, h and w are not all the same
};

__device__ inline Position position_of(const PrepareParams& p, int64_t token) {
  if (p.triples) {
    const int32_t* triple = p.triples + token * 3;
    const Position at{triple[0], triple[1], triple[2], true};
    if (at.t != at.h || at.t != at.w) return at;
  }
  const int32_t at = p.index[token] + (p.delta ? p.delta[token] : 0);
  return {at, at, at, false};
}

/// What one lane needs for its pairs of neighbouring elements, at 2 lane + 64 turn; known before
/// the head is.
template <int Turns>
struct LanePlan {
  float2 turn[Turns][2];  // cos and sin; (1, 0) behind the rotary part
  float weight[Turns][2];
  int other[Turns][2];  // the element that is rotated with it
  bool first[Turns][2];
};

template <int Turns>
__device__ __forceinline__ LanePlan<Turns> plan_lane(const PrepareParams& p, int64_t token,
                                                     const float* norm) {
  const int lane = static_cast<int>(threadIdx.x) % 32, half = p.rotary_dim / 2;
  const Position position = position_of(p, token);
  LanePlan<Turns> plan;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int i = lane * 2 + turn * 64 + j;
      plan.weight[turn][j] = norm && i < p.head_dim ? norm[i] : 1.0f;
      const bool first = p.interleaved ? i % 2 == 0 : i < half;
      plan.first[turn][j] = first;
      plan.other[turn][j] = i;
      plan.turn[turn][j] = make_float2(1.0f, 0.0f);
      if (i >= p.rotary_dim) continue;
      const int frequency = p.interleaved ? i / 2 : (first ? i : i - half);
      plan.other[turn][j] = p.interleaved ? i ^ 1 : (first ? i + half : i - half);
      int64_t row = position.t;
      if (position.apart) {
        const int axis = p.axis[frequency];
        row = axis == 0 ? position.t : (axis == 1 ? position.h : position.w);
      }
      plan.turn[turn][j] = reinterpret_cast<const float2*>(p.cos_sin)[row * half + frequency];
    }
  }
  return plan;
}

template <int Turns>
__device__ __forceinline__ void store_bf16(const float (&x)[Turns][2], int head_dim,
                                           std::byte* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = lane * 2 + turn * 64;
    if (at >= head_dim) continue;
    *reinterpret_cast<uint32_t*>(to + at * 2) = pack_bf16(x[turn][0], x[turn][1]);
  }
}

/// A warp's words of a head: pairs 2 lane + 64 turn.
template <int Turns>
__device__ __forceinline__ void load_head(const __nv_bfloat16* from, int head_dim,
                                          uint32_t (&pairs)[Turns]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = lane * 2 + turn * 64;
    if (at < head_dim) pairs[turn] = *reinterpret_cast<const uint32_t*>(from + at);
  }
}

/// rope(norm(x)) of one head. Elements that are rotated together meet in `shared` (64 Turns floats
/// of the warp) unless they are a lane's own (`Own`: 128 dims, all of them rotated, Neox).
template <int Turns, bool Own>
__device__ __forceinline__ void turn_head(const PrepareParams& p, const LanePlan<Turns>& plan,
                                          bool normed, const uint32_t (&pairs)[Turns],
                                          float* shared, float (&rotated)[Turns][2]) {
  static_assert(!Own || Turns == 2);
  const int lane = static_cast<int>(threadIdx.x) % 32, dim = Own ? 128 : p.head_dim;
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    if (lane * 2 + turn * 64 >= dim) continue;
    sum = fmaf(low_bf16(pairs[turn]), low_bf16(pairs[turn]), sum);
    sum = fmaf(high_bf16(pairs[turn]), high_bf16(pairs[turn]), sum);
  }
  const float scale = normed ? rsqrtf(warp_sum(sum) / static_cast<float>(dim) + p.eps) : 1.0f;
  float value[Turns][2];
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = lane * 2 + turn * 64;
    if (at >= dim) continue;
    value[turn][0] = low_bf16(pairs[turn]) * (scale * plan.weight[turn][0]);
    value[turn][1] = high_bf16(pairs[turn]) * (scale * plan.weight[turn][1]);
    if constexpr (!Own) {
      shared[at] = value[turn][0];
      shared[at + 1] = value[turn][1];
    }
  }
  if constexpr (!Own) __syncwarp();
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    if (lane * 2 + turn * 64 >= dim) continue;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      // a cos - b sin of the first of a pair, b cos + a sin of the second.
      const float2 angle = plan.turn[turn][j];
      if constexpr (Own) {
        const float cross = __fmul_rn(value[1 - turn][j], angle.y);
        rotated[turn][j] = fmaf(value[turn][j], angle.x, turn == 0 ? -cross : cross);
      } else {
        const float cross = __fmul_rn(shared[plan.other[turn][j]], angle.y);
        const float turned = fmaf(value[turn][j], angle.x, plan.first[turn][j] ? -cross : cross);
        // Behind the rotary part 0 * infinity must not come in.
        const int at = lane * 2 + turn * 64 + j;
        rotated[turn][j] = plan.other[turn][j] == at ? value[turn][j] : turned;
      }
    }
  }
  if constexpr (!Own) __syncwarp();
}

/// Checks `args`; num_items is left 0.
PrepareParams prepare_params(const QkvPrepareArgs& args);

}  // namespace weft::cuda
