#include "media/video.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "media/image_errors.h"
#include "media/rounding.h"

namespace weft {
namespace {

/// Frames that count for the bounds of all: rounded to whole groups.
double whole_groups(double frames, const VideoProcessing& video) {
  const double depth = video.frame.temporal_patch_size;
  return round_to_even(frames / depth) * depth;
}

/// Qwen3VLVideoProcessor's smart_resize: the bounds are those of the volume.
Result<ImageSize> resize_volume(double height, double width, double frames,
                                const VideoProcessing& video) {
  const double factor = video.frame.factor();
  const auto least = static_cast<double>(video.frame.min_pixels);
  auto most = static_cast<double>(video.frame.max_pixels);
  if (video.cap_pixels_per_frame) {
    const double share = std::min(768 * factor * factor, std::floor(most / frames));
    most = std::max(share, std::floor(least * 1.05)) * frames;
  }
  if (height < factor || width < factor) {
    const double scale = std::max(factor / height, factor / width);
    height = std::floor(height * scale);
    width = std::floor(width * scale);
  }
  if (std::max(height, width) / std::min(height, width) > kMaxAspect) {
    return image_error::too_narrow();
  }
  double h = round_to_even(height / factor) * factor, w = round_to_even(width / factor) * factor;
  const double volume = whole_groups(frames, video) * h * w;
  if (volume > most) {
    const double beta = std::sqrt(frames * height * width / most);
    h = std::max(factor, std::floor(height / beta / factor) * factor);
    w = std::max(factor, std::floor(width / beta / factor) * factor);
  } else if (volume < least) {
    const double beta = std::sqrt(least / (frames * height * width));
    h = std::ceil(height * beta / factor) * factor;
    w = std::ceil(width * beta / factor) * factor;
  }
  return ImageSize{.width = static_cast<int>(w), .height = static_cast<int>(h)};
}

}  // namespace

Result<ImageSize> video_size(ImageSize frame, int64_t num_frames, const VideoProcessing& video) {
  CHECK(frame.width > 0 && frame.height > 0 && num_frames > 0);
  if (!video.frame.resize) return frame;
  if (!video.bounds_of_all) return smart_resize(frame, video.frame);
  const int64_t frames = std::max<int64_t>(num_frames, video.frame.temporal_patch_size);
  return resize_volume(frame.height, frame.width, static_cast<double>(frames), video);
}

VideoProcessing limit_tokens(VideoProcessing video, int64_t num_frames, int64_t max_group_tokens,
                             int64_t max_tokens) {
  ImageProcessing& frame = video.frame;
  const int64_t depth = frame.temporal_patch_size;
  const int64_t pixels = int64_t{frame.factor()} * frame.factor();  // of a token
  const int64_t groups = (num_frames + depth - 1) / depth;
  const int64_t group_tokens =
      std::max<int64_t>(std::min(max_group_tokens, max_tokens / groups), 1);
  int64_t most = group_tokens * pixels;
  if (video.bounds_of_all) {
    const auto frames = static_cast<double>(std::max(num_frames, depth));
    most *= static_cast<int64_t>(std::min(frames, whole_groups(frames, video)));
  }
  if (most >= frame.max_pixels) return video;
  frame.max_pixels = most;
  // Small frames are enlarged to whole tokens: at most twice as high and as wide.
  frame.min_pixels = std::min(frame.min_pixels, std::max<int64_t>(most / 4, 1));
  return video;
}

std::vector<int64_t> sample_frames(int64_t total, double fps, const VideoProcessing& video) {
  CHECK(total > 0 && fps > 0);
  const double asked = static_cast<double>(total) / fps * video.fps;
  const int64_t depth = video.frame.temporal_patch_size;
  std::vector<int64_t> out;
  if (video.bounds_of_all) {
    const double most = static_cast<double>(std::min(video.max_frames, total));
    const auto count = static_cast<int64_t>(
        std::min(std::max(std::floor(asked), static_cast<double>(video.min_frames)), most));
    const double step =
        count > 1 ? static_cast<double>(total - 1) / static_cast<double>(count - 1) : 0;
    for (int64_t i = 0; i < count; ++i) {
      out.push_back(i + 1 == count && count > 1
                        ? total - 1
                        : static_cast<int64_t>(round_to_even(static_cast<double>(i) * step)));
    }
    return out;
  }
  const double most = static_cast<double>(std::min(video.max_frames, total) / depth * depth);
  const double count = std::min(std::max(asked, static_cast<double>(video.min_frames)), most);
  const auto whole = std::max<int64_t>(static_cast<int64_t>(count) / depth * depth, 1);
  for (int64_t i = 0; i < whole; ++i) {
    out.push_back(static_cast<int64_t>(static_cast<double>(i) * static_cast<double>(total) /
                                       static_cast<double>(whole)));
  }
  return out;
}

std::vector<double> group_times(std::span<const int64_t> indices, double fps, int depth) {
  CHECK(!indices.empty() && fps > 0 && depth > 0);
  std::vector<double> out;
  for (size_t first = 0; first < indices.size(); first += static_cast<size_t>(depth)) {
    const size_t last = std::min(first + static_cast<size_t>(depth), indices.size()) - 1;
    out.push_back(
        (static_cast<double>(indices[first]) / fps + static_cast<double>(indices[last]) / fps) / 2);
  }
  return out;
}

}  // namespace weft
