#pragma once

// The warpgroups that compute in attention over prompts (attention_prompt_kernel.cuh): softmax,
// products, the way through the tiles of an item, the store. Included by its kernels alone.

#include <cuda_bf16.h>

#include "kernels/cuda/attention_prompt_plan.h"
#include "kernels/cuda/common/f16.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/fp8_rows.h"

namespace weft::cuda {
namespace {

/// The running softmax of a thread's rows r and r + 8, whose weights become bf16 or f16.
template <bool F16>
struct RunningSoftmax {
  float scale_log2[2];
  float high[2];    // the reference of the exponents: at least max - kSlack
  float sum[2];     // of this thread's columns
  float factor[2];  // that the last tile put on what was before

  // A row's reference rises only when its maximum passes it by 2^kSlack: until then the factor is 1
  // for sure, and most tiles need no pass over O.
  static constexpr float kSlack = 8;
  // Weights are up to 2^(kSlack + kRaise): in f16 small ones are then no subnormal numbers.
  static constexpr float kRaise = F16 ? 7 : 0;
  // Finite, so that a tile of which a row sees nothing leaves factor 1 and weights of 0.
  static constexpr float kNothingSeen = -1e30f;

  __device__ __forceinline__ void reset() {
    high[0] = high[1] = kNothingSeen;
    sum[0] = sum[1] = 0;
  }

