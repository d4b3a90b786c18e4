// Acceptance point 8: two replicas behind Debian's nginx; one is drained under load.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/check.h"
#include "tests/load/scenario.h"

namespace weft::load {
namespace {

uint16_t free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0, "bind");
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(fd);
  return ntohs(address.sin_port);
}

/// Everything nginx writes lies in the scratch directory: no root needed. A connection that is
/// refused goes to the other replica; an answer that has begun is never asked for again.
Process start_nginx(const std::string& nginx, uint16_t port,
                    const std::vector<uint16_t>& replicas) {
  const std::string dir = scratch_directory() + "/nginx";
  std::filesystem::create_directories(dir);
  std::ofstream conf(dir + "/nginx.conf");
  conf << "daemon off;\nworker_processes 1;\npid " << dir << "/nginx.pid;\nerror_log " << dir
       << "/error.log warn;\nevents { worker_connections 4096; }\nhttp {\n  access_log off;\n";
  for (const char* kind : {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"}) {
    conf << "  " << kind << "_temp_path " << dir << "/" << kind << ";\n";
  }
  conf << "  upstream weft {\n    least_conn;\n";
  for (const uint16_t replica : replicas) {
    conf << "    server 127.0.0.1:" << replica << " max_fails=1 fail_timeout=10s;\n";
  }
  conf << "  }\n  server {\n    listen 127.0.0.1:" << port << ";\n    location / {\n"
       << "      proxy_pass http://weft;\n      proxy_http_version 1.1;\n"
       << "      proxy_set_header Connection \"\";\n      proxy_buffering off;\n"
       << "      proxy_read_timeout 600s;\n      proxy_connect_timeout 2s;\n"
       << "      proxy_next_upstream error timeout http_503;\n    }\n  }\n}\n";
  conf.close();
  Process process({nginx, "-p", dir, "-c", dir + "/nginx.conf", "-e", dir + "/error.log"},
                  dir + "/out.log");
  Loop loop(port);
  for (int i = 0; i < 100 && ask(loop, request_text("/ready", "")).status != 200; ++i) {
    std::this_thread::sleep_for(milliseconds(50));
  }
  CHECK(ask(loop, request_text("/ready", "")).status == 200, "nginx: " + process.log());
  return process;
}

std::string find_nginx() {
  for (const char* path : {"/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"}) {
    if (std::filesystem::exists(path)) return path;
  }
  return {};
}

}  // namespace

void run_replicas(const Settings& settings, Report& report) {
  const std::string nginx = find_nginx();
  if (nginx.empty()) {
    report.check(false, "nginx is installed (nginx-light of tools/packages.txt)");
    return;
  }
  for (int round = 0; round < (settings.full ? 5 : 1); ++round) {
    const std::vector<std::string> flags = {
        "--device", "fake", "--fake-tokens-per-second", "50", "--max-num-seqs", "512"};
    WeftServer stays(settings.weft, flags), goes(settings.weft, flags);
    const uint16_t port = free_port();
    const Process proxy = start_nginx(nginx, port, {stays.port(), goes.port()});
    const int prompts = settings.full ? 3000 : 600;
    const int rate = settings.full ? 150 : 100;
    const std::string result = scratch_directory() + "/replicas.json";
    std::filesystem::remove(result);
    Process load(
        {settings.weft, "bench", "serve", "--base-url", "http://127.0.0.1:" + std::to_string(port),
         "--num-prompts", std::to_string(prompts), "--request-rate", std::to_string(rate),
         "--random-input-len", "64", "--random-output-len", "40", "--save-result",
         "--result-filename", result, "--percentile-metrics", "ttft,itl,e2el"},
        scratch_directory() + "/bench.log");
    std::this_thread::sleep_for(milliseconds(1000 * prompts / rate / 2));
    const double served = goes.metrics()["vllm:request_success_total"];
    goes.process().signal(SIGTERM);
    const auto code = goes.process().wait(milliseconds(35'000));
    report.check_equal(code.value_or(-1), 0, "exit code of the drained replica");
    const auto done = load.wait(milliseconds(120'000));
    report.check_equal(done.value_or(-1), 0, "exit code of the benchmark");
    std::ifstream file(result);
    const auto json = nlohmann::json::parse(file, nullptr, false);
    if (!json.is_object()) {
      report.check(false, "the benchmark wrote no result: " + load.log());
      continue;
    }
    report.figures("drain behind nginx", {{"requests", prompts},
                                          {"rate", rate},
                                          {"served_by_the_drained", served},
                                          {"failed", json["failed"].get<double>()},
                                          {"p99_ttft_ms", json["p99_ttft_ms"].get<double>()},
                                          {"p99_itl_ms", json["p99_itl_ms"].get<double>()}});
    report.check(served > 0, "the drained replica had work");
    report.check_equal(json["failed"].get<double>(), 0, "failed requests");
    report.check_equal(json["completed"].get<double>(), prompts, "completed requests");
    if (json["failed"].get<double>() > 0) report.check(false, load.log());
  }
}

}  // namespace weft::load
