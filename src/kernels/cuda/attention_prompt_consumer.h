#pragma once

// The warpgroups that compute in attention over prompts (attention_prompt.cu): softmax, products,
// the way through the tiles of an item, the store. Included by that .cu alone.

#include <cuda_bf16.h>

#include "kernels/cuda/attention_prompt_plan.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/fp8_rows.h"

namespace weft::cuda {
namespace {

/// The running softmax of a thread's rows r and r + 8.
struct RunningSoftmax {
  float scale_log2;
  float high[2];    // the reference of the exponents: at least max - kSlack
  float sum[2];     // of this thread's columns
  float factor[2];  // that the last tile put on what was before

  // A row's reference rises only when its maximum passes it by 2^kSlack: until then the factor is 1
  // for sure, and most tiles need no pass over O.
  static constexpr float kSlack = 8;

  __device__ __forceinline__ void reset() {
    high[0] = high[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  /// S becomes P.
  template <int Count>
  __device__ __forceinline__ void tile(float (&s)[Count]) {
    float top[2] = {high[0], high[1]};
#pragma unroll
    for (int i = 0; i < Count; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
    float shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      top[row] = max_of_quad(top[row]);
      if ((top[row] - high[row]) * scale_log2 <= kSlack) top[row] = high[row];
      factor[row] = exp2_approx((high[row] - top[row]) * scale_log2);
      high[row] = top[row];
      shift[row] = top[row] * scale_log2;
    }
    float part[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = exp2_approx(fmaf(s[i], scale_log2, -shift[(i / 2) % 2]));
      part[i % 4] += s[i];
    }
    sum[0] = fmaf(sum[0], factor[0], part[0] + part[1]);
    sum[1] = fmaf(sum[1], factor[1], part[2] + part[3]);
  }

  template <int Units, int Count>
  __device__ __forceinline__ void rescale(float (&o)[Units][Count]) const {
    // Where no row of the warp changes, the products by 1 are left out: the same bits.
    if (__any_sync(0xffffffffu, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int u = 0; u < Units; ++u) {
#pragma unroll
        for (int i = 0; i < Count; ++i) o[u][i] *= factor[(i / 2) % 2];
      }
    }
  }
};

template <class C>
struct PrefillConsumer {
  const PrefillShared<C>& shared;
  RingAt<C> ring;
  int warpgroup;
  uint64_t q;  // descriptor

  uint32_t q_words[C::kOverlap ? C::kHeadDim / 16 : 1][4];  // Q, where registers hold it
  float s[C::kKeys / 2];
  uint32_t p[C::kKeys / 16][4];
  float o[C::kUnits][C::kUnitDims / 2];
  RunningSoftmax softmax;

  __device__ __forceinline__ void await(RingAt<C> at) const {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      wait(shared.full + at.slot, at.phase);
      at.step();
    }
  }
  /// Each warp says that it has done with the units. `read` is a note (not negative) that came with
  /// them: ptxas must not let the arrival pass the read.
  __device__ __forceinline__ void release(RingAt<C> at, int read = 0) const {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      if (threadIdx.x % 32 == 0) arrive(shared.empty + at.slot + (read < 0 ? 1 : 0));
      at.step();
    }
  }
  __device__ __forceinline__ void release_q() const {
    if (threadIdx.x % 32 == 0) arrive(shared.q_empty + warpgroup);
  }

