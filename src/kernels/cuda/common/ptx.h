#pragma once

// Hopper's own instructions as thin inline functions: mbarriers, the bulk copy engine (TMA),
// fences, register budgets, barriers, matrix loads and stores, programmatic dependent launch.
// wgmma is in wgmma.h. Semantics: PTX ISA 8.0+ (sm_90a). Included by .cu files alone.
//
// An unnamed rule of all of this: shared memory written by ordinary stores (stmatrix too) that TMA
// or wgmma reads next needs fence_async_shared() by each writing thread, then a barrier.

#include <cuda.h>

#include <cstdint>

namespace weft::cuda {

/// The address of shared memory as the instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- Threads

/// True in one lane of a converged warp (always the same one while the warp stays converged).
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}"
               : "=r"(elected));
  return elected != 0;
}

/// This thread's warp in its block, known to the compiler as uniform over the warp.
__device__ __forceinline__ int warp_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
}

/// Gives registers back, or takes them, for all warps of a warpgroup; a multiple of 8 in [24, 256].
template <int Count>
__device__ __forceinline__ void drop_registers_to() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void raise_registers_to() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

/// Named barriers 1..15 (0 is __syncthreads): `threads` of both kinds together, a multiple of 32.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/// barrier_sync() that also tells whether `value` is true in all of the threads.
__device__ __forceinline__ bool barrier_all(int id, int threads, bool value) {
  uint32_t all;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nbarrier.cta.red.and.pred p, %1, %2, p;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(all)
      : "r"(id), "r"(threads), "r"(static_cast<uint32_t>(value))
      : "memory");
  return all != 0;
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Programmatic dependent launch