  /// S becomes P. `weight(i)`: what s[i] counts in the sum.
  template <int Count, class Weight>
  __device__ __forceinline__ void tile(float (&s)[Count], const Weight& weight) {
    float top[2] = {high[0], high[1]};
#pragma unroll
    for (int i = 0; i < Count; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
    float shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      top[row] = max_of_quad(top[row]);
      if ((top[row] - high[row]) * scale_log2[row] <= kSlack) top[row] = high[row];
      factor[row] = exp2_approx((high[row] - top[row]) * scale_log2[row]);
      high[row] = top[row];
      shift[row] = F16 ? fmaf(top[row], scale_log2[row], -kRaise) : top[row] * scale_log2[row];
    }
    float part[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = exp2_approx(fmaf(s[i], scale_log2[i / 2 % 2], -shift[i / 2 % 2]));
      part[i % 4] = fmaf(s[i], weight(i), part[i % 4]);
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
  const PrefillParams& params;
  RingAt<C> ring;
  int warpgroup;
  uint64_t q;  // descriptor

  uint32_t q_words[C::kOverlap ? C::kHeadDim / 16 : 1][4];  // Q, where registers hold it
  float s[C::kKeys / 2];
  uint32_t p[C::kKeys / 16][4];
  float o[C::kUnits][C::kUnitDims / 2];
  RunningSoftmax<C::kF16> softmax;
  uint32_t v_powers[C::kKeys / 16];  // of a tile that has any, for each pair of keys

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
          const uint64_t keys = advance(k, panel * C::kPanelBytes + step * 32);
          const int sum = (u | panel | step) != 0;
          if constexpr (C::kOverlap) {
            const auto& rows = q_words[(u * C::kPanels + panel) * 4 + step];
            if constexpr (C::kF16) {
              Wgmma<C::kKeys>::f16_a(s, rows, keys, sum);
            } else {
              Wgmma<C::kKeys>::bf16_a(s, rows, keys, sum);
            }
          } else {
            const uint64_t rows =
                advance(q, (u * C::kPanels + panel) * C::kQPanelBytes + step * 32);
            if constexpr (C::kF16) {
              Wgmma<C::kKeys>::f16(s, rows, keys, sum);
            } else {
              Wgmma<C::kKeys>::bf16(s, rows, keys, sum);
            }
          }
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
        if constexpr (C::kF16) {
          Wgmma<C::kUnitDims>::template f16_a<true>(o[u], p[k], advance(v, k * 2048), 1);
        } else {
          Wgmma<C::kUnitDims>::template bf16_a<true>(o[u], p[k], advance(v, k * 2048), 1);
        }
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

  /// The powers of a tile's keys and values (kv_gather.h), if it has any, while its K is there. A
  /// key's is a factor of its scores. A value's joins its scores, so that weights are those of the
  /// values as they lie in memory, and leaves them again in the sum. Without powers, in a tile that
  /// has some, bits stay as they are.
  __device__ __forceinline__ void apply_powers(int slot, int odd) {
    if constexpr (C::kF16) {
      if (odd == 0) return;
      const float unit[2] = {1 / softmax.scale_log2[0], 1 / softmax.scale_log2[1]};
      const int8_t* from =
          shared.powers + slot * 2 * C::kKeys + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
      for (int pair = 0; pair < C::kKeys / 8; ++pair) {
        const char2 k = *reinterpret_cast<const char2*>(from + 8 * pair);
        const char2 v = *reinterpret_cast<const char2*>(from + C::kKeys + 8 * pair);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = s[4 * pair + i];
          x = fmaf(static_cast<float>(i % 2 == 0 ? v.x : v.y), unit[i / 2],
                   x * power_of_two(i % 2 == 0 ? k.x : k.y));
        }
        const uint32_t both = static_cast<uint8_t>(v.x) | static_cast<uint32_t>(v.y & 0xFF) << 8;
        v_powers[pair / 2] = pair % 2 == 0 ? both : v_powers[pair / 2] | both << 16;
      }
    }
  }
  /// S becomes P.
  __device__ __forceinline__ void weigh(int odd) {
    if constexpr (C::kF16) {
      if (odd != 0) {
        softmax.tile(s, [&](int i) {
          const uint32_t both = v_powers[i / 8] >> (i / 4 % 2 * 16 + i % 2 * 8);
          return power_of_two(-static_cast<int8_t>(both & 0xFF));
        });
        return;
      }
    }
    softmax.tile(s, [](int) { return 1.0f; });
  }

  // Two warpgroups of an item take turns at the tensor cores, the values of a tile and the scores
  // of the next being one: the softmax of either lies beneath the products of the other, whatever
  // the moments at which their first tiles came. The first warpgroup may begin, from one item to
  // the next. Over bf16 ptxas makes slower code of it.
  static constexpr int kTurnBarrier = 1 + C::kWarpgroups;  // of each warpgroup

  __device__ __forceinline__ void await_turn() const {
    barrier_sync(kTurnBarrier + warpgroup, 256);
  }
  __device__ __forceinline__ void end_turn() const {
    barrier_arrive(kTurnBarrier + (warpgroup ^ 1), 256);
  }
  /// Once before all items and once behind them.
  __device__ __forceinline__ void begin_turns() const {
    if (C::kGathers && warpgroup == 1) barrier_arrive(kTurnBarrier, 256);
  }
  __device__ __forceinline__ void end_turns() const {
    if (C::kGathers && warpgroup == 0) barrier_sync(kTurnBarrier, 256);
  }

  /// Tile `j` of keys; returns the note of the next one.
  template <bool Turns = false>
  __device__ __forceinline__ int tile(const PrefillTile& rows, int j, bool masked, bool last) {
    await(ring);
    wgmma_fence();
    issue_scores(ring);
    if (Turns && j > 0) end_turn();
    const int odd = odd_at(ring);
    wgmma_wait<0>();
    hold(s);
    apply_powers(ring.slot, odd);
    release(ring, odd);
    ring.step_tile();
    if (last) release_q();
    if (masked) mask(rows, j);
    weigh(odd);
    softmax.rescale(o);
    round_p();
    await(ring);
    if (Turns) await_turn();
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
      for (int i = 0; i < 4; ++i) {
        const float low = s[8 * k + 2 * i], high = s[8 * k + 2 * i + 1];
        p[k][i] = C::kF16 ? pack_f16(low, high) : pack_bf16(low, high);
      }
    }
  }
  __device__ __forceinline__ void end_values(RingAt<C> at, int note) {
    wgmma_wait<0>();
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) hold(o[u]);
    release(at, note);
  }

