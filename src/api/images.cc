#include "api/images.h"

#include <algorithm>
#include <cstring>

#include "media/data_uri.h"
#include "media/positions.h"
#include "media/sha256.h"

namespace weft {
namespace {

/// Positions that a video may take: far beyond every model's length, and with room in 32 bits.
constexpr int64_t kMaxOffset = 1 << 24;

bool begins_with_ignoring_case(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(), [](char a, char b) {
           return a == (b >= 'A' && b <= 'Z' ? static_cast<char>(b - 'A' + 'a') : b);
         });
}

PixelBounds bounds_of(const ImageSource& source, PixelBounds usual) {
  return source.bounds == PixelBounds() ? usual : source.bounds;
}

template <class T>
void append(std::vector<uint8_t>& out, const T& value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof(value));
}

std::vector<uint8_t> fingerprint_of(const ImageProcessing& p) {
  std::vector<uint8_t> out;
  for (const int64_t value :
       {int64_t{p.patch_size}, int64_t{p.temporal_patch_size}, int64_t{p.merge_size}, p.min_pixels,
        p.max_pixels, int64_t{p.resize}, int64_t{p.rescale}, int64_t{p.normalize},
        static_cast<int64_t>(p.resampling)}) {
    append(out, value);
  }
  append(out, p.rescale_factor);
  append(out, p.mean);
  append(out, p.std);
  return out;
}

}  // namespace

ImageReader::ImageReader(ImageInputConfig config)
    : config_(std::move(config)),
      values_(sample_values(config_.processing)),
      fingerprint_(fingerprint_of(config_.processing)) {
  if (!config_.video) return;
  video_values_ = sample_values(config_.video->processing.frame);
  video_fingerprint_ = fingerprint_of(config_.video->processing.frame);
}

Result<std::shared_ptr<const ImagePatches>> ImageReader::read_bytes(std::span<const uint8_t> file,
                                                                    PixelBounds bounds) const {
  const ImageProcessing processing = TRY(with_bounds(config_.processing, bounds));
  const Image image = TRY(decode_image(file, config_.limits));
  PatchImage patches = TRY(make_patches(image, processing));
  auto out = std::make_shared<ImagePatches>();
  out->digest =
      sha256_of({file, bounds == PixelBounds() ? fingerprint_ : fingerprint_of(processing)});
  out->t = patches.grid.t;
  out->h = patches.grid.h;
  out->w = patches.grid.w;
  out->num_tokens = patches.grid.tokens(config_.processing.merge_size);
  out->samples = std::move(patches.patches);
  out->values = values_;
  if (out->num_tokens > config_.max_image_tokens) {
    return invalid_argument("the image has more tokens than the server allows");
  }
  return std::shared_ptr<const ImagePatches>(std::move(out));
}

Result<std::vector<uint8_t>> ImageReader::bytes_of(const std::string& uri) const {
  const bool http =
      begins_with_ignoring_case(uri, "http://") || begins_with_ignoring_case(uri, "https://");
  if (config_.read_file && begins_with_ignoring_case(uri, "file://")) return config_.read_file(uri);
  if (!http) return decode_data_uri(uri, config_.limits.max_bytes);
  if (config_.fetch) return config_.fetch(uri);
  return unsupported("this server fetches no URLs; send the image as a data: URI");
}

Result<std::shared_ptr<const ImagePatches>> ImageReader::read(const ImageSource& source,
                                                              PixelBounds usual) const {
  Result<std::vector<uint8_t>> bytes = bytes_of(source.uri);
  if (!bytes) return with_context(std::move(bytes).error(), source.field);
  auto patches = read_bytes(*bytes, bounds_of(source, usual));
  if (!patches) return with_context(std::move(patches).error(), source.field);
  return patches;
}

