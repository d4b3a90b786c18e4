// out[t] (+)= sum_j w[t,j] down_e(silu(gate_e x_t) * up_e x_t), e = ids[t,j], with prompt
// arithmetic: the (token, expert) pairs are sorted by expert on the device (stable, by compaction),
// their rows of x copied into that order, two grouped products run over it (gemm.h), and each
// token sums its rows in ascending expert id. Bytes besides the products': 2 copies of
// pairs x hidden bf16 and one read of them. docs/kernels/moe.md.

#include <algorithm>

#include "base/align.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tiles.h"
#include "kernels/cuda/moe_device.h"
#include "kernels/cuda/supports.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kSortThreads = 512;
constexpr int kIdsAThread = 8;
constexpr int kMaxTopK = 32;
constexpr int64_t kChunkBytes = int64_t{32} << 20;  // of experts made bf16

/// Sum over the block's threads before this one; `total` is that of all.
__device__ __forceinline__ int sum_before(int value, int* warp_sums, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += below;
  }
  __syncthreads();  // warp_sums may still be read
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kSortThreads / 32; ++w) {
    before += w < warp ? warp_sums[w] : 0;
    total += warp_sums[w];
  }
  return before + sum - value;
}

struct Sorted {
  int* offsets;   ///< [E + 1]
  int* token_of;  ///< [pairs] in sorted order
  int* place_of;  ///< [pairs] of pair (t, j) = t * top_k + j
};

/// Block e finds the pairs of expert e: their first place is the number of pairs of lower experts.
__global__ void __launch_bounds__(kSortThreads)
    sort_pairs(const int32_t* ids, int pairs, int top_k, Sorted sorted) {
  __shared__ int warp_sums[kSortThreads / 32];
  wait_for_predecessor();
  let_successor_begin();
  const int e = static_cast<int>(blockIdx.x);
  int lower = 0, equal = 0;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kSortThreads) {
    const int id = ids[i];
    lower += id < e;
    equal += id == e;
  }
  int first, count;
  sum_before(lower, warp_sums, first);
  sum_before(equal, warp_sums, count);
  if (threadIdx.x == 0) {
    sorted.offsets[e] = first;
    if (e == static_cast<int>(gridDim.x) - 1) sorted.offsets[e + 1] = first + count;
  }
  if (count == 0) return;
  for (int base = 0; base < pairs; base += kSortThreads * kIdsAThread) {
    const int begin = base + static_cast<int>(threadIdx.x) * kIdsAThread;
    uint32_t matches = 0;
#pragma unroll
    for (int i = 0; i < kIdsAThread; ++i) {
      if (begin + i < pairs && ids[begin + i] == e) matches |= 1u << i;
    }
    int found;
    int place = first + sum_before(__popc(matches), warp_sums, found);
    for (; matches != 0; matches &= matches - 1) {
      const int pair = begin + __ffs(static_cast<int>(matches)) - 1;
      sorted.token_of[place] = pair / top_k;
      sorted.place_of[pair] = place++;
    }
    first += found;
  }
}

/// One block a pair: out[place] = x[token], `vectors` of 16 bytes a row.
__global__ void gather_rows(const uint4* x, int64_t x_stride, const int* token_of, uint4* out,
                            int vectors) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t place = blockIdx.x;
  const uint4* from = x + token_of[place] * x_stride;
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += static_cast<int>(blockDim.x)) {
    out[place * vectors + i] = from[i];
  }
}

struct Combine {
  const uint16_t* y;     ///< [pairs, hidden] bf16 in sorted order
  const int* place_of;   ///< [T, top_k]
  const float* weights;  ///< [T, top_k]
  int64_t weights_stride;
  void* out;
  int64_t out_stride;
  int top_k, hidden;
  bool accumulate, f32;
};

