// weft_load: the server under load and fault. JSON lines with figures, a line for each check, and
// as the last line `N passed, N failed`.
// usage: weft_load [--weft BINARY] [--full] [--seed N] [--device D] [--model M] [SCENARIO...]
// --device and --model are for the scenario `drafts` alone: that one runs on a GPU too.

#include <sys/resource.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tests/load/scenario.h"

namespace weft::load {
namespace {

struct Scenario {
  std::string_view name;
  void (*run)(const Settings&, Report&);
};
constexpr std::array<Scenario, 13> kScenarios = {{{"streams", run_streams},
                                                  {"overload", run_overload},
                                                  {"disconnects", run_disconnects},
                                                  {"drain", run_drain},
                                                  {"watchdog", run_watchdog},
                                                  {"abuse", run_abuse},
                                                  {"attacks", run_attacks},
                                                  {"exactness", run_exactness},
                                                  {"drafts", run_drafts},
                                                  {"replicas", run_replicas},
                                                  {"tenants", run_tenants},
                                                  {"schemas", run_schemas},
                                                  {"prefixes", run_prefixes}}};

int usage() {
  std::fprintf(stderr,
               "usage: weft_load [--weft BINARY] [--full] [--seed N] [--device D] [--model M] "
               "[SCENARIO...]\n  ");
  for (const Scenario& s : kScenarios) std::fprintf(stderr, " %s", std::string(s.name).c_str());
  std::fprintf(stderr, "\n");
  return 2;
}

int run(int argc, char** argv) {
  Settings settings;
  settings.weft =
      (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../weft").string();
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--full") {
      settings.full = true;
    } else if (word == "--weft" && i + 1 < argc) {
      settings.weft = argv[++i];
    } else if (word == "--seed" && i + 1 < argc) {
      settings.seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (word == "--device" && i + 1 < argc) {
      settings.engine_flags.insert(settings.engine_flags.end(), {word, argv[++i]});
    } else if (word == "--model" && i + 1 < argc) {
      settings.engine_flags.emplace_back(argv[++i]);
    } else if (word.starts_with("-")) {
      return usage();
    } else {
      names.push_back(word);
    }
  }
  for (const std::string& name : names) {
    bool known = false;
    for (const Scenario& s : kScenarios) known = known || s.name == name;
    if (!known) return usage();
  }
  int passed = 0, failed = 0;
  for (const Scenario& scenario : kScenarios) {
    bool wanted = names.empty();
    for (const std::string& name : names) wanted = wanted || name == scenario.name;
    if (!wanted) continue;
    Report report{std::string(scenario.name)};
    try {
      scenario.run(settings, report);
    } catch (const std::exception& e) {
      report.check(false, e.what());
    }
    passed += report.passed();
    failed += report.failed();
  }
  if (failed == 0) {
    std::filesystem::remove_all(scratch_directory());
  } else {
    std::printf("logs: %s\n", scratch_directory().c_str());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace
}  // namespace weft::load

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  return weft::load::run(argc, argv);
}
