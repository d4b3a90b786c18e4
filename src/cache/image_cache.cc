#include "cache/image_cache.h"

#include <cstring>

#include "base/check.h"

namespace weft {

size_t ImageKeyHasher::operator()(const ImageKey& key) const noexcept {
  size_t out = 0;
  std::memcpy(&out, key.digest.data(), sizeof(out));
  return out ^ static_cast<size_t>(key.scope.lo);
}

ImageCache::ImageCache(int num_pages) : num_pages_(num_pages) {
  for (int32_t page = num_pages; page-- > 0;) free_.push_back(page);
}

ImageCache::Entry& ImageCache::entry(const ImageKey& key) {
  const auto it = entries_.find(key);
  CHECK(it != entries_.end(), "an image that is not held");
  return it->second;
}

const ImageCache::Entry& ImageCache::entry(const ImageKey& key) const {
  const auto it = entries_.find(key);
  CHECK(it != entries_.end(), "an image that is not held");
  return it->second;
}

bool ImageCache::hold(const ImageKey& key, int64_t num_tokens) {
  const auto pages = static_cast<size_t>((num_tokens + kImagePage - 1) / kImagePage);
  auto it = entries_.find(key);
  if (it == entries_.end()) {
    while (free_.size() < pages) {
      if (!evict_one()) return false;
    }
    it = entries_.emplace(key, Entry{}).first;
    Entry& fresh = it->second;
    fresh.pages.assign(free_.end() - static_cast<std::ptrdiff_t>(pages), free_.end());
    free_.resize(free_.size() - pages);
    fresh.place = order_.insert(order_.end(), key);
  }
  Entry& found = it->second;
  CHECK(found.pages.size() == pages, "one digest, two sizes");
  if (!found.held) {
    found.held = true;
    held_.push_back(key);
    order_.splice(order_.end(), order_, found.place);
  }
  return true;
}

void ImageCache::set_encoded(const ImageKey& key) {
  entry(key).encoded = true;
}

bool ImageCache::evict_one() {
  for (const ImageKey& key : order_) {
    if (entry(key).held) continue;
    erase(key);
    return true;
  }
  return false;
}

void ImageCache::erase(const ImageKey& key) {
  const auto it = entries_.find(key);
  free_.insert(free_.end(), it->second.pages.begin(), it->second.pages.end());
  order_.erase(it->second.place);
  entries_.erase(it);
}

void ImageCache::release_all() {
  for (const ImageKey& key : held_) {
    Entry& held = entry(key);
    held.held = false;
    if (!held.encoded) erase(key);
  }
  held_.clear();
}

void ImageCache::forget(const ImageKey& key) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  if (it->second.held) {
    it->second.encoded = false;
  } else {
    erase(ImageKey(key));
  }
}

bool ImageCache::sound() const {
  std::vector<int> owners(static_cast<size_t>(num_pages_), 0);
  for (const int32_t page : free_) ++owners[static_cast<size_t>(page)];
  for (const auto& [key, entry] : entries_) {
    for (const int32_t page : entry.pages) ++owners[static_cast<size_t>(page)];
  }
  for (const int count : owners) {
    if (count != 1) return false;
  }
  return order_.size() == entries_.size();
}

}  // namespace weft
