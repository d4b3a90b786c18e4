// out (+)= x W^T + bias for 65 rows x and more, in decode arithmetic. docs/kernels/gemm_decode.md.
//
// A block has BN rows of W, up to MT = 128, 192 or 256 rows of x and one part of K: that of one
// (rank, turn) of the product for fewer rows (gemm_decode_kernel.h), whose sums it adds in the same
// order. W is the A operand of wgmma, a warpgroup 64 rows of it; x the B operand. One thread keeps
// a ring of stages of 64 k full by TMA, W before the predecessor has ended. The parts of a tile are
// a cluster: each adds up its share of the rows of x, which it reads from the others' shared
// memory. Or of each row of x only the first greatest of the block's columns is kept. Bytes: W
// once, x once a block from L2, (BN + MT) 128 a stage of BN x MT x 64 products. Bound: the memory
// and the tensor cores about alike at 256 rows.

#include <algorithm>

#include "kernels/cuda/best_of_parts.h"
#include "kernels/cuda/gemm_decode_kernel.h"
#include "kernels/cuda/sample_device.h"

namespace weft::cuda {
namespace {

constexpr int kStep = 64;  // k of a stage
constexpr int kSharedBytes = 226 * 1024;

template <int BN, int MT>
struct Layout {
  static constexpr int kThreads = 2 * BN;  // 64 rows of W a warpgroup
  static constexpr int kWeightBytes = BN * 128;
  static constexpr int kStageBytes = kWeightBytes + MT * 128;
  static constexpr int kStages = std::min(8, kSharedBytes / kStageBytes);
  static constexpr int kPitch = BN + 4;  // of the sums [MT][kPitch], in the memory of the ring
  static constexpr int kBarriers = std::max(kStages * kStageBytes, MT* kPitch * 4);
  static constexpr int kBytes = kBarriers + 2 * kStages * int{sizeof(Barrier)};
  static_assert(kBytes <= 227 * 1024);
};

struct Part {
  int first, stride, count;  ///< its stages of K
};
__device__ __forceinline__ Part part_of(const DecodeParams& p, int index) {
  const int rank = index / p.turns, turn = index % p.turns;
  const int begin = p.k_steps * rank / p.split;
  const int all = p.k_steps * (rank + 1) / p.split - begin;
  return {begin + turn, p.turns, (all - turn + p.turns - 1) / p.turns};
}

/// By one thread.
template <int BN, int MT>
struct Loader {
  using L = Layout<BN, MT>;
  __device__ Loader(const DecodeParams& p, const DecodeWork& work, std::byte* memory, Barrier* full)
      : memory(memory), full(full), part(part_of(p, work.rank)), x_row(work.first_row) {
    row = work.tile * (p.up_row > 0 ? BN / 2 : BN);
    second = row + (p.up_row > 0 ? p.up_row : BN / 2);
  }
  /// Stage `i` of the part to place `stage` of the ring.
  __device__ __forceinline__ void load_w(const CUtensorMap* map, int stage, int i) const {
    std::byte* to = memory + stage * L::kStageBytes;
    const int k = (part.first + i * part.stride) * kStep;
    arrive_expect(full + stage, L::kStageBytes);
    tma_load(to, map, full + stage, Coords{k, row}, L2Hint::kEvictFirst);
    tma_load(to + L::kWeightBytes / 2, map, full + stage, Coords{k, second}, L2Hint::kEvictFirst);
  }
  __device__ __forceinline__ void load_x(const CUtensorMap* map, int stage, int i) const {
    tma_load(memory + stage * L::kStageBytes + L::kWeightBytes, map, full + stage,
             Coords{(part.first + i * part.stride) * kStep, x_row});
  }