/// One block a token. Ascending place is ascending expert.
__global__ void combine(const Combine c) {
  __shared__ int places[kMaxTopK];
  __shared__ float weights[kMaxTopK];
  wait_for_predecessor();
  let_successor_begin();
  const int64_t token = blockIdx.x;
  const int j = static_cast<int>(threadIdx.x);
  order_places(c.place_of + token * c.top_k, c.weights + token * c.weights_stride, c.top_k, places,
               weights);
  for (int column = 8 * j; column < c.hidden; column += 8 * static_cast<int>(blockDim.x)) {
    float sum[8] = {};
    for (int i = 0; i < c.top_k; ++i) {
      const uint4 raw =
          *reinterpret_cast<const uint4*>(c.y + int64_t{places[i]} * c.hidden + column);
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        sum[2 * v] = __fmaf_rn(weights[i], __uint_as_float(words[v] << 16), sum[2 * v]);
        sum[2 * v + 1] =
            __fmaf_rn(weights[i], __uint_as_float(words[v] & 0xffff0000u), sum[2 * v + 1]);
      }
    }
    if (c.f32) {
      float4* out =
          reinterpret_cast<float4*>(static_cast<float*>(c.out) + token * c.out_stride + column);
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        float4 value = {sum[4 * v], sum[4 * v + 1], sum[4 * v + 2], sum[4 * v + 3]};
        if (c.accumulate) {
          const float4 old = out[v];
          value = {old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w};
        }
        out[v] = value;
      }
    } else {
      uint4* out =
          reinterpret_cast<uint4*>(static_cast<uint16_t*>(c.out) + token * c.out_stride + column);
      if (c.accumulate) {
        const uint4 old = *out;
        const uint32_t words[4] = {old.x, old.y, old.z, old.w};
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          sum[2 * v] += __uint_as_float(words[v] << 16);
          sum[2 * v + 1] += __uint_as_float(words[v] & 0xffff0000u);
        }
      }
      *out = {pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]),
              pack_bf16(sum[6], sum[7])};
    }
  }
}

int64_t bf16_expert_bytes(const WeightShape& shape) {
  return shape.n * ceil_div(shape.k, 8) * 16;
}

/// Experts that are made bf16 at a time.
int64_t chunk_experts(const WeightShape& shape) {
  return std::clamp<int64_t>(kChunkBytes / bf16_expert_bytes(shape), 1, shape.experts);
}

/// Scratch memory of grouped().
int64_t grouped_scratch(const WeightShape& shape, Epilogue epilogue, int64_t pairs) {
  if (shape.format == WeightFormat::kBf16 || shape.format == WeightFormat::kF32) return 0;
  if (fp8_product_supports(shape, epilogue)) return quantized_rows_bytes(pairs, shape.k);
  if (code_product_supports(shape, epilogue)) return 0;
  return chunk_experts(shape) * bf16_expert_bytes(shape) + 256;
}

/// An expert product over rows in sorted order.
void grouped(Stream& stream, const Weight& weight, TensorView a, TensorView out, Epilogue epilogue,
             const int* offsets) {
  const WeightShape& shape = weight.shape;
  Gemm gemm;
  gemm.a = a;
  gemm.b = weight.data;
  gemm.n = shape.n;
  gemm.experts = shape.experts;
  gemm.b_row_bytes = weight_row_bytes(shape);
  gemm.b_expert_bytes = weight.expert_bytes;
  gemm.out = out;
  gemm.epilogue = epilogue;
  gemm.offsets = offsets;
  CHECK(shape.format != WeightFormat::kF32, "moe: experts in f32");
  if (shape.format == WeightFormat::kBf16) return gemm_bf16(stream, gemm);
  if (code_product_supports(shape, epilogue)) return gemm_int(stream, gemm, shape.format);
  ArenaScope scope(stream.scratch());
  if (fp8_product_supports(shape, epilogue)) {
    return gemm_fp8(stream, gemm, quantize_rows(stream, a), block_scales(weight));
  }
  const int64_t chunk = chunk_experts(shape);
  gemm.b_expert_bytes = bf16_expert_bytes(shape);
  gemm.b_row_bytes = gemm.b_expert_bytes / shape.n;
  auto* rows = static_cast<std::byte*>(stream.scratch().take(chunk * gemm.b_expert_bytes));
  gemm.b = rows;
  for (int64_t expert = 0; expert < shape.experts; expert += chunk) {
    gemm.experts = std::min(chunk, shape.experts - expert);
    dequantize(stream, weight,
               {.rows = shape.n,
                .expert = expert,
                .experts = gemm.experts,
                .out = rows,
                .out_rows = shape.n,
                .offsets = offsets});
    gemm.offsets = offsets + expert;
    gemm_bf16(stream, gemm);
  }
}

}  // namespace

