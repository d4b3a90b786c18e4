#pragma once

// One token of the delta rule for rows of S in registers: what all kernels of decode steps compute
// alike, bit for bit. A row of S lies in K / 16 lanes, 16 elements each.
// docs/kernels/gated_delta.md

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/gdn.h"

namespace weft::cuda {

/// Over lanes that lie `Stride` apart.
template <int Lanes, int Stride = 1>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, step * Stride);
  }
  return x;
}

/// Several sums at once, so that none waits for another.
template <int Lanes, int Stride, int N>
__device__ __forceinline__ void sum_lanes(float (&x)[N]) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += __shfl_xor_sync(0xffffffffu, x[i], step * Stride);
  }
}

/// How a row of S is dealt out to its lanes: pieces of 16 bytes in memory, one after the other.
template <class State>
inline constexpr int kGdnPiece = 16 / static_cast<int>(sizeof(State));

/// Lane `lane`'s 16 elements of a row of 16 * Lanes floats, in pieces of `Piece`.
template <int Lanes, int Piece>
__device__ __forceinline__ void load_pieces(const float* row, int lane, float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 16; j += 4) {
    const int at = Piece * (lane + Lanes * (j / Piece)) + j % Piece;
    *reinterpret_cast<float4*>(x + j) = *reinterpret_cast<const float4*>(row + at);
  }
}
template <int Lanes>
__device__ __forceinline__ void load_row(const float* row, int lane, float (&x)[16]) {
  load_pieces<Lanes, 4>(row, lane, x);
}
template <int Lanes>
__device__ __forceinline__ void load_row(const __nv_bfloat16* row, int lane, float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint4 raw = *reinterpret_cast<const uint4*>(row + 8 * (lane + Lanes * j));
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[8 * j + 2 * i] = __uint_as_float(words[i] << 16);
      x[8 * j + 2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}
/// How a row is stored. A plain store of a float4 that comes from an array becomes four of a word
/// each (nvcc 13.0): four times the requests, but any four registers will do.
enum class GdnStore {
  kPieces,
  kWords,
  kPassing  ///< of more states than L2 holds, so the first to leave it
};
/// Into the row in memory.
template <int Lanes, GdnStore How = GdnStore::kPieces>
__device__ __forceinline__ void store_row(float* row, int lane, const float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    auto* at = reinterpret_cast<float4*>(row + 4 * (lane + Lanes * j));
    const float4 values = *reinterpret_cast<const float4*>(x + 4 * j);
    if constexpr (How == GdnStore::kPassing) {
      __stcs(at, values);
    } else if constexpr (How == GdnStore::kPieces) {
      __stwb(at, values);
    } else {
      *at = values;
    }
  }
}
template <int Lanes, GdnStore How = GdnStore::kPieces>
__device__ __forceinline__ void store_row(__nv_bfloat16* row, int lane, const float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    auto* at = reinterpret_cast<uint4*>(row + 8 * (lane + Lanes * j));
    const uint4 values =
        make_uint4(pack_bf16(x[8 * j], x[8 * j + 1]), pack_bf16(x[8 * j + 2], x[8 * j + 3]),
                   pack_bf16(x[8 * j + 4], x[8 * j + 5]), pack_bf16(x[8 * j + 6], x[8 * j + 7]));
    if constexpr (How == GdnStore::kPassing) {
      __stcs(at, values);
    } else if constexpr (How == GdnStore::kPieces) {
      __stwb(at, values);
    } else {
      *at = values;
    }
  }
}

/// x <- x rounded to bf16, nearest even.
__device__ __forceinline__ void round_row(float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 16; j += 2) {
    const uint32_t both = pack_bf16(x[j], x[j + 1]);
    x[j] = __uint_as_float(both << 16);
    x[j + 1] = __uint_as_float(both & 0xffff0000u);
  }
}

