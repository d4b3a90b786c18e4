#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nn/specs.h"

namespace weft {

/// Extents of an image in patches: t frames of h x w, h and w multiples of the merge size.
struct VisionGrid {
  int t = 1, h = 0, w = 0;
  int64_t patches() const { return int64_t{t} * h * w; }
  bool operator==(const VisionGrid&) const = default;
};

/// What a pass over some images needs beside their patches, on the host. N patches in all, in the
/// order in which the tower sees them: by windows where it has some, else as they come (frames,
/// then merge blocks row by row).
struct VisionPlan {
  std::vector<int32_t> source;     ///< [N] the patch, counted over all images, that row i is
  std::vector<int32_t> positions;  ///< [N, 2] row and column in the frame
  std::vector<int32_t> grid_ids;   ///< [N, 4] learned positions around it; empty without them
  std::vector<float> grid_weights;
  std::vector<int32_t> frames;   ///< bounds of the frames
  std::vector<int32_t> windows;  ///< bounds of the windows; empty without them
  std::vector<int32_t> order;    ///< [N / merge^2] the merged row that is token i; empty: row i
  int64_t num_patches() const { return static_cast<int64_t>(source.size()); }
};

/// Makes the plan of `grids` in `plan`, whose memory is used again.
void plan_vision(const VisionSpec& spec, std::span<const VisionGrid> grids, VisionPlan& plan);

}  // namespace weft
