// Packing of weights on the device: plain copies where the layout is that of the checkpoint, else
// kernels that read the pinned pieces in place (over PCIe, each byte once) and convert or quantise.
// docs/kernels/gemm_decode.md.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/weight_layout.h"
#include "tensor/dtype.h"

namespace weft::cuda {
namespace {

/// A piece of a weight in pinned memory, and where its rows go.
struct Piece {
  const void* data;
  int64_t rows, k;
  int64_t first_row;  ///< of the weight
  int64_t padded;     ///< rows to write: `rows`, and for the last piece those that fill a tile
};

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}

/// Values [begin, begin + Count) of a row, zeros outside the piece. Count is a multiple of 8.
template <int Count, class T>
__device__ __forceinline__ void load_values(const Piece& piece, int64_t row, int64_t begin,
                                            float (&out)[Count]) {
  const T* from = static_cast<const T*>(piece.data) + row * piece.k + begin;
  constexpr int kVector = 16 / sizeof(T);
  if (row < piece.rows && piece.k % kVector == 0 && begin + Count <= piece.k) {
#pragma unroll
    for (int i = 0; i < Count; i += kVector) {
      const uint4 raw = *reinterpret_cast<const uint4*>(from + i);
      const T* values = reinterpret_cast<const T*>(&raw);
#pragma unroll
      for (int j = 0; j < kVector; ++j) out[i + j] = to_float(values[j]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    out[i] = row < piece.rows && begin + i < piece.k ? to_float(from[i]) : 0.0f;
  }
}

__device__ __forceinline__ void store_as(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store_as(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16(x);
}

/// Eight values a thread; `stride` elements of Out from row to row, a multiple of 8.
template <class In, class Out>
__global__ void convert_rows(const Piece piece, Out* out, int64_t stride) {
  const int64_t vectors = stride / 8, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < piece.rows * vectors;
       i += step) {
    const int64_t row = i / vectors, begin = i % vectors * 8;
    float values[8];
    load_values<8, In>(piece, row, begin, values);
    Out* to = out + (piece.first_row + row) * stride + begin;
#pragma unroll
    for (int j = 0; j < 8; ++j) store_as(to + j, values[j]);
  }
}

/// quantize.h's scale_bits on the device: the same bits.
__device__ __forceinline__ __half scale_of(float s) {
  constexpr float kMax = 65504.0f;
  return __float2half_rn(s > kMax ? kMax : (s > -kMax ? s : -kMax));
}
__device__ __forceinline__ int code_of(float x, float low, float high) {
  return static_cast<int>(rintf(x > high ? high : (x > low ? x : low)));
}

/// One group of 32 a thread, in the very arithmetic of quantize.h.
template <class In, bool Int8>
__global__ void quantize_groups(const Piece piece, uint8_t* out) {
  constexpr int kCodeBytes = Int8 ? kInt8CodeBytes : kInt4CodeBytes;
  const int64_t tiles = (piece.k + kQuantTile - 1) / kQuantTile, groups = tiles * 2;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < piece.padded * groups;
       i += step) {
    const int64_t row = i / groups, group = i % groups;
    float w[kWeightGroup];
    load_values<kWeightGroup, In>(piece, row, group * kWeightGroup, w);
    float amax = 0.0f, extreme = 0.0f;
#pragma unroll
    for (int j = 0; j < kWeightGroup; ++j) {
      if (fabsf(w[j]) > amax) {
        amax = fabsf(w[j]);
        extreme = w[j];
      }
    }
    const __half scale = scale_of(Int8 ? __fdiv_rn(amax, 127.0f) : __fdiv_rn(extreme, -8.0f));
    const float s = __half2float(scale);
    const float inverse = s != 0.0f ? __fdiv_rn(1.0f, s) : 0.0f;
    const int64_t n = piece.first_row + row;
    const int r = static_cast<int>(n % kQuantTile), v = static_cast<int>(group % 2);
    uint8_t* tile = out + (n / kQuantTile * tiles + group / 2) * (kCodeBytes + kQuantScaleBytes);
    if constexpr (Int8) {
#pragma unroll
      for (int j = 0; j < kWeightGroup; ++j) {
        const int code = code_of(__fmul_rn(w[j], inverse), -127.0f, 127.0f);
        tile[int8_place(r, v * kWeightGroup + j).byte] = static_cast<uint8_t>(code);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kWeightGroup; j += 1 + 8 * (j % 16 == 7)) {
        const int low = code_of(__fmul_rn(w[j], inverse), -8.0f, 7.0f) + 8;
        const int high = code_of(__fmul_rn(w[j + 8], inverse), -8.0f, 7.0f) + 8;
        tile[int4_place(r, v * kWeightGroup + j).byte] = static_cast<uint8_t>(low | high << 4);
      }
    }
    *reinterpret_cast<__half*>(tile + kCodeBytes + scale_place(r, v)) = scale;
  }
}

constexpr int kDraft4Threads = 128;

/// One row a block, kDraft4: of a group's powers of two the one with the least squared error, among
/// that which its largest weight needs and the next smaller one.
template <class In>
__global__ __launch_bounds__(kDraft4Threads) void quantize_draft4(const Piece piece, uint8_t* out,
                                                                  float* scales) {
  __shared__ float of_warps[kDraft4Threads / 32];
  const int64_t row = blockIdx.x, n = piece.first_row + row;
  const int64_t tiles = (piece.k + kDraft4TileColumns - 1) / kDraft4TileColumns;
  const int thread = static_cast<int>(threadIdx.x), c = thread % 4;
  float largest = 0.0f;
  for (int64_t begin = thread * 8; begin < piece.k; begin += kDraft4Threads * 8) {
    float w[8];
    load_values<8, In>(piece, row, begin, w);
#pragma unroll
    for (float x : w) largest = fmaxf(largest, fabsf(x));
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
  }
  if (thread % 32 == 0) of_warps[thread / 32] = largest;
  __syncthreads();
  for (const float other : of_warps) largest = fmaxf(largest, other);
  const float scale = largest / (7.5f * 32.0f);
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  if (thread == 0) scales[n] = scale;
  const int r = static_cast<int>(n % kQuantTile);
  for (int64_t base = thread / 32 * 8; base < tiles * 4; base += kDraft4Threads / 4) {
    const int64_t group = base + thread % 32 / 4;
    float w[8], most = 0.0f;  // columns 4 c .. and 16 + 4 c .. of the group
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t k = group * 32 + i / 4 * 16 + 4 * c + i % 4;
      const bool there = row < piece.rows && k < piece.k;
      w[i] =
          there ? inverse * to_float(static_cast<const In*>(piece.data)[row * piece.k + k]) : 0.0f;
      most = fmaxf(most, fabsf(w[i]));
    }
    const auto of_quad = [](float x, auto&& op) {
      x = op(x, __shfl_xor_sync(0xffffffffu, x, 1));
      return op(x, __shfl_xor_sync(0xffffffffu, x, 2));
    };
    most = of_quad(most, [](float a, float b) { return fmaxf(a, b); });
    int power = -5;
    while (power < 5 && most > 7.5f * exp2f(static_cast<float>(power))) ++power;
    const auto encode = [&](int e, float& error) {
      const float step = exp2f(static_cast<float>(e));
      uint32_t word = 0;
      error = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float m = fminf(floorf(fabsf(w[i]) / step), 7.0f);
        const float off = fabsf(w[i]) - (m + 0.5f) * step;
        error += off * off;
        word |= static_cast<uint32_t>(m) << (i / 4 * 16 + i % 4 * 4);
        if (w[i] < 0.0f) word |= 1u << (i % 4 * 8 + (i < 4 ? 7 : 3));
      }
      error = of_quad(error, [](float a, float b) { return a + b; });
      return word;
    };
    float error = 0.0f, smaller_error = 0.0f;
    uint32_t word = encode(power, error);
    const uint32_t smaller = encode(power - 1, smaller_error);
    if (power > -5 && smaller_error < error) {
      word = smaller;
      --power;
    }
    if (group >= tiles * 4) continue;
    uint8_t* tile = out + (n / kQuantTile * tiles + group / 4) * kDraft4TileBytes;
    const int v = static_cast<int>(group % 4);
    *reinterpret_cast<uint32_t*>(tile + draft4_word_place(r, v, c)) = word;
    if (c == 0) tile[draft4_power_place(r, v)] = static_cast<uint8_t>(8 * (power + 5));
  }
}

