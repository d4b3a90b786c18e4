#include "checkpoint/download_printer.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

namespace weft {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kPlainSeconds = 10;

std::string size_text(double bytes) {
  const char* unit = "B";
  for (const char* next : {"KiB", "MiB", "GiB", "TiB"}) {
    if (bytes < 1024) break;
    bytes /= 1024;
    unit = next;
  }
  return fmt::format("{:.{}f} {}", bytes, unit[0] == 'B' ? 0 : 1, unit);
}

std::string time_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::clamp(seconds, 0.0, 359999.0));
  if (whole >= 3600) {
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

DownloadPrinter::DownloadPrinter(Style style, std::function<void(std::string_view)> write,
                                 std::function<double()> now)
    : style_(style), write_(std::move(write)), now_(std::move(now)) {}

std::string DownloadPrinter::text_of(std::string_view file, const Row& row, double now) const {
  const double elapsed = std::max(now - row.start_s, 1e-3);
  const double speed = static_cast<double>(row.done - row.start_bytes) / elapsed;
  std::string out = fmt::format(
      "{}  {:3.0f}%  {} of {}", file,
      row.total ? 100.0 * static_cast<double>(row.done) / static_cast<double>(row.total) : 100.0,
      size_text(static_cast<double>(row.done)), size_text(static_cast<double>(row.total)));
  if (speed > 0) out += fmt::format("  {}/s", size_text(speed));
  if (row.done < row.total && speed > 0) {
    out += "  " + time_text(static_cast<double>(row.total - row.done) / speed) + " left";
  }
  return out;
}

std::string DownloadPrinter::clear_rows() {
  std::string out;
  if (drawn_ > 0) out = fmt::format("\x1b[{}A\x1b[J", drawn_);
  drawn_ = 0;
  return out;
}

std::string DownloadPrinter::draw_rows(double now) {
  std::string out;
  const auto width = static_cast<size_t>(std::max(style_.columns - 1, 20));
  for (const auto& [file, row] : rows_) {
    out += text_of(file, row, now).substr(0, width) + "\n";
    ++drawn_;
  }
  drawn_s_ = now;
  return out;
}

void DownloadPrinter::on_file(const FileProgress& progress) {
  const double now = now_();
  auto it = rows_.find(progress.file);
  if (it == rows_.end()) {
    const uint64_t start = progress.finished ? 0 : progress.done;
    it = rows_.emplace(std::string(progress.file), Row{now, start, 0, 0, now}).first;
  }
  Row& row = it->second;
  row.done = progress.done;
  row.total = progress.total;
  if (!style_.terminal) {
    if (progress.finished || now - row.printed_s >= kPlainSeconds) {
      row.printed_s = now;
      write_(text_of(progress.file, row, now) + "\n");
    }
    if (progress.finished) rows_.erase(it);
    return;
  }
  if (!progress.finished && now - drawn_s_ < kRedrawSeconds) return;
  std::string out = clear_rows();
  if (progress.finished) {
    out += text_of(progress.file, row, now) + "\n";
    rows_.erase(it);
  }
  write_(out + draw_rows(now));
}

void DownloadPrinter::on_note(std::string_view text) {
  const std::string cleared = clear_rows();
  write_(cleared + std::string(text) + "\n" + (style_.terminal ? draw_rows(now_()) : ""));
}

ProgressSink DownloadPrinter::sink() {
  return {.on_file = [this](const FileProgress& progress) { on_file(progress); },
          .on_note = [this](std::string_view text) { on_note(text); }};
}

DownloadPrinter stderr_download_printer() {
  DownloadPrinter::Style style;
  winsize size{};
  style.terminal = isatty(STDERR_FILENO) == 1;
  if (style.terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    style.columns = size.ws_col;
  }
  const auto write = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  };
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  return DownloadPrinter(style, write, now);
}

}  // namespace weft
