// out = a b^T of e4m3 codes with f32 scales: a's of 1 x 128, b's of 16 x 128. Tile
// (128 Sub) x 128 x 128, persistent, one producer thread and two consumer warpgroups of 64 Sub
// rows. Each 128 of K is a chain of 4 wgmma, whose sum (64 x 128) is scaled and added to the f32
// total in registers while the other warpgroup multiplies. Bound: the tensor cores' fp8 rate.
// Results that become codes themselves (kCodes) have tiles of 64 Sub x (128 gate + 128 up): each
// warpgroup has half of the 128 columns that share a scale. Those of q, k and v (kPrepared) have a
// head a tile, which is normed, turned and, of k and v, stored into the cache.
// docs/kernels/gemm.md.

#include "base/align.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/gemm_fp8_scales.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

template <int Sub, Into To>
struct Layout {
  static constexpr bool kCodes = To == Into::kCodes;
  static constexpr int kRows = Sub * (kCodes ? 64 : 128);  // of a tile
  static constexpr int kColumnParts = kCodes ? 2 : 1;      // of kTileN
  static constexpr int kABytes = kRows * 128;
  static constexpr int kStageBytes = kABytes + kColumnParts * kBBytes;
  static constexpr int kStages = 196608 / kStageBytes;
  static constexpr int kStaging = kStages * kStageBytes;
  static constexpr int kBarriers = kStaging + 8 * kStagingBytes;
  static constexpr int kUnits = kBarriers + 2 * kStages * 8;
  static int bytes(int experts) { return kUnits + (experts + 1) * 4; }
  /// Columns of out that a tile has.
  __host__ __device__ static int columns(const GemmOutput& out) {
    return kColumnParts * (out.silu_mul ? kTileN / 2 : kTileN);
  }
};

/// Asks the L2 cache for a share of the f32 rows of a tile that will be added to, in each of
/// `steps` steps another one: a sum that has to wait for DRAM holds up staging memory. One thread.
template <int Rows>
__device__ __forceinline__ void prefetch_sums(const CUtensorMap* map, const Tile& tile, int column,
                                              int step, int steps) {
  constexpr int kAcross = kTileN / 32, kBoxes = Rows / 16 * kAcross;
  const int share = (kBoxes + steps - 1) / steps;
  const int end = min((step + 1) * share, kBoxes);
  for (int box = step * share; box < end; ++box) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map),
                 "r"(column + box % kAcross * 32), "r"(tile.row + box / kAcross * 16));
  }
}

template <int Sub, Into To>
__device__ __forceinline__ void produce(const CUtensorMap* a_map, const CUtensorMap* b_map,
                                        const CUtensorMap* out_map, const Params& p,
                                        uint8_t* shared) {
  using L = Layout<Sub, To>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int units = num_units<L::kRows>(p.space, first_unit);
  const int tile_columns = L::columns(p.out);
  Pipe pipe;
  for (int unit = static_cast<int>(blockIdx.x); unit < units; unit += static_cast<int>(gridDim.x)) {
    const Tile tile = tile_of<L::kRows>(p.space, first_unit, unit, 0);
    const int n = tile.column_tile * tile_columns;
    for (int step = 0; step < p.k_steps; ++step) {
      wait(empty + pipe.stage, pipe.parity ^ 1);
      Barrier* bar = full + pipe.stage;
      uint8_t* a = shared + pipe.stage * L::kStageBytes;
      uint8_t* b = a + L::kABytes;
      arrive_expect(bar, L::kColumnParts * kBBytes + p.a_bytes);
      const int k = step * kStep;
      tma_load(a, a_map, bar, Coords{k, tile.row});
#pragma unroll
      for (int part = 0; part < L::kColumnParts; ++part) {
        const int row = n + part * (kTileN / 2);
        tma_load(b, b_map, bar, Coords{k, row, tile.expert});
        tma_load(b + kBBytes / 2, b_map, bar, Coords{k, row + p.out.second_half, tile.expert});
        b += kBBytes;
      }
      if constexpr (Sub == 2 && To == Into::kRows) {
        if (p.out.add && !p.out.direct) {
          prefetch_sums<L::kRows>(out_map, tile, n, step, p.k_steps);
        }
      }
      pipe.next<L::kStages>();
    }
  }
}