  std::byte* memory;
  Barrier* full;
  Part part;
  int x_row, row, second;
};

/// The maps of W and x.
struct Maps {
  const CUtensorMap *w, *x;
};

/// The sums of a warpgroup's 64 rows of W and all rows of x, to shared memory as [MT][kPitch].
/// Thread 0 fills a stage again while the products of the next one run.
template <int BN, int MT>
__device__ __forceinline__ void multiply(const Maps& maps, const Loader<BN, MT>& loader) {
  using L = Layout<BN, MT>;
  std::byte* shared = loader.memory;
  Barrier *full = loader.full, *empty = full + L::kStages;
  const int count = loader.part.count;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = warp_index();
  float sum[MT / 2];
#pragma unroll
  for (float& s : sum) s = 0.0f;
  const std::byte* rows = shared + warp / 4 * 64 * 128;
  int stage = 0, before = L::kStages - 1;
  uint32_t phase = 0;
  for (int i = 0; i < count; ++i) {
    wait(full + stage, phase);
    const uint64_t a = k_major_128(rows + stage * L::kStageBytes);
    const uint64_t x = k_major_128(shared + stage * L::kStageBytes + L::kWeightBytes);
    hold(sum);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kStep / 16; ++j) {
      Wgmma<MT>::bf16(sum, advance(a, 32u * j), advance(x, 32u * j), 1);
    }
    wgmma_commit();
    hold(sum);
    wgmma_wait<1>();
    const int next = i - 1 + L::kStages;
    if (i > 0 && next < count) {
      if (lane == 0) arrive(empty + before);
      if (threadIdx.x == 0) {
        wait(empty + before, stage == 0 ? phase ^ 1 : phase);
        loader.load_w(maps.w, before, next);
        loader.load_x(maps.x, before, next);
      }
      __syncwarp();
    }
    before = stage;
    if (++stage == L::kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
  wgmma_wait<0>();
  hold(sum);
  // All stages have been read: their memory takes the sums.
  barrier_sync(1, L::kThreads);
  float* to = reinterpret_cast<float*>(shared) + lane % 4 * 2 * L::kPitch + warp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < MT / 2; ++i) {
    to[(i / 4 * 8 + i % 2) * L::kPitch + i % 4 / 2 * 8] = sum[i];
  }
}

/// Adds up this part's share of the rows of x and stores it. All that some values are made of is
/// asked for before any of it is used: other blocks' sums and what they are added to are far away.
/// `Split`, `Turns`: of the product, known to the compiler; 0: any, its parts one after the other.
template <int BN, bool Gated, int Split, int Turns>
__device__ __forceinline__ void finish_parts(const DecodeParams& p, const DecodeWork& work,
                                             const std::byte* shared) {
  constexpr int kThreads = 2 * BN, kPitch = Layout<BN, 128>::kPitch;
  constexpr int kHalves = Gated ? 2 : 1, kColumns = BN / kHalves, kFours = kColumns / 4;
  constexpr int kBatch = 2, kParts = std::max(1, Split * Turns);
  const auto* sums = reinterpret_cast<const float*>(shared);
  const int parts = p.split * p.turns, limit = Gated ? p.up_row : p.n;
  const int share = (work.rows + parts - 1) / parts, first = work.rank * share;
  const int items = max(0, min(share, work.rows - first)) * kFours;
  const auto load = [&](int item, int half, int part) {
    const float* at = sums + (first + item / kFours) * kPitch + half * kColumns + item % kFours * 4;
    if constexpr (Split * Turns == 1) return *reinterpret_cast<const float4*>(at);
    return load_of_rank(at, part);
  };
  // Turns of a rank, then ranks.
  const auto add = [&](int split, int turns, auto&& part_at) {
    float4 v{};
#pragma unroll
    for (int rank = 0; rank < split; ++rank) {
      float4 mine = part_at(rank * turns);
#pragma unroll
      for (int turn = 1; turn < turns; ++turn) mine = mine + part_at(rank * turns + turn);
      v = rank == 0 ? mine : v + mine;
    }
    return v;
  };
  const auto out_at = [&](int item) {
    const int column = work.tile * kColumns + item % kFours * 4;
    return FourOut(p, work.first_row + first + item / kFours, column,
                   item < items ? min(4, limit - column) : 0);
  };
  for (int begin = static_cast<int>(threadIdx.x); begin < items; begin += kBatch * kThreads) {
    float4 v[kBatch][kHalves][kParts], old[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int item = min(begin + b * kThreads, items - 1);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        if constexpr (Split > 0) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) v[b][half][part] = load(item, half, part);
        } else {
          v[b][half][0] = add(p.split, p.turns, [&](int part) { return load(item, half, part); });
        }
      }
      if constexpr (!Gated) old[b] = out_at(begin + b * kThreads).old(p);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const FourOut out = out_at(begin + b * kThreads);
      if (out.count <= 0) continue;
      float4 sum[kHalves];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        sum[half] = v[b][half][0];
        if constexpr (kParts > 1) {
          sum[half] = add(Split, Turns, [&](int part) { return v[b][half][part]; });
        }
      }
      if constexpr (Gated) {
        gate_four(p, out.column, out.count, sum[0], sum[1]);
        old[b] = {};
      }
      out.store(p, sum[0], old[b]);
    }
  }
}

