// out (+)= x W^T + bias for up to eight rows of x and a weight so small that latency is all: the
// blocks hold all of W at once and have it before the predecessor has ended.
// docs/kernels/gemm_decode.md.
//
// A block has 16 C rows of W, all of K (split 1 .. 8 ways among its warps as decode_kernel splits
// it among blocks and turns, with the same bits), and rows of x, which it norms itself where the
// product begins with a norm. Bytes: W once, x once a block (from L2). Bound: latency.

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/gemm_decode_math.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kMostThreads = 256;  ///< that multiply
constexpr int kMostRows = 8;
constexpr int kMostChains = 8;      ///< (rank, turn) pairs
constexpr int kMostPieces = 32;     ///< of W in a block
constexpr int kPiecesUnderWay = 2;  ///< at a time
constexpr int kNormUnits = 4;       ///< pieces of 256 values of x that a warp norms, at most
constexpr int kMostGroups = 16;     ///< of 256 values of a row of x that is normed
/// One row is attended to by one kernel, and W of the kernel behind comes while memory is idle: of
/// the one behind a product this small (o, which waits for attention), and behind gate and up.
constexpr int64_t kEarlyValues = int64_t{2} << 20;

struct FewParams {
  const std::byte* w;
  int64_t w_row_bytes;
  const void* x;  ///< bf16; f32 where it is normed
  int64_t x_stride;
  const float* norm;  ///< weight of the norm
  float eps;
  int n, rows, k;
  int up_row;  ///< kSiluMul: the row of W where `up` begins; else 0
  int chunks;  ///< of 16 rows of W in a block
  int split, turns;
  const float* bias;
  void* out;
  int64_t out_stride;
  Epilogue epilogue;
  bool out_f32;
  bool early;  ///< the next kernel may begin before the predecessor has ended

  /// Bytes from row to row of W and x in shared memory: eight rows lie in different banks.
  __host__ __device__ int pitch() const { return 2 * k + 16; }
  __host__ __device__ int sums_pitch() const { return 16 * chunks + 4; }
  __host__ __device__ int tile_bytes() const { return 16 * chunks * pitch(); }
  __host__ __device__ int sums_bytes() const { return split * turns * rows * sums_pitch() * 4; }
  __host__ __device__ int shared_bytes(bool normed) const {
    return tile_bytes() + rows * pitch() + sums_bytes() + kMostPieces * 8 + (normed ? 4 * k : 0) +
           (normed ? kMostRows * kMostGroups * 4 : 0);
  }
};

/// The rows of W of this block, by one warp: pieces of 16 rows and a rank's part of K, each with a
/// barrier. Few are under way at a time: what kernels that run meanwhile read must not queue behind
/// all of W.
__device__ __forceinline__ void load_rows(const FewParams& p, std::byte* tile, Barrier* barriers) {
  const int lane = static_cast<int>(threadIdx.x) % 32, half = 8 * p.chunks;
  const int block = static_cast<int>(blockIdx.x), steps = p.k / 64;
  const auto row_of = [&](int r) {
    if (p.up_row == 0) {
      const int row = 2 * block * half + r;
      return row < p.n ? row : -1;
    }
    const int column = block * half + r % half;
    return column < p.up_row ? column + r / half * p.up_row : -1;
  };
  for (int piece = 0; piece < p.chunks * p.split; ++piece) {
    const int chunk = piece / p.split, rank = piece - chunk * p.split;
    const int begin = steps * rank / p.split, end = steps * (rank + 1) / p.split;
    const int r = chunk * 16 + lane, row = lane < 16 ? row_of(r) : -1;
    const auto bytes = static_cast<uint32_t>((end - begin) * 128);
    const auto there = static_cast<uint32_t>(__popc(__ballot_sync(0xffffffffu, row >= 0)));
    if (piece >= kPiecesUnderWay) wait(barriers + piece - kPiecesUnderWay, 0);
    if (lane == 0) arrive_expect(barriers + piece, there * bytes);
    __syncwarp();
    if (row < 0 || bytes == 0) continue;
    bulk_load(tile + r * p.pitch() + begin * 128, p.w + row * p.w_row_bytes + begin * 128, bytes,
              barriers + piece, L2Hint::kEvictFirst);
  }
}