  /// q from bf16 to f16, each row by the power of two that makes its largest value 1 to 2; its
  /// scores take the power back. A warp has 16 rows, 8 lanes one of them.
  __device__ __forceinline__ void narrow_q() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int first = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 8;
    unsigned char* tile = shared.q + warpgroup * C::kQBytes;
    uint32_t exponents[4];
#pragma unroll
    for (int turn = 0; turn < 4; ++turn) {
      uint4 x[C::kHeadDim / 64];
      uint32_t top = 0;
#pragma unroll
      for (int panel = 0; panel < C::kHeadDim / 64; ++panel) {
        x[panel] = *reinterpret_cast<const uint4*>(tile + panel * C::kQPanelBytes +
                                                   swizzled_128(first + 4 * turn, lane % 8 * 16));
        const uint32_t words[4] = {x[panel].x, x[panel].y, x[panel].z, x[panel].w};
#pragma unroll
        for (const uint32_t word : words) {
          top = max(top, max(word << 16 & 0x7FFF0000u, word & 0x7FFF0000u));
        }
      }
#pragma unroll
      for (int step = 1; step < 8; step *= 2) top = max(top, __shfl_xor_sync(~0u, top, step));
      exponents[turn] = min(max(top >> 23, 14u), 253u);
      const float by = __uint_as_float((254 - exponents[turn]) << 23);
#pragma unroll
      for (int panel = 0; panel < C::kHeadDim / 64; ++panel) {
        const auto narrow = [&](uint32_t w) {
          return pack_f16(__uint_as_float(w << 16) * by, __uint_as_float(w & 0xFFFF0000u) * by);
        };
        const uint4 out{narrow(x[panel].x), narrow(x[panel].y), narrow(x[panel].z),
                        narrow(x[panel].w)};
        *reinterpret_cast<uint4*>(tile + panel * C::kQPanelBytes +
                                  swizzled_128(first + 4 * turn, lane % 8 * 16)) = out;
      }
    }
    fence_async_shared();
    barrier_sync(1 + warpgroup, 128);
    // Of rows lane / 4 and lane / 4 + 8.
    uint32_t mine[4];
#pragma unroll
    for (int turn = 0; turn < 4; ++turn) {
      mine[turn] = __shfl_sync(~0u, exponents[turn], lane / 4 % 4 * 8);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t exponent = lane < 16 ? mine[2 * half] : mine[2 * half + 1];
      softmax.scale_log2[half] = params.scale_log2 * __uint_as_float(exponent << 23);
    }
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
      int odd = odd_at(ring);
      wgmma_wait<0>();
      hold(s);
      apply_powers(ring.slot, odd);
      release(ring, note | odd);
      release_q();  // the products have it: no read of it is under way
      ring.step_tile();
      scores_to_p(rows, note, odd);
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
        odd = odd_at(k);
        wgmma_wait<1>();
        hold(s);
        apply_powers(k.slot, odd);
        release(k, odd);
        scores_to_p(rows, note, odd);
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
  __device__ __forceinline__ bool masked_by(int note) const {
    return (note & (kMaskedFor << warpgroup)) != 0;
  }
  /// S of the tile of `note` becomes P.
  __device__ __forceinline__ void scores_to_p(const PrefillTile& rows, int note, int odd) {
    if (masked_by(note)) mask(rows, note >> kTileBits);
    weigh(odd);
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
    return C::kNarrow ? of_first_lane(shared.notes + at.slot) : 0;
  }
  /// Of the K at `at`.
  __device__ __forceinline__ int odd_at(RingAt<C> at) const {
    return C::kF16 ? of_first_lane(shared.odd + at.slot) : 0;
  }
  /// The lane that reads it is the one that says so later.
  __device__ __forceinline__ int of_first_lane(const int* at) const {
    return __shfl_sync(0xffffffffu, threadIdx.x % 32 == 0 ? *at : 0, 0);
  }

