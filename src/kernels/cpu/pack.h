#pragma once

// The layout of packed weights, the same for every instruction set.
//
// A matrix [N, K] is cut into panels of 16 outputs; N is padded with zero rows to a multiple of
// 16, K with zeros to a multiple of the K step. A panel is contiguous, so that a thread streams it:
//   f32   [K/32][32][16] f32
//   bf16  [K/32][16 pairs][16 outputs][2] bf16: 1 KiB a step: one AMX B tile, or 16 vdpbf16ps lines
//   int8  [K/64]{ scales [2 groups][16] f16, codes [16 quads][16 outputs][4] u8 = q + 128 }
//   int4  [K/64]{ scales [2 groups][16] f16, [2 groups][4][16 outputs][4] u8: the low half is
//         q + 8 of quad i of the group (i = 0 .. 3), the high half of quad i + 4 }
// Codes are unsigned because vpdpbusd wants one unsigned factor.

#include <cstddef>
#include <cstdint>

#include "kernels/weight.h"
#include "tensor/view.h"

namespace weft {

inline constexpr int kPanelWidth = 16;            ///< outputs of a panel
inline constexpr int kStep = 32;                  ///< K values of a step
inline constexpr int kInt8PairBytes = 64 + 1024;  ///< two groups of a panel with their scales
inline constexpr int kInt4PairBytes = 64 + 512;

/// One expert's matrix in the layout above.
struct PackedMatrix {
  WeightFormat format = WeightFormat::kBf16;
  int64_t n = 0, k = 0;
  int64_t panels = 0;       ///< ceil(N / 16)
  int64_t steps = 0;        ///< padded K / 32
  int64_t panel_bytes = 0;  ///< a multiple of 64
  std::byte* data = nullptr;

  const std::byte* panel(int64_t i) const { return data + i * panel_bytes; }
};

/// A bf16 or f32 matrix as [panels, 16 outputs, K / w, w] with w the values that stand side by
/// side: a table for embed. Rank 0 for other formats.
TensorView packed_rows(const Weight& weight);

PackedMatrix packed_matrix(const WeightShape& shape);
PackedMatrix packed_matrix(const Weight& weight, int64_t expert);

}  // namespace weft