/// Starts the product of 64 rows of a stage.
__device__ __forceinline__ void multiply(float (&part)[kTileN / 2], uint64_t a, uint64_t b) {
  hold(part);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kStep / 32; ++k) {
    Wgmma<kTileN>::e4m3(part, advance(a, 32 * k), advance(b, 32 * k), k != 0);
  }
  wgmma_commit();
}

constexpr int kExchange = 1;  // the barrier where the two warpgroups meet

/// silu(gate) * up of a warpgroup's 64 Sub rows and 64 columns as codes. `largest` is shared memory
/// of [2][64 Sub], in which the warpgroups tell each other the largest magnitudes of their rows.
template <int Sub>
__device__ __forceinline__ void store_as_codes(float (&act)[Sub][kTileN / 2], const Params& p,
                                               const Tile& tile, int column, float* largest) {
  const int warp = warp_index() - 4, group = warp / 4, lane = static_cast<int>(threadIdx.x) % 32;
  const int c = lane % 4, first = warp % 4 * 16 + lane / 4;
  float* own = largest + group * (64 * Sub) + first;
#pragma unroll
  for (int sub = 0; sub < Sub; ++sub) {
    float most[2] = {};
#pragma unroll
    for (int i = 0; i < kTileN / 4; i += 2) {
      float &low = act[sub][i], &high = act[sub][i + 1];
      round_to_bf16(low, high);
      if (column + i / 4 * 8 + 2 * c >= p.out.columns) low = high = 0.0f;
      most[i / 2 % 2] = fmaxf(most[i / 2 % 2], fmaxf(fabsf(low), fabsf(high)));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      most[half] = max_of_quad(most[half]);
      if (c == 0) own[64 * sub + 8 * half] = most[half];
    }
  }
  barrier_sync(kExchange, kConsumers);
#pragma unroll
  for (int sub = 0; sub < Sub; ++sub) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = first + 64 * sub + 8 * half, row = tile.row + at;
      const Fp8Scale scale = fp8_scale(fmaxf(largest[at], largest[64 * Sub + at]));
      const uint4 codes = codes_of_quad(
          [&](int j) {
            return make_float2(act[sub][4 * j + 2 * half], act[sub][4 * j + 2 * half + 1]);
          },
          scale.inverse, c);
      if (row >= tile.row_end) continue;
      if (column + 16 * c < p.out.columns) {
        *reinterpret_cast<uint4*>(p.codes.codes + row * p.codes.stride + column + 16 * c) = codes;
      }
      if (group == 0 && c == 0) {
        p.codes.scales[column / 128 * p.codes.scale_stride + row] = scale.scale;
      }
    }
  }
}

