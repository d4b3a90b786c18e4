// out = a b^T, f32 sums of bf16 products. Tile 128 x BN x 64, persistent; one producer thread keeps
// TMA loads in flight through a ring of stages, two consumer warpgroups multiply 64 x BN each
// (wgmma). Clusters of two blocks with tiles below each other share every tile of b (each loads
// half of it for both). Moves (128 + BN / cluster) * 128 bytes from L2 a step of
// 128 x BN x 64 products; bound: the tensor cores. docs/kernels/gemm.md.

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tiles.h"

namespace weft::cuda {
namespace {

constexpr int kStep = 64;                 // K of a stage: 128 bytes
constexpr int kABytes = kTileRows * 128;  // of a stage
constexpr int kConsumers = 256;           // threads
constexpr int kThreads = kConsumers + 128;
constexpr int kStagingBytes = 2 * 2048;  // of a consumer warp: two boxes 16 rows x 128 bytes

struct Params {
  TileSpace space;
  int columns = 0;  // of out
  int k_steps = 0;
  int second_half = 0;  // row of b (from the tile's first) where the tile's second half begins
  bool silu_mul = false, add = false, f32 = false;
  bool direct = false;  // out is not fit for TMA, or needs reading
  const float* bias = nullptr;
  void* out = nullptr;
  int64_t out_stride = 0;
};

template <int BN>
struct Layout {
  static constexpr int kBBytes = BN * 128;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStages = 196608 / kStageBytes;
  static constexpr int kStaging = kStages * kStageBytes;
  static constexpr int kBarriers = kStaging + 8 * kStagingBytes;
  static constexpr int kUnits = kBarriers + 2 * kStages * 8;
  static int bytes(int experts) { return kUnits + (experts + 1) * 4; }
};

struct Pipe {
  int stage = 0;
  uint32_t parity = 0;
  template <int Stages>
  __device__ __forceinline__ void next() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ float silu(float x) {
  return __fdividef(x, 1.0f + __expf(-x));
}

/// Adds the bias and multiplies the halves, in registers.
template <int BN>
__device__ __forceinline__ void finish_values(float (&d)[BN / 2], const Params& p, int column) {
  const int c = 2 * (static_cast<int>(threadIdx.x) % 4);
  if (p.bias != nullptr) {
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
      const int in_half = j < BN / 16 ? 8 * j : 8 * j - BN / 2;
      const int in_out = column + (p.silu_mul ? in_half : 8 * j) + c;
      const int n = column + in_half + (j < BN / 16 ? 0 : p.second_half) + c;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float bias = in_out + i < p.columns ? p.bias[n + i] : 0.0f;
        d[4 * j + i] += bias;
        d[4 * j + 2 + i] += bias;
      }
    }
  }
  if (p.silu_mul) {
#pragma unroll
    for (int i = 0; i < BN / 4; ++i) d[i] = silu(d[i]) * d[i + BN / 4];
  }
}

template <int BN>
__device__ __forceinline__ void store_direct(const float (&d)[BN / 2], const Params& p,
                                             const Tile& tile, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    if (p.silu_mul && j >= BN / 16) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = tile.row + lane / 4 + (i / 2) * 8;
      const int n = column + 8 * j + 2 * (lane % 4) + i % 2;
      if (row >= tile.row_end || n >= p.columns) continue;
      const int64_t at = row * p.out_stride + n;
      float value = d[4 * j + i];
      if (p.f32) {
        float* out = static_cast<float*>(p.out) + at;
        *out = p.add ? *out + value : value;
      } else {
        uint16_t* out = static_cast<uint16_t*>(p.out) + at;
        if (p.add) value += __uint_as_float(uint32_t{*out} << 16);
        *out = static_cast<uint16_t>(pack_bf16(value, 0.0f));
      }
    }
  }
}

/// One staged box of 16 rows x 128 bytes, from column `column` of out.
__device__ __forceinline__ void store_box(const CUtensorMap* map, const uint8_t* box,
                                          const Params& p, const Tile& tile, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (p.space.offsets == nullptr || tile.row + 16 <= tile.row_end) {
    fence_async_shared();
    __syncwarp();
    if (lane == 0) {
      if (p.add) {
        tma_add(map, box, Coords{column, tile.row});
      } else {
        tma_store(map, box, Coords{column, tile.row});
      }
      bulk_commit();
    }
    return;
  }
  __syncwarp();  // the last rows of an expert: those of the next one are not ours
  const int n = column + 8 * (lane % 8);
  for (int row = lane / 8; row < 16 && tile.row + row < tile.row_end; row += 4) {
    if (n >= p.columns) break;
    const uint4 value = *reinterpret_cast<const uint4*>(box + swizzled_128(row, 16 * (lane % 8)));
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + (tile.row + row) * p.out_stride + n) =
        value;
  }
}

