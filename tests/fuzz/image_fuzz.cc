// DEPS: weft_media
// A file of arbitrary bytes: it is refused or becomes pixels within the limits, and those patches.
#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "base/check.h"
#include "media/animation.h"
#include "media/image.h"
#include "media/processing.h"
#include "media/video.h"

namespace {

/// Frames of any size have a size to be reduced to, of few tokens, and times that go up.
void check_video(uint8_t width, uint8_t count, const weft::ImageProcessing& frame) {
  weft::VideoProcessing video{.frame = frame, .bounds_of_all = count % 2 == 1};
  const int64_t frames = count + 1;
  const auto limited = weft::limit_tokens(video, frames, 40, 200);
  const auto size =
      weft::video_size({.width = width + 1, .height = count * 7 + 1}, frames, limited);
  if (size) {
    CHECK(size->width > 0 && size->width % frame.factor() == 0);
    CHECK(size->height > 0 && size->height % frame.factor() == 0);
  }
  const auto indices = weft::sample_frames(frames, 0.5 + width, video);
  CHECK(!indices.empty() && indices.front() >= 0 && indices.back() < frames);
  CHECK(std::is_sorted(indices.begin(), indices.end()));
  const auto times = weft::group_times(indices, 0.5 + width, frame.temporal_patch_size);
  CHECK(std::is_sorted(times.begin(), times.end()));
}

/// The frames of an animation, some of them, are as large as it says.
void check_animation(std::span<const uint8_t> file, const weft::ImageLimits& limits) {
  const auto animation = weft::find_animation(file, limits);
  if (!animation || !animation->has_value()) return;
  const weft::Animation& found = **animation;
  CHECK(found.num_frames > 0 && found.seconds > 0);
  const int64_t last = std::min<int64_t>(found.num_frames, 20) - 1;
  const int64_t wanted[] = {0, last / 2, last, last};
  const auto done = weft::decode_animation(file, wanted, limits, [&](const weft::Image& frame) {
    CHECK(frame.width == found.width && frame.height == found.height);
    return weft::Result<void>();
  });
  if (!done) CHECK(!done.error().message.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr weft::ImageLimits kLimits{.max_bytes = 1 << 20, .max_pixels = 1 << 14, .max_side = 999};
  if (size < 2) return 0;
  weft::ImageProcessing processing;
  processing.patch_size = data[0] % 16 + 1;
  processing.merge_size = data[0] / 16 % 3 + 1;
  processing.min_pixels = 64;
  processing.max_pixels = 1 << 14;
  processing.resampling = weft::Resampling(data[1] % 4);
  check_video(data[0], data[1], processing);
  check_animation(std::span(data, size).subspan(2), kLimits);
  const auto image = weft::decode_image(std::span(data, size).subspan(2), kLimits);
  if (!image) return 0;
  CHECK(image->width <= kLimits.max_side && image->height <= kLimits.max_side);
  CHECK(image->rgb.size() ==
        size_t{3} * static_cast<size_t>(image->width) * static_cast<size_t>(image->height));
  const auto patches = weft::make_patches(*image, processing);
  if (!patches) return 0;
  const weft::PatchGrid& grid = patches->grid;
  CHECK(grid.t == 1 && grid.h % processing.merge_size == 0 && grid.w % processing.merge_size == 0);
  CHECK(static_cast<int64_t>(patches->patches.size()) ==
        grid.patches() * processing.patch_values());
  return 0;
}