/// Where e4m3 codes and their scales go.
struct Fp8Target {
  uint8_t* codes;
  int64_t row_bytes;
  float* scales;
  int64_t scales_stride;
};

constexpr int kFp8Threads = 256;

/// A block of 128 x 128 of the piece a thread block: s = amax / 448, codes = e4m3(w / s).
template <class In>
__global__ void __launch_bounds__(kFp8Threads) quantize_blocks(const Piece piece, Fp8Target to) {
  __shared__ float warp_max[kFp8Threads / 32];
  constexpr int kVectors = kFp8Block * kFp8Block / 8 / kFp8Threads;
  const int64_t row0 = int64_t{blockIdx.y} * kFp8Block, k0 = int64_t{blockIdx.x} * kFp8Block;
  const int thread = static_cast<int>(threadIdx.x);
  float w[kVectors][8];
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = i * kFp8Threads + thread;
    load_values<8, In>(piece, row0 + at / 16, k0 + at % 16 * 8, w[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) amax = fmaxf(amax, fabsf(w[i][j]));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, step));
  }
  if (thread % 32 == 0) warp_max[thread / 32] = amax;
  __syncthreads();
  for (const float m : warp_max) amax = fmaxf(amax, m);
  const float s = __fdiv_rn(amax, 448.0f);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = i * kFp8Threads + thread;
    const int64_t row = row0 + at / 16, k = k0 + at % 16 * 8;
    if (row >= piece.rows || k >= to.row_bytes) continue;
    uint64_t codes = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float q = s > 0.0f ? __fdiv_rn(w[i][j], s) : 0.0f;
      codes |= uint64_t{__nv_cvt_float_to_fp8(q, __NV_SATFINITE, __NV_E4M3)} << (8 * j);
    }
    *reinterpret_cast<uint64_t*>(to.codes + (piece.first_row + row) * to.row_bytes + k) = codes;
  }
  const int64_t scale_row = row0 + thread * kFp8ScaleRows;
  if (thread < kFp8Block / kFp8ScaleRows && scale_row < piece.rows) {
    to.scales[(piece.first_row + scale_row) / kFp8ScaleRows * to.scales_stride + blockIdx.x] = s;
  }
}

