#pragma once

#include <span>

#include "device/buffer.h"
#include "nn/vision_plan.h"
#include "nn/vision_tower.h"
#include "runtime/step_upload.h"

namespace weft {

/// Runs images through a vision tower and keeps their features in pages of kImagePage tokens; the
/// scheduler says which (ImageCache). All memory is taken by create(), but for what the host notes
/// of a pass.
class VisionEncoder {
 public:
  /// `tower`, `stream` and `ops` must outlive it.
  static Result<VisionEncoder> create(const VisionTower& tower, Stream& stream, const OpTable& ops,
                                      const StepLimits& limits);
  /// Bytes that create() takes.
  static int64_t bytes(const VisionTower& tower, const OpTable& ops, const StepLimits& limits);

  /// [image_pages * kImagePage, feature_width] of the activation type.
  const TensorView& features() const { return features_; }
  /// One pass over these images (image_tokens at most), in the order of the stream.
  void encode(std::span<const PackedStep::Encoding> images);

 private:
  VisionEncoder(const VisionTower& tower, Stream& stream, const OpTable& ops);
  void fill_patches(std::span<const PackedStep::Encoding> images);
  VisionBatch upload();
  TensorView upload(const void* data, DType dtype, std::initializer_list<int64_t> dims);
  void store(std::span<const PackedStep::Encoding> images, const TensorView& tokens);

  const VisionTower& tower_;
  Stream& stream_;
  const OpTable& ops_;
  Arena arena_;   // the tower's temporaries
  Arena inputs_;  // what a pass reads, on the device
  Buffer host_;   // patches before they are copied; empty on the CPU
  Buffer pages_;
  TensorView features_;
  TensorView patches_;  // [N, patch_values] on the host
  VisionPlan plan_;
  std::vector<VisionGrid> grids_;
};

}  // namespace weft
