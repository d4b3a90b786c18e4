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
constexpr int64_t kFewPasses = 6;         // of 32 rows
constexpr int64_t kPartBytes = 8 << 10;   // of a panel: four of these and the next are in L1
constexpr int64_t kFarBytes = 384 << 10;  // of panels side by side: these and the next are in L2
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

/// What is read behind these panels, requested over all passes of rows over these: each pass
/// requests its part. One pass alone requests its own panels just ahead, or leaves that to the CPU.
struct Spread {
  int64_t pass = 0, passes = 1;
  Ahead where = Ahead::kNone;
};

/// Measured: AMD Zen 5 reads bf16 in one pass 10 to 15 % faster without requests.
WEFT_INLINE Ahead ahead_of(int64_t passes) {
  if (passes == 1) {
    return best_ahead() == Ahead::kNonTemporal ? Ahead::kNone : Ahead::kFirstLevel;
  }
  return passes <= kFewPasses ? Ahead::kFirstLevel : Ahead::kSecondLevel;
}

/// The lines of `next` that pass `spread.pass` requests at step `step` of `steps`.
template <int64_t StepBytes, int P>
WEFT_INLINE void request_part(const std::byte* const (&next)[P], const Spread& spread, int64_t step,
                              int64_t steps) {
  constexpr int64_t kLines = StepBytes / 64;
  const int64_t at = spread.pass * steps + step;
  const int64_t end = (at + 1) * kLines / spread.passes;
  for (int64_t line = at * kLines / spread.passes; line < end; ++line) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) request<64>(spread.where, next[p] + line * 64);
  }
}

/// One register tile over all K steps of the block: rows [row, row + R), panels [panel, panel + P).
template <class Kernel, int R, int P>
void register_tile(const PackedRows& a, const Block& block, int64_t row, int panel,
                   const Spread& spread) {
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
  const bool own = spread.passes == 1 && spread.where != Ahead::kNone;
  const bool far = spread.passes > 1 && next[P - 1] != nullptr &&
                   P * block.steps * Kernel::kStepBytes <= kFarBytes;
  for (int64_t s = 0; s < block.steps; ++s) {
    if (own) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        if constexpr (P > 1) {
          request_ahead<Kernel::kStepBytes>(spread.where, b[p],
                                            (block.steps - s) * Kernel::kStepBytes, next[p],
                                            ahead_distance(P));
        } else {
          request<Kernel::kStepBytes>(spread.where, b[p] + ahead_distance(P));
        }
      }
    }
    if (far) request_part<Kernel::kStepBytes>(next, spread, s, block.steps);
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
void rows_of_tile(const PackedRows& a, const Block& block, int64_t row, int rows, int panel,
                  Spread& spread) {
  // Whole tiles are 6 + 5 + 5 rows.
  while (rows > 0) {
    const int parts = (rows + kMaxRows - 1) / kMaxRows, now = (rows + parts - 1) / parts;
    switch (now) {
      case 1: register_tile<Kernel, 1, P>(a, block, row, panel, spread); break;
      case 2: register_tile<Kernel, 2, P>(a, block, row, panel, spread); break;
      case 3: register_tile<Kernel, 3, P>(a, block, row, panel, spread); break;
      case 4: register_tile<Kernel, 4, P>(a, block, row, panel, spread); break;
      case 5: register_tile<Kernel, 5, P>(a, block, row, panel, spread); break;
      default: register_tile<Kernel, 6, P>(a, block, row, panel, spread); break;
    }
    ++spread.pass;
    row += now;
    rows -= now;
  }
}

/// Register tiles of rows that go over each panel.
int64_t passes_of(const PackedRows& a, const Block& block) {
  int64_t passes = 0;
  for (int64_t t = 0; t < block.tiles; ++t) {
    const int64_t left = a.rows - (block.tile + t) * kRowTile;
    passes += ((left < kRowTile ? left : kRowTile) + kMaxRows - 1) / kMaxRows;
  }
  return passes;
}

template <class Kernel>
void multiply_at_once(const PackedRows& a, const Block& block, int64_t passes) {
  const Ahead where = ahead_of(passes);
  for (int panel = 0; panel < block.count;) {
    const int panels = block.count - panel >= kMaxPanels ? kMaxPanels : 1;
    Spread spread{.passes = passes, .where = where};
    for (int64_t t = 0; t < block.tiles; ++t) {
      const int64_t left = a.rows - (block.tile + t) * kRowTile;
      const int rows = left < kRowTile ? static_cast<int>(left) : kRowTile;
      if (panels == kMaxPanels) {
        rows_of_tile<Kernel, kMaxPanels>(a, block, t * kRowTile, rows, panel, spread);
      } else {
        rows_of_tile<Kernel, 1>(a, block, t * kRowTile, rows, panel, spread);
      }
    }
    panel += panels;
  }
}

/// Few rows go over a part of the panels, all of them, before the next part.
template <class Kernel>
void multiply(const PackedRows& a, const Block& block) {
  constexpr int64_t kSteps = kPartBytes / Kernel::kStepBytes;
  const int64_t passes = passes_of(a, block);
  if (passes == 1 || passes > kFewPasses || block.count > kMaxPanels) {
    return multiply_at_once<Kernel>(a, block, passes);
  }
  const std::byte *panels[kMaxPanels], *ahead[kMaxPanels];
  Block part = block;
  part.panels = panels;
  part.ahead = ahead;
  for (int64_t s = 0; s < block.steps; s += kSteps) {
    const bool last = s + kSteps >= block.steps;
    for (int p = 0; p < block.count; ++p) {
      panels[p] = block.panels[p] + s * Kernel::kStepBytes;
      ahead[p] = last ? read_next(block, p, block.count) : panels[p] + kPartBytes;
    }
    part.step = block.step + s;
    part.steps = last ? block.steps - s : kSteps;
    part.accumulate = block.accumulate || s > 0;
    multiply_at_once<Kernel>(a, part, passes);
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
