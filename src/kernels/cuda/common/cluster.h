#pragma once

// What blocks of a cluster send each other. Included by .cu files alone.

#include <cstdint>

namespace weft::cuda {

/// To `to` in another block of the cluster (map_to_block), counted as 16 bytes at its barrier.
__device__ __forceinline__ void send(uint32_t to, const float4& v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}

}  // namespace weft::cuda
