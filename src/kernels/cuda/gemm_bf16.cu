// out = a b^T, f32 sums of bf16 products. Tile 128 x BN x 64, persistent; one producer thread keeps
// TMA loads in flight through a ring of stages, two consumer warpgroups multiply 64 x BN each
// (wgmma). Clusters of two blocks with tiles below each other share every tile of b (each loads
// half of it for both). Moves (128 + BN / cluster) * 128 bytes from L2 a step of
// 128 x BN x 64 products; bound: the tensor cores. docs/kernels/gemm.md.

#include "kernels/cuda/gemm_device.h"

namespace weft::cuda {
namespace {

constexpr int kStep = 64;                 // K of a stage: 128 bytes
constexpr int kABytes = kTileRows * 128;  // of a stage
constexpr int kConsumers = 256;           // threads
constexpr int kThreads = kConsumers + 128;

struct Params {
  TileSpace space;
  GemmOutput out;
  int k_steps = 0;
  int a_bytes = kABytes;  // that a stage loads: fewer rows are in one box, the rest stays as it was
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

template <int BN, int Cluster>
__device__ __forceinline__ void produce(const CUtensorMap* a_map, const CUtensorMap* b_map,
                                        const Params& p, uint8_t* shared) {
  using L = Layout<BN>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int rank = Cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int units = num_units<kTileRows * Cluster>(p.space, first_unit);
  const int tile_columns = p.out.silu_mul ? BN / 2 : BN;
  Pipe pipe;
  for (int unit = blockIdx.x / Cluster; unit < units; unit += gridDim.x / Cluster) {
    const Tile tile = tile_of<kTileRows * Cluster>(p.space, first_unit, unit, rank * kTileRows);
    const int n = tile.column_tile * tile_columns;
    for (int step = 0; step < p.k_steps; ++step) {
      wait(empty + pipe.stage, pipe.parity ^ 1);
      Barrier* bar = full + pipe.stage;
      uint8_t* a = shared + pipe.stage * L::kStageBytes;
      uint8_t* b = a + kABytes;
      arrive_expect(bar, L::kBBytes + p.a_bytes);
      const int k = step * kStep;
      tma_load(a, a_map, bar, Coords{k, tile.row});
      if constexpr (Cluster == 2) {
        tma_load_multicast(b + rank * (L::kBBytes / 2), b_map, bar,
                           Coords{k, n + rank * p.out.second_half, tile.expert}, 3);
      } else {
        tma_load(b, b_map, bar, Coords{k, n, tile.expert});
        tma_load(b + L::kBBytes / 2, b_map, bar, Coords{k, n + p.out.second_half, tile.expert});
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
  const int tile_columns = p.out.silu_mul ? BN / 2 : BN;
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
    Tile tile = tile_of<kTileRows * Cluster>(p.space, first_unit, unit, rank * kTileRows);
    const int column = tile.column_tile * tile_columns;
    tile.row += 16 * warp;
    finish_values<BN>(d, p.out, column);
    store_rows<BN>(d, p.out, tile, column, out_map, staging);
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

template <int BN, int Cluster>
void launch_gemm(Stream& stream, const Gemm& g, Params p) {
  const int tile_columns = p.out.silu_mul ? BN / 2 : BN;
  p.out.second_half = p.out.silu_mul ? p.out.columns : BN / 2;
  p.out.bias_half =
      p.out.silu_mul && g.bias_up > 0 ? static_cast<int>(g.bias_up) : p.out.second_half;
  p.space.column_tiles = (p.out.columns + tile_columns - 1) / tile_columns;
  p.space.row_group = 16 / Cluster;
  const int64_t k = g.a.dim(1);
  // Rows past the end cost the copy engine more than others: don't ask for them.
  const int64_t box_rows = std::min<int64_t>(kTileRows, (g.a.dim(0) + 7) / 8 * 8);
  p.a_bytes = static_cast<int>(box_rows * 128);
  const CUtensorMap a_map =
      encode_map(g.a.data, MatrixMap{.rows = g.a.dim(0),
                                     .columns = k,
                                     .row_bytes = g.a.stride[0] * 2,
                                     .box_rows = static_cast<uint32_t>(box_rows),
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
  const CUtensorMap out_map = map_of(p.out, g.out.dim(0));
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

struct Config {
  int columns, cluster;
  double cost;  ///< of one tile (measured), in tiles of 128 x 128 at the best rate
  void (*launch)(Stream&, const Gemm&, Params);
};

/// The configuration with the least time for all waves of tiles. All give the same bits.
void launch_best(Stream& stream, const Gemm& g, const Params& p) {
  static constexpr Config kConfigs[] = {{256, 1, 1.98, launch_gemm<256, 1>},
                                        {256, 2, 1.97, launch_gemm<256, 2>},
                                        {192, 1, 1.6, launch_gemm<192, 1>},
                                        {128, 1, 1.17, launch_gemm<128, 1>},
                                        {64, 1, 0.75, launch_gemm<64, 1>}};
  const Config* best = nullptr;
  double least = 0;
  for (const Config& c : kConfigs) {
    // The epilogue stores boxes of 64 columns; half of such a tile would end inside one.
    if (p.out.silu_mul && c.columns % 128 != 0) continue;
    const int64_t tile_columns = p.out.silu_mul ? c.columns / 2 : c.columns;
    const int64_t unit_rows = kTileRows * c.cluster;
    const int64_t units = (g.a.dim(0) + unit_rows - 1) / unit_rows *
                          ((p.out.columns + tile_columns - 1) / tile_columns);
    const int64_t at_once = num_processors() / c.cluster;
    const double cost = c.cost * static_cast<double>((units + at_once - 1) / at_once);
    if (best == nullptr || cost < least) {
      best = &c;
      least = cost;
    }
  }
  best->launch(stream, g, p);
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
  p.out = output_of(g);
  if (g.offsets != nullptr) {
    // Wide tiles where most experts fill their rows; halves of SiluMul end at boxes of 64 columns.
    if (rows >= g.experts * 224) return launch_gemm<256, 1>(stream, g, p);
    launch_gemm<128, 1>(stream, g, p);
  } else {
    launch_best(stream, g, p);
  }
}

}  // namespace weft::cuda
