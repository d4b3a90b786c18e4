#include "api/images.h"

#include <algorithm>
#include <cstring>

#include "media/data_uri.h"
#include "media/positions.h"
#include "media/sha256.h"

namespace weft {
namespace {

bool begins_with_ignoring_case(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(), [](char a, char b) {
           return a == (b >= 'A' && b <= 'Z' ? static_cast<char>(b - 'A' + 'a') : b);
         });
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
      fingerprint_(fingerprint_of(config_.processing)) {}

Result<std::shared_ptr<const ImagePatches>> ImageReader::read_bytes(
    std::span<const uint8_t> file) const {
  const Image image = TRY(decode_image(file, config_.limits));
  PatchImage patches = TRY(make_patches(image, config_.processing));
  auto out = std::make_shared<ImagePatches>();
  out->digest = sha256_of({file, fingerprint_});
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

Result<std::shared_ptr<const ImagePatches>> ImageReader::read(const ImageSource& source) const {
  const bool http = begins_with_ignoring_case(source.uri, "http://") ||
                    begins_with_ignoring_case(source.uri, "https://");
  if (http && !config_.fetch) {
    return unsupported(source.field +
                       ": this server fetches no URLs; send the image as a data: URI");
  }
  Result<std::vector<uint8_t>> bytes =
      http ? config_.fetch(source.uri) : decode_data_uri(source.uri, config_.limits.max_bytes);
  if (!bytes) return with_context(std::move(bytes).error(), source.field);
  auto patches = read_bytes(*bytes);
  if (!patches) return with_context(std::move(patches).error(), source.field);
  return patches;
}

Result<std::vector<std::shared_ptr<const ImagePatches>>> ImageReader::read_all(
    const std::vector<ImageSource>& sources) const {
  if (std::ssize(sources) > config_.max_images) {
    return invalid_argument("messages: they hold " + std::to_string(sources.size()) +
                            " images; allowed: at most " + std::to_string(config_.max_images));
  }
  std::vector<std::shared_ptr<const ImagePatches>> out;
  for (size_t i = 0; i < sources.size(); ++i) {
    // The same picture in several turns is decoded once.
    const auto same = std::find_if(sources.begin(), sources.begin() + static_cast<int64_t>(i),
                                   [&](const auto& other) { return other.uri == sources[i].uri; });
    const auto index = static_cast<size_t>(same - sources.begin());
    out.push_back(index < i ? out[index] : TRY(read(sources[i])));
  }
  return out;
}

Result<ImagePrompt> ImageReader::expand(
    const std::vector<int32_t>& ids,
    std::vector<std::shared_ptr<const ImagePatches>> images) const {
  ImagePrompt out;
  const auto shown = static_cast<size_t>(std::count(ids.begin(), ids.end(), config_.image_token));
  if (shown != images.size()) {
    return invalid_argument("messages: the chat template shows " + std::to_string(shown) + " of " +
                            std::to_string(images.size()) +
                            " images; the model takes none where these stand");
  }
  if (images.empty()) {
    out.ids = ids;
    return out;
  }
  const int merge = config_.processing.merge_size;
  std::vector<TokenGrid> grids;
  for (const int32_t id : ids) {
    if (id != config_.image_token) {
      out.ids.push_back(id);
      continue;
    }
    const auto& image = images[out.images.size()];
    grids.push_back({.first = std::ssize(out.ids),
                     .t = image->t,
                     .h = image->h / merge,
                     .w = image->w / merge});
    out.images.push_back({std::ssize(out.ids), image});
    out.ids.insert(out.ids.end(), static_cast<size_t>(image->num_tokens), id);
  }
  PromptPositions positions = prompt_positions(grids, std::ssize(out.ids));
  out.positions = std::move(positions.triples);
  out.rope_delta = positions.rope_delta;
  return out;
}

}  // namespace weft
