#pragma once

#include <functional>
#include <optional>
#include <span>

#include "media/image.h"

namespace weft {

struct Animation {
  int width = 0, height = 0;
  int64_t num_frames = 0;
  double seconds = 0;  ///< of all frames
};

/// What an animated WebP or GIF file holds, before a frame is decoded; none: the file is no
/// animation.
Result<std::optional<Animation>> find_animation(std::span<const uint8_t> file,
                                                const ImageLimits& limits);

/// Decodes the frames `wanted` (ascending; a frame may come twice) on the animation's canvas, alpha
/// dropped, and gives them to `take` one by one. The first error ends it.
Result<void> decode_animation(std::span<const uint8_t> file, std::span<const int64_t> wanted,
                              const ImageLimits& limits,
                              const std::function<Result<void>(Image)>& take);

}  // namespace weft
