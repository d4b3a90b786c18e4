#include "media/processing.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "base/check.h"
#include "media/image_errors.h"
#include "media/rounding.h"

namespace weft {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxPixels = int64_t{1} << 28;

/// The fields of the file, read once each.
class Fields {
 public:
  explicit Fields(const Json& json) : json_(json) {}

  const Json* find(const char* name) const {
    const auto it = json_.find(name);
    return it == json_.end() || it->is_null() ? nullptr : &*it;
  }

  Result<int64_t> integer(const char* name, int64_t low, int64_t high, int64_t otherwise) const {
    const Json* value = find(name);
    if (!value) return otherwise;
    // Some files write 65536.0.
    const double number = value->is_number() ? value->get<double>() : std::nan("");
    if (!(number >= static_cast<double>(low) && number <= static_cast<double>(high)) ||
        number != std::floor(number)) {
      return invalid_argument(std::string(name) + " must be an integer in [" + std::to_string(low) +
                              ", " + std::to_string(high) + "]");
    }
    return static_cast<int64_t>(number);
  }

  Result<bool> flag(const char* name, bool otherwise) const {
    const Json* value = find(name);
    if (!value) return otherwise;
    if (!value->is_boolean()) return invalid_argument(std::string(name) + " must be true or false");
    return value->get<bool>();
  }

  Result<double> positive(const char* name, double otherwise) const {
    const Json* value = find(name);
    if (!value) return otherwise;
    if (!value->is_number() || !(value->get<double>() > 0)) {
      return invalid_argument(std::string(name) + " must be a positive number");
    }
    return value->get<double>();
  }

  /// One number a channel.
  Result<std::array<double, 3>> channels(const char* name, std::array<double, 3> otherwise) const {
    const Json* value = find(name);
    if (!value) return otherwise;
    std::array<double, 3> out;
    const bool three = value->is_array() && value->size() == 3;
    for (size_t i = 0; i < 3; ++i) {
      if (!three || !(*value)[i].is_number()) {
        return invalid_argument(std::string(name) + " must be a list of 3 numbers");
      }
      out[i] = (*value)[i].get<double>();
    }
    return out;
  }

 private:
  const Json& json_;
};

Result<void> read_bounds(const Fields& fields, ImageProcessing& out) {
  static const Json kNone = Json::object();
  const Json* size = fields.find("size");
  if (size && !size->is_object()) return invalid_argument("size must be an object");
  const Fields inner(size ? *size : kNone);
  out.min_pixels = TRY(inner.integer("min_pixels", 1, kMaxPixels, out.min_pixels));
  out.max_pixels = TRY(inner.integer("max_pixels", 1, kMaxPixels, out.max_pixels));
  out.min_pixels = TRY(inner.integer("shortest_edge", 1, kMaxPixels, out.min_pixels));
  out.max_pixels = TRY(inner.integer("longest_edge", 1, kMaxPixels, out.max_pixels));
  out.min_pixels = TRY(fields.integer("min_pixels", 1, kMaxPixels, out.min_pixels));
  out.max_pixels = TRY(fields.integer("max_pixels", 1, kMaxPixels, out.max_pixels));
  if (out.min_pixels > out.max_pixels) {
    return invalid_argument("min_pixels (size.shortest_edge) must not exceed max_pixels");
  }
  return {};
}

Result<ImageProcessing> read_image_processing(const Fields& fields, ImageProcessing out) {
  out.patch_size = static_cast<int>(TRY(fields.integer("patch_size", 1, 256, out.patch_size)));
  out.temporal_patch_size =
      static_cast<int>(TRY(fields.integer("temporal_patch_size", 1, 16, out.temporal_patch_size)));
  out.merge_size = static_cast<int>(TRY(fields.integer("merge_size", 1, 16, out.merge_size)));
  TRY(read_bounds(fields, out));
  out.resize = TRY(fields.flag("do_resize", true));
  out.rescale = TRY(fields.flag("do_rescale", true));
  out.normalize = TRY(fields.flag("do_normalize", true));
  const int64_t resample = TRY(fields.integer("resample", 0, 5, 3));
  if (resample > 3) {
    return unsupported("resample must be 0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)");
  }
  out.resampling = static_cast<Resampling>(resample);
  out.rescale_factor = TRY(fields.positive("rescale_factor", out.rescale_factor));
  out.mean = TRY(fields.channels("image_mean", out.mean));
  out.std = TRY(fields.channels("image_std", out.std));
  for (const double value : out.std) {
    if (!(value > 0)) return invalid_argument("image_std must be positive");
  }
  return out;
}

}  // namespace

Result<ImageProcessing> with_bounds(ImageProcessing processing, PixelBounds bounds) {
  if (bounds.max > 0 && bounds.min > bounds.max) {
    return invalid_argument("min_pixels must not exceed max_pixels");
  }
  int64_t& most = processing.max_pixels;
  if (bounds.max > 0) most = std::min(most, bounds.max);
  if (bounds.min > 0) processing.min_pixels = bounds.min;
  processing.min_pixels = std::min(processing.min_pixels, most);
  return processing;
}

Result<ImageProcessing> parse_image_processing(std::string_view json) {
  const Json parsed = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return invalid_argument("it must be a JSON object");
  return read_image_processing(Fields(parsed), {});
}

