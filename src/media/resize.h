#pragma once

#include "media/image.h"

namespace weft {

/// Pillow's numbers.
enum class Resampling : uint8_t { kNearest = 0, kLanczos = 1, kBilinear = 2, kBicubic = 3 };

/// Image.resize() of Pillow: a separable filter, widened when the image shrinks (antialias), in
/// 8-bit fixed point, first along the rows, then along the columns. The same pixels, bit for bit.
/// `width`, `height` >= 1.
Image resize_image(const Image& image, int width, int height, Resampling resampling);

}  // namespace weft
