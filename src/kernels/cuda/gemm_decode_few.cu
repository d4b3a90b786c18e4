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

// `One`: of one row. Its chain of kernels is all latency, and code that runs once costs what it is
// long: nothing is divided there, nothing is counted.

/// x as it is into shared memory.
template <bool One>
__device__ __forceinline__ void load_x(const FewParams& p, std::byte* to, int threads) {
  constexpr int kAtOnce = One ? 2 : 4;
  const int pieces = p.k / 8, all = One ? pieces : p.rows * pieces;
  const auto* x = static_cast<const __nv_bfloat16*>(p.x);
  for (int first = static_cast<int>(threadIdx.x); first < all; first += kAtOnce * threads) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = first + j * threads, row = One ? 0 : i / pieces;
      if (i < all) {
        v[j] = *reinterpret_cast<const uint4*>(x + row * p.x_stride + (i - row * pieces) * 8);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = first + j * threads, row = One ? 0 : i / pieces;
      if (i < all) {
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
/// values of a row, a butterfly the warps' sums. `One`: each warp at most 256 values.
template <bool One>
__device__ __forceinline__ void norm_x(const FewParams& p, std::byte* to, const float* norm,
                                       float* partial, int threads) {
  constexpr int kUnits = One ? 1 : kNormUnits;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = warp_index();
  const int warps = threads / 32, groups = (p.k + 255) / 256;
  const auto* x = static_cast<const float*>(p.x);
  struct Place {
    int row, group, column;
    bool there;
  };
  const auto place = [&](int j) {
    const int unit = warp + j * warps;
    const int row = One ? (unit < groups ? 0 : 1) : unit / groups, group = unit - row * groups;
    const int column = group * 256 + lane * 8;
    return Place{row, group, column, row < p.rows && column < p.k};
  };
  Floats8 values[kUnits];
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    const Place at = place(j);
    if (at.there) values[j] = load8(x + at.row * p.x_stride + at.column);
  }
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    const Place at = place(j);
    if (at.row >= p.rows) break;
    float sum = 0;
    if (at.there) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(values[j].v[i], values[j].v[i], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) partial[at.row * kMostGroups + at.group] = sum;
  }
  barrier_sync(1, threads);
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    const Place at = place(j);
    if (at.row >= p.rows) break;
    const float mean = sum_groups(partial + at.row * kMostGroups, groups) / static_cast<float>(p.k);
    const float scale = rsqrtf(mean + p.eps);
    if (!at.there) continue;
    const Floats8 weight = load8(norm + at.column);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[j].v[i] *= scale * weight.v[i];
    store8(reinterpret_cast<__nv_bfloat16*>(to + at.row * p.pitch()) + at.column, values[j]);
  }
}

/// A warp's fragments of 64 k.
struct Step {
  uint32_t a[4][4];
  uint32_t b[2][4];

  __device__ __forceinline__ void load_w(uint32_t w) {
#pragma unroll
    for (int i = 0; i < 4; ++i) load_matrices(a[i], w + 32u * static_cast<uint32_t>(i));
  }
  __device__ __forceinline__ void load_x(uint32_t x) {
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices(b[i], x + 64u * static_cast<uint32_t>(i));
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
  if (p.turns == 2) {
#pragma unroll
    for (int i = 0; i < kMostChains / 2; ++i) of[i] = of[2 * i] + of[2 * i + 1];
  }
  float all = of[0];
#pragma unroll
  for (int i = 1; i < kMostChains; ++i) all = i < p.split ? all + of[i] : all;
  return all;
}

/// Of `out`.
struct Value {
  int row, column;
  int64_t at;
  bool there;
};

template <bool Normed, bool One>
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
  const int chain = warp / p.chunks, chunk = warp - chain * p.chunks;
  const int rank = chain / p.turns, turn = chain - rank * p.turns, steps = p.k / 64;
  const int begin = steps * rank / p.split + turn, end = steps * (rank + 1) / p.split;
  const uint32_t w = shared_address(shared) +
                     static_cast<uint32_t>((chunk * 16 + lane % 16) * p.pitch() + lane / 16 * 16);
  const uint32_t x = shared_address(x_tile) +
                     static_cast<uint32_t>(min(lane % 8, p.rows - 1) * p.pitch() + lane / 8 * 16);
  // Of this thread's values the first is found, and what it is added to asked for, before x.
  const auto place = [&](int i) {
    const int row = One ? 0 : i / columns, column = first + i - row * columns;
    return Value{row, column, row * p.out_stride + column,
                 i < (One ? columns : p.rows * columns) && column < limit};
  };
  const auto old_of = [&](const Value& to) {
    if (p.epilogue != Epilogue::kAdd || !to.there) return 0.0f;
    if (p.out_f32) return static_cast<const float*>(p.out)[to.at];
    return __uint_as_float(uint32_t{static_cast<const uint16_t*>(p.out)[to.at]} << 16);
  };
  const Value first_value = place(thread);
  if (p.early) let_successor_begin();
  wait_for_predecessor();
  // Of several rows not before: W of kernels further behind would delay what this one and the next
  // ones read. One row is attended to by one kernel, and W comes while memory is idle.
  let_successor_begin();

  const float first_old = old_of(first_value);
  if constexpr (Normed) {
    norm_x<One>(p, x_tile, norm, partial, threads);
  } else {
    load_x<One>(p, x_tile, threads);
  }

  float sum[4] = {};
  const auto load_w = [&](Step& step, int i) {
    if (i < end) step.load_w(w + static_cast<uint32_t>(i) * 128);
  };
  const auto load = [&](Step& step, int i) {
    if (i < end) step.load_x(x + static_cast<uint32_t>(i) * 128);
    load_w(step, i);
  };
  Step even, odd;
  // W has mostly been there for long, x not before all threads have written theirs.
  wait(barriers + chunk * p.split + rank, 0);
  load_w(even, begin);
  barrier_sync(1, threads);
  if (begin < end) even.load_x(x + static_cast<uint32_t>(begin) * 128);
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

  const auto finish = [&](const Value& to, float old) {
    const int at = to.column - first;
    float value = sum_of(p, sums, to.row, at);
    if (p.bias != nullptr) value += p.bias[to.column];
    if (p.up_row > 0) {
      float up = sum_of(p, sums, to.row, columns + at);
      if (p.bias != nullptr) up += p.bias[p.up_row + to.column];
      value = silu_of(value) * up;
    }
    if (p.epilogue == Epilogue::kAdd) value += old;
    if (p.out_f32) {
      static_cast<float*>(p.out)[to.at] = value;
    } else {
      static_cast<uint16_t*>(p.out)[to.at] = static_cast<uint16_t>(pack_bf16(value, 0.0f));
    }
  };
  if (first_value.there) finish(first_value, first_old);
  if constexpr (!One) {
    for (int i = thread + threads; i < p.rows * columns; i += threads) {
      const Value value = place(i);
      if (value.there) finish(value, old_of(value));
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
  p.early = p.rows == 1;
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
  if (p.rows > 1 || (normed && p.k > 256 * (threads / 32))) {
    launch(stream, at, normed ? few_kernel<true, false> : few_kernel<false, false>, p);
  } else {
    launch(stream, at, normed ? few_kernel<true, true> : few_kernel<false, true>, p);
  }
}

}  // namespace weft::cuda
