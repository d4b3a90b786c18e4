#pragma once

#include "media/animation.h"
#include "media/image.h"

namespace weft {

bool is_gif(std::span<const uint8_t> file);

/// The first frame on the canvas, as Pillow's open() and convert("RGB") have it.
Result<Image> decode_gif(std::span<const uint8_t> file, const ImageLimits& limits);

/// find_animation() and decode_animation() of a GIF. A frame that says how long it is shown in less
/// than 20 ms is shown 100 ms, as browsers do.
Result<std::optional<Animation>> find_gif_animation(std::span<const uint8_t> file,
                                                    const ImageLimits& limits);
Result<void> decode_gif_animation(std::span<const uint8_t> file, std::span<const int64_t> wanted,
                                  const ImageLimits& limits,
                                  const std::function<Result<void>(Image)>& take);

}  // namespace weft
