#include "app/heap_trim.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <vector>

namespace weft {
namespace {

long resident_pages() {
  long total = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  const int n = std::fscanf(file, "%ld %ld", &total, &resident);
  std::fclose(file);
  return n == 2 ? resident : -1;
}

TEST(HeapTrim, FreedMemoryGoesBackWhenIdle) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer has a heap of its own";
#endif
  HeapTrim heap;
  heap.look(true);
  std::vector<std::unique_ptr<char[]>> pieces;
  for (int i = 0; i < 20'000; ++i) pieces.push_back(std::make_unique<char[]>(1000));
  const auto last = std::make_unique<char[]>(1000);  // what is freed lies below it
  const long full = resident_pages();
  pieces.clear();
  heap.look(true);
  EXPECT_LT(resident_pages(), full - 3000) << "pages";  // of about 4,900
}

}  // namespace
}  // namespace weft
