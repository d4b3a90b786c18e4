// weft: the program. Everything is in the library; here is what no test can link.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "app/cli.h"
#include "app/command_line.h"
#include "base/check.h"

namespace {

/// Standard streams that are closed become /dev/null: else the first file that is opened takes the
/// place of one, and what is printed goes into it.
void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) == -1 && errno == EBADF) open("/dev/null", O_RDWR);
  }
}

/// Standard output is a pipe that nobody reads any more: also where the write that failed was long
/// ago and its errno is gone.
bool reader_has_gone() {
  pollfd out{.fd = STDOUT_FILENO, .events = 0, .revents = 0};
  return poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0;
}

/// The exit code of a command that ended with `code`: text that did not arrive is a failure, told
/// unless the reader has gone away, as readers of pipes do.
int finish_output(int code) {
  const bool failed = std::ferror(stdout) != 0;
  const int problem = std::fflush(stdout) == 0 ? 0 : errno;
  if (code != weft::kExitOk || (!failed && problem == 0)) return code;
  if (problem != EPIPE && !reader_has_gone()) {
    std::fprintf(stderr, "weft: error: standard output: %s\n",
                 problem != 0 ? std::strerror(problem) : "can't be written");
  }
  return weft::kExitRuntime;
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return finish_output(weft::run_command_line(argc, argv));
  } catch (const weft::Panic& e) {
    std::fprintf(stderr, "weft: internal error: %s\n", e.what());
  } catch (const std::system_error& e) {  // std::thread's own word of it is no help
    if (e.code() == std::errc::resource_unavailable_try_again) {
      std::fprintf(stderr,
                   "weft: error: no thread could be started: see `ulimit -u` and the "
                   "container's limit of processes\n");
    } else {
      std::fprintf(stderr, "weft: internal error: %s\n", e.what());
    }
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "weft: error: out of memory\n");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "weft: internal error: %s\n", e.what());
  }
  return weft::kExitRuntime;
}
