#include "media/animation.h"

#include <webp/decode.h>
#include <webp/demux.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "media/decoders.h"
#include "media/gif.h"
#include "media/image_errors.h"

namespace weft {
namespace {

/// What players show a frame at least, and what a frame without a time has.
constexpr int kLeastMilliseconds = 10;

struct DeleteDemuxer {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
struct DeleteDecoder {
  void operator()(WebPAnimDecoder* decoder) const { WebPAnimDecoderDelete(decoder); }
};

}  // namespace

Result<std::optional<Animation>> find_animation(std::span<const uint8_t> file,
                                                const ImageLimits& limits) {
  if (static_cast<int64_t>(file.size()) > limits.max_bytes) return image_error::too_many_bytes();
  if (is_gif(file)) return find_gif_animation(file, limits);
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(file.data(), file.size(), &features) != VP8_STATUS_OK ||
      !features.has_animation) {
    return std::optional<Animation>();
  }
  const WebPData data{file.data(), file.size()};
  const std::unique_ptr<WebPDemuxer, DeleteDemuxer> demuxer(WebPDemux(&data));
  if (!demuxer) return image_error::damaged();
  Animation out{.width = features.width,
                .height = features.height,
                .num_frames = WebPDemuxGetI(demuxer.get(), WEBP_FF_FRAME_COUNT)};
  if (out.num_frames < 1) return image_error::damaged();
  TRY(check_size(out.width, out.height, limits));
  int64_t milliseconds = 0;
  WebPIterator frame;
  if (!WebPDemuxGetFrame(demuxer.get(), 1, &frame)) return image_error::damaged();
  do {
    milliseconds += std::max(frame.duration, kLeastMilliseconds);
  } while (WebPDemuxNextFrame(&frame));
  WebPDemuxReleaseIterator(&frame);
  out.seconds = static_cast<double>(milliseconds) / 1000;
  return std::optional(out);
}

Result<void> decode_animation(std::span<const uint8_t> file, std::span<const int64_t> wanted,
                              const ImageLimits& limits,
                              const std::function<Result<void>(Image)>& take) {
  if (is_gif(file)) return decode_gif_animation(file, wanted, limits, take);
  WebPAnimDecoderOptions options;
  if (!WebPAnimDecoderOptionsInit(&options)) return image_error::damaged();
  options.color_mode = MODE_RGBA;
  options.use_threads = 0;
  const WebPData data{file.data(), file.size()};
  const std::unique_ptr<WebPAnimDecoder, DeleteDecoder> decoder(
      WebPAnimDecoderNew(&data, &options));
  WebPAnimInfo info;
  if (!decoder || !WebPAnimDecoderGetInfo(decoder.get(), &info)) return image_error::damaged();
  uint8_t* rgba = nullptr;
  int64_t decoded = 0;
  for (const int64_t index : wanted) {
    for (int time = 0; decoded <= index; ++decoded) {
      if (!WebPAnimDecoderGetNext(decoder.get(), &rgba, &time)) return image_error::damaged();
    }
    Image image = TRY(allocate_image(info.canvas_width, info.canvas_height, limits));
    const size_t pixels = image.rgb.size() / 3;
    for (size_t i = 0; i < pixels; ++i) std::memcpy(image.rgb.data() + 3 * i, rgba + 4 * i, 3);
    TRY(take(std::move(image)));
  }
  return {};
}

}  // namespace weft
