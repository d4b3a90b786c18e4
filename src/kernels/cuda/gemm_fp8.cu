// out = a b^T of e4m3 codes with f32 scales: a's of 1 x 128, b's of 128 x 128. Tile
// (128 Sub) x 128 x 128, persistent, one producer thread and two consumer warpgroups of 64 Sub
// rows. Each 128 of K is a chain of 4 wgmma, whose sum (64 x 128) is scaled and added to the f32
// total in registers while the other warpgroup multiplies. Clusters of two blocks beside each other
// share the rows of a. Bound: the tensor cores' fp8 rate. docs/kernels/gemm.md.

#include "kernels/cuda/gemm_device.h"

namespace weft::cuda {
namespace {

constexpr int kStep = 128;  // K of a stage: 128 bytes
constexpr int kTileN = 128;
constexpr int kBBytes = kTileN * 128;
constexpr int kConsumers = 256;
constexpr int kThreads = kConsumers + 128;

struct Params {
  TileSpace space;
  GemmOutput out;
  int k_steps = 0;
  const float* a_scales = nullptr;
  int64_t a_scale_stride = 0;
  BlockScales b;
};

template <int Sub>
struct Layout {
  static constexpr int kABytes = Sub * 128 * 128;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStages = 196608 / kStageBytes;
  static constexpr int kStaging = kStages * kStageBytes;
  static constexpr int kBarriers = kStaging + 8 * kStagingBytes;
  static constexpr int kUnits = kBarriers + 2 * kStages * 8;
  static int bytes(int experts) { return kUnits + (experts + 1) * 4; }
};

template <int Sub, int Cluster>
__device__ __forceinline__ void produce(const CUtensorMap* a_map, const CUtensorMap* b_map,
                                        const Params& p, uint8_t* shared) {
  using L = Layout<Sub>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int rank = Cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int units = num_units<kTileRows * Sub>(p.space, first_unit);
  const int tile_columns = p.out.silu_mul ? kTileN / 2 : kTileN;
  Pipe pipe;
  for (int unit = blockIdx.x / Cluster; unit < units; unit += gridDim.x / Cluster) {
    const Tile tile = tile_of<kTileRows * Sub>(p.space, first_unit, unit, 0);
    const int n = (tile.column_tile * Cluster + rank) * tile_columns;
    for (int step = 0; step < p.k_steps; ++step) {
      wait(empty + pipe.stage, pipe.parity ^ 1);
      Barrier* bar = full + pipe.stage;
      uint8_t* a = shared + pipe.stage * L::kStageBytes;
      uint8_t* b = a + L::kABytes;
      arrive_expect(bar, L::kStageBytes);
      const int k = step * kStep;
      if constexpr (Cluster == 2) {  // this block's half of the rows, for both
        tma_load_multicast(a + rank * (L::kABytes / 2), a_map, bar,
                           Coords{k, tile.row + rank * (Sub * 64)}, 3);
      } else {
        tma_load(a, a_map, bar, Coords{k, tile.row});
      }
      tma_load(b, b_map, bar, Coords{k, n, tile.expert});
      tma_load(b + kBBytes / 2, b_map, bar, Coords{k, n + p.out.second_half, tile.expert});
      pipe.next<L::kStages>();
    }
  }
}

template <int Sub, int Cluster>
__device__ __forceinline__ void consume(const CUtensorMap* out_map, const Params& p,
                                        uint8_t* shared) {
  using L = Layout<Sub>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int rank = Cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int units = num_units<kTileRows * Sub>(p.space, first_unit);
  const int tile_columns = p.out.silu_mul ? kTileN / 2 : kTileN;
  const int warp = warp_index() - 4;  // of the consumers
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = warp / 4 * (64 * Sub);  // of the warpgroup
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
    Tile tile = tile_of<kTileRows * Sub>(p.space, first_unit, unit, 0);
    const int column = (tile.column_tile * Cluster + rank) * tile_columns;
    if (tile.row + first_row >= tile.row_end || column >= p.out.columns) {  // keep step alone
      for (int step = 0; step < p.k_steps; ++step) {
        wait(full + pipe.stage, pipe.parity);
        release(pipe.stage);
        pipe.next<L::kStages>();
      }
      continue;
    }
    float total[Sub][kTileN / 2];
#pragma unroll
    for (int sub = 0; sub < Sub; ++sub) {
#pragma unroll
      for (int i = 0; i < kTileN / 2; ++i) total[sub][i] = 0.0f;
    }
    // Scales of this thread's rows (two of each 64) and of both halves of the columns; those of the
    // next step are under way while one multiplies. Rows outside read the last one's.
    const int own_row = tile.row + first_row + warp % 4 * 16 + lane / 4;
    const float* a_scale[2 * Sub];
#pragma unroll
    for (int i = 0; i < 2 * Sub; ++i) {
      a_scale[i] = p.a_scales + min(own_row + i / 2 * 64 + i % 2 * 8, tile.row_end - 1);
    }
    const float* b_scale = p.b.scales + tile.expert * p.b.expert_stride;
    const float* b_low = b_scale + column / 128 * p.b.row_stride;
    const float* b_high =
        b_scale +
        (p.out.silu_mul ? (column + p.out.second_half) / 128 : column / 128) * p.b.row_stride;
    float next_a[2 * Sub], next_low = __ldg(b_low), next_high = __ldg(b_high);
#pragma unroll
    for (int i = 0; i < 2 * Sub; ++i) next_a[i] = __ldg(a_scale[i]);
    for (int step = 0; step < p.k_steps; ++step) {
      float scale_low[2 * Sub], scale_high[2 * Sub];
#pragma unroll
      for (int i = 0; i < 2 * Sub; ++i) {
        scale_low[i] = next_a[i] * next_low;
        scale_high[i] = next_a[i] * next_high;
      }
      if (step + 1 < p.k_steps) {
        next_low = __ldg(b_low + step + 1);
        next_high = __ldg(b_high + step + 1);
#pragma unroll
        for (int i = 0; i < 2 * Sub; ++i) {
          next_a[i] = __ldg(a_scale[i] + (step + 1) * p.a_scale_stride);
        }
      }
      wait(full + pipe.stage, pipe.parity);
      const uint8_t* stage = shared + pipe.stage * L::kStageBytes;
      const uint64_t b = k_major_128(stage + L::kABytes);
#pragma unroll
      for (int sub = 0; sub < Sub; ++sub) {
        const uint64_t a = k_major_128(stage + (first_row + 64 * sub) * 128);
        float part[kTileN / 2];
        hold(part);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kStep / 32; ++k) {
          Wgmma<kTileN>::e4m3(part, advance(a, 32 * k), advance(b, 32 * k), k != 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        hold(part);
        if (sub == Sub - 1) release(pipe.stage);
#pragma unroll
        for (int i = 0; i < kTileN / 2; ++i) {
          const int row = 2 * sub + i % 4 / 2;
          total[sub][i] =
              __fmaf_rn(part[i], i < kTileN / 4 ? scale_low[row] : scale_high[row], total[sub][i]);
        }
      }
      pipe.next<L::kStages>();
    }
    tile.row += first_row + warp % 4 * 16;
#pragma unroll
    for (int sub = 0; sub < Sub; ++sub) {
      finish_values<kTileN>(total[sub], p.out, column);
      store_rows<kTileN>(total[sub], p.out, tile, column, out_map, staging);
      tile.row += 64;
    }
  }
  if (lane == 0) bulk_wait<0>();
}

template <int Sub, int Cluster>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap a_map,
                const __grid_constant__ CUtensorMap b_map,
                const __grid_constant__ CUtensorMap out_map, const Params p) {
  using L = Layout<Sub>;
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
  count_units<kTileRows * Sub>(p.space, reinterpret_cast<int*>(shared + L::kUnits));
  if constexpr (Cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (threadIdx.x < 128) {
    drop_registers_to<40>();
    if (threadIdx.x == 0) produce<Sub, Cluster>(&a_map, &b_map, p, shared);
  } else {
    raise_registers_to<232>();
    consume<Sub, Cluster>(&out_map, p, shared);
  }
  if constexpr (Cluster > 1) {  // as in gemm_bf16.cu
    __syncwarp();
    cluster_sync();
  }
}

template <int Sub, int Cluster>
void launch_gemm(Stream& stream, const Gemm& g, const QuantizedRows& a, Params p) {
  const int tile_columns = (p.out.silu_mul ? kTileN / 2 : kTileN) * Cluster;
  p.out.second_half = p.out.silu_mul ? p.out.columns : kTileN / 2;
  p.space.column_tiles = (p.out.columns + tile_columns - 1) / tile_columns;
  const int64_t k = g.a.dim(1), rows = g.a.dim(0);
  const CUtensorMap a_map =
      encode_map(a.codes, MatrixMap{.type = MapType::kE4M3,
                                    .rows = rows,
                                    .columns = k,
                                    .row_bytes = a.stride,
                                    .box_rows = static_cast<uint32_t>(kTileRows * Sub / Cluster),
                                    .box_columns = kStep});
  MapShape b;
  b.type = MapType::kE4M3;
  b.rank = 3;
  b.dims[0] = static_cast<uint64_t>(k);
  b.dims[1] = static_cast<uint64_t>(g.n);
  b.dims[2] = static_cast<uint64_t>(g.experts);
  b.stride_bytes[0] = static_cast<uint64_t>(g.b_row_bytes);
  b.stride_bytes[1] = static_cast<uint64_t>(g.experts > 1 ? g.b_expert_bytes : g.b_row_bytes);
  b.box[0] = kStep;
  b.box[1] = kTileN / 2;
  b.box[2] = 1;
  const CUtensorMap b_map = encode_map(g.b, b);
  unsigned blocks = static_cast<unsigned>(num_processors() / Cluster * Cluster);
  if (g.offsets == nullptr) {
    const int64_t units = (rows + kTileRows * Sub - 1) / (kTileRows * Sub) * p.space.column_tiles;
    blocks = static_cast<unsigned>(std::min<int64_t>(units * Cluster, blocks));
  }
  const int experts = g.offsets != nullptr ? p.space.experts : 0;
  launch(stream,
         {.grid = blocks,
          .block = kThreads,
          .shared_bytes = static_cast<size_t>(Layout<Sub>::bytes(experts)),
          .cluster = Cluster,
          .overlap = true},
         gemm_kernel<Sub, Cluster>, a_map, b_map, map_of(p.out, rows), p);
}

/// Half a warp takes 128 columns of a row: lane l elements 8l .. 8l + 7.
__global__ void quantize_kernel(const uint16_t* x, int64_t x_stride, int k, QuantizedRows q) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t row = blockIdx.x;
  const int half = static_cast<int>(threadIdx.x) / 16, lane = static_cast<int>(threadIdx.x) % 16;
  const int blocks = (k + 127) / 128;
  const int per_pass = static_cast<int>(blockDim.x) / 16;
  for (int first = 0; first < blocks; first += per_pass) {
    const int block = first + half;
    const int column = block * 128 + lane * 8;
    float v[8] = {};
    if (column < k) {  // rows are padded to 16 bytes; what lies past K does not count
      const uint4 raw = *reinterpret_cast<const uint4*>(x + row * x_stride + column);
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t bits = i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u;
        v[i] = column + i < k ? __uint_as_float(bits) : 0.0f;
      }
    }
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    }
    const bool zero = largest < 1e-30f;
    const float inverse = zero ? 0.0f : __fdiv_rn(448.0f, largest);
    if (column < k) {
      uint32_t codes[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint16_t low, high;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
            : "=h"(low)
            : "f"(v[4 * i + 1] * inverse), "f"(v[4 * i] * inverse));
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
            : "=h"(high)
            : "f"(v[4 * i + 3] * inverse), "f"(v[4 * i + 2] * inverse));
        codes[i] = uint32_t{low} | uint32_t{high} << 16;
      }
      *reinterpret_cast<uint2*>(q.codes + row * q.stride + column) = {codes[0], codes[1]};
    }
    if (lane == 0 && block < blocks) {
      q.scales[block * q.scale_stride + row] = zero ? 0.0f : __fdiv_rn(largest, 448.0f);
    }
  }
}

}  // namespace

