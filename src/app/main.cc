// weft: the program. Everything is in the library; here is what no test can link.
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include "app/cli.h"
#include "app/command_line.h"
#include "base/check.h"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return weft::run_command_line(argc, argv);
  } catch (const weft::Panic& e) {
    std::fprintf(stderr, "weft: internal error: %s\n", e.what());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "weft: error: out of memory\n");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "weft: internal error: %s\n", e.what());
  }
  return weft::kExitRuntime;
}