/// x as it is into shared memory.
__device__ __forceinline__ void load_x(const FewParams& p, std::byte* to, int threads) {
  const int pieces = p.k / 8;
  const auto* x = static_cast<const __nv_bfloat16*>(p.x);
  for (int first = static_cast<int>(threadIdx.x); first < p.rows * pieces; first += 4 * threads) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = first + j * threads, row = i / pieces;
      if (i < p.rows * pieces) {
        v[j] = *reinterpret_cast<const uint4*>(x + row * p.x_stride + (i - row * pieces) * 8);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = first + j * threads, row = i / pieces;
      if (i < p.rows * pieces) {
        *reinterpret_cast<uint4*>(to + row * p.pitch() + (i - row * pieces) * 16) = v[j];
      }
    }
  }
}

/// warp_sum() of the groups' sums, one a lane.
__device__ __forceinline__ float sum_groups(const float* sums, int groups) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (groups > 4) return warp_sum(lane < groups ? sums[lane] : 0.0f);
  // The butterfly's last two steps; the others add zeros.
  const float4 of = *reinterpret_cast<const float4*>(sums);
  return (of.x + (groups > 2 ? of.z : 0.0f)) +
         ((groups > 1 ? of.y : 0.0f) + (groups > 3 ? of.w : 0.0f));
}

/// The rms_norm of x into shared memory, with the bits of rms_norm() (norm.cu): a warp sums 256
/// values of a row, a butterfly the warps' sums.
__device__ __forceinline__ void norm_x(const FewParams& p, std::byte* to, const float* norm,
                                       float* partial, int threads) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = warp_index();
  const int warps = threads / 32, groups = (p.k + 255) / 256;
  const auto* x = static_cast<const float*>(p.x);
  Floats8 values[kNormUnits];
#pragma unroll
  for (int j = 0; j < kNormUnits; ++j) {
    const int unit = warp + j * warps, row = unit / groups;
    const int at = (unit - row * groups) * 256 + lane * 8;
    if (row < p.rows && at < p.k) values[j] = load8(x + row * p.x_stride + at);
  }
#pragma unroll
  for (int j = 0; j < kNormUnits; ++j) {
    const int unit = warp + j * warps, row = unit / groups;
    if (row >= p.rows) break;
    float sum = 0;
    if ((unit - row * groups) * 256 + lane * 8 < p.k) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(values[j].v[i], values[j].v[i], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) partial[row * kMostGroups + unit - row * groups] = sum;
  }
  barrier_sync(1, threads);
#pragma unroll
  for (int j = 0; j < kNormUnits; ++j) {
    const int unit = warp + j * warps, row = unit / groups;
    if (row >= p.rows) break;
    const float mean = sum_groups(partial + row * kMostGroups, groups) / static_cast<float>(p.k);
    const float scale = rsqrtf(mean + p.eps);
    const int at = (unit - row * groups) * 256 + lane * 8;
    if (at >= p.k) continue;
    const Floats8 weight = load8(norm + at);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[j].v[i] *= scale * weight.v[i];
    store8(reinterpret_cast<__nv_bfloat16*>(to + row * p.pitch()) + at, values[j]);
  }
}

/// A warp's fragments of 64 k.
struct Step {
  uint32_t a[4][4];
  uint32_t b[2][4];

  __device__ __forceinline__ void load(uint32_t w, uint32_t x) {
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices(b[i], x + 64u * static_cast<uint32_t>(i));
#pragma unroll
    for (int i = 0; i < 4; ++i) load_matrices(a[i], w + 32u * static_cast<uint32_t>(i));
  }
  __device__ __forceinline__ void add_to(float (&sum)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) mma_bf16(sum, a[i], b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]);
  }
};

