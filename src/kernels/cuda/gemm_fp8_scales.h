#pragma once

// The parameters of the fp8 products, and the scales that a tile's sums are multiplied by. Included
// by gemm_fp8.cu alone.

#include "kernels/cuda/gemm_device.h"
#include "kernels/cuda/gemm_fp8_prepare.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kStep = 128;  // K of a stage: 128 bytes
constexpr int kTileN = 128;
constexpr int kBBytes = kTileN * 128;
constexpr int kConsumers = 256;
constexpr int kThreads = kConsumers + 128;

/// What becomes of the results.
enum class Into { kRows, kCodes, kPrepared };

struct Params {
  TileSpace space;
  GemmOutput out;
  int k_steps = 0;
  int a_bytes = 0;  // of a's box, as in gemm_bf16.cu
  const float* a_scales = nullptr;
  int64_t a_scale_stride = 0;
  BlockScales b;
  QuantizedRows codes;    // in place of `out`
  PrepareParams prepare;  // of kPrepared
};

/// The scales of a warp's rows and of the tile's columns, read ahead of the steps that use them.
template <int Sub>
class Scales {
 public:
  /// `row` is the warp's first; its rows are row + 64 sub + 0 .. 15, one a lane.
  __device__ __forceinline__ Scales(const Params& p, const Tile& tile, int row, int column)
      : steps_(p.k_steps), a_stride_(p.a_scale_stride) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // A row outside reads the last one's.
    a_ = p.a_scales + min(row + lane / 16 % Sub * 64 + lane % 16, tile.row_end - 1);
    // Lane l reads group l % 8 of 16 columns (the second half's are the upper 4), step l / 8 of 4.
    const int group = lane % 8;
    const int n = column + (group < 4 ? 16 * group : p.out.second_half + 16 * (group - 4));
    b_ = p.b.scales + tile.expert * p.b.expert_stride +
         min(n / kFp8ScaleRows, p.b.groups - 1) * p.b.row_stride;
    a_next_[0] = load_a(0);
    a_next_[1] = load_a(1);
    b_next_ = load_b(0);
  }
  /// To step `step` (called for 0, 1, ...).
  __device__ __forceinline__ void next(int step) {
    a_now_ = a_next_[0];
    a_next_[0] = a_next_[1];
    a_next_[1] = load_a(step + 2);
    if (step % 4 == 0) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      b_now_ = b_next_;
      b_next_ = load_b(step + 4);
      // The usual case: one block of the checkpoint in each half of the tile.
      uniform_ = __all_sync(0xffffffffu, b_now_ == __shfl_sync(0xffffffffu, b_now_, lane & 28));
    }
    first_ = step % 4 * 8;
  }
  /// Of 64 rows: a's for the thread's two, and their products with b's if those are uniform.
  struct Factors {
    float a[2], low[2], high[2];
  };
  /// Ahead of add(), so that it costs nothing while the product runs.
  __device__ __forceinline__ Factors factors(int sub) const {
    const int from = 16 * sub + static_cast<int>(threadIdx.x) % 32 / 4;
    Factors f;
    const float low = __shfl_sync(0xffffffffu, b_now_, first_),
                high = __shfl_sync(0xffffffffu, b_now_, first_ + 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      f.a[i] = __shfl_sync(0xffffffffu, a_now_, from + 8 * i);
      f.low[i] = f.a[i] * low;
      f.high[i] = f.a[i] * high;
    }
    return f;
  }
  /// total += part * scales for 64 rows.
  __device__ __forceinline__ void add(float (&total)[kTileN / 2], const float (&part)[kTileN / 2],
                                      const Factors& f) const {
    if (uniform_) [[likely]] {
#pragma unroll
      for (int i = 0; i < kTileN / 2; ++i) {
        const float scale = i < kTileN / 4 ? f.low[i % 4 / 2] : f.high[i % 4 / 2];
        total[i] = __fmaf_rn(part[i], scale, total[i]);
      }
      return;
    }
#pragma unroll
    for (int group = 0; group < 8; ++group) {
      const float b = __shfl_sync(0xffffffffu, b_now_, first_ + group);
      const float scale[2] = {f.a[0] * b, f.a[1] * b};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        total[8 * group + i] =
            __fmaf_rn(part[8 * group + i], scale[i % 4 / 2], total[8 * group + i]);
      }
    }
  }

 private:
  __device__ __forceinline__ float load_a(int step) const {
    // Not __ldg: an earlier kernel writes them while this one has begun.
    return step < steps_ ? __ldcg(a_ + step * a_stride_) : 0.0f;
  }
  __device__ __forceinline__ float load_b(int step) const {
    const int own = step + static_cast<int>(threadIdx.x) % 32 / 8;
    return own < steps_ ? __ldg(b_ + own) : 0.0f;
  }
  int steps_;
  int64_t a_stride_;
  const float* a_;
  const float* b_;
  float a_now_ = 0, a_next_[2], b_now_ = 0, b_next_;
  int first_ = 0;
  bool uniform_ = true;
};

}  // namespace
}  // namespace weft::cuda