/// One more input of a channel: SiLU of the convolution; `window` moves on.
__device__ __forceinline__ float gdn_convolve(const float (&taps)[4], float (&window)[3], float x) {
  float sum = taps[0] * window[0];
  sum = fmaf(taps[1], window[1], sum);
  sum = fmaf(taps[2], window[2], sum);
  sum = fmaf(taps[3], x, sum);
  window[0] = window[1];
  window[1] = window[2];
  window[2] = x;
  return gdn_silu(sum);
}

/// exp(g) with rate = exp(a_log).
__device__ __forceinline__ float gdn_decay(float a, float rate, float dt_bias) {
  return exp2_approx(-1.4426950408889634f * rate * gdn_softplus(a + dt_bias));
}

/// k of a token as the convolution left it, and what l2norm makes of its products: all that the
/// state behind the token needs. The lanes of a row lie `Stride` apart.
template <int K, class State, int Stride = 1>
struct GdnKey {
  static constexpr int kLanes = K / 16;
  float k[16];
  float k_factor;

  __device__ __forceinline__ GdnKey(const float* from, int lane, float factor) : k_factor(factor) {
    load_pieces<kLanes, kGdnPiece<State>>(from, lane, k);
  }
  __device__ __forceinline__ GdnKey(const float* from, int lane) : GdnKey(from, lane, 0.0f) {
    float kk = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) kk = fmaf(k[j], k[j], kk);
    set_factor(kk);
  }
  /// From this lane's part of k.k.
  __device__ __forceinline__ void set_factor(float kk) {
    k_factor = rsqrtf(sum_lanes<kLanes, Stride>(kk) + kGdnL2Eps);
  }

  /// One row s of S, of which v is the value and `sk` this lane's part of s.k: u.
  __device__ __forceinline__ float write(float (&s)[16], float sk, float v, float decay,
                                         float beta) const {
    return write_sum(s, sum_lanes<kLanes, Stride>(sk), v, decay, beta);
  }
  /// `sk`: of all lanes.
  __device__ __forceinline__ float write_sum(float (&s)[16], float sk, float v, float decay,
                                             float beta) const {
    sk *= k_factor;
    const float u = beta * fmaf(-decay, sk, v);
    const float uk = u * k_factor;
#pragma unroll
    for (int j = 0; j < 16; ++j) s[j] = fmaf(uk, k[j], decay * s[j]);
    if (sizeof(State) == 2) round_row(s);
    return u;
  }
  /// The same without an output.
  __device__ __forceinline__ void advance(float (&s)[16], float v, float decay, float beta) const {
    float sk = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) sk = fmaf(s[j], k[j], sk);
    write(s, sk, v, decay, beta);
  }
  /// Rows that don't wait for each other.
  template <int Rows>
  __device__ __forceinline__ void advance(float (&s)[Rows][16], const float (&v)[Rows], float decay,
                                          float beta) const {
    float sk[Rows] = {};
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < Rows; ++i) sk[i] = fmaf(s[i][j], k[j], sk[i]);
    }
    sum_lanes<kLanes, Stride>(sk);
#pragma unroll
    for (int i = 0; i < Rows; ++i) write_sum(s[i], sk[i], v[i], decay, beta);
  }
};

/// What l2norm makes of the products of a token's q and k, for those who need them again.
struct GdnFactors {
  float q, k, qk;
};

/// q and k of a token.
template <int K, class State, int Stride = 1>
struct GdnQueryKey : GdnKey<K, State, Stride> {
  using Key = GdnKey<K, State, Stride>;
  using Key::k, Key::k_factor, Key::kLanes;
  float q[16];
  float q_factor, qk;

