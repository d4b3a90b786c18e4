#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/hash.h"

namespace weft {

/// Tokens of a page of image features.
inline constexpr int kImagePage = 16;

/// What names the features of an image: its digest within one cache scope.
struct ImageKey {
  Hash128 scope;
  std::array<uint8_t, 32> digest{};
  bool operator==(const ImageKey&) const = default;
};

struct ImageKeyHasher {
  size_t operator()(const ImageKey& key) const noexcept;
};

/// Which pages of the device hold the features of which image; bookkeeping only. An image is held
/// for one step at a time, so that whoever is planned first can always have what it needs; between
/// steps all that fits is kept, and the least recently held goes first.
class ImageCache {
 public:
  explicit ImageCache(int num_pages);

  /// Holds the image until release_all(), with pages of its own. False: there is no room beside
  /// what is held already.
  bool hold(const ImageKey& key, int64_t num_tokens);
  /// Of a held image: its features are in the pages, or on their way there.
  bool encoded(const ImageKey& key) const { return entry(key).encoded; }
  void set_encoded(const ImageKey& key);
  /// Of a held image; the span lives as long as it is held.
  std::span<const int32_t> pages(const ImageKey& key) const { return entry(key).pages; }

  /// Ends every hold; images that were never encoded are forgotten.
  void release_all();
  /// Forgets an image that nobody holds, or at the end of its hold.
  void forget(const ImageKey& key);

  int num_pages() const { return num_pages_; }
  int free_pages() const { return static_cast<int>(free_.size()); }
  int num_images() const { return static_cast<int>(entries_.size()); }
  /// Every page is free or belongs to one image.
  bool sound() const;

 private:
  struct Entry {
    std::vector<int32_t> pages;
    bool held = false, encoded = false;
    std::list<ImageKey>::iterator place;  // in order_
  };
  Entry& entry(const ImageKey& key);
  const Entry& entry(const ImageKey& key) const;
  bool evict_one();
  void erase(const ImageKey& key);

  const int num_pages_;
  std::vector<int32_t> free_;
  std::unordered_map<ImageKey, Entry, ImageKeyHasher> entries_;
  std::list<ImageKey> order_;  // least recently held first
  std::vector<ImageKey> held_;
};

}  // namespace weft