template <int Sub, Into To>
__device__ __forceinline__ void consume(const CUtensorMap* out_map, const Params& p,
                                        uint8_t* shared) {
  using L = Layout<Sub, To>;
  constexpr bool Codes = To == Into::kCodes;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int units = num_units<L::kRows>(p.space, first_unit);
  const int tile_columns = L::columns(p.out);
  const int warp = warp_index() - 4;  // of the consumers
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = warp / 4;  // warpgroup
  const int first_row = Codes ? 0 : group * (64 * Sub);
  uint8_t* staging = shared + L::kStaging + warp * kStagingBytes;
  const uint64_t a_rows = k_major_128(shared + first_row * 128);
  const uint64_t b_rows = k_major_128(shared + L::kABytes + (Codes ? group * kBBytes : 0));
  const auto release = [&](int stage) {
    if (lane == 0) arrive(empty + stage);
  };
  Pipe pipe;
  [[maybe_unused]] int turn = 0;
  for (int unit = static_cast<int>(blockIdx.x); unit < units; unit += static_cast<int>(gridDim.x)) {
    Tile tile = tile_of<L::kRows>(p.space, first_unit, unit, 0);
    const int column = tile.column_tile * tile_columns + (Codes ? group * (kTileN / 2) : 0);
    if (!Codes && (tile.row + first_row >= tile.row_end || column >= p.out.columns)) {
      // Keep step alone.
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
    const int warp_row = tile.row + first_row + warp % 4 * 16;
    Scales<Sub> scales(p, tile, warp_row, column);
    if constexpr (Sub == 2) {
      for (int step = 0; step < p.k_steps; ++step) {
        scales.next(step);
        wait(full + pipe.stage, pipe.parity);
        const uint64_t stage = static_cast<uint64_t>(pipe.stage * L::kStageBytes);
#pragma unroll
        for (int sub = 0; sub < Sub; ++sub) {
          float part[kTileN / 2];
          multiply(part, advance(a_rows, stage + 64 * 128 * sub), advance(b_rows, stage));
          const auto factors = scales.factors(sub);
          wgmma_wait<0>();
          hold(part);
          if (sub == Sub - 1) release(pipe.stage);
          scales.add(total[sub], part, factors);
        }
        pipe.next<L::kStages>();
      }
    } else {
      const auto start = [&](float(&part)[kTileN / 2]) {
        wait(full + pipe.stage, pipe.parity);
        const uint64_t stage = static_cast<uint64_t>(pipe.stage * L::kStageBytes);
        multiply(part, advance(a_rows, stage), advance(b_rows, stage));
      };
      const auto add = [&](float(&part)[kTileN / 2], int stage, int step) {
        scales.next(step);
        const auto factors = scales.factors(0);
        hold(part);
        release(stage);
        scales.add(total[0], part, factors);
      };
      const auto start_next_and_add = [&](float(&part)[kTileN / 2], float(&next)[kTileN / 2],
                                          int step) {
        const int stage = pipe.stage;
        pipe.next<L::kStages>();
        start(next);
        wgmma_wait<1>();
        add(part, stage, step);
      };
      float even[kTileN / 2], odd[kTileN / 2];
      start(even);
      int step = 0;
      for (; step + 2 < p.k_steps; step += 2) {
        start_next_and_add(even, odd, step);
        start_next_and_add(odd, even, step + 1);
      }
      if (step + 2 == p.k_steps) {
        start_next_and_add(even, odd, step);
        wgmma_wait<0>();
        add(odd, pipe.stage, step + 1);
      } else {
        wgmma_wait<0>();
        add(even, pipe.stage, step);
      }
      pipe.next<L::kStages>();
    }
    if constexpr (Codes) {
#pragma unroll
      for (int sub = 0; sub < Sub; ++sub) finish_values<kTileN>(total[sub], p.out, column);
      // By turns of tiles: what a warpgroup has not read yet is not written.
      store_as_codes<Sub>(total, p, tile, column,
                          reinterpret_cast<float*>(shared + L::kStaging) + turn);
      turn ^= 2 * 64 * Sub;
      continue;
    }
    tile.row = warp_row;
#pragma unroll
    for (int sub = 0; sub < Sub; ++sub) {
      finish_values<kTileN>(total[sub], p.out, column);
      if constexpr (To == Into::kPrepared) {
        if (prepare_head(total[sub], p.prepare, tile.column_tile, tile.row, tile.row_end)) {
          tile.row += 64;
          continue;
        }
      }
      store_rows<kTileN>(total[sub], p.out, tile, column, out_map, staging);
      tile.row += 64;
    }
  }
  if (lane == 0) bulk_wait<0>();
}

template <int Sub, Into To>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap a_map,
                const __grid_constant__ CUtensorMap b_map,
                const __grid_constant__ CUtensorMap out_map, const Params p) {
  using L = Layout<Sub, To>;
  extern __shared__ __align__(1024) uint8_t shared[];
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(full + L::kStages + i, kConsumers / 32);
    }
    fence_barrier_init();
    prefetch_map(&a_map);
    prefetch_map(&b_map);
    prefetch_map(&out_map);
  }
  wait_for_predecessor();
  let_successor_begin();
  count_units<L::kRows>(p.space, reinterpret_cast<int*>(shared + L::kUnits));
  __syncthreads();
  if (threadIdx.x < 128) {
    drop_registers_to<40>();
    if (threadIdx.x == 0) produce<Sub, To>(&a_map, &b_map, &out_map, p, shared);
  } else {
    raise_registers_to<232>();
    consume<Sub, To>(&out_map, p, shared);
  }
}

