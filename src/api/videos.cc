#include "api/videos.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <string_view>

#include "api/images.h"
#include "media/image_errors.h"
#include "media/sha256.h"

namespace weft {
namespace {

using Digest = std::array<uint8_t, 32>;

/// One of a video's frames that were decoded, and what names it.
struct Frame {
  Image image;
  Digest digest{};
};

std::string at_frame(const VideoSource& source, size_t index) {
  return source.field + (source.frames.size() > 1 ? ".frames[" + std::to_string(index) + "]" : "");
}

}  // namespace

std::vector<std::string> timed_texts(const std::vector<PromptVideo>& videos,
                                     const VideoTexts& marks) {
  std::vector<std::string> out;
  for (const PromptVideo& video : videos) {
    std::string text;
    for (const double time : video.times) {
      char seconds[64];
      std::snprintf(seconds, sizeof(seconds), "<%.1f seconds>", time);
      text += seconds + marks.start + marks.token + marks.end;
    }
    out.push_back(std::move(text));
  }
  return out;
}

std::vector<std::string> split_frames(const std::string& uri, int64_t max_frames) {
  const size_t comma = uri.find(',');
  if (!uri.starts_with("data:") || uri.find(',', comma + 1) == std::string::npos) return {uri};
  const std::string header = uri.substr(0, comma + 1);
  std::vector<std::string> out;
  for (size_t begin = comma + 1; std::ssize(out) <= max_frames;) {
    const size_t end = std::min(uri.find(',', begin), uri.size());
    out.push_back(header + uri.substr(begin, end - begin));
    if (end == uri.size()) break;
    begin = end + 1;
  }
  return out;
}

/// Decodes, resizes and cuts the frames of one video, a group after the other.
class ImageReader::VideoCutter {
 public:
  VideoCutter(const ImageReader& reader, VideoSource source, double fps)
      : reader_(reader), config_(*reader.config_.video), source_(std::move(source)) {
    if (source_.fps <= 0) source_.fps = fps;
  }

  Result<PromptVideo> cut() {
    if (source_.frames.size() == 1) {
      source_.frames = split_frames(source_.frames[0], config_.max_frames);
    }
    const int64_t count = std::ssize(source_.frames);
    if (count == 0) return invalid_argument(source_.field + ": the video has no frames");
    if (count > config_.max_frames) {
      return invalid_argument(source_.field + ": the video has too many frames; allowed: at most " +
                              std::to_string(config_.max_frames));
    }
    std::vector<int64_t> indices(source_.frames.size());
    for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int64_t>(i);
    const int depth = config_.processing.frame.temporal_patch_size;
    PromptVideo out{.groups = {},
                    .times = group_times(indices, source_.fps, depth),
                    .group_seconds = depth / source_.fps};
    std::vector<Frame> group;
    for (size_t i = 0; i < source_.frames.size(); ++i) {
      auto frame = read(i);
      if (!frame && count == 1 && frame.error().message == image_error::not_an_image().message) {
        frame = image_error::not_a_video();
      }
      if (!frame) return with_context(std::move(frame).error(), at_frame(source_, i));
      group.push_back(std::move(*frame));
      if (std::ssize(group) < depth && i + 1 < source_.frames.size()) continue;
      out.groups.push_back(finish(group));
      group.clear();
    }
    return out;
  }

 private:
  /// Frame `index`, resized. The first one decides the size of all.
  Result<Frame> read(size_t index) {
    std::vector<uint8_t> bytes = TRY(reader_.bytes_of(source_.frames[index]));
    Frame out{.image = TRY(decode_image(bytes, reader_.config_.limits)),
              .digest = sha256_of({bytes})};
    const ImageSize size{out.image.width, out.image.height};
    if (index == 0) {
      frame_size_ = size;
      TRY(choose_size());
    } else if (size.width != frame_size_.width || size.height != frame_size_.height) {
      return invalid_argument("the frames of a video must have one size");
    }
    out.image =
        resize_image(out.image, target_.width, target_.height, config_.processing.frame.resampling);
    return out;
  }

  Result<void> choose_size() {
    const int64_t count = std::ssize(source_.frames);
    if (count * frame_size_.width * frame_size_.height > config_.max_pixels) {
      return invalid_argument("the video has too many pixels");
    }
    const VideoProcessing limited = limit_tokens(
        config_.processing, count, reader_.config_.max_image_tokens, config_.max_tokens);
    target_ = TRY(video_size(frame_size_, count, limited));
    const int64_t factor = limited.frame.factor();
    if (target_.width % factor != 0 || target_.height % factor != 0) {
      return invalid_argument("the video's sides are not multiples of the model's patches");
    }
    if (target_.width / factor * (target_.height / factor) > reader_.config_.max_image_tokens) {
      return invalid_argument("a frame of the video has more tokens than the server allows");
    }
    return {};
  }

  std::shared_ptr<const ImagePatches> finish(std::vector<Frame>& group) const {
    const ImageProcessing& processing = config_.processing.frame;
    const std::string kind =
        "video frames " + std::to_string(target_.width) + "x" + std::to_string(target_.height);
    std::vector<uint8_t> digests(kind.begin(), kind.end());
    if (config_.tokens_per_second > 0) {
      // The positions of the frames are not in the prompt's tokens: keys of prefixes have them so.
      const auto seconds = std::bit_cast<std::array<uint8_t, sizeof(double)>>(source_.fps);
      digests.insert(digests.end(), seconds.begin(), seconds.end());
    }
    std::vector<Image> images;
    for (Frame& frame : group) {
      digests.insert(digests.end(), frame.digest.begin(), frame.digest.end());
      images.push_back(std::move(frame.image));
    }
    PatchImage patches = cut_patches(images, processing);
    auto out = std::make_shared<ImagePatches>();
    out->digest = sha256_of({digests, reader_.video_fingerprint_});
    out->t = patches.grid.t;
    out->h = patches.grid.h;
    out->w = patches.grid.w;
    out->num_tokens = patches.grid.tokens(processing.merge_size);
    out->samples = std::move(patches.patches);
    out->values = reader_.video_values_;
    return out;
  }

  const ImageReader& reader_;
  const VideoInputConfig& config_;
  VideoSource source_;
  ImageSize frame_size_, target_;
};

Result<PromptVideo> ImageReader::read_video(const VideoSource& source, double fps) const {
  return VideoCutter(*this, source, fps).cut();
}

Result<std::vector<PromptVideo>> ImageReader::read_videos(const std::vector<VideoSource>& sources,
                                                          double fps) const {
  if (std::ssize(sources) > config_.video->max_videos) {
    return invalid_argument("messages: they hold " + std::to_string(sources.size()) +
                            " videos; allowed: at most " +
                            std::to_string(config_.video->max_videos));
  }
  std::vector<PromptVideo> out;
  for (const VideoSource& source : sources) out.push_back(TRY(read_video(source, fps)));
  return out;
}

}  // namespace weft