  template <bool Turns>
  __device__ __forceinline__ void all_tiles(const PrefillTile& rows, const PrefillSpan<C>& span) {
    const int whole = (span.first + 1) / C::kKeys;
    int j = 0;
    for (; j < span.tiles; ++j) tile<Turns>(rows, j, j >= whole, j + 1 == span.tiles);
    if (Turns) end_turn();
    const int tiles = (rows.position + rows.tokens - 1) / C::kKeys + 1;
    for (; j < tiles; ++j) {
      if (Turns) {
        await_turn();
        end_turn();
      }
      pass();
    }
  }

  /// Of the tiles that come those that this warpgroup's rows see. ptxas makes good code of this
  /// form of the loop.
  __device__ __forceinline__ void wide_tiles(const PrefillItem& item) {
    const PrefillTile& rows = item.tile;
    const int own = PrefillSpan<C>(rows, warpgroup).tiles - 1;  // -1 without rows
    const int block = rows.block + max(own, 0) - rows.position / C::kKeys;
    const int32_t* list =
        params.blocks + params.row_block(rows.segment, item.head, block) * params.words;
    const int tiles = (rows.position + rows.tokens - 1) / C::kKeys + 1;
    for (int j = 0; j < tiles; ++j) {
      if (j == own || (j < own && (list[j / 32] >> (j % 32) & 1) != 0)) {
        tile(rows, j, j == own, j == own);
      } else {
        pass();
      }
    }
  }

  /// This warpgroup's part of an item.
  __device__ __forceinline__ void run(const PrefillItem& item) {
    softmax.reset();
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < C::kUnitDims / 2; ++i) o[u][i] = 0;
    }
    const PrefillSpan<C> span(item.tile, warpgroup);
    if (span.tiles == 0) {
      release_q();
    } else if constexpr (C::kF16) {
      narrow_q();
    }
    if constexpr (C::kOverlap) {
      overlapped(item.tile);
    } else if constexpr (C::kNarrow) {
      await(ring);
      int note = note_at(ring);
      // A warpgroup needs a prefix of the tiles of its item.
      while (needed(note)) {
        note = tile(item.tile, note >> kTileBits, masked_by(note),
                    (note & (kLastOfGroup << warpgroup)) != 0);
      }
      while (note != 0) note = pass();
    } else if constexpr (C::kPart == PlanPart::kWide) {
      wide_tiles(item);
    } else {
      const int rows = item.tile.tokens << item.tile.pack_shift;
      if (C::kGathers && warpgroup < 2 && rows > 64 && rows <= 128) {
        all_tiles<true>(item.tile, span);
      } else {
        all_tiles<false>(item.tile, span);
      }
    }
    if (PrefillSpan<C>(item.tile, warpgroup).tiles > 0) store(item);
  }

  __device__ __forceinline__ void store(const PrefillItem& item) {
    const int first = warpgroup * 64 + row();
    const int c = static_cast<int>(threadIdx.x) % 4;
    const int shift = item.tile.pack_shift;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_quad(softmax.sum[half]);
      const float inverse = sum > 0 ? 1.0f / sum : 0.0f;  // no key: 0, lse -inf
      const int at = first + 8 * half;
      const int token = at >> shift;
      const int head = item.head + (at & ((1 << shift) - 1));
      if (params.lse != nullptr && c == 0 && token < item.tile.tokens) {
        params.lse[(item.tile.row + token) * params.lse_row + head] =
            0.693147181f *
            fmaf(softmax.high[half], softmax.scale_log2[half], __log2f(sum) - softmax.kRaise);
      }
      if constexpr (C::kUnitDims == 128) {
        if (params.codes.codes != nullptr) {
          store_as_codes(item.tile.row + token, head, half, inverse, token < item.tile.tokens);
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
  __device__ __forceinline__ void store_as_codes(int row, int head, int half, float inverse,
                                                 bool exists) {
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
