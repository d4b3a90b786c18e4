#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace weft {

/// 8-bit RGB pixels, row after row without padding.
struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;
};

/// What is checked before a pixel is decoded.
struct ImageLimits {
  int64_t max_bytes = int64_t{32} << 20;   ///< of the file
  int64_t max_pixels = int64_t{32} << 20;  ///< width times height
  int max_side = 32767;                    ///< width, height
};

/// The pixels of a PNG, JPEG, WebP or GIF file as Pillow's open(), exif_transpose() and
/// convert("RGB") give them: turned as the EXIF orientation says, alpha dropped, 16-bit samples cut
/// to their high byte, CMYK taken as Adobe writes it; of an animation the first frame. The format
/// is known by the content alone. Errors are fixed texts (image_errors.h): nothing of the file is
/// in them.
Result<Image> decode_image(std::span<const uint8_t> file, const ImageLimits& limits);

/// `image` turned by an EXIF orientation, 1 .. 8 (1: as it is).
Image turn_image(Image image, int orientation);

}  // namespace weft