/// Blocks until all earlier kernels of the stream have finished and their writes are visible.
/// No-op in a kernel launched without LaunchShape::overlap.
__device__ __forceinline__ void wait_for_predecessor() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
/// The next kernel may start once every block has said this (or ended). It still waits in
/// wait_for_predecessor() for the end of this kernel.
__device__ __forceinline__ void let_successor_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- Clusters

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// Orders nothing, and so waits for nothing: for "what I read has been used", not for handing over
/// data. An arrival that releases waits for all accesses of the thread to memory.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// All threads of all blocks of the cluster. A block whose shared memory others use must not end
/// before this.
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
/// The address, in the cluster's window, of `address` (shared_address) in block `rank`.
__device__ __forceinline__ uint32_t map_to_block(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// ---- mbarrier: phases count up; wait(parity) returns once the phase of that parity is complete.
// A fresh barrier is in phase 0: wait(0) blocks, wait(1) passes at once.

using Barrier = uint64_t;

__device__ __forceinline__ void barrier_init(Barrier* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
/// By the initialising thread, after its barrier_init()s and before __syncthreads (cluster_sync):
/// makes them visible to the copy engine and to the cluster.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/// At the same barrier of block `rank` of the cluster. Orders nothing but the barrier itself
/// between blocks (a release at cluster scope costs a fence): for "I have read it", not for handing
/// over data written by ordinary stores.
__device__ __forceinline__ void arrive_remote(Barrier* barrier, uint32_t rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                   map_to_block(shared_address(barrier), rank))
               : "memory");
}
/// As arrive_remote(), and this thread's writes before it are seen by whom wait_cluster() lets go.
__device__ __forceinline__ void arrive_remote_release(Barrier* barrier, uint32_t rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                   map_to_block(shared_address(barrier), rank))
               : "memory");
}
/// One arrival, and the phase lasts until `bytes` more have been copied.
__device__ __forceinline__ void arrive_expect(Barrier* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void expect_bytes(Barrier* barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
/// May sleep for a short time; true if the phase of this parity is complete.
__device__ __forceinline__ bool try_wait(Barrier* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ __forceinline__ void wait(Barrier* barrier, uint32_t parity) {
  while (!try_wait(barrier, parity)) {
  }
}
/// As wait(), for arrivals by arrive_remote_release(): acquires what other blocks of the cluster
/// released.
__device__ __forceinline__ void wait_cluster(Barrier* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

/// A float into the same place of block `rank`'s shared memory, counted as 4 bytes at the same
/// barrier there: whoever waits for that sees it.
__device__ __forceinline__ void send_remote(float* to, Barrier* barrier, uint32_t rank,
                                            float value) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                   map_to_block(shared_address(to), rank)),
               "r"(__float_as_uint(value)), "r"(map_to_block(shared_address(barrier), rank))
               : "memory");
}

// ---- Fences between ordinary accesses and the copy engine or wgmma

__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void fence_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// ---- TMA. One thread issues; coordinates are in elements, innermost dimension first. Loads count
// their bytes (the whole box, zeros outside the tensor included) at `barrier`. Shared memory is
// aligned to 128 bytes (1024 for a box with 128-byte swizzle).

/// L2 hints (encoded policies of createpolicy.fractional for whole accesses).
enum class L2Hint : uint64_t {
  kNormal = 0x1000000000000000,
  kEvictFirst = 0x12F0000000000000,
  kEvictLast = 0x14F0000000000000,
};

template <int R>
struct Coords {
  int at[R];
};
template <class... I>
Coords(I...) -> Coords<sizeof...(I)>;

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#define WEFT_TMA_LOAD(R, COORDS, BAR, HINT)                              \
  "cp.async.bulk.tensor." #R                                             \
  "d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint" \
  " [%0], [%1, " COORDS "], [" BAR "], " HINT ";"
#define WEFT_TMA_MULTICAST(R, COORDS, BAR, MASK, HINT)                                      \
  "cp.async.bulk.tensor." #R                                                                \
  "d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint" \
  " [%0], [%1, " COORDS "], [" BAR "], " MASK ", " HINT ";"
#define WEFT_TMA_STORE(R, COORDS, SRC) \
  "cp.async.bulk.tensor." #R "d.global.shared::cta.bulk_group [%0, " COORDS "], [" SRC "];"
#define WEFT_TMA_ADD(R, COORDS, SRC)                                                        \
  "cp.reduce.async.bulk.tensor." #R "d.global.shared::cta.add.tile.bulk_group [%0, " COORDS \
  "], [" SRC "];"

template <int R>
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, Barrier* barrier,
                                         const Coords<R>& c, L2Hint hint = L2Hint::kNormal) {
  static_assert(R >= 2 && R <= 5);
  const uint32_t to = shared_address(shared);
  const uint32_t bar = shared_address(barrier);
  const uint64_t policy = static_cast<uint64_t>(hint);
  if constexpr (R == 2) {
    asm volatile(WEFT_TMA_LOAD(2, "{%2, %3}", "%4", "%5")::"r"(to), "l"(map), "r"(c.at[0]),
                 "r"(c.at[1]), "r"(bar), "l"(policy)
                 : "memory");
  } else if constexpr (R == 3) {
    asm volatile(WEFT_TMA_LOAD(3, "{%2, %3, %4}", "%5", "%6")::"r"(to), "l"(map), "r"(c.at[0]),
                 "r"(c.at[1]), "r"(c.at[2]), "r"(bar), "l"(policy)
                 : "memory");
  } else if constexpr (R == 4) {
    asm volatile(WEFT_TMA_LOAD(4, "{%2, %3, %4, %5}", "%6", "%7")::"r"(to), "l"(map), "r"(c.at[0]),
                 "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]), "r"(bar), "l"(policy)
                 : "memory");
  } else {
    asm volatile(WEFT_TMA_LOAD(5, "{%2, %3, %4, %5, %6}", "%7", "%8")::"r"(to), "l"(map),
                 "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]), "r"(c.at[4]), "r"(bar),
                 "l"(policy)
                 : "memory");
  }
}

/// Into L2 alone. What a kernel writes later is seen by those who load it later.
__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map, const Coords<3>& c) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map),
               "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2])
               : "memory");
}

