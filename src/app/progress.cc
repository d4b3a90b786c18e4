#include "app/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace weft {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr auto kPlainInterval = std::chrono::seconds(5);
constexpr auto kWorthALine = std::chrono::seconds(1);
constexpr uint64_t kWorthALineBytes = uint64_t{1} << 30;

}  // namespace

std::string bytes_text(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 1000 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.3g %s", bytes, units[unit]);
  return text;
}

ProgressLines::ProgressLines() : terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressLines::Line& ProgressLines::line(std::string_view job) {
  for (Line& l : lines_) {
    if (l.job == job) return l;
  }
  const Clock::time_point now = Clock::now();
  lines_.push_back({.job = std::string(job), .started = now, .printed = now});
  return lines_.back();
}

void ProgressLines::update(std::string_view job, uint64_t done, uint64_t total, bool finished) {
  Line& l = line(job);
  const bool ends = finished && !l.finished;
  l.done = done;
  l.total = total;
  l.finished = finished;
  const Clock::time_point now = Clock::now();
  if (terminal_) {
    if (ends || now - redrawn_ > kRedraw) redraw();
    return;
  }
  if (ends ? now - l.started < kWorthALine && total < kWorthALineBytes
           : now - l.printed < kPlainInterval)
    return;
  l.printed = now;
  const double seconds = std::max(1e-3, std::chrono::duration<double>(now - l.started).count());
  std::string end;
  if (ends) {
    char text[64];
    std::snprintf(text, sizeof(text), ", done in %.1f s, %s/s", seconds,
                  bytes_text(static_cast<double>(total) / seconds).c_str());
    end = text;
  }
  std::fprintf(stderr, "%s: %s of %s%s\n", l.job.c_str(),
               bytes_text(static_cast<double>(done)).c_str(),
               bytes_text(static_cast<double>(total)).c_str(), end.c_str());
}

void ProgressLines::redraw() {
  redrawn_ = Clock::now();
  if (drawn_ > 0) std::fprintf(stderr, "\x1b[%dA", drawn_);
  for (const Line& l : lines_) {
    const double seconds =
        std::max(1e-3, std::chrono::duration<double>(redrawn_ - l.started).count());
    const double share =
        l.total == 0 ? 1.0 : static_cast<double>(l.done) / static_cast<double>(l.total);
    const int filled = static_cast<int>(share * 24);
    std::fprintf(stderr, "\r\x1b[K%-34.34s [%.*s%*s] %3d%% %s at %s/s\n", l.job.c_str(), filled,
                 "########################", 24 - filled, "", static_cast<int>(share * 100),
                 bytes_text(static_cast<double>(l.total)).c_str(),
                 bytes_text(static_cast<double>(l.done) / seconds).c_str());
  }
  drawn_ = static_cast<int>(lines_.size());
  std::fflush(stderr);
}

void ProgressLines::note(std::string_view text) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(text.size()), text.data());
  drawn_ = 0;
}

}  // namespace weft