Result<std::vector<std::shared_ptr<const ImagePatches>>> ImageReader::read_all(
    const std::vector<ImageSource>& sources, PixelBounds usual) const {
  if (std::ssize(sources) > config_.max_images) {
    return invalid_argument("messages: they hold " + std::to_string(sources.size()) +
                            " images; allowed: at most " + std::to_string(config_.max_images));
  }
  std::vector<std::shared_ptr<const ImagePatches>> out;
  for (size_t i = 0; i < sources.size(); ++i) {
    // The same picture in several turns is decoded once.
    const auto same = std::find_if(sources.begin(), sources.begin() + static_cast<int64_t>(i),
                                   [&](const auto& other) {
                                     return other.uri == sources[i].uri &&
                                            bounds_of(other, usual) == bounds_of(sources[i], usual);
                                   });
    const auto index = static_cast<size_t>(same - sources.begin());
    out.push_back(index < i ? out[index] : TRY(read(sources[i], usual)));
  }
  return out;
}

namespace {

/// What one token of the template's stands for: images whose tokens follow each other.
struct Run {
  std::span<const std::shared_ptr<const ImagePatches>> images;
  float seconds = 1, per_second = 1;  // of one image, and positions of a second
};

std::vector<Run> runs_of(const std::vector<PromptVideo>& videos, double tokens_per_second) {
  std::vector<Run> out;
  for (const PromptVideo& video : videos) {
    if (tokens_per_second > 0) {
      out.push_back({video.groups, static_cast<float>(video.group_seconds),
                     static_cast<float>(tokens_per_second)});
      continue;
    }
    for (const auto& group : video.groups) out.push_back({std::span(&group, 1)});
  }
  return out;
}

Error shown_otherwise(int64_t shown, size_t given, const std::string& what) {
  return invalid_argument("messages: the chat template shows " + std::to_string(shown) + " of " +
                          std::to_string(given) + " " + what +
                          "; the model takes none where these stand");
}

}  // namespace

Result<ImagePrompt> ImageReader::expand(
    const std::vector<int32_t>& ids, const std::vector<std::shared_ptr<const ImagePatches>>& images,
    const std::vector<PromptVideo>& videos) const {
  ImagePrompt out;
  const auto shown = std::count(ids.begin(), ids.end(), config_.image_token);
  if (shown != std::ssize(images)) return shown_otherwise(shown, images.size(), "images");
  std::vector<Run> runs;
  if (!videos.empty()) {
    runs = runs_of(videos, config_.video->tokens_per_second);
    const auto marks = std::count(ids.begin(), ids.end(), config_.video->video_token);
    if (marks != std::ssize(runs)) {
      const bool whole = config_.video->tokens_per_second > 0;
      return shown_otherwise(marks, runs.size(), whole ? "videos" : "groups of a video's frames");
    }
  }
  if (images.empty() && videos.empty()) {
    out.ids = ids;
    return out;
  }
  const int merge = config_.processing.merge_size;
  std::vector<TokenGrid> grids;
  size_t next_image = 0, next_run = 0;
  for (const int32_t id : ids) {
    const bool image = id == config_.image_token;
    const bool video = !videos.empty() && id == config_.video->video_token;
    if (!image && !video) {
      out.ids.push_back(id);
      continue;
    }
    const Run run = image ? Run{std::span(&images[next_image++], 1)} : runs[next_run++];
    grids.push_back({.first = std::ssize(out.ids),
                     .t = static_cast<int>(run.images.size()),
                     .h = run.images[0]->h / merge,
                     .w = run.images[0]->w / merge,
                     .seconds = run.seconds,
                     .per_second = run.per_second});
    if (grids.back().offset(grids.back().t - 1) > kMaxOffset) {
      return invalid_argument("messages: a video has frames too far apart (fps is too small)");
    }
    for (const auto& content : run.images) {
      out.images.push_back({std::ssize(out.ids), content});
      out.ids.insert(out.ids.end(), static_cast<size_t>(content->num_tokens), id);
    }
  }
  PromptPositions positions = prompt_positions(grids, std::ssize(out.ids));
  out.positions = std::move(positions.triples);
  out.rope_delta = positions.rope_delta;
  return out;
}

}  // namespace weft