  __device__ __forceinline__ void issue_scores(RingAt<C> at) {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      const uint64_t k = k_major_128(shared.ring + at.slot * C::kUnitBytes);
#pragma unroll
      for (int panel = 0; panel < C::kPanels; ++panel) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          if constexpr (C::kOverlap) {
            Wgmma<C::kKeys>::bf16_a(s, q_words[(u * C::kPanels + panel) * 4 + step],
                                    advance(k, panel * C::kPanelBytes + step * 32),
                                    (u | panel | step) != 0);
            continue;
          }
          Wgmma<C::kKeys>::bf16(
              s, advance(q, (u * C::kPanels + panel) * C::kQPanelBytes + step * 32),
              advance(k, panel * C::kPanelBytes + step * 32), (u | panel | step) != 0);
        }
      }
      at.step();
    }
    wgmma_commit();
  }
  __device__ __forceinline__ void issue_values(RingAt<C> at) {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      const uint64_t v = mn_major_128(shared.ring + at.slot * C::kUnitBytes, C::kPanelBytes);
#pragma unroll
      for (int k = 0; k < C::kKeys / 16; ++k) {
        Wgmma<C::kUnitDims>::template bf16_a<true>(o[u], p[k], advance(v, k * 2048), 1);
      }
      at.step();
    }
    wgmma_commit();
  }

  __device__ __forceinline__ int row() const {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    return 16 * (thread / 32) + thread % 32 / 4;
  }
  /// S of tile `j` without what the rows don't see.
  __device__ __forceinline__ void mask(const PrefillTile& tile, int j) {
    const int column = j * C::kKeys + 2 * (static_cast<int>(threadIdx.x) % 4);
    const int first = PrefillSpan<C>(tile, warpgroup).first - column;
    const int limit[2] = {first + (row() >> tile.pack_shift),
                          first + ((row() + 8) >> tile.pack_shift)};
#pragma unroll
    for (int i = 0; i < C::kKeys / 2; ++i) {
      if (i / 4 * 8 + i % 2 > limit[i / 2 % 2]) s[i] = -INFINITY;
    }
  }

  /// Tile `j` of keys; returns the note of the next one.
  __device__ __forceinline__ int tile(const PrefillTile& rows, int j, bool masked, bool last) {
    await(ring);
    wgmma_fence();
    issue_scores(ring);
    wgmma_wait<0>();
    hold(s);
    release(ring);
    ring.step_tile();
    if (last) release_q();
    if (masked) mask(rows, j);
    softmax.tile(s);
    softmax.rescale(o);
    round_p();
    await(ring);
    wgmma_fence();
    issue_values(ring);
    const int next = note_at(ring);
    end_values(ring, next);
    ring.step_tile();
    return next;
  }
  __device__ __forceinline__ void round_p() {
#pragma unroll
    for (int k = 0; k < C::kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = pack_bf16(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
    }
  }
  __device__ __forceinline__ void end_values(RingAt<C> at, int note) {
    wgmma_wait<0>();
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) hold(o[u]);
    release(at, note);
  }

  /// Q into registers, so that the scores read shared memory for K alone.
  __device__ __forceinline__ void load_q() {
    const uint32_t tile = shared_address(shared.q + warpgroup * C::kQBytes);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < C::kHeadDim / 16; ++step) {
      load_matrices(q_words[step], tile + step / 4 * C::kQPanelBytes +
                                       swizzled_128(row, step % 4 * 32 + lane / 16 * 16));
    }
  }
  /// The tiles that the notes tell, with the scores of a tile computed beside the values of the one
  /// before.
  __device__ __forceinline__ void overlapped(const PrefillTile& rows) {
    await(ring);
    int note = note_at(ring);
    if (needed(note)) {
      load_q();
      wgmma_fence();
      issue_scores(ring);
      wgmma_wait<0>();
      hold(s);
      release(ring, note);
      release_q();  // the products have it: no read of it is under way
      ring.step_tile();
      scores_to_p(rows, note);
      round_p();
      while (true) {  // the ring stands at V of the tile of `note`
        await(ring);
        note = note_at(ring);
        if (!needed(note)) break;
        RingAt<C> k = ring;
        k.step_tile();
        await(k);
        wgmma_fence();
        issue_scores(k);
        issue_values(ring);
        wgmma_wait<1>();
        hold(s);
        release(k);
        scores_to_p(rows, note);
        end_values(ring, note);
        softmax.rescale(o);
        round_p();
        ring = k;
        ring.step_tile();
      }
      wgmma_fence();
      issue_values(ring);
      end_values(ring, note);
      ring.step_tile();
    }
    while (note != 0) note = pass();
  }
  __device__ __forceinline__ bool needed(int note) const {
    return (note & (kNeededBy << warpgroup)) != 0;
  }
  /// S of the tile of `note` becomes P.
  __device__ __forceinline__ void scores_to_p(const PrefillTile& rows, int note) {
    if ((note & (kMaskedFor << warpgroup)) != 0) mask(rows, note >> kTileBits);
    softmax.tile(s);
  }
  /// Lets a tile of keys go by.
  __device__ __forceinline__ int pass() {
    await(ring);
    release(ring);
    ring.step_tile();
    await(ring);
    const int next = note_at(ring);
    release(ring, next);
    ring.step_tile();
    return next;
  }
  __device__ __forceinline__ int note_at(RingAt<C> at) const {
    return C::kPlanned ? __shfl_sync(0xffffffffu, shared.notes[at.slot], 0) : 0;
  }

  /// This warpgroup's part of an item.
  __device__ __forceinline__ void run(const PrefillItem& item, const PrefillParams& params) {
    softmax.reset();
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < C::kUnitDims / 2; ++i) o[u][i] = 0;
    }
    const PrefillSpan<C> span(item.tile, warpgroup);
    if (span.tiles == 0) release_q();
    if constexpr (C::kOverlap) {
      overlapped(item.tile);
    } else if constexpr (C::kPlanned) {
      await(ring);
      int note = note_at(ring);
      // A warpgroup needs a prefix of the tiles of its item.
      while (needed(note)) {
        note = tile(item.tile, note >> kTileBits, (note & (kMaskedFor << warpgroup)) != 0,
                    (note & (kLastOfGroup << warpgroup)) != 0);
      }
      while (note != 0) note = pass();
    } else {
      const int whole = (span.first + 1) / C::kKeys;
      int j = 0;
      for (; j < span.tiles; ++j) tile(item.tile, j, j >= whole, j + 1 == span.tiles);
      const int tiles = (item.tile.position + item.tile.tokens - 1) / C::kKeys + 1;
      for (; j < tiles; ++j) pass();
    }
    if (PrefillSpan<C>(item.tile, warpgroup).tiles > 0) store(item, params);
  }

  __device__ __forceinline__ void store(const PrefillItem& item, const PrefillParams& params) {
    const int first = warpgroup * 64 + row();
    const int c = static_cast<int>(threadIdx.x) % 4;
    const int shift = item.tile.pack_shift;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_quad(softmax.sum[half]);
      const float inverse = 1.0f / sum;
      const int at = first + 8 * half;
      const int token = at >> shift;
      const int head = item.head + (at & ((1 << shift) - 1));
      if (params.lse != nullptr && c == 0 && token < item.tile.tokens) {
        params.lse[(item.tile.row + token) * params.lse_row + head] =
            0.693147181f * fmaf(softmax.high[half], softmax.scale_log2, __log2f(sum));
      }
      if constexpr (C::kUnitDims == 128) {
        if (params.codes.codes != nullptr) {
          store_as_codes(params, item.tile.row + token, head, half, inverse,
                         token < item.tile.tokens);
          continue;
        }
      }
      __nv_bfloat16* to =
          params.out + (item.tile.row + token) * params.out_row + head * params.out_head + 8 * c;
#pragma unroll
      for (int u = 0; u < C::kUnits; ++u) {
#pragma unroll
        for (int j = 0; j < C::kUnitDims / 8; j += 4) {
          uint32_t w[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float* pair = &o[u][4 * (j + i) + 2 * half];
            w[i] = pack_bf16(pair[0] * inverse, pair[1] * inverse);
          }
          transpose_in_quad(w, c);
          if (token < item.tile.tokens && u * C::kUnitDims + 8 * (j + c) < params.head_dim) {
            // Not to stay in L2 at the cost of K and V.
            __stcs(reinterpret_cast<uint4*>(to + u * C::kUnitDims + 8 * j),
                   make_uint4(w[0], w[1], w[2], w[3]));
          }
        }
      }
    }
  }

  /// A head of a row as codes, with a scale for each unit.
  __device__ __forceinline__ void store_as_codes(const PrefillParams& params, int row, int head,
                                                 int half, float inverse, bool exists) {
    const int c = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      const auto pair = [&](int j) {
        float2 v{o[u][4 * j + 2 * half] * inverse, o[u][4 * j + 2 * half + 1] * inverse};
        round_to_bf16(v.x, v.y);
        return v;
      };
      float largest = 0;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const float2 v = pair(j);
        largest = fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y)));
      }
      const Fp8Scale scale = fp8_scale(max_of_quad(largest));
      const int block = head * C::kUnits + u;
      uint8_t* to = params.codes.codes + row * params.codes.stride + block * 128 + 16 * c;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const uint4 codes =
            codes_of_quad([&](int j) { return pair(8 * part + j); }, scale.inverse, c);
        if (exists) __stcs(reinterpret_cast<uint4*>(to + 64 * part), codes);
      }
      if (exists && c == 0) {
        params.codes.scales[block * params.codes.scale_stride + row] = scale.scale;
      }
    }
  }
};

}  // namespace
}  // namespace weft::cuda