/// The warp's 16 rows of a tile: `tile.row` is the first of them.
template <int BN>
__device__ __forceinline__ void store_rows(const float (&d)[BN / 2], const Params& p,
                                           const Tile& tile, int column, const CUtensorMap* map,
                                           uint8_t* staging) {
  if (tile.row >= tile.row_end) return;
  if (p.direct) {
    store_direct<BN>(d, p, tile, column);
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int end = min(p.columns, column + (p.silu_mul ? BN / 2 : BN));
  if (p.f32) {
#pragma unroll
    for (int box = 0; box < BN / 32; ++box) {
      if (column + 32 * box >= end) break;
      uint8_t* to = staging + (box & 1) * 2048;
      if (lane == 0) bulk_wait_read<1>();
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t byte = 32 * j + 8 * (lane % 4);
        const float* v = d + 16 * box + 4 * j;
        *reinterpret_cast<float2*>(to + swizzled_128(lane / 4, byte)) = {v[0], v[1]};
        *reinterpret_cast<float2*>(to + swizzled_128(lane / 4 + 8, byte)) = {v[2], v[3]};
      }
      store_box(map, to, p, tile, column + 32 * box);
    }
    return;
  }
#pragma unroll
  for (int box = 0; box < BN / 64; ++box) {
    if (column + 64 * box >= end) break;
    uint8_t* to = staging + (box & 1) * 2048;
    if (lane == 0) bulk_wait_read<1>();
    __syncwarp();
    // Lane l writes row l % 16 of columns 8 (l / 16) .. of each 16 x 16 piece.
    const uint32_t address = shared_address(to);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* v = d + 32 * box + 8 * j;
      const uint32_t r[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                             pack_bf16(v[6], v[7])};
      store_matrices(address + swizzled_128(lane % 16, 32 * j + 16 * (lane / 16)), r);
    }
    store_box(map, to, p, tile, column + 64 * box);
  }
}

template <int BN, int Cluster>
__device__ __forceinline__ void produce(const CUtensorMap* a_map, const CUtensorMap* b_map,
                                        const Params& p, uint8_t* shared) {
  using L = Layout<BN>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int rank = Cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int units = num_units<kTileRows * Cluster>(p.space, first_unit);
  const int tile_columns = p.silu_mul ? BN / 2 : BN;
  Pipe pipe;
  for (int unit = blockIdx.x / Cluster; unit < units; unit += gridDim.x / Cluster) {
    const Tile tile = tile_of<kTileRows * Cluster>(p.space, first_unit, unit, rank * kTileRows);
    const int n = tile.column_tile * tile_columns;
    for (int step = 0; step < p.k_steps; ++step) {
      wait(empty + pipe.stage, pipe.parity ^ 1);
      Barrier* bar = full + pipe.stage;
      uint8_t* a = shared + pipe.stage * L::kStageBytes;
      uint8_t* b = a + kABytes;
      arrive_expect(bar, L::kStageBytes);
      const int k = step * kStep;
      tma_load(a, a_map, bar, Coords{k, tile.row});
      if constexpr (Cluster == 2) {
        tma_load_multicast(b + rank * (L::kBBytes / 2), b_map, bar,
                           Coords{k, n + rank * p.second_half, tile.expert}, 3);
      } else {
        tma_load(b, b_map, bar, Coords{k, n, tile.expert});
        tma_load(b + L::kBBytes / 2, b_map, bar, Coords{k, n + p.second_half, tile.expert});
      }
      pipe.next<L::kStages>();
    }
  }
}

