#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "checkpoint/hub.h"

namespace weft {

/// Shows a download: on a terminal one line per file, redrawn in place; elsewhere (a log file, CI)
/// plain lines, one per file at its end and one every ten seconds while it is on its way.
class DownloadPrinter {
 public:
  struct Style {
    bool terminal = false;
    int columns = 80;  ///< of the terminal
  };

  /// `write` takes text for standard error; `now` is a clock in seconds.
  DownloadPrinter(Style style, std::function<void(std::string_view)> write,
                  std::function<double()> now);

  void on_file(const FileProgress& progress);
  void on_note(std::string_view text);
  /// Both, as download_model wants them. The printer must outlive the sink.
  ProgressSink sink();

 private:
  struct Row {
    double start_s = 0;
    uint64_t start_bytes = 0;  // there already when the download began
    uint64_t done = 0;
    uint64_t total = 0;
    double printed_s = 0;  // last plain line
  };

  std::string text_of(std::string_view file, const Row& row, double now) const;
  std::string clear_rows();
  std::string draw_rows(double now);

  const Style style_;
  const std::function<void(std::string_view)> write_;
  const std::function<double()> now_;
  std::map<std::string, Row, std::less<>> rows_;  // of files on their way
  int drawn_ = 0;                                 // rows on the terminal
  double drawn_s_ = -1;
};

/// A printer for this process: standard error, its terminal width, the monotonic clock.
DownloadPrinter stderr_download_printer();

}  // namespace weft