template <int Sub, Into To>
void launch_gemm(Stream& stream, const Gemm& g, const QuantizedRows& a, Params p) {
  using L = Layout<Sub, To>;
  const int tile_columns = L::columns(p.out);
  p.out.second_half = p.out.silu_mul ? p.out.columns : kTileN / 2;
  p.out.bias_half =
      p.out.silu_mul && g.bias_up > 0 ? static_cast<int>(g.bias_up) : p.out.second_half;
  p.space.column_tiles = (p.out.columns + tile_columns - 1) / tile_columns;
  const int64_t k = g.a.dim(1), rows = g.a.dim(0);
  const int64_t box_rows = std::min<int64_t>(L::kRows, (rows + 7) / 8 * 8);
  p.a_bytes = static_cast<int>(box_rows * 128);
  const CUtensorMap a_map =
      encode_map(a.codes, MatrixMap{.type = MapType::kE4M3,
                                    .rows = rows,
                                    .columns = k,
                                    .row_bytes = a.stride,
                                    .box_rows = static_cast<uint32_t>(box_rows),
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
  unsigned blocks = static_cast<unsigned>(num_processors());
  if (g.offsets == nullptr) {
    const int64_t units = (rows + L::kRows - 1) / (L::kRows)*p.space.column_tiles;
    blocks = static_cast<unsigned>(std::min<int64_t>(units, blocks));
  }
  const int experts = g.offsets != nullptr ? p.space.experts : 0;
  launch(stream,
         {.grid = blocks,
          .block = kThreads,
          .shared_bytes = static_cast<size_t>(L::bytes(experts)),
          .overlap = true},
         gemm_kernel<Sub, To>, a_map, b_map, map_of(p.out, rows), p);
}

/// Half a warp takes 128 columns of a row: lane l elements 8l .. 8l + 7.
__global__ void quantize_kernel(const __nv_bfloat16* x, int64_t x_stride, int k, QuantizedRows q) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t row = blockIdx.x;
  const int half = static_cast<int>(threadIdx.x) / 16, lane = static_cast<int>(threadIdx.x) % 16;
  const int blocks = (k + 127) / 128;
  const int per_pass = static_cast<int>(blockDim.x) / 16;
  for (int first = 0; first < blocks; first += per_pass) {
    const int column = (first + half) * 128 + lane * 8;
    Floats8 v = {};
    if (column < k) {  // rows are padded to 16 bytes; what lies past K does not count
      v = load8(x + row * x_stride + column);
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] = column + i < k ? v.v[i] : 0.0f;
    }
    store_codes(q, row, first + half, k, v);
  }
}

}  // namespace

int64_t quantized_rows_bytes(int64_t rows, int64_t k) {
  const int64_t blocks = (k + 127) / 128;
  return aligned(rows * ((k + 15) / 16 * 16) + blocks * ((rows + 3) / 4 * 4) * 4);
}

QuantizedRows quantized_rows_at(void* memory, int64_t rows, int64_t k) {
  QuantizedRows q;
  q.stride = (k + 15) / 16 * 16;
  q.scale_stride = (rows + 3) / 4 * 4;
  q.codes = static_cast<uint8_t*>(memory);
  q.scales = reinterpret_cast<float*>(q.codes + rows * q.stride);
  return q;
}

QuantizedRows quantize_rows(Stream& stream, const TensorView& x) {
  const int64_t rows = x.dim(0), k = x.dim(1), blocks = (k + 127) / 128;
  const QuantizedRows q =
      quantized_rows_at(stream.scratch().take(quantized_rows_bytes(rows, k)), rows, k);
  CHECK(x.dtype == DType::kBF16 && x.stride[0] % 8 == 0, "fp8: rows of bf16");
  const int64_t threads = std::min<int64_t>(256, (blocks + 1) / 2 * 32);
  launch(stream,
         {.grid = static_cast<unsigned>(rows),
          .block = static_cast<unsigned>(threads),
          .overlap = true},
         quantize_kernel, static_cast<const __nv_bfloat16*>(x.data), x.stride[0],
         static_cast<int>(k), q);
  return q;
}

BlockScales block_scales(const Weight& weight) {
  const WeightShape& shape = weight.shape;
  BlockScales b;
  b.scales = reinterpret_cast<const float*>(weight.data + fp8_scales_offset(shape));
  b.groups = static_cast<int>(ceil_div(shape.n, kFp8ScaleRows));
  b.row_stride = fp8_scales_stride(shape);
  b.expert_stride = weight.expert_bytes / 4;
  return b;
}