Result<VideoProcessing> parse_video_processing(std::string_view json, bool bounds_of_all) {
  const Json parsed = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return invalid_argument("it must be a JSON object");
  const Fields fields(parsed);
  VideoProcessing out;
  out.bounds_of_all = bounds_of_all;
  if (const Json* type = fields.find("video_processor_type")) {
    const std::string name = type->is_string() ? type->get<std::string>() : "";
    out.bounds_of_all = name == "Qwen3VLVideoProcessor";
    if (!out.bounds_of_all && name != "Qwen2VLVideoProcessor" &&
        name != "Qwen2_5_VLVideoProcessor") {
      return unsupported(
          "video_processor_type must be Qwen2VLVideoProcessor or Qwen3VLVideoProcessor");
    }
  }
  // What the classes have where the file says nothing.
  ImageProcessing& frame = out.frame;
  if (out.bounds_of_all) {
    frame.patch_size = 16;
    frame.mean = frame.std = {0.5, 0.5, 0.5};
  }
  frame.min_pixels = 128 * int64_t{frame.factor()} * frame.factor();
  frame.max_pixels = 768 * int64_t{frame.factor()} * frame.factor();
  frame = TRY(read_image_processing(fields, frame));
  out.cap_pixels_per_frame = TRY(fields.flag("cap_pixels_per_frame", false));
  out.fps = TRY(fields.positive("fps", out.fps));
  out.min_frames = TRY(fields.integer("min_frames", 1, 1 << 20, out.min_frames));
  out.max_frames = TRY(fields.integer("max_frames", 1, 1 << 20, out.max_frames));
  return out;
}

Result<ImageSize> smart_resize(ImageSize size, const ImageProcessing& processing) {
  const double height = size.height, width = size.width, factor = processing.factor();
  if (std::max(height, width) / std::min(height, width) > kMaxAspect) {
    return image_error::too_narrow();
  }
  double h = round_to_even(height / factor) * factor, w = round_to_even(width / factor) * factor;
  const auto most = static_cast<double>(processing.max_pixels);
  const auto least = static_cast<double>(processing.min_pixels);
  if (h * w > most) {
    const double beta = std::sqrt(height * width / most);
    h = std::max(factor, std::floor(height / beta / factor) * factor);
    w = std::max(factor, std::floor(width / beta / factor) * factor);
  } else if (h * w < least) {
    const double beta = std::sqrt(least / (height * width));
    h = std::ceil(height * beta / factor) * factor;
    w = std::ceil(width * beta / factor) * factor;
  }
  return ImageSize{.width = static_cast<int>(w), .height = static_cast<int>(h)};
}

int64_t max_tokens(const ImageProcessing& processing) {
  // A long strip is as wide as the factor at least: it may break max_pixels, by its aspect alone.
  const double factor = processing.factor();
  const auto most = static_cast<double>(processing.max_pixels);
  const double strip = std::ceil(std::sqrt(most * kMaxAspect) / factor);
  return static_cast<int64_t>(std::max(most / (factor * factor), strip)) + 1;
}

PatchImage cut_patches(std::span<const Image> frames, const ImageProcessing& processing) {
  const auto depth = static_cast<size_t>(processing.temporal_patch_size);
  CHECK(!frames.empty() && frames.size() <= depth);
  const int width = frames[0].width, height = frames[0].height;
  const int side = processing.patch_size, merge = processing.merge_size;
  CHECK(width % processing.factor() == 0 && height % processing.factor() == 0);
  PatchImage out;
  out.grid = {.t = 1, .h = height / side, .w = width / side};
  out.patches.resize(static_cast<size_t>(out.grid.patches() * processing.patch_values()));
  uint8_t* to = out.patches.data();
  const auto cut = [&](int patch_row, int patch_column) {
    const int64_t corner = 3 * (int64_t{patch_row} * side * width + patch_column * side);
    for (int channel = 0; channel < 3; ++channel) {
      for (size_t frame = 0; frame < depth; ++frame) {
        const uint8_t* rows = frames[std::min(frame, frames.size() - 1)].rgb.data() + corner;
        for (int y = 0; y < side; ++y) {
          const uint8_t* from = rows + 3 * int64_t{y} * width + channel;
          for (int x = 0; x < side; ++x, from += 3) *to++ = *from;
        }
      }
    }
  };
  for (int block_row = 0; block_row < out.grid.h; block_row += merge) {
    for (int block_column = 0; block_column < out.grid.w; block_column += merge) {
      for (int i = 0; i < merge * merge; ++i) {
        cut(block_row + i / merge, block_column + i % merge);
      }
    }
  }
  return out;
}

Result<PatchImage> make_patches(const Image& image, const ImageProcessing& processing) {
  ImageSize size{image.width, image.height};
  if (processing.resize) size = TRY(smart_resize(size, processing));
  if (size.width % processing.factor() != 0 || size.height % processing.factor() != 0) {
    return invalid_argument("the image's sides are not multiples of the model's patches");
  }
  const Image scaled = resize_image(image, size.width, size.height, processing.resampling);
  return cut_patches({&scaled, 1}, processing);
}

std::array<float, 3 * 256> sample_values(const ImageProcessing& processing) {
  std::array<float, 3 * 256> out;
  for (size_t channel = 0; channel < 3; ++channel) {
    for (int sample = 0; sample < 256; ++sample) {
      double value = sample;
      if (processing.rescale) value *= processing.rescale_factor;
      if (processing.normalize)
        value = (value - processing.mean[channel]) / processing.std[channel];
      out[channel * 256 + static_cast<size_t>(sample)] = static_cast<float>(value);
    }
  }
  return out;
}

}  // namespace weft