/// The checkpoint's scales [ceil(rows / 128)][ceil(K / 128)] of a piece into ours.
template <class In>
__global__ void spread_scales(const Piece piece, const In* scales, Fp8Target to) {
  const int64_t count = (piece.rows + kFp8ScaleRows - 1) / kFp8ScaleRows * to.scales_stride;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / to.scales_stride, column = i % to.scales_stride;
  to.scales[(piece.first_row / kFp8ScaleRows + row) * to.scales_stride + column] =
      to_float(scales[row * kFp8ScaleRows / kFp8Block * to.scales_stride + column]);
}

unsigned blocks_for(int64_t items, int threads) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(items, threads), 1, 132 * 16));
}

/// Calls f with a null pointer of the source type.
template <class F>
void with_source(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32: return f(static_cast<const float*>(nullptr));
    case DType::kBF16: return f(static_cast<const __nv_bfloat16*>(nullptr));
    case DType::kF16: return f(static_cast<const __half*>(nullptr));
    default: CHECK(false, "weights are packed from bf16, f16 or f32");
  }
}

/// Rows of the checkpoint's own type: copies, and zeros after K.
void copy_rows(Stream& stream, const Piece& piece, int64_t element, std::byte* out,
               int64_t row_bytes) {
  const auto width = static_cast<size_t>(piece.k * element);
  const auto pitch = static_cast<size_t>(row_bytes), rows = static_cast<size_t>(piece.rows);
  std::byte* to = out + piece.first_row * row_bytes;
  if (width == pitch) {
    check(cudaMemcpyAsync(to, piece.data, width * rows, cudaMemcpyDefault, native(stream)),
          "weights");
    return;
  }
  check(cudaMemset2DAsync(to + width, pitch, 0, pitch - width, rows, native(stream)), "weights");
  check(cudaMemcpy2DAsync(to, pitch, piece.data, width, width, rows, cudaMemcpyDefault,
                          native(stream)),
        "weights");
}

template <class Out>
void pack_rows(Stream& stream, const Piece& piece, DType dtype, Out* out, int64_t stride) {
  constexpr DType kOut = sizeof(Out) == 2 ? DType::kBF16 : DType::kF32;
  if (dtype == kOut) {
    copy_rows(stream, piece, sizeof(Out), reinterpret_cast<std::byte*>(out),
              stride * static_cast<int64_t>(sizeof(Out)));
    return;
  }
  with_source(dtype, [&]<class In>(const In*) {
    launch(stream, {.grid = blocks_for(piece.rows * stride / 8, 256), .block = 256},
           convert_rows<In, Out>, piece, out, stride);
  });
}

void pack_quantized(Stream& stream, const Piece& piece, DType dtype, bool int8, uint8_t* out) {
  const int64_t groups = piece.padded * ceil_div(piece.k, kQuantTile) * 2;
  with_source(dtype, [&]<class In>(const In*) {
    launch(stream, {.grid = blocks_for(groups, 128), .block = 128},
           int8 ? quantize_groups<In, true> : quantize_groups<In, false>, piece, out);
  });
}

