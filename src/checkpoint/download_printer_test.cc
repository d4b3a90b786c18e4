#include "checkpoint/download_printer.h"

#include <gmock/gmock.h>

namespace weft {
namespace {

using ::testing::HasSubstr;

struct Screen {
  std::string text;
  double now = 0;
  DownloadPrinter printer(bool terminal) {
    return DownloadPrinter(
        {.terminal = terminal, .columns = 60}, [this](std::string_view more) { text += more; },
        [this] { return now; });
  }
};

constexpr uint64_t kMiB = 1 << 20;

TEST(DownloadPrinter, PlainLinesElsewhere) {
  Screen screen;
  DownloadPrinter printer = screen.printer(false);
  printer.on_file({"a", 0, 100 * kMiB, false});
  screen.now = 5;
  printer.on_file({"a", 10 * kMiB, 100 * kMiB, false});
  EXPECT_EQ(screen.text, "");
  screen.now = 10;
  printer.on_file({"a", 50 * kMiB, 100 * kMiB, false});
  EXPECT_EQ(screen.text, "a   50%  50.0 MiB of 100.0 MiB  5.0 MiB/s  0:10 left\n");
  screen.now = 11;
  printer.on_file({"a", 60 * kMiB, 100 * kMiB, false});
  printer.on_note("news");
  screen.text.clear();
  screen.now = 20;
  printer.on_file({"a", 100 * kMiB, 100 * kMiB, true});
  EXPECT_EQ(screen.text, "a  100%  100.0 MiB of 100.0 MiB  5.0 MiB/s\n");
  EXPECT_EQ(screen.text.find('\x1b'), std::string::npos);
}

TEST(DownloadPrinter, ResumedBytesDontCountAsSpeed) {
  Screen screen;
  DownloadPrinter printer = screen.printer(false);
  printer.on_file({"a", 90 * kMiB, 100 * kMiB, false});
  screen.now = 10;
  printer.on_file({"a", 100 * kMiB, 100 * kMiB, true});
  EXPECT_THAT(screen.text, HasSubstr("1.0 MiB/s"));
}

TEST(DownloadPrinter, OneLinePerFileOnATerminal) {
  Screen screen;
  DownloadPrinter printer = screen.printer(true);
  printer.on_file({"a", 0, 100, false});
  screen.now = 0.01;
  printer.on_file({"b", 0, 100, false});  // too soon to draw again
  EXPECT_EQ(screen.text, "a    0%  0 B of 100 B\n");
  screen.text.clear();
  screen.now = 1;
  printer.on_file({"b", 50, 100, false});
  EXPECT_EQ(screen.text.substr(0, 7), "\x1b[1A\x1b[J");
  EXPECT_THAT(screen.text, HasSubstr("\nb   50%"));
  screen.text.clear();
  screen.now = 2;
  printer.on_file({"a", 100, 100, true});  // stays above; only b is redrawn from now on
  EXPECT_EQ(screen.text.substr(0, 7), "\x1b[2A\x1b[J");
  screen.text.clear();
  screen.now = 3;
  printer.on_file({"b", 100, 100, true});
  EXPECT_EQ(screen.text.substr(0, 7), "\x1b[1A\x1b[J");
  EXPECT_EQ(std::count(screen.text.begin(), screen.text.end(), '\n'), 1);
}

TEST(DownloadPrinter, LongNamesDontWrap) {
  Screen screen;
  DownloadPrinter printer = screen.printer(true);
  printer.on_file({std::string(200, 'x'), 0, 100, false});
  EXPECT_LE(screen.text.size(), 60u);
}

}  // namespace
}  // namespace weft