int64_t quantized_rows_bytes(int64_t rows, int64_t k) {
  const int64_t blocks = (k + 127) / 128;
  return rows * ((k + 15) / 16 * 16) + 64 + blocks * ((rows + 3) / 4 * 4) * 4 + 64;
}

QuantizedRows quantize_rows(Stream& stream, const TensorView& x) {
  const int64_t rows = x.dim(0), k = x.dim(1), blocks = (k + 127) / 128;
  QuantizedRows q;
  q.stride = (k + 15) / 16 * 16;
  q.codes = static_cast<uint8_t*>(stream.scratch().take(rows * q.stride));
  q.scale_stride = (rows + 3) / 4 * 4;
  q.scales = static_cast<float*>(stream.scratch().take(blocks * q.scale_stride * 4));
  CHECK(x.dtype == DType::kBF16 && x.stride[0] % 8 == 0, "fp8: rows of bf16");
  const int64_t threads = std::min<int64_t>(256, (blocks + 1) / 2 * 32);
  launch(stream,
         {.grid = static_cast<unsigned>(rows),
          .block = static_cast<unsigned>(threads),
          .overlap = true},
         quantize_kernel, static_cast<const uint16_t*>(x.data), x.stride[0], static_cast<int>(k),
         q);
  return q;
}

void gemm_fp8(Stream& stream, const Gemm& g, const QuantizedRows& a, const BlockScales& b) {
  const int64_t rows = g.a.dim(0);
  if (rows == 0) return;
  CHECK(g.b_row_bytes % 16 == 0 && (g.epilogue != Epilogue::kSiluMul || g.n / 2 % 64 == 0),
        "gemm_fp8: shape");
  Params p;
  p.space.rows = static_cast<int>(rows);
  p.space.experts = static_cast<int>(g.experts);
  p.space.offsets = g.offsets;
  p.k_steps = static_cast<int>((g.a.dim(1) + kStep - 1) / kStep);
  p.out = output_of(g);
  p.a_scales = a.scales;
  p.a_scale_stride = a.scale_stride;
  p.b = b;
  const int64_t tiles = (rows + 255) / 256 * ((g.n + 255) / 256);
  const bool small = g.offsets != nullptr ? rows / g.experts < 192 : tiles < num_processors() / 2;
  if (small) {
    launch_gemm<1, 1>(stream, g, a, p);
  } else {
    launch_gemm<2, 2>(stream, g, a, p);
  }
}

}  // namespace weft::cuda