void pack_draft4(Stream& stream, const Piece& piece, DType dtype, uint8_t* out, float* scales) {
  with_source(dtype, [&]<class In>(const In*) {
    launch(stream, {.grid = static_cast<unsigned>(piece.padded), .block = kDraft4Threads},
           quantize_draft4<In>, piece, out, scales);
  });
}

/// `scales`: of a piece that is e4m3 already.
void pack_fp8(Stream& stream, const Piece& piece, DType dtype, const TensorView& scales,
              const Fp8Target& to) {
  if (dtype == DType::kFP8E4M3) {
    const int64_t count = ceil_div(piece.rows, kFp8ScaleRows) * to.scales_stride;
    copy_rows(stream, piece, 1, reinterpret_cast<std::byte*>(to.codes), to.row_bytes);
    with_source(scales.dtype, [&]<class In>(const In*) {
      launch(stream, {.grid = static_cast<unsigned>(ceil_div(count, 256)), .block = 256},
             spread_scales<In>, piece, static_cast<const In*>(scales.data), to);
    });
    return;
  }
  const dim3 grid(static_cast<unsigned>(to.scales_stride),
                  static_cast<unsigned>(ceil_div(piece.rows, kFp8Block)));
  with_source(dtype, [&]<class In>(const In*) {
    launch(stream, {.grid = grid, .block = kFp8Threads}, quantize_blocks<In>, piece, to);
  });
}

float decode_e4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 128 ? -value : value;
}

/// Element (n, k) of a packed expert.
float element(const WeightShape& shape, const uint8_t* data, int64_t n, int64_t k) {
  const auto read = [&]<class T>(int64_t byte, T) {
    T value;
    std::memcpy(&value, data + byte, sizeof value);
    return value;
  };
  const int64_t row = n * weight_row_bytes(shape);
  switch (shape.format) {
    case WeightFormat::kBf16: return bf16_to_float(read(row + k * 2, bf16{}));
    case WeightFormat::kF32: return read(row + k * 4, 0.0f);
    case WeightFormat::kFp8Block: {
      const int64_t scale = n / kFp8ScaleRows * fp8_scales_stride(shape) + k / kFp8Block;
      return decode_e4m3(data[row + k]) * read(fp8_scales_offset(shape) + scale * 4, 0.0f);
    }
    case WeightFormat::kDraft4: {
      const int r = static_cast<int>(n % kQuantTile), v = static_cast<int>(k % 128 / 32);
      const int64_t tile =
          (n / kQuantTile * ceil_div(shape.k, kDraft4TileColumns) + k / kDraft4TileColumns) *
          kDraft4TileBytes;
      const auto word =
          read(tile + draft4_word_place(r, v, static_cast<int>(k % 16 / 4)), uint32_t{});
      const bool high = k % 32 >= 16;
      const auto magnitude = word >> (k % 4 * 4 + (high ? 16 : 0)) & 7;
      const bool negative = (word >> (k % 4 * 8 + (high ? 3 : 7)) & 1) != 0;
      const float value = std::ldexp(static_cast<float>(magnitude) + 0.5f,
                                     data[tile + draft4_power_place(r, v)] / 8 - 5);
      return (negative ? -value : value) * read(draft4_scales_offset(shape) + n * 4, 0.0f);
    }
    case WeightFormat::kInt8:
    case WeightFormat::kInt4: break;
  }
  const bool int8 = shape.format == WeightFormat::kInt8;
  const int r = static_cast<int>(n % kQuantTile), c = static_cast<int>(k % kQuantTile);
  const int64_t tile = (n / kQuantTile * ceil_div(shape.k, kQuantTile) + k / kQuantTile) *
                       weight_tile_bytes(shape.format);
  const CodePlace place = int8 ? int8_place(r, c) : int4_place(r, c);
  const uint8_t byte = data[tile + place.byte];
  const int code = int8 ? static_cast<int8_t>(byte) : (byte >> place.shift & 15) - 8;
  const int64_t scale =
      tile + (int8 ? kInt8CodeBytes : kInt4CodeBytes) + scale_place(r, c / kWeightGroup);
  return static_cast<float>(code) * f16_to_float(read(scale, f16{}));
}

}  // namespace

