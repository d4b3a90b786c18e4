#include "tests/hub/fake_hub.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/check.h"

namespace weft::testing {

FakeHub::FakeHub(const std::string& scenario, const std::string& dir)
    : log_path_(dir + "/requests.jsonl") {
  const std::string scenario_path = dir + "/scenario.json";
  std::ofstream(scenario_path) << scenario;
  std::ofstream(log_path_).flush();
  int to_child[2], from_child[2];
  CHECK(pipe2(to_child, O_CLOEXEC) == 0 && pipe2(from_child, O_CLOEXEC) == 0);
  child_ = fork();
  CHECK(child_ >= 0);
  if (child_ == 0) {
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    execlp("python3", "python3", "-I", "-S", WEFT_SOURCE_DIR "/tests/hub/fake_hub.py",
           scenario_path.c_str(), log_path_.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  close(to_child[0]);
  close(from_child[1]);
  stdin_fd_ = to_child[1];
  std::string line;
  for (char c = 0; read(from_child[0], &c, 1) == 1 && c != '\n';) line += c;
  close(from_child[0]);
  int storage_port = 0;
  CHECK(std::sscanf(line.c_str(), "%d %d", &hub_port_, &storage_port) == 2, "fake hub: " + line);
}

FakeHub::~FakeHub() {
  close(stdin_fd_);  // the hub ends when its input does
  waitpid(child_, nullptr, 0);
}

std::vector<FakeHub::Request> FakeHub::requests(const std::string& method,
                                                const std::string& part) const {
  std::vector<Request> out;
  std::ifstream log(log_path_);
  for (std::string line; std::getline(log, line);) {
    const auto json = nlohmann::json::parse(line);
    Request request{.server = json.at("server"),
                    .method = json.at("method"),
                    .path = json.at("path"),
                    .authorization = json.value("authorization", ""),
                    .if_range = json.value("if_range", ""),
                    .range = {},
                    .sent = json.at("sent")};
    unsigned long long first = 0, last = 0;
    if (std::sscanf(json.value("range", "").c_str(), "bytes=%llu-%llu", &first, &last) == 2) {
      request.range = {first, last};
    }
    if (!method.empty() && request.method != method) continue;
    if (request.path.find(part) != std::string::npos) out.push_back(std::move(request));
  }
  return out;
}

}  // namespace weft::testing