/// out of a column: the sums of turns, then of ranks. All are loaded before the first is added.
__device__ __forceinline__ float sum_of(const FewParams& p, const float* sums, int row, int at) {
  const int next = p.rows * p.sums_pitch(), chains = p.split * p.turns;
  const float* from = sums + row * p.sums_pitch() + at;
  float of[kMostChains];
#pragma unroll
  for (int i = 0; i < kMostChains; ++i) of[i] = i < chains ? from[i * next] : 0.0f;
  float all = 0, sum = 0;
#pragma unroll
  for (int i = 0; i < kMostChains; ++i) {
    if (i >= chains) break;
    const bool first = p.turns == 1 || i % 2 == 0;
    sum = first ? of[i] : sum + of[i];
    if (p.turns == 2 && first) continue;
    all = i < p.turns ? sum : all + sum;
  }
  return all;
}

template <bool Normed>
__global__ void __launch_bounds__(kMostThreads + 32, 3)
    few_kernel(const __grid_constant__ FewParams p) {
  extern __shared__ __align__(128) std::byte shared[];
  std::byte* const x_tile = shared + p.tile_bytes();
  auto* const sums = reinterpret_cast<float*>(x_tile + p.rows * p.pitch());
  auto* const barriers = reinterpret_cast<Barrier*>(reinterpret_cast<std::byte*>(sums) +
                                                    (p.sums_bytes() + 15) / 16 * 16);
  auto* const partial = reinterpret_cast<float*>(barriers + kMostPieces);
  float* const norm = partial + kMostRows * kMostGroups;
  const int threads = static_cast<int>(blockDim.x) - 32, thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = warp_index();
  if (thread == 0) {
    for (int i = 0; i < p.chunks * p.split; ++i) barrier_init(barriers + i, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (thread >= threads) {
    load_rows(p, shared, barriers);
    wait_for_predecessor();
    return;
  }
  if constexpr (Normed) {
    for (int i = thread; i < p.k / 4; i += threads) {
      reinterpret_cast<float4*>(norm)[i] = reinterpret_cast<const float4*>(p.norm)[i];
    }
    barrier_sync(1, threads);
  }
  const int columns = p.up_row > 0 ? 8 * p.chunks : 16 * p.chunks;
  const int first = static_cast<int>(blockIdx.x) * columns;
  const int limit = p.up_row > 0 ? p.up_row : p.n;
  if (p.early) let_successor_begin();
  wait_for_predecessor();
  // Elsewhere not before: W of kernels further behind would delay what this one and the next ones
  // read.
  let_successor_begin();

  // The first of this thread's values that are added to is asked for before x.
  const auto old_at = [&](int i) {
    const int row = i / columns, column = first + i - row * columns;
    if (p.epilogue != Epilogue::kAdd || i >= p.rows * columns || column >= limit) return 0.0f;
    const int64_t at = row * p.out_stride + column;
    if (p.out_f32) return static_cast<const float*>(p.out)[at];
    return __uint_as_float(uint32_t{static_cast<const uint16_t*>(p.out)[at]} << 16);
  };
  const float first_old = old_at(thread);
  if constexpr (Normed) {
    norm_x(p, x_tile, norm, partial, threads);
  } else {
    load_x(p, x_tile, threads);
  }
  barrier_sync(1, threads);

  const int chain = warp / p.chunks, chunk = warp - chain * p.chunks;
  const int rank = chain / p.turns, turn = chain - rank * p.turns, steps = p.k / 64;
  const int begin = steps * rank / p.split + turn, end = steps * (rank + 1) / p.split;
  const uint32_t w = shared_address(shared) +
                     static_cast<uint32_t>((chunk * 16 + lane % 16) * p.pitch() + lane / 16 * 16);
  const uint32_t x = shared_address(x_tile) +
                     static_cast<uint32_t>(min(lane % 8, p.rows - 1) * p.pitch() + lane / 8 * 16);
  float sum[4] = {};
  wait(barriers + chunk * p.split + rank, 0);
  const auto load = [&](Step& step, int i) {
    const auto at = static_cast<uint32_t>(i) * 128;
    if (i < end) step.load(w + at, x + at);
  };
  Step even, odd;
  load(even, begin);
  for (int i = begin; i < end; i += 2 * p.turns) {
    load(odd, i + p.turns);
    even.add_to(sum);
    load(even, i + 2 * p.turns);
    if (i + p.turns < end) odd.add_to(sum);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = lane % 4 * 2 + i % 2;
    if (row >= p.rows) continue;
    sums[(chain * p.rows + row) * p.sums_pitch() + chunk * 16 + lane / 4 + i / 2 * 8] = sum[i];
  }
  barrier_sync(1, threads);

  for (int i = thread; i < p.rows * columns; i += threads) {
    const int row = i / columns, at = i - row * columns, column = first + at;
    if (column >= limit) continue;
    float value = sum_of(p, sums, row, at);
    if (p.bias != nullptr) value += p.bias[column];
    if (p.up_row > 0) {
      float up = sum_of(p, sums, row, columns + at);
      if (p.bias != nullptr) up += p.bias[p.up_row + column];
      value = silu_of(value) * up;
    }
    if (p.epilogue == Epilogue::kAdd) value += i == thread ? first_old : old_at(i);
    const int64_t to = row * p.out_stride + column;
    if (p.out_f32) {
      static_cast<float*>(p.out)[to] = value;
    } else {
      static_cast<uint16_t*>(p.out)[to] = static_cast<uint16_t>(pack_bf16(value, 0.0f));
    }
  }
}

FewParams few_params(const WeightShape& shape, Epilogue epilogue, const DecodeCut& cut) {
  FewParams p{};
  p.w_row_bytes = weight_row_bytes(shape);
  p.n = static_cast<int>(shape.n);
  p.k = static_cast<int>(shape.k);
  p.up_row = epilogue == Epilogue::kSiluMul ? static_cast<int>(shape.n / 2) : 0;
  p.chunks = cut.chunks;
  p.split = cut.split;
  p.turns = cut.turns;
  p.epilogue = epilogue;
  return p;
}

}  // namespace

int64_t decode_few_bytes(const WeightShape& shape, Epilogue epilogue, int64_t rows,
                         const DecodeCut& cut) {
  FewParams p = few_params(shape, epilogue, cut);
  p.rows = static_cast<int>(rows);
  return p.shared_bytes(/*normed=*/true) + 16;
}

bool decode_few_norms(const WeightShape& shape, int64_t rows, const DecodeCut& cut) {
  const int64_t groups = ceil_div(shape.k, 256);
  return groups <= kMostGroups && rows * groups <= kNormUnits * cut.chunks * cut.split * cut.turns;
}

void decode_few(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  const WeightShape& shape = gemm.weight->shape;
  FewParams p = few_params(shape, gemm.epilogue, cut);
  const bool normed = gemm.norm != nullptr;
  const TensorView& x = normed ? gemm.norm->x : gemm.x;
  p.w = gemm.weight->data;
  p.x = x.data;
  p.x_stride = x.stride[0];
  if (normed) {
    p.norm = gemm.norm->weight.ptr<float>();
    p.eps = gemm.norm->eps;
  }
  p.rows = static_cast<int>(x.dim(0));
  p.bias = gemm.bias.defined() ? gemm.bias.ptr<float>() : nullptr;
  p.out = gemm.out.data;
  p.out_stride = gemm.out.stride[0];
  p.out_f32 = gemm.out.dtype == DType::kF32;
  p.early = p.rows == 1 && (gemm.epilogue == Epilogue::kSiluMul ||
                            (gemm.epilogue == Epilogue::kAdd && shape.n * shape.k <= kEarlyValues));
  const int threads = 32 * cut.chunks * cut.split * cut.turns;
  CHECK(p.rows > 0 && p.rows <= kMostRows && p.k % 64 == 0 && x.dim(1) == shape.k &&
            x.stride[0] % 8 == 0 && threads <= kMostThreads &&
            cut.chunks * cut.split <= kMostPieces && cut.turns <= 2 &&
            cut.split * cut.turns <= kMostChains,
        "decode gemm: few rows");
  const int columns = (p.up_row > 0 ? 8 : 16) * cut.chunks;
  const LaunchShape at{
      .grid = static_cast<unsigned>(ceil_div(p.up_row > 0 ? p.up_row : p.n, columns)),
      .block = static_cast<unsigned>(threads + 32),
      .shared_bytes = static_cast<size_t>(p.shared_bytes(normed) + 16),
      .overlap = true};
  if (normed) {
    launch(stream, at, few_kernel<true>, p);
  } else {
    launch(stream, at, few_kernel<false>, p);
  }
}

}  // namespace weft::cuda