/// The first greatest of each row's sums, a thread a row, as keys to best[tile][rows].
template <int BN>
__device__ __forceinline__ void finish_best(const DecodeParams& p, const DecodeWork& work,
                                            const std::byte* shared, uint64_t* best) {
  const int row = static_cast<int>(threadIdx.x);
  if (row >= work.rows) return;
  const float* sums = reinterpret_cast<const float*>(shared) + row * Layout<BN, 128>::kPitch;
  const int column = work.tile * BN;
  Best own;
  if (column + BN <= p.n) {
    // Fours are compared as one; the first greatest is looked for in the first greatest four.
    int four = 0;
#pragma unroll 8
    for (int i = 0; i < BN; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(sums + i);
      const float most = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
      const auto finite = [](float x) { return x < __builtin_huge_valf(); };  // not of NaN either
      own.invalid |= !(finite(v.x) && finite(v.y) && finite(v.z) && finite(v.w));
      if (most > own.logit) {
        own.logit = most;
        four = i;
      }
    }
    own.logit = kMinusInfinity;
    for (int i = four; i < four + 4; ++i) own.take(sums[i], column + i);
  } else {
    for (int i = 0; column + i < p.n; ++i) own.take(sums[i], column + i);
  }
  best[int64_t{work.tile} * p.rows + work.first_row + row] = own.key();
}

/// finish_parts() of the product's cut.
template <int BN, bool Gated>
__device__ __forceinline__ void finish(const DecodeParams& p, const DecodeWork& work,
                                       const std::byte* shared) {
  if (p.split == 1 && p.turns == 1) {
    finish_parts<BN, Gated, 1, 1>(p, work, shared);
  } else if (p.split == 1 && p.turns == 2) {
    finish_parts<BN, Gated, 1, 2>(p, work, shared);
  } else if (p.split == 2 && p.turns == 2) {
    finish_parts<BN, Gated, 2, 2>(p, work, shared);
  } else {
    finish_parts<BN, Gated, 0, 0>(p, work, shared);
  }
}

/// OnlyBest: of a product in one part; out is not written, but best (finish_best()).
template <int BN, int MT, bool OnlyBest>
__global__ void __launch_bounds__(2 * BN, 1)
    decode_many_kernel(const __grid_constant__ CUtensorMap w_map,
                       const __grid_constant__ CUtensorMap x_map,
                       const __grid_constant__ DecodeParams p, uint64_t* best) {
  using L = Layout<BN, MT>;
  extern __shared__ __align__(1024) std::byte shared[];
  auto* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  const int parts = p.split * p.turns, block = static_cast<int>(blockIdx.x);
  DecodeWork work{};
  work.rank = block % parts;
  work.first_row = block / parts % p.row_tiles * MT;
  work.tile = block / parts / p.row_tiles;
  work.rows = min(p.rows - work.first_row, MT);
  const Loader<BN, MT> loader(p, work, shared, full);
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(full + L::kStages + i, L::kThreads / 32);
    }
    fence_barrier_init();
    prefetch_map(&x_map);
  }
  __syncthreads();
  let_successor_begin();
  if (threadIdx.x == 0) {
    const int at_once = min(L::kStages, loader.part.count);
    for (int i = 0; i < at_once; ++i) loader.load_w(&w_map, i, i);
    wait_for_predecessor();
    for (int i = 0; i < at_once; ++i) loader.load_x(&x_map, i, i);
  }
  __syncwarp();
  multiply<BN, MT>({&w_map, &x_map}, loader);
  wait_for_predecessor();
  if constexpr (OnlyBest) {
    static_assert(2 * BN >= MT);
    __syncthreads();
    finish_best<BN>(p, work, shared, best);
    return;
  }
  if (parts > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (p.up_row > 0) {
    finish<BN, true>(p, work, shared);
  } else {
    finish<BN, false>(p, work, shared);
  }
  // Whose sums others read must not leave.
  if (parts > 1) cluster_sync();
}

