#include "media/image.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "media/decoders.h"
#include "media/gif.h"
#include "media/image_errors.h"

namespace weft {
namespace {

constexpr std::array<uint8_t, 8> kPng = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
constexpr std::array<uint8_t, 3> kJpeg = {0xFF, 0xD8, 0xFF};
constexpr std::array<uint8_t, 4> kRiff = {'R', 'I', 'F', 'F'}, kWebp = {'W', 'E', 'B', 'P'};

template <size_t N>
bool has_at(std::span<const uint8_t> file, size_t at, const std::array<uint8_t, N>& bytes) {
  return file.size() >= at + N && std::equal(bytes.begin(), bytes.end(), file.begin() + at);
}

struct Decoded {
  Image image;
  int orientation = 1;
};

Result<Decoded> decode(std::span<const uint8_t> file, const ImageLimits& limits) {
  if (has_at(file, 0, kPng)) {
    return Decoded{TRY(decode_png(file, limits)), exif_orientation(find_png_exif(file))};
  }
  if (has_at(file, 0, kJpeg)) {
    return Decoded{TRY(decode_jpeg(file, limits)), exif_orientation(find_jpeg_exif(file))};
  }
  if (has_at(file, 0, kRiff) && has_at(file, 8, kWebp)) {
    return Decoded{TRY(decode_webp(file, limits)), exif_orientation(find_webp_exif(file))};
  }
  if (is_gif(file)) return Decoded{TRY(decode_gif(file, limits))};
  return image_error::not_an_image();
}

}  // namespace

Result<void> check_size(int64_t width, int64_t height, const ImageLimits& limits) {
  if (width < 1 || height < 1) return image_error::damaged();
  if (width > limits.max_side || height > limits.max_side || width * height > limits.max_pixels) {
    return image_error::too_many_pixels();
  }
  return {};
}

Result<Image> allocate_image(int64_t width, int64_t height, const ImageLimits& limits) {
  TRY(check_size(width, height, limits));
  Image image{.width = static_cast<int>(width), .height = static_cast<int>(height)};
  try {
    image.rgb.resize(static_cast<size_t>(width * height * 3));
  } catch (const std::bad_alloc&) {
    return image_error::no_memory();
  }
  return image;
}

Result<Image> decode_image(std::span<const uint8_t> file, const ImageLimits& limits) {
  if (static_cast<int64_t>(file.size()) > limits.max_bytes) return image_error::too_many_bytes();
  Decoded decoded = TRY(decode(file, limits));
  return turn_image(std::move(decoded.image), decoded.orientation);
}

Image turn_image(Image image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const int64_t width = image.width, height = image.height;
  const bool transposed = orientation >= 5;
  Image out{.width = transposed ? image.height : image.width,
            .height = transposed ? image.width : image.height};
  out.rgb.resize(image.rgb.size());
  // The pixel (x, y) of the result lies at origin + x * step_x + y * step_y of the source.
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const int64_t right = from_right ? -1 : 1, down = from_bottom ? -width : width;
  const int64_t origin =
      (from_right ? width - 1 : 0) + (from_bottom ? (height - 1) * width : int64_t{0});
  const int64_t step_x = transposed ? down : right, step_y = transposed ? right : down;
  uint8_t* to = out.rgb.data();
  for (int64_t y = 0; y < out.height; ++y) {
    for (int64_t x = 0; x < out.width; ++x, to += 3) {
      std::memcpy(to, image.rgb.data() + 3 * (origin + x * step_x + y * step_y), 3);
    }
  }
  return out;
}

}  // namespace weft
