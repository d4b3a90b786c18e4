#include <gtest/gtest.h>

#include <cstring>

#include "device/buffer.h"
#include "device/cpu_info.h"

namespace weft {
namespace {

TEST(Buffer, IsAlignedZeroAndMovable) {
  Buffer a = Buffer::allocate(DeviceKind::kCpu, (int64_t{3} << 20) + 5).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % (2 << 20), 0u);
  EXPECT_EQ(a.data()[a.bytes() - 1], std::byte{0});
  std::memset(a.data(), 1, static_cast<size_t>(a.bytes()));
  Buffer b = std::move(a);
  EXPECT_EQ(b.data()[0], std::byte{1});
  EXPECT_EQ(a.data(), nullptr);  // NOLINT(bugprone-use-after-move): the moved-from state is defined
}

TEST(Buffer, RefusesTheImpossible) {
  EXPECT_FALSE(Buffer::allocate(DeviceKind::kCpu, int64_t{1} << 60).ok());
}

TEST(Arena, RewindsAndRefusesOverflow) {
  Arena arena(Buffer::allocate(DeviceKind::kCpu, 256).value());
  {
    ArenaScope scope(arena);
    arena.take(100);
    EXPECT_EQ(arena.mark(), 128);
  }
  EXPECT_EQ(arena.mark(), 0);
  EXPECT_EQ(arena.peak(), 128);
  EXPECT_THROW(arena.take(257), Panic);
}

TEST(CpuInfo, IsPlausible) {
  const CpuInfo info = cpu_info();
  EXPECT_GE(info.num_cpus, 1);
  EXPECT_GT(info.memory_bytes, int64_t{64} << 20);
  EXPECT_LE(info.available_bytes, info.memory_bytes);
}

}  // namespace
}  // namespace weft
