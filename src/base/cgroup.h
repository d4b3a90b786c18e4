#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace weft {

/// What the control groups of this process leave it: the least over all levels, from its own group
/// up to the root that it sees (a container's, or the machine's).
struct CgroupLimits {
  std::optional<int64_t> memory_bytes;     ///< the lowest limit
  std::optional<int64_t> available_bytes;  ///< until a limit is met, cached files let go
  std::optional<double> cpus;              ///< the quota in CPUs
};

/// Reads versions 1 and 2 of control groups and mixtures of both. `root`: where they are mounted;
/// `own`: the file that says which groups are ours. What can't be read limits nothing.
/// Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
CgroupLimits read_cgroup_limits(const std::string& root = "/sys/fs/cgroup",
                                const std::string& own = "/proc/self/cgroup");

}  // namespace weft
