#pragma once

// What blocks of a cluster send each other. Included by .cu files alone.

#include <cstdint>

#include "kernels/cuda/common/ptx.h"

namespace weft::cuda {

/// To `to` in another block of the cluster (map_to_block), counted as 16 bytes at its barrier.
__device__ __forceinline__ void send(uint32_t to, const float4& v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}

/// Of the shared memory of another block of the cluster, what lies at `shared` here.
__device__ __forceinline__ float4 load_of_rank(const void* shared, int rank) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(map_to_block(shared_address(shared), static_cast<uint32_t>(rank)))
               : "memory");
  return v;
}

}  // namespace weft::cuda
