// Images of a prompt: which of them are encoded in a step, and how far a prompt can go with those
// whose features are there (docs/images.md).
#include <algorithm>
#include <string>

#include "base/check.h"
#include "sched/scheduler.h"

namespace weft {

Result<void> Scheduler::check_images(const Request& request) const {
  if (request.images.empty()) {
    CHECK(request.positions.empty() || request.positions.size() == request.prompt.size());
    return {};
  }
  if (config_.image_tokens == 0) return unsupported("this model takes no images");
  CHECK(request.positions.size() == request.prompt.size(), "an image without positions");
  int64_t before = 0;
  for (const PromptImage& image : request.images) {
    CHECK(image.content && image.content->num_tokens > 0 && image.first >= before);
    before = image.end();
    if (image.content->num_tokens > config_.image_tokens) {
      return invalid_argument("an image has " + std::to_string(image.content->num_tokens) +
                              " tokens; allowed: at most " + std::to_string(config_.image_tokens));
    }
  }
  CHECK(before <= static_cast<int64_t>(request.prompt.size()));
  return {};
}

/// Names what the image tokens of a full block stand for; {} for text. Where in its image a block
/// lies is known by the blocks before it.
Hash128 Scheduler::block_images(const Sequence& seq, int64_t block) const {
  Hash128 out;
  const int64_t begin = block * config_.block_size, end = begin + config_.block_size;
  for (const PromptImage& image : seq.request->images) {
    if (image.first >= end || image.end() <= begin) continue;
    out = chain_hash(config_.hash_key, out, std::as_bytes(std::span(&image.first, 1)));
    out = chain_hash(config_.hash_key, out, std::as_bytes(std::span(image.content->digest)));
  }
  return out;
}

ImageKey Scheduler::image_key(const Sequence& seq, const PromptImage& image) const {
  return {.scope = cache_.index().root(seq.request->cache_salt), .digest = image.content->digest};
}

/// How far the next slices of `seq` may go, `end` at most, with the images that are encoded or fit
/// into this step's budget, which are encoded even if the sequence then can't run: they are there
/// the next time. Whoever is planned first finds the whole budget and room for any chunk, so every
/// step brings it forward.
int64_t Scheduler::take_images(const Sequence& seq, int64_t end) {
  if (seq.request->images.empty() || !seq.in_prompt()) return end;
  for (const PromptImage& image : seq.request->images) {
    if (image.end() <= seq.num_computed) continue;
    if (image.first >= end) break;
    const ImageKey key = image_key(seq, image);
    bool there = images_.hold(key, image.content->num_tokens);
    if (there && images_.encoded(key)) {
      ++stats_.image_hits;
    } else if (there && image.content->num_tokens <= image_budget_) {
      image_budget_ -= image.content->num_tokens;
      ++stats_.images_encoded;
      stats_.image_tokens_encoded += image.content->num_tokens;
      images_.set_encoded(key);
      plan_.encodings.push_back({image.content, images_.pages(key)});
    } else {
      there = false;
    }
    if (!there) return std::max(image.first / kChunk * kChunk, seq.num_computed);
  }
  return end;
}

/// Tells the executor where the features of a slice's images lie.
void Scheduler::use_images(const Sequence& seq, int64_t first, int64_t end) {
  const auto& images = seq.request->images;
  for (size_t i = 0; i < images.size(); ++i) {
    if (images[i].first >= end || images[i].end() <= first) continue;
    const bool told = !plan_.image_uses.empty() && plan_.image_uses.back().seq == seq.id() &&
                      plan_.image_uses.back().image >= static_cast<int>(i);
    if (told) continue;  // by an earlier slice of this step
    plan_.image_uses.push_back(
        {seq.id(), static_cast<int>(i), images_.pages(image_key(seq, images[i]))});
  }
}

/// Whoever wrote a NaN, these images are encoded again.
void Scheduler::forget_images(const Sequence& seq) {
  for (const PromptImage& image : seq.request->images) images_.forget(image_key(seq, image));
}

}  // namespace weft
