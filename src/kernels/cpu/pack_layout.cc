#include "kernels/cpu/pack.h"

namespace weft {

PackedMatrix packed_matrix(const WeightShape& shape) {
  const bool grouped = shape.format == WeightFormat::kInt8 || shape.format == WeightFormat::kInt4;
  const int64_t unit = grouped ? 2 * kStep : kStep;
  PackedMatrix m;
  m.format = shape.format;
  m.n = shape.n;
  m.k = shape.k;
  m.panels = (shape.n + kPanelWidth - 1) / kPanelWidth;
  m.steps = (shape.k + unit - 1) / unit * (unit / kStep);
  switch (shape.format) {
    case WeightFormat::kF32: m.panel_bytes = m.steps * kStep * kPanelWidth * 4; break;
    case WeightFormat::kBf16: m.panel_bytes = m.steps * kStep * kPanelWidth * 2; break;
    case WeightFormat::kInt8: m.panel_bytes = m.steps / 2 * kInt8PairBytes; break;
    case WeightFormat::kInt4: m.panel_bytes = m.steps / 2 * kInt4PairBytes; break;
    case WeightFormat::kFp8Block: CHECK(false, "the CPU backend has no fp8 weights"); break;
    case WeightFormat::kDraft4: CHECK(false, "the CPU backend has no heads of drafts"); break;
  }
  return m;
}

PackedMatrix packed_matrix(const Weight& weight, int64_t expert) {
  PackedMatrix m = packed_matrix(weight.shape);
  m.data = weight.data + expert * weight.expert_bytes;
  return m;
}

TensorView packed_rows(const Weight& weight) {
  const PackedMatrix m = packed_matrix(weight.shape);
  const bool f32 = m.format == WeightFormat::kF32;
  if (!f32 && m.format != WeightFormat::kBf16) return {};
  const int64_t width = f32 ? 1 : 2;
  TensorView rows(weight.data, f32 ? DType::kF32 : DType::kBF16,
                  {m.panels, kPanelWidth, m.steps * kStep / width, width});
  rows.stride[1] = width;
  rows.stride[2] = kPanelWidth * width;
  return rows;
}

}  // namespace weft
