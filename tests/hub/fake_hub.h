#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace weft::testing {

/// tests/hub/fake_hub.py as a child process.
class FakeHub {
 public:
  /// `scenario` is JSON (see fake_hub.py); `dir` takes its files.
  FakeHub(const std::string& scenario, const std::string& dir);
  FakeHub(const FakeHub&) = delete;
  FakeHub& operator=(const FakeHub&) = delete;
  ~FakeHub();

  std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(hub_port_); }

  struct Request {
    std::string server, method, path, authorization, if_range;
    std::optional<std::pair<uint64_t, uint64_t>> range;  // first and last byte
    uint64_t sent = 0;                                   // body bytes
  };
  /// All requests so far whose path contains `part`.
  std::vector<Request> requests(const std::string& method = "", const std::string& part = "") const;

 private:
  std::string log_path_;
  pid_t child_ = -1;
  int stdin_fd_ = -1;
  int hub_port_ = 0;
};

}  // namespace weft::testing