/// Into the same place of every block of the cluster in `blocks` (bit = rank), each of which counts
/// the bytes at its own barrier.
template <int R>
__device__ __forceinline__ void tma_load_multicast(void* shared, const CUtensorMap* map,
                                                   Barrier* barrier, const Coords<R>& c,
                                                   uint16_t blocks, L2Hint hint = L2Hint::kNormal) {
  static_assert(R == 2 || R == 3);
  const uint32_t to = shared_address(shared);
  const uint32_t bar = shared_address(barrier);
  const uint64_t policy = static_cast<uint64_t>(hint);
  if constexpr (R == 2) {
    asm volatile(WEFT_TMA_MULTICAST(2, "{%2, %3}", "%4", "%5", "%6")::"r"(to), "l"(map),
                 "r"(c.at[0]), "r"(c.at[1]), "r"(bar), "h"(blocks), "l"(policy)
                 : "memory");
  } else {
    asm volatile(WEFT_TMA_MULTICAST(3, "{%2, %3, %4}", "%5", "%6", "%7")::"r"(to), "l"(map),
                 "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(bar), "h"(blocks), "l"(policy)
                 : "memory");
  }
}

/// Elements of the box outside the tensor are not written. Part of the thread's bulk group.
template <int R>
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const void* shared,
                                          const Coords<R>& c) {
  static_assert(R >= 2 && R <= 4);
  const uint32_t from = shared_address(shared);
  if constexpr (R == 2) {
    asm volatile(WEFT_TMA_STORE(2, "{%1, %2}", "%3")::"l"(map), "r"(c.at[0]), "r"(c.at[1]),
                 "r"(from)
                 : "memory");
  } else if constexpr (R == 3) {
    asm volatile(WEFT_TMA_STORE(3, "{%1, %2, %3}", "%4")::"l"(map), "r"(c.at[0]), "r"(c.at[1]),
                 "r"(c.at[2]), "r"(from)
                 : "memory");
  } else {
    asm volatile(WEFT_TMA_STORE(4, "{%1, %2, %3, %4}", "%5")::"l"(map), "r"(c.at[0]), "r"(c.at[1]),
                 "r"(c.at[2]), "r"(c.at[3]), "r"(from)
                 : "memory");
  }
}

/// global += shared, elementwise in the map's type; deterministic while every element is added to
/// once a kernel.
__device__ __forceinline__ void tma_add(const CUtensorMap* map, const void* shared,
                                        const Coords<2>& c) {
  asm volatile(WEFT_TMA_ADD(2, "{%1, %2}", "%3")::"l"(map), "r"(c.at[0]), "r"(c.at[1]),
               "r"(shared_address(shared))
               : "memory");
}

#undef WEFT_TMA_LOAD
#undef WEFT_TMA_MULTICAST
#undef WEFT_TMA_STORE
#undef WEFT_TMA_ADD

/// `bytes` contiguous bytes (a multiple of 16; addresses too) without a map.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes,
                                          Barrier* barrier, L2Hint hint = L2Hint::kNormal) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(static_cast<uint64_t>(hint))
      : "memory");
}
__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}
/// Into L2 alone: a hint.
__device__ __forceinline__ void bulk_prefetch(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes));
}
/// Closes the thread's group of bulk stores.
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Until at most `Pending` groups of this thread have still to read their shared memory.
template <int Pending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
/// Until at most `Pending` groups are incomplete (their writes not yet done).
template <int Pending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- Copies by threads (cp.async): 16 bytes; with `bytes` < 16 the rest is filled with zeros.

__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- Matrices of 8x8 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8;
// lane l holds elements (l / 4, 2 (l % 4) + {0, 1}) of each ((2 (l % 4) + {0, 1}, l / 4) with
// `transposed`).

template <bool Transposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}
/// Two matrices, of lanes 0..15.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}
template <bool Transposed = false>
__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&r)[4]) {
  if constexpr (Transposed) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
        : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  }
}

/// Two floats rounded to bf16 (nearest even): `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// D (16x8 f32) += A (16x16 bf16) B (16x8 bf16), by one warp: mma.sync fragments.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace weft::cuda
