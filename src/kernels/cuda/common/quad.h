#pragma once

// Exchanges between the four lanes of a quad, which hold a row of a fragment of the tensor cores.

#include <cstdint>

namespace weft::cuda {

/// Words w[i] of lane c of a quad become w[c] of lane i.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&w)[4], int c) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, (c & 1) ? w[i] : w[i + 1], 1);
    w[i] = (c & 1) ? got : w[i];
    w[i + 1] = (c & 1) ? w[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, (c & 2) ? w[i] : w[i + 2], 2);
    w[i] = (c & 2) ? got : w[i];
    w[i + 2] = (c & 2) ? w[i + 2] : got;
  }
}

}  // namespace weft::cuda