namespace {

/// Waves of tiles of `tile_rows` x `tile_columns` of the product's n.
double waves_of(int64_t rows, int64_t n, int64_t tile_rows, int64_t tile_columns) {
  const int64_t tiles = ceil_div(rows, tile_rows) * ceil_div(n, tile_columns);
  return static_cast<double>(ceil_div(tiles, num_processors()));
}
/// A wave of the small tile takes so much of one of the large tile (measured).
constexpr double kSmallTile = 0.56;

bool takes_small_tiles(const Gemm& g) {
  const int64_t rows = g.a.dim(0);
  if (g.offsets != nullptr) return rows / g.experts < 192;
  return kSmallTile * waves_of(rows, g.n, 128, kTileN) <= waves_of(rows, g.n, 256, kTileN);
}

Params params_of(const Gemm& g, const QuantizedRows& a, const BlockScales& b) {
  CHECK(
      g.b_row_bytes % 16 == 0 && (g.epilogue != Epilogue::kSiluMul || g.n / 2 % kFp8ScaleRows == 0),
      "gemm_fp8: shape");
  Params p;
  p.space.rows = static_cast<int>(g.a.dim(0));
  p.space.experts = static_cast<int>(g.experts);
  p.space.offsets = g.offsets;
  p.k_steps = static_cast<int>((g.a.dim(1) + kStep - 1) / kStep);
  p.out = output_of(g);
  p.a_scales = a.scales;
  p.a_scale_stride = a.scale_stride;
  p.b = b;
  return p;
}

}  // namespace

void gemm_fp8(Stream& stream, const Gemm& g, const QuantizedRows& a, const BlockScales& b) {
  if (g.a.dim(0) == 0) return;
  const Params p = params_of(g, a, b);
  if (takes_small_tiles(g)) {
    launch_gemm<1, Into::kRows>(stream, g, a, p);
  } else {
    launch_gemm<2, Into::kRows>(stream, g, a, p);
  }
}

void gemm_fp8_quantized(Stream& stream, const Gemm& g, const QuantizedRows& a, const BlockScales& b,
                        const QuantizedRows& out) {
  CHECK(g.epilogue == Epilogue::kSiluMul && g.offsets == nullptr, "gemm_fp8: codes of SiluMul");
  if (g.a.dim(0) == 0) return;
  Params p = params_of(g, a, b);
  p.out.direct = true;  // no map of it
  p.codes = out;
  p.space.row_group = 16;
  launch_gemm<2, Into::kCodes>(stream, g, a, p);
}

void gemm_fp8_prepared(Stream& stream, const Gemm& g, const QuantizedRows& a, const BlockScales& b,
                       const QkvPrepareArgs& prepare) {
  if (g.a.dim(0) == 0) return;
  CHECK(prepared_product_supports(g, prepare), "gemm_fp8: heads that it does not prepare");
  Params p = params_of(g, a, b);
  p.prepare = prepare_params(prepare);
  launch_gemm<2, Into::kPrepared>(stream, g, a, p);
}

bool prepared_product_supports(const Gemm& g, const QkvPrepareArgs& prepare) {
  const int64_t q_heads = prepare.q.dim(1), kv_heads = prepare.k.dim(1);
  const auto of_out = [&](const TensorView& heads, int64_t first) {
    return heads.dim(2) == kPreparedDim && heads.stride[1] == kPreparedDim &&
           heads.data == g.out.columns(first * kPreparedDim, g.n).data;
  };
  return g.offsets == nullptr && g.epilogue == Epilogue::kStore && g.out.dtype == DType::kBF16 &&
         g.n == (q_heads + 2 * kv_heads) * kPreparedDim && of_out(prepare.q, 0) &&
         of_out(prepare.k, q_heads) && of_out(prepare.v, q_heads + kv_heads) &&
         prepare.rope.rotary_dim == kPreparedDim && prepare.rope.style == RopeStyle::kNeox &&
         !prepare.positions.triples.defined() && prepare.kv.shape.format == KvFormat::kBf16 &&
         !takes_small_tiles(g);
}

bool quantized_product_pays(const WeightShape& shape, int64_t rows) {
  // The kernel that quantises takes about as long as so many steps of a wave.
  constexpr double kQuantizeSteps = 4;
  const double with = waves_of(rows, shape.n, 128, 2 * kTileN);
  const double without = std::min(kSmallTile * waves_of(rows, shape.n, 128, kTileN),
                                  waves_of(rows, shape.n, 256, kTileN));
  return (with - without) * static_cast<double>(ceil_div(shape.k, kStep)) <= kQuantizeSteps;
}

}  // namespace weft::cuda