  __device__ __forceinline__ GdnQueryKey(const float* from_q, const float* from_k, int lane,
                                         const GdnFactors& factors)
      : Key(from_k, lane, factors.k), q_factor(factors.q), qk(factors.qk) {
    load_pieces<kLanes, kGdnPiece<State>>(from_q, lane, q);
  }
  __device__ __forceinline__ GdnQueryKey(const float* from_q, const float* from_k, int lane)
      : Key(from_k, lane, 0.0f) {
    load_pieces<kLanes, kGdnPiece<State>>(from_q, lane, q);
    float qq = 0, kk = 0, both = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      qq = fmaf(q[j], q[j], qq);
      kk = fmaf(k[j], k[j], kk);
      both = fmaf(q[j], k[j], both);
    }
    this->set_factor(kk);
    q_factor = rsqrtf(sum_lanes<kLanes, Stride>(qq) + kGdnL2Eps) *
               (K == 128 ? 0.08838834764831845f : 0.125f);
    qk = sum_lanes<kLanes, Stride>(both) * q_factor * k_factor;
  }
  /// The same with the sums beside each other.
  struct Together {};
  __device__ __forceinline__ GdnQueryKey(const float* from_q, const float* from_k, int lane,
                                         Together)
      : Key(from_k, lane, 0.0f) {
    load_pieces<kLanes, kGdnPiece<State>>(from_q, lane, q);
    float sums[3] = {};  // q.q, k.k, q.k
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      sums[0] = fmaf(q[j], q[j], sums[0]);
      sums[1] = fmaf(k[j], k[j], sums[1]);
      sums[2] = fmaf(q[j], k[j], sums[2]);
    }
    sum_lanes<kLanes, Stride>(sums);
    k_factor = rsqrtf(sums[1] + kGdnL2Eps);
    q_factor = rsqrtf(sums[0] + kGdnL2Eps) * (K == 128 ? 0.08838834764831845f : 0.125f);
    qk = sums[2] * q_factor * k_factor;
  }
  __device__ __forceinline__ GdnFactors factors() const {
    return {q_factor, k_factor, qk};
  }
  __device__ __forceinline__ void set_factors(const GdnFactors& factors) {
    q_factor = factors.q;
    k_factor = factors.k;
    qk = factors.qk;
  }

  /// One row s of S, of which v is the value: the output. Both products with the old row come from
  /// one pass, o = exp(g) s.q + u (k.q).
  __device__ __forceinline__ float step(float (&s)[16], float v, float decay, float beta) const {
    float sk = 0, sq = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      sk = fmaf(s[j], k[j], sk);
      sq = fmaf(s[j], q[j], sq);
    }
    sq = sum_lanes<kLanes, Stride>(sq) * q_factor;
    return fmaf(decay, sq, this->write(s, sk, v, decay, beta) * qk);
  }
  /// The same for rows that don't wait for each other, in two parts, of which the first needs no
  /// factors: s.k of all rows, then s.q.
  template <int Rows>
  __device__ __forceinline__ void products(const float (&s)[Rows][16],
                                           float (&sums)[2 * Rows]) const {
#pragma unroll
    for (float& sum : sums) sum = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < Rows; ++i) {
        sums[i] = fmaf(s[i][j], k[j], sums[i]);
        sums[Rows + i] = fmaf(s[i][j], q[j], sums[Rows + i]);
      }
    }
    sum_lanes<kLanes, Stride>(sums);
  }
  template <int Rows>
  __device__ __forceinline__ void step(float (&s)[Rows][16], const float (&sums)[2 * Rows],
                                       const float (&v)[Rows], float decay, float beta,
                                       float (&o)[Rows]) const {
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      const float u = this->write_sum(s[i], sums[i], v[i], decay, beta);
      o[i] = fmaf(decay, sums[Rows + i] * q_factor, u * qk);
    }
  }
};

/// An output after the layer's norm; `squares` of V / 32 blocks of 32 rows each, in order.
template <int V>
__device__ __forceinline__ float gdn_normed(const GdnView& p, float o,
                                            const float (&squares)[V / 32], float weight, float z) {
  float sum = squares[0] + squares[1];
  if constexpr (V == 128) sum += squares[2] + squares[3];
  const float factor = rsqrtf(fmaf(sum, 1.0f / V, p.norm_eps));
  const float gate = gdn_beta(z);
  return weight * (o * factor) * (p.norm_silu ? z * gate : gate);
}

}  // namespace weft::cuda