int64_t moe_prompt_scratch(const WeightShape& gate_up, int64_t rows, int top_k) {
  const int64_t pairs = rows * top_k;
  const WeightShape down{gate_up.format, gate_up.k, gate_up.n / 2, gate_up.experts};
  return aligned((gate_up.experts + 1) * 4) + 2 * aligned(pairs * 4) +
         aligned(pairs * gate_up.k * 2) + aligned(pairs * gate_up.n) +
         std::max(grouped_scratch(gate_up, Epilogue::kSiluMul, pairs),
                  grouped_scratch(down, Epilogue::kStore, pairs));
}

void moe_prompt(Stream& stream, const MoeArgs& args) {
  const int64_t rows = args.x.dim(0), hidden = args.x.dim(1), inner = args.down->shape.k;
  const int64_t experts = args.gate_up->shape.experts;
  const int top_k = static_cast<int>(args.ids.dim(1));
  if (rows == 0) return;
  CHECK(args.ids.contiguous() && top_k <= kMaxTopK && experts <= kMaxExperts, "moe: ids");
  CHECK(
      hidden % 8 == 0 && inner % 8 == 0 && args.x.stride[0] % 8 == 0 && args.out.stride[0] % 8 == 0,
      "moe: rows of 16 bytes");
  const int64_t pairs = rows * top_k;
  ArenaScope scope(stream.scratch());
  const auto ints = [&](int64_t count) {
    return static_cast<int*>(stream.scratch().take(count * 4));
  };
  Sorted sorted;
  sorted.offsets = ints(experts + 1);
  sorted.token_of = ints(pairs);
  sorted.place_of = ints(pairs);
  // Holds the gathered rows, and once these are multiplied the results.
  const TensorView wide(stream.scratch().take(pairs * hidden * 2), DType::kBF16, {pairs, hidden});
  const TensorView act(stream.scratch().take(pairs * inner * 2), DType::kBF16, {pairs, inner});

  launch(stream, {.grid = static_cast<unsigned>(experts), .block = kSortThreads, .overlap = true},
         sort_pairs, static_cast<const int32_t*>(args.ids.ptr<int32_t>()), static_cast<int>(pairs),
         top_k, sorted);
  const int vectors = static_cast<int>(hidden / 8);
  const unsigned threads = static_cast<unsigned>(std::min(256, (vectors + 31) / 32 * 32));
  launch(stream, {.grid = static_cast<unsigned>(pairs), .block = threads, .overlap = true},
         gather_rows, static_cast<const uint4*>(args.x.data), args.x.stride[0] / 8,
         static_cast<const int*>(sorted.token_of), static_cast<uint4*>(wide.data), vectors);
  grouped(stream, *args.gate_up, wide, act, Epilogue::kSiluMul, sorted.offsets);
  grouped(stream, *args.down, act, wide, Epilogue::kStore, sorted.offsets);
  Combine c;
  c.y = static_cast<const uint16_t*>(wide.data);
  c.place_of = sorted.place_of;
  c.weights = args.weights.ptr<float>();
  c.weights_stride = args.weights.stride[0];
  c.out = args.out.data;
  c.out_stride = args.out.stride[0];
  c.top_k = top_k;
  c.hidden = static_cast<int>(hidden);
  c.accumulate = args.accumulate;
  c.f32 = args.out.dtype == DType::kF32;
  launch(stream, {.grid = static_cast<unsigned>(rows), .block = threads, .overlap = true}, combine,
         c);
}

}  // namespace weft::cuda
