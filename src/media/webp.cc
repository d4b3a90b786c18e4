#include <webp/decode.h>

#include <utility>

#include "media/animation.h"
#include "media/decoders.h"
#include "media/image_errors.h"

namespace weft {

Result<Image> decode_webp(std::span<const uint8_t> file, const ImageLimits& limits) {
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(file.data(), file.size(), &features) != VP8_STATUS_OK) {
    return image_error::damaged();
  }
  if (features.has_animation) {
    // Its decoder takes the canvas at once: the size is checked first.
    TRY(check_size(features.width, features.height, limits));
    Image shown;
    const int64_t first = 0;
    TRY(decode_animation(file, {&first, 1}, limits, [&shown](Image frame) -> Result<void> {
      shown = std::move(frame);
      return {};
    }));
    return shown;
  }
  Image image = TRY(allocate_image(features.width, features.height, limits));
  if (!WebPDecodeRGBInto(file.data(), file.size(), image.rgb.data(), image.rgb.size(),
                         3 * image.width)) {
    return image_error::damaged();
  }
  return image;
}

}  // namespace weft