template <int BN, int MT>
int launch_many(Stream& stream, const DecodeGemm& gemm, DecodeParams p, uint64_t* best) {
  using L = Layout<BN, MT>;
  const WeightShape& shape = gemm.weight->shape;
  const bool gated = p.up_row > 0;
  const CUtensorMap w_map =
      encode_map(gemm.weight->data, MatrixMap{.rows = shape.n,
                                              .columns = shape.k,
                                              .row_bytes = weight_row_bytes(shape),
                                              .box_rows = BN / 2,
                                              .box_columns = kStep});
  const CUtensorMap x_map = encode_map(gemm.x.data, MatrixMap{.rows = p.rows,
                                                              .columns = shape.k,
                                                              .row_bytes = gemm.x.stride[0] * 2,
                                                              .box_rows = MT,
                                                              .box_columns = kStep});
  p.row_tiles = static_cast<int>(ceil_div(p.rows, MT));
  const int64_t tiles = ceil_div(gated ? p.up_row : shape.n, gated ? BN / 2 : BN);
  const int parts = p.split * p.turns;
  launch(stream,
         {.grid = static_cast<unsigned>(tiles * p.row_tiles * parts),
          .block = L::kThreads,
          .shared_bytes = L::kBytes,
          .cluster = static_cast<unsigned>(parts),
          .overlap = true},
         best != nullptr ? decode_many_kernel<BN, MT, true> : decode_many_kernel<BN, MT, false>,
         w_map, x_map, p, best);
  return static_cast<int>(tiles);
}

/// Returns the tiles of columns. `best`: null, or where finish_best() puts its keys.
int multiply_many(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut, uint64_t* best) {
  const WeightShape& shape = gemm.weight->shape;
  CHECK(gemm.groups == nullptr, "decode gemm: groups");
  const DecodeParams p = decode_params(gemm, cut, kStep);
  const int64_t rows = gemm.x.dim(0);
  const int64_t row_tiles = ceil_div(rows, 256), each = ceil_div(rows, row_tiles);
  // Rounds of the processors, of which clusters of more than two leave some empty; beside its rows
  // of W a block has those of x to load.
  const auto cost = [&](int64_t width) {
    const int64_t blocks = ceil_div(shape.n, width) * row_tiles * cut.split * cut.turns;
    return ceil_div(blocks, cut.split * cut.turns > 2 ? 112 : 132) * (width + 64);
  };
  const auto run = [&]<int MT>() {
    return cost(128) < cost(192) ? launch_many<128, MT>(stream, gemm, p, best)
                                 : launch_many<192, MT>(stream, gemm, p, best);
  };
  if (each <= 128) return run.template operator()<128>();
  if (each <= 192) return run.template operator()<192>();
  return run.template operator()<256>();
}

}  // namespace

bool decode_takes_many(const WeightShape& shape, int64_t rows, const DecodeCut& cut) {
  return shape.format == WeightFormat::kBf16 && shape.experts == 1 && rows > 64 &&
         shape.n >= 2048 && shape.k % kStep == 0 &&
         shape.k / kStep >= int64_t{cut.split} * cut.turns && cut.split * cut.turns <= 8;
}

void decode_many(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  multiply_many(stream, gemm, cut, nullptr);
}

bool decode_takes_best(const DecodeGemm& gemm, const DecodeCut& cut) {
  const int64_t rows = gemm.x.dim(0), n = gemm.weight->shape.n;
  return decode_takes_many(gemm.weight->shape, rows, cut) && cut.chunks == 0 &&
         gemm.groups == nullptr && cut.split * cut.turns == 1 &&
         gemm.epilogue == Epilogue::kStore && !gemm.bias.defined() &&
         gemm.out.dtype == DType::kF32 && gemm.out.contiguous() &&
         reinterpret_cast<uintptr_t>(gemm.out.data) % alignof(uint64_t) == 0 &&
         ceil_div(n, 128) * rows * int64_t{sizeof(uint64_t)} <= gemm.out.bytes();
}

BestOfParts decode_best(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  CHECK(decode_takes_best(gemm, cut), "decode gemm: the best of each row");
  auto* best = static_cast<uint64_t*>(gemm.out.data);
  return {best, multiply_many(stream, gemm, cut, best), gemm.x.dim(0)};
}

}  // namespace weft::cuda