int64_t weight_bytes(const WeightShape& shape) {
  int64_t bytes = shape.n * weight_row_bytes(shape);
  switch (shape.format) {
    case WeightFormat::kBf16:
    case WeightFormat::kF32: break;
    case WeightFormat::kFp8Block:
      bytes = fp8_scales_offset(shape) +
              ceil_div(shape.n, kFp8ScaleRows) * fp8_scales_stride(shape) * 4;
      break;
    case WeightFormat::kInt8:
    case WeightFormat::kInt4:
      bytes = ceil_div(shape.n, kQuantTile) * ceil_div(shape.k, kQuantTile) *
              weight_tile_bytes(shape.format);
      break;
    case WeightFormat::kDraft4:
      bytes = draft4_scales_offset(shape) + ceil_div(shape.n, kQuantTile) * kQuantTile * 4;
      break;
  }
  return ceil_div(bytes, 128) * 128;
}

void pack_rows(Stream& stream, const Weight& weight, int64_t expert, int64_t first_row,
               std::span<const TensorView> pieces) {
  const WeightShape& shape = weight.shape;
  std::byte* out = weight.data + expert * weight.expert_bytes;
  auto* bytes = reinterpret_cast<uint8_t*>(out);
  const int64_t stride = weight_row_bytes(shape);
  CHECK(first_row % kFp8Block == 0, "weights are cut at blocks");
  int64_t n = first_row;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const TensorView& view = pieces[i];
    CHECK(view.rank == 2 && view.dim(1) == shape.k, "a piece has another K");
    Piece piece{view.data, view.dim(0), shape.k, n, view.dim(0)};
    n += piece.rows;
    CHECK(n <= shape.n, "the pieces are more than N rows");
    if (n == shape.n) piece.padded += ceil_div(n, kQuantTile) * kQuantTile - n;
    switch (shape.format) {
      case WeightFormat::kBf16:
        pack_rows(stream, piece, view.dtype, reinterpret_cast<__nv_bfloat16*>(out), stride / 2);
        break;
      case WeightFormat::kF32:
        pack_rows(stream, piece, view.dtype, reinterpret_cast<float*>(out), stride / 4);
        break;
      case WeightFormat::kInt8:
      case WeightFormat::kInt4:
        pack_quantized(stream, piece, view.dtype, shape.format == WeightFormat::kInt8, bytes);
        break;
      case WeightFormat::kDraft4:
        pack_draft4(stream, piece, view.dtype, bytes,
                    reinterpret_cast<float*>(out + draft4_scales_offset(shape)));
        break;
      case WeightFormat::kFp8Block: {
        CHECK(piece.first_row % kFp8ScaleRows == 0, "fp8: rows of a fused weight by 16");
        const Fp8Target to{bytes, stride, reinterpret_cast<float*>(out + fp8_scales_offset(shape)),
                           fp8_scales_stride(shape)};
        TensorView scales;
        if (view.dtype == DType::kFP8E4M3) {
          CHECK(i + 1 < pieces.size(), "fp8: codes come with their scales");
          scales = pieces[++i];
          CHECK(scales.rank == 2 && scales.dim(0) == ceil_div(piece.rows, kFp8Block) &&
                    scales.dim(1) == ceil_div(shape.k, kFp8Block),
                "fp8: one scale for each 128 x 128 block");
        }
        pack_fp8(stream, piece, view.dtype, scales, to);
        break;
      }
    }
  }
}

void pack_weight(Stream& stream, const Weight& weight, int64_t expert,
                 std::span<const TensorView> pieces) {
  int64_t rows = 0;
  for (const TensorView& piece : pieces) rows += piece.dim(0);
  for (size_t i = 0; i + 1 < pieces.size(); ++i) {  // the scales of fp8 codes are no rows
    if (pieces[i].dtype == DType::kFP8E4M3) rows -= pieces[i + 1].dim(0);
  }
  CHECK(rows == weight.shape.n, "the pieces don't add up to N rows");
  pack_rows(stream, weight, expert, 0, pieces);
}

void unpack_weight(const Weight& weight, int64_t expert, TensorView out) {
  const WeightShape& shape = weight.shape;
  std::vector<uint8_t> data(static_cast<size_t>(weight_bytes(shape)));
  check(cudaDeviceSynchronize(), "unpack");
  check(cudaMemcpy(data.data(), weight.data + expert * weight.expert_bytes, data.size(),
                   cudaMemcpyDefault),
        "unpack");
  for (int64_t n = 0; n < shape.n; ++n) {
    for (int64_t k = 0; k < shape.k; ++k) {
      out.row<float>(n)[k] = element(shape, data.data(), n, k);
    }
  }
}

}  // namespace weft::cuda
