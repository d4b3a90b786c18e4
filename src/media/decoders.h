#pragma once

// One decoder a format, for decode_image(). The file begins with the format's signature.

#include "media/image.h"

namespace weft {

Result<Image> decode_png(std::span<const uint8_t> file, const ImageLimits& limits);
Result<Image> decode_jpeg(std::span<const uint8_t> file, const ImageLimits& limits);
Result<Image> decode_webp(std::span<const uint8_t> file, const ImageLimits& limits);

/// An Error when pictures of this size break the limits.
Result<void> check_size(int64_t width, int64_t height, const ImageLimits& limits);

/// An empty image of this size; an Error when it breaks the limits or memory is short.
Result<Image> allocate_image(int64_t width, int64_t height, const ImageLimits& limits);

// The EXIF block (a TIFF structure, perhaps behind "Exif\0\0") of a file; empty: none.
std::span<const uint8_t> find_png_exif(std::span<const uint8_t> file);
std::span<const uint8_t> find_jpeg_exif(std::span<const uint8_t> file);
std::span<const uint8_t> find_webp_exif(std::span<const uint8_t> file);

/// The orientation in an EXIF block, 1 .. 8; 1 where it says nothing that makes sense.
int exif_orientation(std::span<const uint8_t> exif);

}  // namespace weft