template <int BN, int Cluster>
__device__ __forceinline__ void consume(const CUtensorMap* out_map, const Params& p,
                                        uint8_t* shared) {
  using L = Layout<BN>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int rank = Cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int units = num_units<kTileRows * Cluster>(p.space, first_unit);
  const int tile_columns = p.silu_mul ? BN / 2 : BN;
  const int warp = warp_index() - 4;  // of the consumers
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint8_t* a_rows = shared + (warp / 4) * (64 * 128);
  uint8_t* staging = shared + L::kStaging + warp * kStagingBytes;
  const auto release = [&](int stage) {
    if constexpr (Cluster == 2) {
      if (lane < 2) arrive_remote(empty + stage, static_cast<uint32_t>(lane));
    } else {
      if (lane == 0) arrive(empty + stage);
    }
  };
  Pipe pipe;
  for (int unit = blockIdx.x / Cluster; unit < units; unit += gridDim.x / Cluster) {
    Tile tile = tile_of<kTileRows * Cluster>(p.space, first_unit, unit, rank * kTileRows);
    if (tile.row + warp / 4 * 64 >= tile.row_end) {  // no row of this warpgroup's: keep step alone
      for (int step = 0; step < p.k_steps; ++step) {
        wait(full + pipe.stage, pipe.parity);
        release(pipe.stage);
        pipe.next<L::kStages>();
      }
      continue;
    }
    float d[BN / 2];
    int last = 0;
    for (int step = 0; step < p.k_steps; ++step) {
      wait(full + pipe.stage, pipe.parity);
      const uint8_t* stage = a_rows + pipe.stage * L::kStageBytes;
      const uint64_t a = k_major_128(stage);
      const uint64_t b = k_major_128(shared + pipe.stage * L::kStageBytes + kABytes);
      hold(d);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStep / 16; ++k) {
        Wgmma<BN>::bf16(d, advance(a, 32 * k), advance(b, 32 * k), (step | k) != 0);
      }
      wgmma_commit();
      hold(d);
      if (step > 0) {  // the products of the last stage are done: it may be filled again
        wgmma_wait<1>();
        release(last);
      }
      last = pipe.stage;
      pipe.next<L::kStages>();
    }
    wgmma_wait<0>();
    hold(d);
    release(last);
    const int column = tile.column_tile * tile_columns;
    tile.row += 16 * warp;
    finish_values<BN>(d, p, column);
    store_rows<BN>(d, p, tile, column, out_map, staging);
  }
  if (lane == 0) bulk_wait<0>();
}

template <int BN, int Cluster>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap a_map,
                const __grid_constant__ CUtensorMap b_map,
                const __grid_constant__ CUtensorMap out_map, const Params p) {
  using L = Layout<BN>;
  extern __shared__ __align__(1024) uint8_t shared[];
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(full + L::kStages + i, Cluster * kConsumers / 32);
    }
    fence_barrier_init();
    prefetch_map(&a_map);
    prefetch_map(&b_map);
    prefetch_map(&out_map);
  }
  wait_for_predecessor();
  let_successor_begin();
  count_units<kTileRows * Cluster>(p.space, reinterpret_cast<int*>(shared + L::kUnits));
  if constexpr (Cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (threadIdx.x < 128) {
    drop_registers_to<40>();
    if (threadIdx.x == 0) produce<BN, Cluster>(&a_map, &b_map, p, shared);
  } else {
    raise_registers_to<232>();
    consume<BN, Cluster>(&out_map, p, shared);
  }
  // No block may end while its peer still loads into it or arrives at its barriers.
  if constexpr (Cluster > 1) {
    __syncwarp();
    cluster_sync();
  }
}

int num_processors() {
  static const int count = [] {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "device");
    return value;
  }();
  return count;
}

