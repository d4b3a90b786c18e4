#pragma once

// Small fp32 matrix products for the chunked delta rule. An element of a product is summed over k
// in order, by fused multiply-adds from its initial value: no tiling shows in its bits.

#include "kernels/cpu/simd.h"

namespace weft::WEFT_ISA_NS {

/// Where element (row, k) of a left operand lies: base + row * row_stride + k * k_stride.
struct LeftMatrix {
  const float* base;
  int64_t row_stride, k_stride;
};
struct RowMatrix {
  float* base;
  int64_t stride;
  float* row(int64_t r) const { return base + r * stride; }
};

template <int kRows, int kVecs, class Init>
WEFT_INLINE void product_micro(const LeftMatrix& a, const RowMatrix& b, int64_t depth,
                               const RowMatrix& c, int64_t row, Init&& init) {
  Vec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kVecs; ++n) acc[r][n] = init(row + r, c.row(r) + n * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec bv[kVecs];
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n) bv[n] = load(b.row(k) + n * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec av = splat(a.base[r * a.row_stride + k * a.k_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < kVecs; ++n) acc[r][n] = fma(av, bv[n], acc[r][n]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kVecs; ++n) store(c.row(r) + n * kLanes, acc[r][n]);
  }
}

/// Extents of c[rows, cols] = a[rows, depth] b[depth, cols]; rows a multiple of 4, cols of 16.
struct ProductShape {
  int64_t rows, cols, depth;
};

/// c = init(row, pointer to c's 16 elements) + a b.
template <class Init>
WEFT_INLINE void product(const LeftMatrix& a, const RowMatrix& b, const RowMatrix& c,
                         const ProductShape& shape, Init&& init) {
  const int64_t cols = shape.cols, depth = shape.depth;
  for (int64_t r = 0; r < shape.rows; r += 4) {
    const LeftMatrix left{a.base + r * a.row_stride, a.row_stride, a.k_stride};
    int64_t n = 0;
    for (; n + kMicroVecs * kLanes <= cols; n += kMicroVecs * kLanes) {
      product_micro<4, kMicroVecs>(left, RowMatrix{b.base + n, b.stride}, depth,
                                   RowMatrix{c.row(r) + n, c.stride}, r, init);
    }
    for (; n < cols; n += kLanes) {
      product_micro<4, 1>(left, RowMatrix{b.base + n, b.stride}, depth,
                          RowMatrix{c.row(r) + n, c.stride}, r, init);
    }
  }
}

struct FromZero {
  WEFT_INLINE Vec operator()(int64_t, const float*) const { return splat(0); }
};
struct FromC {
  WEFT_INLINE Vec operator()(int64_t, const float* c) const { return load(c); }
};

/// out[c][r] = in[r][c]; rows and cols multiples of 4.
inline void transpose(const RowMatrix& in, int64_t rows, int64_t cols, const RowMatrix& out) {
  for (int64_t r = 0; r < rows; r += 4) {
    for (int64_t c = 0; c < cols; c += 4) {
      __m128 x0 = _mm_loadu_ps(in.row(r) + c), x1 = _mm_loadu_ps(in.row(r + 1) + c);
      __m128 x2 = _mm_loadu_ps(in.row(r + 2) + c), x3 = _mm_loadu_ps(in.row(r + 3) + c);
      _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
      _mm_storeu_ps(out.row(c) + r, x0);
      _mm_storeu_ps(out.row(c + 1) + r, x1);
      _mm_storeu_ps(out.row(c + 2) + r, x2);
      _mm_storeu_ps(out.row(c + 3) + r, x3);
    }
  }
}

/// silu(x) without a division where the CPU has a good first guess: relative error about 1e-7 of
/// the sigmoid, as silu().
inline Vec quick_silu(Vec x) {
#if defined(WEFT_AVX512)
  // e^-x, cut where the sum's reciprocal would leave the normal numbers.
  const Vec d = splat(1.0f) + exp2(min(splat(125.0f), x * splat(-1.44269504f)));
  const Vec guess = {_mm512_rcp14_ps(d.v)};
  return x * fma(guess, fnma(d, guess, splat(1.0f)), guess);
#else
  return silu(x);
#endif
}

}  // namespace weft::WEFT_ISA_NS
