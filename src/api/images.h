#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "api/videos.h"
#include "base/result.h"
#include "media/processing.h"
#include "sched/request.h"

namespace weft {

/// An image as a request names it.
struct ImageSource {
  std::string field;        ///< where it stands, for errors
  std::string uri;          ///< data:, or http(s): and file: where that is allowed
  PixelBounds bounds = {};  ///< none: the usual ones of its request
};

/// How a model takes images, and what requests may bring.
struct ImageInputConfig {
  ImageProcessing processing;
  ImageLimits limits;
  int32_t image_token = -1;               ///< stands for an image, and then for each of its tokens
  int64_t max_image_tokens = 0;           ///< of one image
  int64_t max_images = 16;                ///< of one request
  std::optional<VideoInputConfig> video;  ///< none: the model takes no videos
  /// Gets the bytes behind an http(s) URL, at most limits.max_bytes; empty: such URLs are refused.
  std::function<Result<std::vector<uint8_t>>(const std::string& url)> fetch;
  /// The same of a file: URL; empty: these are refused.
  std::function<Result<std::vector<uint8_t>>(const std::string& url)> read_file;
};

/// A prompt with the tokens of its images and videos.
struct ImagePrompt {
  std::vector<int32_t> ids;
  std::vector<PromptImage> images;                ///< and groups of a video's frames, in order
  std::vector<std::array<int32_t, 3>> positions;  ///< empty without images
  int32_t rope_delta = 0;
};

/// From what a request names to what the engine takes: fetches, decodes, resizes and cuts images.
/// Any number of threads may use it at once. Errors are fixed texts behind the field's name.
class ImageReader {
 public:
  explicit ImageReader(ImageInputConfig config);

  const ImageInputConfig& config() const { return config_; }
  /// `usual`: the bounds of an image that doesn't say its own.
  Result<std::shared_ptr<const ImagePatches>> read(const ImageSource& source,
                                                   PixelBounds usual = {}) const;
  Result<std::shared_ptr<const ImagePatches>> read_bytes(std::span<const uint8_t> file,
                                                         PixelBounds bounds = {}) const;
  /// All images of a request, in order; too many are an Error.
  Result<std::vector<std::shared_ptr<const ImagePatches>>> read_all(
      const std::vector<ImageSource>& sources, PixelBounds usual = {}) const;

  /// Of a config with videos: one, or all of a request, of `fps` frames a second where they don't
  /// say theirs.
  Result<PromptVideo> read_video(const VideoSource& source, double fps = kVideoFps) const;
  Result<std::vector<PromptVideo>> read_videos(const std::vector<VideoSource>& sources,
                                               double fps = kVideoFps) const;

  /// Replaces the one image token that the template wrote for each image by as many as the image
  /// has, the video token of each video or (of models that read times) group of frames likewise,
  /// and gives every token its position. An Error when there are more or fewer of them than images
  /// and videos.
  Result<ImagePrompt> expand(const std::vector<int32_t>& ids,
                             const std::vector<std::shared_ptr<const ImagePatches>>& images,
                             const std::vector<PromptVideo>& videos = {}) const;

 private:
  class VideoCutter;
  Result<std::vector<uint8_t>> bytes_of(const std::string& uri) const;

  ImageInputConfig config_;
  std::array<float, 3 * 256> values_, video_values_{};
  // Of the processing: part of every digest.
  std::vector<uint8_t> fingerprint_, video_fingerprint_;
};

}  // namespace weft
