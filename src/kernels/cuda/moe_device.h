#pragma once

// What both sums over a token's experts begin with. Device code.

#include "kernels/cuda/common/ptx.h"

namespace weft::cuda {

/// The places of a token's rows in ascending order, which is that of their experts, and the weights
/// that go with them, in shared memory. Called by the whole block, of top_k threads at least.
__device__ __forceinline__ void order_places(const int* place_of, const float* weight_of, int top_k,
                                             int* places, float* weights) {
  const int j = static_cast<int>(threadIdx.x);
  if (j < top_k) {
    int rank = 0;
    for (int i = 0; i < top_k; ++i) rank += place_of[i] < place_of[j];
    places[rank] = place_of[j];
    weights[rank] = weight_of[j];
  }
  __syncthreads();
}

}  // namespace weft::cuda
