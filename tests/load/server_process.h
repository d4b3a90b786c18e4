#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace weft::load {

/// Limits on open files for a child; 0: as ours.
struct DescriptorLimits {
  uint64_t soft = 0, hard = 0;
};

/// A program as a child, its output in a file.
class Process {
 public:
  Process() = default;
  Process(const std::vector<std::string>& words, const std::string& log_path,
          DescriptorLimits descriptors = {});
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();  ///< kills it, if it still runs

  void signal(int number) const;
  /// The exit code (128 + signal when killed), or nothing when it still runs after `patience`.
  std::optional<int> wait(std::chrono::milliseconds patience);
  pid_t pid() const { return pid_; }
  std::string log() const;

  int64_t resident_bytes() const;  ///< private and shared pages in memory
  int num_descriptors() const;
  int num_threads() const;
  double cpu_seconds() const;

 private:
  pid_t pid_ = -1;
  std::string log_path_;
};

/// `weft serve ARGUMENTS... --port 0` on a free port of the loopback, ready.
class WeftServer {
 public:
  /// CHECKs that it becomes ready within a minute.
  WeftServer(const std::string& weft, const std::vector<std::string>& arguments,
             DescriptorLimits descriptors = {});
  uint16_t port() const { return port_; }
  Process& process() { return process_; }

  /// The sum of each metric over its labels.
  std::map<std::string, double> metrics() const;
  /// Whether the engine has nothing left: no request, block, slot, stream. Waits up to `patience`.
  /// Otherwise says what is left.
  std::string leftovers(std::chrono::milliseconds patience) const;

 private:
  Process process_;
  uint16_t port_ = 0;
  std::string key_header_;  // the first --api-key's, with its line end
};

/// The directory for logs and files of this run.
const std::string& scratch_directory();

}  // namespace weft::load
