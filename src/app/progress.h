#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

/// Progress on standard error: on a terminal one line a job, redrawn in place; elsewhere a plain
/// line every few seconds and at the end of a job that took a second. Calls must not overlap.
class ProgressLines {
 public:
  ProgressLines();
  /// `done` and `total` in bytes.
  void update(std::string_view job, uint64_t done, uint64_t total, bool finished);
  void note(std::string_view text);

 private:
  using Clock = std::chrono::steady_clock;
  struct Line {
    std::string job;
    uint64_t done = 0, total = 0;
    bool finished = false;
    Clock::time_point started, printed;
  };
  Line& line(std::string_view job);
  void redraw();

  const bool terminal_;
  int drawn_ = 0;  // lines on the terminal that belong to us
  Clock::time_point redrawn_{};
  std::vector<Line> lines_;
};

/// "1.19 GB", "640 kB": decimal units, three digits.
std::string bytes_text(double bytes);

}  // namespace weft