template <int BN, int Cluster>
void launch_gemm(Stream& stream, const Gemm& g, Params p) {
  const bool silu_mul = p.silu_mul;
  p.columns = static_cast<int>(silu_mul ? g.n / 2 : g.n);
  const int tile_columns = silu_mul ? BN / 2 : BN;
  p.second_half = silu_mul ? p.columns : BN / 2;
  p.space.column_tiles = (p.columns + tile_columns - 1) / tile_columns;
  const int64_t k = g.a.dim(1);
  const CUtensorMap a_map = encode_map(g.a.data, MatrixMap{.rows = g.a.dim(0),
                                                           .columns = k,
                                                           .row_bytes = g.a.stride[0] * 2,
                                                           .box_rows = kTileRows,
                                                           .box_columns = kStep});
  MapShape b;
  b.rank = 3;
  b.dims[0] = static_cast<uint64_t>(k);
  b.dims[1] = static_cast<uint64_t>(g.n);
  b.dims[2] = static_cast<uint64_t>(g.experts);
  b.stride_bytes[0] = static_cast<uint64_t>(g.b_row_bytes);
  b.stride_bytes[1] = static_cast<uint64_t>(g.experts > 1 ? g.b_expert_bytes : g.b_row_bytes);
  b.box[0] = kStep;
  b.box[1] = BN / 2;
  b.box[2] = 1;
  const CUtensorMap b_map = encode_map(g.b, b);
  CUtensorMap out_map = a_map;
  if (!p.direct) {
    const int size = p.f32 ? 4 : 2;
    out_map = encode_map(g.out.data, MatrixMap{.type = p.f32 ? MapType::kF32 : MapType::kBF16,
                                               .rows = g.out.dim(0),
                                               .columns = p.columns,
                                               .row_bytes = g.out.stride[0] * size,
                                               .box_rows = 16,
                                               .box_columns = static_cast<uint32_t>(128 / size)});
  }
  unsigned blocks = static_cast<unsigned>(num_processors() / Cluster * Cluster);
  if (g.offsets == nullptr) {
    const int64_t units =
        (g.a.dim(0) + kTileRows * Cluster - 1) / (kTileRows * Cluster) * p.space.column_tiles;
    blocks = static_cast<unsigned>(std::min<int64_t>(units * Cluster, blocks));
  }
  const int experts = g.offsets != nullptr ? p.space.experts : 0;
  launch(stream,
         {.grid = blocks,
          .block = kThreads,
          .shared_bytes = static_cast<size_t>(Layout<BN>::bytes(experts)),
          .cluster = Cluster,
          .overlap = true},
         gemm_kernel<BN, Cluster>, a_map, b_map, out_map, p);
}

/// Time of a launch in units of 128 x 128 tiles; the wide tile is the faster one a product.
double cost(const Gemm& g, int bn, int cluster) {
  const int64_t columns = g.epilogue == Epilogue::kSiluMul ? g.n / 2 : g.n;
  const int64_t tile_columns = g.epilogue == Epilogue::kSiluMul ? bn / 2 : bn;
  const int64_t unit_rows = kTileRows * cluster;
  const int64_t units =
      (g.a.dim(0) + unit_rows - 1) / unit_rows * ((columns + tile_columns - 1) / tile_columns);
  const int64_t waves = (units + num_processors() / cluster - 1) / (num_processors() / cluster);
  return static_cast<double>(waves) * (bn == 256 ? 2.0 : 1.15);
}

}  // namespace

void gemm_bf16(Stream& stream, const Gemm& g) {
  const int64_t rows = g.a.dim(0);
  if (rows == 0) return;
  CHECK(g.a.dtype == DType::kBF16 && g.a.stride[0] % 8 == 0 &&
            reinterpret_cast<uintptr_t>(g.a.data) % 16 == 0,
        "gemm: rows of bf16, aligned to 16 bytes");
  Params p;
  p.space.rows = static_cast<int>(rows);
  p.space.experts = static_cast<int>(g.experts);
  p.space.offsets = g.offsets;
  p.k_steps = static_cast<int>((g.a.dim(1) + kStep - 1) / kStep);
  p.silu_mul = g.epilogue == Epilogue::kSiluMul;
  p.add = g.epilogue == Epilogue::kAdd;
  p.f32 = g.out.dtype == DType::kF32;
  p.bias = g.bias.defined() ? g.bias.ptr<float>() : nullptr;
  p.out = g.out.data;
  p.out_stride = g.out.stride[0];
  const int64_t out_row_bytes = g.out.stride[0] * (p.f32 ? 4 : 2);
  p.direct = (p.add && !p.f32) || out_row_bytes % 16 != 0 ||
             reinterpret_cast<uintptr_t>(g.out.data) % 16 != 0;
  if (g.offsets != nullptr) {
    CHECK(!p.direct && !p.f32 && g.experts <= kMaxExperts && p.bias == nullptr,
          "gemm: grouped problems write bf16");
    launch_gemm<128, 1>(stream, g, p);
  } else if (cost(g, 256, 2) <= cost(g, 128, 1)) {
    launch_gemm<256, 2>(stream, g, p);
  } else {
    launch_gemm<128, 1>(stream, g, p);
  }
}

}  // namespace weft::cuda
