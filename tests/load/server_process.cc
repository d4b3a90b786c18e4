#include "tests/load/server_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "base/check.h"
#include "tests/load/client.h"

namespace weft::load {
namespace {

std::string read_all(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

int64_t status_field(pid_t pid, const char* name) {
  std::istringstream status(read_all("/proc/" + std::to_string(pid) + "/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name)) return std::atoll(line.c_str() + std::string_view(name).size() + 1);
  }
  return 0;
}

int count_entries(const std::string& path) {
  DIR* dir = opendir(path.c_str());
  if (dir == nullptr) return -1;
  int n = 0;
  while (readdir(dir) != nullptr) ++n;
  closedir(dir);
  return n - 2;
}

}  // namespace

const std::string& scratch_directory() {
  static const std::string kDirectory = [] {
    char name[] = "/tmp/weft_load_XXXXXX";
    CHECK(mkdtemp(name) != nullptr, "mkdtemp");
    return std::string(name);
  }();
  return kDirectory;
}

Process::Process(const std::vector<std::string>& words, const std::string& log_path,
                 DescriptorLimits descriptors)
    : log_path_(log_path) {
  const int log = ::open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  CHECK(log >= 0, log_path);
  std::vector<char*> raw;
  for (const std::string& word : words) raw.push_back(const_cast<char*>(word.c_str()));
  raw.push_back(nullptr);
  pid_ = fork();
  CHECK(pid_ >= 0, "fork");
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    if (descriptors.hard > 0) limit.rlim_max = descriptors.hard;
    if (descriptors.soft > 0) limit.rlim_cur = descriptors.soft;
    setrlimit(RLIMIT_NOFILE, &limit);
    execvp(raw[0], raw.data());
    _exit(127);
  }
  ::close(log);
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), log_path_(std::move(other.log_path_)) {}

Process& Process::operator=(Process&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(log_path_, other.log_path_);
  return *this;
}

Process::~Process() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Process::signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

std::optional<int> Process::wait(milliseconds patience) {
  const Clock::time_point end = Clock::now() + patience;
  while (true) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    if (Clock::now() >= end) return std::nullopt;
    std::this_thread::sleep_for(milliseconds(5));
  }
}

std::string Process::log() const {
  return read_all(log_path_);
}

int64_t Process::resident_bytes() const {
  return status_field(pid_, "VmRSS") * 1024;
}

int Process::num_descriptors() const {
  return count_entries("/proc/" + std::to_string(pid_) + "/fd");
}

int Process::num_threads() const {
  return count_entries("/proc/" + std::to_string(pid_) + "/task");
}

double Process::cpu_seconds() const {
  const std::string stat = read_all("/proc/" + std::to_string(pid_) + "/stat");
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string skip;
  for (int i = 0; i < 11; ++i) fields >> skip;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

WeftServer::WeftServer(const std::string& weft, const std::vector<std::string>& arguments,
                       DescriptorLimits descriptors) {
  static int number = 0;
  const auto key = std::find(arguments.begin(), arguments.end(), "--api-key");
  if (key != arguments.end()) key_header_ = "Authorization: Bearer " + key[1] + "\r\n";
  std::vector<std::string> words = {weft, "serve", "--port", "0"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const std::string log = scratch_directory() + "/serve_" + std::to_string(number++) + ".log";
  process_ = Process(words, log, descriptors);
  const Clock::time_point end = Clock::now() + std::chrono::seconds(60);
  while (process_.log().find("startup complete") == std::string::npos) {
    CHECK(Clock::now() < end && !process_.wait(milliseconds(10)),
          "weft serve did not become ready:\n" + process_.log());
  }
  const std::string text = process_.log();
  const size_t at = text.find("listening on http://127.0.0.1:");
  CHECK(at != std::string::npos, text);
  port_ = static_cast<uint16_t>(std::atoi(text.c_str() + at + 30));
}

std::map<std::string, double> WeftServer::metrics() const {
  Loop loop(port_);
  std::istringstream lines(ask(loop, request_text("/metrics", "", key_header_)).body);
  std::map<std::string, double> out;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t space = line.rfind(' ');
    out[line.substr(0, std::min(line.find('{'), space))] += std::atof(line.c_str() + space);
  }
  return out;
}

std::string WeftServer::leftovers(milliseconds patience) const {
  const Clock::time_point end = Clock::now() + patience;
  while (true) {
    const std::map<std::string, double> now = metrics();
    std::string left = now.empty() ? "no metrics" : "";
    for (const char* name :
         {"vllm:num_requests_running", "vllm:num_requests_waiting", "weft:num_requests_paused",
          "weft:kv_blocks_used", "weft:state_slots_used", "weft:open_streams"}) {
      const auto it = now.find(name);
      if (it == now.end()) {
        left += std::string(name) + " is missing; ";
      } else if (it->second != 0) {
        left += std::string(name) + " " + std::to_string(it->second) + "; ";
      }
    }
    if (left.empty() || Clock::now() >= end) return left;
    std::this_thread::sleep_for(milliseconds(50));
  }
}

}  // namespace weft::load
