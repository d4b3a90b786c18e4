#include <webp/decode.h>
#include <webp/demux.h>

#include <cstring>
#include <memory>

#include "media/decoders.h"
#include "media/image_errors.h"

namespace weft {
namespace {

struct DeleteAnimation {
  void operator()(WebPAnimDecoder* decoder) const { WebPAnimDecoderDelete(decoder); }
};

/// The first frame of an animation on its canvas.
Result<Image> decode_first_frame(std::span<const uint8_t> file, const ImageLimits& limits) {
  WebPAnimDecoderOptions options;
  if (!WebPAnimDecoderOptionsInit(&options)) return image_error::damaged();
  options.color_mode = MODE_RGBA;
  options.use_threads = 0;
  const WebPData data{file.data(), file.size()};
  const std::unique_ptr<WebPAnimDecoder, DeleteAnimation> decoder(
      WebPAnimDecoderNew(&data, &options));
  WebPAnimInfo info;
  if (!decoder || !WebPAnimDecoderGetInfo(decoder.get(), &info)) return image_error::damaged();
  Image image = TRY(allocate_image(info.canvas_width, info.canvas_height, limits));
  uint8_t* rgba = nullptr;
  int time = 0;
  if (!WebPAnimDecoderGetNext(decoder.get(), &rgba, &time)) return image_error::damaged();
  const size_t pixels = image.rgb.size() / 3;
  for (size_t i = 0; i < pixels; ++i) std::memcpy(image.rgb.data() + 3 * i, rgba + 4 * i, 3);
  return image;
}

}  // namespace

Result<Image> decode_webp(std::span<const uint8_t> file, const ImageLimits& limits) {
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(file.data(), file.size(), &features) != VP8_STATUS_OK) {
    return image_error::damaged();
  }
  // An animation's decoder takes its canvas at once: the size is checked first.
  Image image = TRY(allocate_image(features.width, features.height, limits));
  if (features.has_animation) {
    image = {};
    return decode_first_frame(file, limits);
  }
  if (!WebPDecodeRGBInto(file.data(), file.size(), image.rgb.data(), image.rgb.size(),
                         3 * image.width)) {
    return image_error::damaged();
  }
  return image;
}

}  // namespace weft
