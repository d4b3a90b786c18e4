#pragma once

// What the e4m3 codes and the scale of 128 columns of a row are (QuantizedRows): the one arithmetic
// of every kernel that makes some. Values are bf16, as activations are. Included by .cu files.

#include <cstdint>

#include "kernels/cuda/common/quad.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/gemm.h"

namespace weft::cuda {

struct Fp8Scale {
  float inverse;  ///< values times this are coded
  float scale;    ///< codes times this are the values
};
/// Of values up to `largest` in magnitude: largest / 448; of zeros 0.
__device__ __forceinline__ Fp8Scale fp8_scale(float largest) {
  if (largest < 1e-30f) return {0.0f, 0.0f};
  return {__fdiv_rn(448.0f, largest), __fdiv_rn(largest, 448.0f)};
}

/// Two codes, to nearest; that of `low` in bits 0 to 7.
__device__ __forceinline__ uint32_t e4m3_codes(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

/// Two values as activations have them.
__device__ __forceinline__ void round_to_bf16(float& low, float& high) {
  const uint32_t pair = pack_bf16(low, high);
  low = low_bf16(pair);
  high = high_bf16(pair);
}

/// Half a warp has the 128 columns from 128 `block` on of a row, lane l columns 8l .. 8l + 7, of
/// which those from `columns` on don't exist: their values are 0. All lanes of the warp call.
__device__ __forceinline__ void store_codes(const QuantizedRows& q, int64_t row, int block,
                                            int columns, const Floats8& x) {
  const int lane = static_cast<int>(threadIdx.x) % 16, column = block * 128 + lane * 8;
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x.v[i]));
#pragma unroll
  for (int step = 8; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  }
  const Fp8Scale scale = fp8_scale(largest);
  if (column < columns) {
    uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = e4m3_codes(x.v[2 * i] * scale.inverse, x.v[2 * i + 1] * scale.inverse);
    }
    *reinterpret_cast<uint2*>(q.codes + row * q.stride + column) = {codes[0] | codes[1] << 16,
                                                                    codes[2] | codes[3] << 16};
  }
  if (lane == 0 && block * 128 < columns) q.scales[block * q.scale_stride + row] = scale.scale;
}

/// Of a row of which the lanes of a quad have columns 8 j + 2 c and the next, as pair(j), for j < 8
/// (the D layout of wgmma): the codes of columns 16 c .. 16 c + 15.
template <class Pair>
__device__ __forceinline__ uint4 codes_of_quad(const Pair& pair, float inverse, int c) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 low = pair(2 * i), high = pair(2 * i + 1);
    w[i] = e4m3_codes(low.x * inverse, low.y * inverse) |
           e4m3_codes(high.x * inverse, high.y * inverse) << 16;
  }
  transpose_in_quad(w, c);  // then w[i] has columns 16 c + 2 i and 16 c + 8 + 2 i, and the next
  return {__byte_perm(w[0], w[1], 0x5410), __byte_perm(w[2], w[3], 0x5410),
          __byte_perm(w[0], w[1], 0x7632), __byte_perm(w[2], w[3], 0x7632)};
}

}  // namespace weft::cuda
