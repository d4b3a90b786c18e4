#include "cache/image_cache.h"

#include <gtest/gtest.h>

#include <set>

namespace weft {
namespace {

ImageKey key(uint8_t digest, uint64_t scope = 0) {
  ImageKey out{.scope = {.lo = scope}};
  out.digest[0] = digest;
  return out;
}

/// Holds and encodes.
bool put(ImageCache& cache, const ImageKey& image, int64_t tokens) {
  if (!cache.hold(image, tokens)) return false;
  cache.set_encoded(image);
  return true;
}

TEST(ImageCache, KeepsWhatFitsAndDropsTheLeastRecentlyHeld) {
  ImageCache cache(4);
  EXPECT_TRUE(put(cache, key(1), 17));  // 2 pages
  EXPECT_EQ(cache.pages(key(1)).size(), 2u);
  cache.release_all();
  EXPECT_TRUE(put(cache, key(2), 16));
  cache.release_all();
  EXPECT_TRUE(put(cache, key(1), 17));
  EXPECT_EQ(cache.free_pages(), 1);
  cache.release_all();
  EXPECT_TRUE(put(cache, key(3), 32));  // takes the place of image 2, not of 1
  EXPECT_TRUE(cache.hold(key(1), 17));
  EXPECT_TRUE(cache.encoded(key(1)));
  EXPECT_EQ(cache.num_images(), 2);
  std::set<int32_t> pages;
  for (const uint8_t image : {1, 3}) {
    for (const int32_t page : cache.pages(key(image))) pages.insert(page);
  }
  EXPECT_EQ(pages.size(), 4u);
  EXPECT_TRUE(cache.sound());
}

TEST(ImageCache, WhatIsHeldStays) {
  ImageCache cache(3);
  EXPECT_TRUE(put(cache, key(1), 20));
  EXPECT_FALSE(cache.hold(key(2), 20));
  EXPECT_TRUE(cache.hold(key(3), 1));
  cache.release_all();
  EXPECT_EQ(cache.num_images(), 1) << "image 3 was never encoded";
  EXPECT_TRUE(put(cache, key(2), 20));
  EXPECT_EQ(cache.num_images(), 1);
  EXPECT_TRUE(cache.sound());
}

TEST(ImageCache, ScopesShareNothing) {
  ImageCache cache(4);
  EXPECT_TRUE(put(cache, key(1, 7), 10));
  EXPECT_TRUE(cache.hold(key(1, 8), 10));
  EXPECT_FALSE(cache.encoded(key(1, 8)));
}

TEST(ImageCache, ForgetsOnDemand) {
  ImageCache cache(4);
  EXPECT_TRUE(put(cache, key(1), 10));
  cache.forget(key(1));  // held: it goes when the hold ends
  EXPECT_EQ(cache.num_images(), 1);
  cache.release_all();
  EXPECT_EQ(cache.num_images(), 0);
  EXPECT_TRUE(put(cache, key(1), 10));
  cache.release_all();
  cache.forget(key(1));
  cache.forget(key(2));
  EXPECT_EQ(cache.free_pages(), 4);
  EXPECT_TRUE(cache.sound());
}

}  // namespace
}  // namespace weft
