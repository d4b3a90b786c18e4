#include "base/cgroup.h"

#include <filesystem>
#include <fstream>

#include "base/temp_dir.h"

namespace weft {
namespace {

class Cgroup : public testing::Test {
 protected:
  void put(const std::string& name, const std::string& text) {
    const std::filesystem::path path = directory_.file(name);
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
  }
  CgroupLimits read() const {
    return read_cgroup_limits(directory_.file("mount"), directory_.file("own"));
  }

  TempDir directory_;
};

TEST_F(Cgroup, NothingLimitsWithoutGroups) {
  const CgroupLimits none = read();
  EXPECT_FALSE(none.memory_bytes || none.available_bytes || none.cpus);
  put("own", "0::/\nno line of this kind\n7:");
  put("mount/memory.max", "max");
  put("mount/cpu.max", "max 100000");
  EXPECT_FALSE(read().memory_bytes || read().cpus);
}

TEST_F(Cgroup, TheLeastOverAllLevelsOfVersion2) {
  put("own", "0::/slice/unit");
  put("mount/memory.max", "9000");
  put("mount/memory.current", "2000");
  put("mount/slice/memory.max", "5000");
  put("mount/slice/memory.current", "4000");
  put("mount/slice/memory.stat", "anon 1500\ninactive_file 1500\nactive_file 1000");
  put("mount/slice/unit/memory.max", "6000");
  put("mount/slice/unit/memory.current", "100");
  put("mount/slice/cpu.max", "150000 100000");
  put("mount/slice/unit/cpu.max", "400000 100000");
  EXPECT_EQ(read().memory_bytes, 5000);
  EXPECT_EQ(read().available_bytes, 5000 - (4000 - 1500 - 500));  // files can be read again
  EXPECT_EQ(read().cpus, 1.5);
}

TEST_F(Cgroup, ControllersOfVersion1) {
  put("own", "4:memory:/job\n3:cpu,cpuacct:/job\n2:pids:/\n0::/");
  put("mount/memory/memory.limit_in_bytes", "9223372036854771712");  // none
  put("mount/memory/job/memory.limit_in_bytes", "800");
  put("mount/memory/job/memory.usage_in_bytes", "300");
  put("mount/memory/job/memory.stat", "inactive_file 7\ntotal_inactive_file 100");
  put("mount/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  put("mount/cpu,cpuacct/cpu.cfs_period_us", "100000");
  put("mount/cpu,cpuacct/job/cpu.cfs_quota_us", "250000");
  put("mount/cpu,cpuacct/job/cpu.cfs_period_us", "100000");
  EXPECT_EQ(read().memory_bytes, 800);
  EXPECT_EQ(read().available_bytes, 600);
  EXPECT_EQ(read().cpus, 2.5);
}

TEST_F(Cgroup, APathOfTheOutsideIsLimitedByWhatTheContainerSees) {
  put("own", "0::/../../host/container");
  put("mount/memory.max", "700");
  put("mount/memory.current", "900");
  EXPECT_EQ(read().memory_bytes, 700);
  EXPECT_EQ(read().available_bytes, 0);
}

}  // namespace
}  // namespace weft
