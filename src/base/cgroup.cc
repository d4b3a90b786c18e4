#include "base/cgroup.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>

namespace weft {
namespace {

/// How the versions name the same things.
struct MemoryFiles {
  const char *limit, *used, *inactive, *active;
};
constexpr MemoryFiles kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes",
                                "total_inactive_file", "total_active_file"};
constexpr MemoryFiles kVersion2{"memory.max", "memory.current", "inactive_file", "active_file"};

template <class T>
void lower(std::optional<T>& least, T value) {
  least = least ? std::min(*least, value) : value;
}

/// The first number in a file; nothing for "max" and where there is no such file.
std::optional<int64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

/// Bytes of cached files that the group can let go, by the measure of the kernel's MemAvailable:
/// half of those in use stay.
int64_t reclaimable(const std::string& group, const MemoryFiles& names) {
  std::ifstream file(group + "/memory.stat");
  std::string key;
  int64_t value = 0, sum = 0;
  while (file >> key >> value) {
    if (key == names.inactive) sum += value;
    if (key == names.active) sum += value / 2;
  }
  return sum;
}

void read_memory(const std::string& group, const MemoryFiles& names, CgroupLimits& out) {
  constexpr int64_t kNoLimit = int64_t{1} << 60;  // version 1 has no word for it
  const auto limit = number_in(group + "/" + names.limit);
  if (!limit || *limit >= kNoLimit) return;
  const int64_t used = number_in(group + "/" + names.used).value_or(0) - reclaimable(group, names);
  lower(out.memory_bytes, *limit);
  lower(out.available_bytes, std::clamp<int64_t>(*limit - used, 0, *limit));
}

void read_cpus_v1(const std::string& group, CgroupLimits& out) {
  const auto quota = number_in(group + "/cpu.cfs_quota_us");
  const auto period = number_in(group + "/cpu.cfs_period_us");
  if (!quota || !period || *quota <= 0 || *period <= 0) return;
  lower(out.cpus, static_cast<double>(*quota) / static_cast<double>(*period));
}

void read_cpus_v2(const std::string& group, CgroupLimits& out) {
  std::ifstream file(group + "/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) lower(out.cpus, quota / period);
}

/// Calls read(directory) for a group, such as "/a/b", and for all that it is in. A path that the
/// mount does not show is that of a container's outside; what it shows is the container's own.
template <class Read>
void for_each_level(const std::string& mount, std::string group, Read read) {
  while (group.size() > 1) {
    read(mount + group);
    group.erase(std::min(group.rfind('/'), group.size()));
  }
  read(mount);
}

}  // namespace

CgroupLimits read_cgroup_limits(const std::string& root, const std::string& own) {
  CgroupLimits out;
  std::ifstream file(own);
  for (std::string line; std::getline(file, line);) {  // "4:cpu,cpuacct:/a/b", of version 2 "0::/a"
    const size_t first = line.find(':');
    const size_t second = first == line.npos ? line.npos : line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string group = line.substr(second + 1);
    if (second == first + 1) {
      for (const std::string& mount : {root, root + "/unified"}) {
        for_each_level(mount, group, [&](const std::string& directory) {
          read_memory(directory, kVersion2, out);
          read_cpus_v2(directory, out);
        });
      }
      continue;
    }
    const std::string all = line.substr(first + 1, second - first - 1);
    std::istringstream controllers(all);
    for (std::string name; std::getline(controllers, name, ',');) {
      for (const std::string& mount : {root + "/" + name, root + "/" + all}) {
        for_each_level(mount, group, [&](const std::string& directory) {
          if (name == "memory") read_memory(directory, kVersion1, out);
          if (name == "cpu") read_cpus_v1(directory, out);
        });
      }
    }
  }
  return out;
}

}  // namespace weft
