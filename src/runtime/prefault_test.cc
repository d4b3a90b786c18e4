#include "runtime/prefault.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <vector>

namespace weft {
namespace {

/// Pages of [data, data + bytes) that are in memory.
int64_t resident_pages(std::byte* data, int64_t bytes) {
  std::vector<unsigned char> pages(static_cast<size_t>((bytes + 4095) / 4096));
  EXPECT_EQ(mincore(data, static_cast<size_t>(bytes), pages.data()), 0);
  int64_t count = 0;
  for (const unsigned char page : pages) count += page & 1;
  return count;
}

TEST(Prefault, MakesEveryPageResidentAndChangesNothing) {
  constexpr int64_t kBytes = (int64_t{5} << 20) + 100;  // ends inside a piece and inside a page
  ThreadPool pool(2);
  Arena arena(Buffer::allocate(DeviceKind::kCpu, kBytes).value());
  auto* data = static_cast<std::byte*>(arena.take(64));
  data[5] = std::byte{42};
  arena.rewind(0);
  EXPECT_LT(resident_pages(data, kBytes), 5 * 256);
  prefault(pool, arena);
  EXPECT_EQ(resident_pages(data, kBytes), 5 * 256 + 1);
  EXPECT_EQ(data[5], std::byte{42});
  EXPECT_EQ(data[kBytes - 1], std::byte{0});
  EXPECT_EQ(arena.mark(), 0);
}

TEST(Prefault, NothingIsFine) {
  ThreadPool pool(1);
  Arena arena;
  prefault(pool, arena);
  prefault(pool, nullptr, 0);
}

}  // namespace
}  // namespace weft
