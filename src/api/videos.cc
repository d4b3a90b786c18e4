#include "api/videos.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <numeric>
#include <optional>
#include <string_view>

#include "api/images.h"
#include "media/animation.h"
#include "media/image_errors.h"
#include "media/sha256.h"
#include "text/tokenizer.h"

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

Result<VideoTexts> texts_of_videos(const std::vector<PromptVideo>& videos,
                                   const VideoInputConfig& config, const Tokenizer& tokenizer) {
  if (config.tokens_per_second > 0) return VideoTexts();
  const auto text = [&](int32_t id) { return tokenizer.id_to_token(id).value_or(""); };
  VideoTexts out{text(config.start_token), text(config.video_token), text(config.end_token), {}};
  if (out.start.empty() || out.token.empty() || out.end.empty()) {
    return unsupported("messages: the model's tokenizer has no tokens for videos");
  }
  out.texts = timed_texts(videos, out);
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
    if (count == 1) {
      auto video = cut_file();
      if (!video) return with_context(std::move(video).error(), source_.field);
      return video;
    }
    std::vector<int64_t> indices(source_.frames.size());
    std::iota(indices.begin(), indices.end(), 0);
    begin(indices, source_.fps, source_.fps);
    for (size_t i = 0; i < indices.size(); ++i) {
      auto added = add_file(source_.frames[i]);
      if (!added) return with_context(std::move(added).error(), at_frame(source_, i));
    }
    return std::move(out_);
  }

 private:
  int depth() const { return config_.processing.frame.temporal_patch_size; }

  /// `indices` of a video of `fps` frames a second follow, `taken` of them a second.
  void begin(std::span<const int64_t> indices, double fps, double taken) {
    num_frames_ = std::ssize(indices);
    out_.times = group_times(indices, fps, depth());
    out_.group_seconds = depth() / taken;
  }

  /// A single file: an animation, or a picture that is shown twice.
  Result<PromptVideo> cut_file() {
    const std::vector<uint8_t> bytes = TRY(reader_.bytes_of(source_.frames[0]));
    const ImageLimits& limits = reader_.config_.limits;
    const std::optional<Animation> animation = TRY(find_animation(bytes, limits));
    if (!animation) {
      begin(std::array<int64_t, 1>{0}, source_.fps, source_.fps);
      Result<Image> image = decode_image(bytes, limits);
      if (!image && image.error().message == image_error::not_an_image().message) {
        return image_error::not_a_video();
      }
      TRY(add({.image = TRY(std::move(image)), .digest = sha256_of({bytes})}));
      return std::move(out_);
    }
    if (animation->num_frames > config_.max_pixels / animation->width / animation->height) {
      return invalid_argument("the video has too many pixels");
    }
    VideoProcessing sampling = config_.processing;
    sampling.max_frames = std::min(sampling.max_frames, config_.max_frames);
    sampling.fps = source_.fps;
    const auto total = static_cast<double>(animation->num_frames);
    const double fps = total / animation->seconds;
    const std::vector<int64_t> indices = sample_frames(animation->num_frames, fps, sampling);
    begin(indices, fps, static_cast<double>(indices.size()) / total * fps);
    const Digest file = sha256_of({bytes});
    size_t next = 0;
    TRY(decode_animation(bytes, indices, limits, [&](Image image) {
      const auto index = std::bit_cast<std::array<uint8_t, sizeof(int64_t)>>(indices[next++]);
      return add({.image = std::move(image), .digest = sha256_of({file, index})});
    }));
    return std::move(out_);
  }

  Result<void> add_file(const std::string& uri) {
    const std::vector<uint8_t> bytes = TRY(reader_.bytes_of(uri));
    return add(
        {.image = TRY(decode_image(bytes, reader_.config_.limits)), .digest = sha256_of({bytes})});
  }

  /// The next frame. The first one decides the size of all.
  Result<void> add(Frame frame) {
    const ImageSize size{frame.image.width, frame.image.height};
    if (num_added_++ == 0) {
      frame_size_ = size;
      TRY(choose_size());
    } else if (size.width != frame_size_.width || size.height != frame_size_.height) {
      return invalid_argument("the frames of a video must have one size");
    }
    frame.image = resize_image(frame.image, target_.width, target_.height,
                               config_.processing.frame.resampling);
    group_.push_back(std::move(frame));
    if (std::ssize(group_) < depth() && num_added_ < num_frames_) return {};
    out_.groups.push_back(finish(group_));
    group_.clear();
    return {};
  }

  Result<void> choose_size() {
    if (num_frames_ * frame_size_.width * frame_size_.height > config_.max_pixels) {
      return invalid_argument("the video has too many pixels");
    }
    const VideoProcessing limited = limit_tokens(
        config_.processing, num_frames_, reader_.config_.max_image_tokens, config_.max_tokens);
    target_ = TRY(video_size(frame_size_, num_frames_, limited));
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
      const auto seconds = std::bit_cast<std::array<uint8_t, sizeof(double)>>(out_.group_seconds);
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
  PromptVideo out_;
  std::vector<Frame> group_;  // resized, not yet cut
  int64_t num_frames_ = 0, num_added_ = 0;
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
