#pragma once

#include <cstdint>
#include <string_view>

#include "tensor/view.h"

namespace weft {

/// How the matrices of linear layers are stored.
enum class WeightFormat : uint8_t {
  kF32,       ///< --dtype float32: fp32 arithmetic
  kBf16,      ///< bf16 weights, activations rounded to bf16 at the input, fp32 accumulation
  kInt8,      ///< groups of 32 along K, symmetric, one fp16 scale a group: w = q * s, |q| <= 127
  kInt4,      ///< groups of 32 along K, symmetric, one fp16 scale a group: w = q * s, -8 <= q <= 7
  kFp8Block,  ///< e4m3 codes, one f32 scale for each 128 x 128 block: w = q * s (ref, CUDA)
  /// A head of drafts (CUDA): w = +-(m + 1/2) * 2^e * s, 0 <= m <= 7, one -5 <= e <= 5 for groups
  /// of 32 along K, one f32 scale s a row. The first greatest 2^e * s of a row fits its largest
  /// weight.
  kDraft4,
};
inline constexpr int kFp8Block = 128;     ///< rows and columns that share one scale
inline constexpr int kFp8PieceRows = 16;  ///< blocks begin anew with each piece of a fused weight
inline constexpr int kWeightGroup = 32;

/// Blocks along an extent of rows or columns.
constexpr int64_t fp8_blocks(int64_t extent) {
  return (extent + kFp8Block - 1) / kFp8Block;
}

std::string_view weight_format_name(WeightFormat format);

struct WeightShape {
  WeightFormat format = WeightFormat::kBf16;
  int64_t n = 0;        ///< output features
  int64_t k = 0;        ///< input features
  int64_t experts = 1;  ///< > 1: as many matrices of the same shape
};

/// A matrix (or a stack of expert matrices) in the layout of the backend that packed it.
/// Borrowed memory; only the OpTable that packed it knows the layout.
struct Weight {
  WeightShape shape;
  std::byte* data = nullptr;
  int64_t expert_bytes = 0;  ///< distance between experts
};

}  // namespace weft
