#pragma once

#include <array>
#include <span>
#include <string_view>

#include "media/image.h"
#include "media/resize.h"

namespace weft {

/// How the images of a model become patches: preprocessor_config.json of Qwen2.5-VL, Qwen3-VL and
/// Qwen3.5 (transformers' Qwen2VLImageProcessor).
struct ImageProcessing {
  int patch_size = 14;          ///< P
  int temporal_patch_size = 2;  ///< frames of a patch; a single image is repeated
  int merge_size = 2;           ///< merge x merge patches become one token
  int64_t min_pixels = 56 * 56, max_pixels = 28 * 28 * 1280;
  bool resize = true, rescale = true, normalize = true;
  Resampling resampling = Resampling::kBicubic;
  double rescale_factor = 1.0 / 255;
  std::array<double, 3> mean = {0.48145466, 0.4578275, 0.40821073};
  std::array<double, 3> std = {0.26862954, 0.26130258, 0.27577711};

  int factor() const { return patch_size * merge_size; }
  int64_t patch_values() const {
    return int64_t{3} * temporal_patch_size * patch_size * patch_size;
  }
};

/// Pixels of an image after it was resized, as whoever sends it wants them; 0: not said.
struct PixelBounds {
  int64_t min = 0, max = 0;
  bool operator==(const PixelBounds&) const = default;
};

/// The same with these bounds, none beyond processing.max_pixels.
Result<ImageProcessing> with_bounds(ImageProcessing processing, PixelBounds bounds);

/// Reads preprocessor_config.json, old form (min_pixels, max_pixels) or new (size.shortest_edge,
/// size.longest_edge, which count pixels too). Errors name the field and what is allowed.
Result<ImageProcessing> parse_image_processing(std::string_view json);

/// How the videos of a model become patches: transformers' Qwen2VLVideoProcessor (Qwen2.5-VL) and
/// Qwen3VLVideoProcessor (Qwen3-VL, Qwen3.5).
struct VideoProcessing {
  ImageProcessing frame;
  bool bounds_of_all = false;         ///< min_pixels and max_pixels count those of all frames
  bool cap_pixels_per_frame = false;  ///< of Qwen3VLVideoProcessor, as qwen-vl-utils has it
  double fps = 2;                     ///< frames a second that are taken of a video in time
  int64_t min_frames = 4, max_frames = 768;
};

/// Reads video_preprocessor_config.json, or preprocessor_config.json where a checkpoint has no
/// other, as transformers does. The processor is the one that the file names, else `bounds_of_all`.
Result<VideoProcessing> parse_video_processing(std::string_view json, bool bounds_of_all);

/// Extents of an image in patches: t frames of h x w.
struct PatchGrid {
  int t = 0, h = 0, w = 0;
  int64_t patches() const { return int64_t{t} * h * w; }
  int64_t tokens(int merge_size) const { return patches() / (int64_t{merge_size} * merge_size); }
  bool operator==(const PatchGrid&) const = default;
};

constexpr double kMaxAspect = 200;  ///< of the longer side to the shorter

struct ImageSize {
  int width = 0, height = 0;
};

/// The size that an image is resized to: multiples of factor(), pixels within the bounds, the
/// aspect nearly kept.
Result<ImageSize> smart_resize(ImageSize size, const ImageProcessing& processing);

/// Tokens that an image can have at most.
int64_t max_tokens(const ImageProcessing& processing);

struct PatchImage {
  PatchGrid grid;
  /// [patches, 3 * temporal * P * P] samples, (channel, frame, row, column) within a patch; patches
  /// in the order of merge blocks: (block row, block column, row, column).
  std::vector<uint8_t> patches;
};

/// The patches of some frames in time of one size, a multiple of factor(): at most
/// temporal_patch_size of them; the last one stands for those that are missing.
PatchImage cut_patches(std::span<const Image> frames, const ImageProcessing& processing);

/// Resizes and cuts one image.
Result<PatchImage> make_patches(const Image& image, const ImageProcessing& processing);

/// What a sample becomes: [3, 256] by channel and value, rescaled and normalised.
std::array<float, 3 * 256> sample_values(const ImageProcessing& processing);

}  // namespace weft
