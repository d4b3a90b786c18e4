// out[r][o] = sum_k x[r][k] w[o][k] with vector instructions: f32 weights everywhere; bf16 weights
// by vdpbf16ps (AVX512-BF16) or by fp32 fused multiply-adds on bf16 widened by a shift.
// A register tile of R rows x P panels; per K pair P weight lines and R broadcasts feed R P
// products. Bound: weight bandwidth for few rows, the multiply units above
// (docs/kernels/cpu_gemm.md).

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_prefetch.h"
#include "kernels/cpu/gemm_vec.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int kMaxRows = 6;
#if WEFT_AVX512
constexpr int kMaxPanels = 4;
#else
constexpr int kMaxPanels = 1;
#endif
#if WEFT_AVX512_BF16

/// vdpbf16ps: bf16 pairs of both.
struct Bf16Dot {
  using Value = uint16_t;
  [[maybe_unused]] static constexpr int64_t kStepBytes = kStep * kPanelWidth * 2;
  template <int R, int P>
  WEFT_INLINE static void step(const Value* a, const std::byte* const (&b)[P], Vec (&acc)[R][P]) {
#pragma GCC unroll 4
    for (int pair = 0; pair < kStep / 2; ++pair) {
      __m512bh w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) w[p] = (__m512bh)_mm512_load_si512(b[p] + pair * 64);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        int32_t both;
        __builtin_memcpy(&both, a + r * kStep + pair * 2, 4);
        const auto x = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p].v = _mm512_dpbf16_ps(acc[r][p].v, x, w[p]);
      }
    }
  }
};

#else

/// fp32 fused multiply-adds on bf16 weights; activations are floats that hold bf16 values.
struct Bf16Fma {
  using Value = float;
  static constexpr int64_t kStepBytes = kStep * kPanelWidth * 2;
  template <int R, int P>
  WEFT_INLINE static void step(const Value* a, const std::byte* const (&b)[P], Vec (&acc)[R][P]) {
#pragma GCC unroll 2
    for (int pair = 0; pair < kStep / 2; ++pair) {
      Vec w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) w[p] = vec_bf16_even(b[p] + pair * 64);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Vec x = vec_set(a[r * kStep + pair * 2]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = vec_fma(x, w[p], acc[r][p]);
      }
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) w[p] = vec_bf16_odd(b[p] + pair * 64);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Vec x = vec_set(a[r * kStep + pair * 2 + 1]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = vec_fma(x, w[p], acc[r][p]);
      }
    }
  }
};
using Bf16Dot = Bf16Fma;

#endif

struct F32Fma {
  using Value = float;
  static constexpr int64_t kStepBytes = kStep * kPanelWidth * 4;
  template <int R, int P>
  WEFT_INLINE static void step(const Value* a, const std::byte* const (&b)[P], Vec (&acc)[R][P]) {
#pragma GCC unroll 4
    for (int k = 0; k < kStep; ++k) {
      Vec w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) w[p] = vec_load(reinterpret_cast<const float*>(b[p]) + k * 16);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Vec x = vec_set(a[r * kStep + k]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = vec_fma(x, w[p], acc[r][p]);
      }
    }
  }
};

/// One register tile over all K steps of the block: rows [row, row + R), panels [panel, panel + P).
template <class Kernel, int R, int P>
void register_tile(const PackedRows& a, const Block& block, int64_t row, int panel, Ahead ahead) {
  const int64_t tile = block.tile + row / kRowTile;
  const auto* x = reinterpret_cast<const typename Kernel::Value*>(a.data) +
                  (tile * a.steps * kRowTile + block.step * tile_rows(a) + row % kRowTile) * kStep;
  const int64_t step_values = tile_rows(a) * kStep;
  const int64_t c_panel = block.tiles * kRowTile * kPanelWidth;
  float* c = block.c + panel * c_panel + row * kPanelWidth;
  const std::byte *b[P], *next[P];
  Vec acc[R][P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    b[p] = block.panels[panel + p];
    next[p] = read_next(block, panel + p, P);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
      acc[r][p] = block.accumulate ? vec_load(c + p * c_panel + r * kPanelWidth) : vec_zero();
  }
  for (int64_t s = 0; s < block.steps; ++s) {
    if (ahead != Ahead::kNone) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        if constexpr (P > 1) {
          request_ahead<Kernel::kStepBytes>(ahead, b[p], (block.steps - s) * Kernel::kStepBytes,
                                            next[p], ahead_distance(P));
        } else {
          request<Kernel::kStepBytes>(ahead, b[p] + ahead_distance(P));
        }
      }
    }
    Kernel::template step<R, P>(x, b, acc);
    x += step_values;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) b[p] += Kernel::kStepBytes;
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) vec_store(c + p * c_panel + r * kPanelWidth, acc[r][p]);
  }
}

template <class Kernel, int P>
void rows_of_tile(const PackedRows& a, const Block& block, int64_t row, int rows, int panel) {
  // Whole tiles are 6 + 5 + 5 rows.
  Ahead ahead = best_ahead();
  while (rows > 0) {
    const int parts = (rows + kMaxRows - 1) / kMaxRows, now = (rows + parts - 1) / parts;
    switch (now) {
      case 1: register_tile<Kernel, 1, P>(a, block, row, panel, ahead); break;
      case 2: register_tile<Kernel, 2, P>(a, block, row, panel, ahead); break;
      case 3: register_tile<Kernel, 3, P>(a, block, row, panel, ahead); break;
      case 4: register_tile<Kernel, 4, P>(a, block, row, panel, ahead); break;
      case 5: register_tile<Kernel, 5, P>(a, block, row, panel, ahead); break;
      default: register_tile<Kernel, 6, P>(a, block, row, panel, ahead); break;
    }
    ahead = Ahead::kNone;  // the panels are in the cache from now on
    row += now;
    rows -= now;
  }
}

template <class Kernel>
void multiply(const PackedRows& a, const Block& block) {
  for (int panel = 0; panel < block.count;) {
    const int panels = block.count - panel >= kMaxPanels ? kMaxPanels : 1;
    for (int64_t t = 0; t < block.tiles; ++t) {
      const int64_t left = a.rows - (block.tile + t) * kRowTile;
      const int rows = left < kRowTile ? static_cast<int>(left) : kRowTile;
      if (panels == kMaxPanels) {
        rows_of_tile<Kernel, kMaxPanels>(a, block, t * kRowTile, rows, panel);
      } else {
        rows_of_tile<Kernel, 1>(a, block, t * kRowTile, rows, panel);
      }
    }
    panel += panels;
  }
}

}  // namespace

void multiply_f32(const PackedRows& a, const Block& block) {
  multiply<F32Fma>(a, block);
}

#if !WEFT_AMX

void multiply_bf16(const PackedRows& a, const Block& block) {
  multiply<Bf16Dot>(a, block);
}

void multiply_begin() {}
void multiply_end() {}

#endif

}  // namespace weft::WEFT_ISA_NS
