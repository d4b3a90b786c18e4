#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sched/executor_fake.h"
#include "sched/scheduler.h"

namespace weft {

/// Runs a .sched script (tests/sched/README.md) on the real scheduler and the symbolic device, with
/// a full audit after every line.
class SchedScript {
 public:
  /// The first failure with its line, or an empty string.
  static std::string run(const std::string& text);

 private:
  struct Client {
    SeqId id;
    std::shared_ptr<const Request> request;
    std::vector<int32_t> scripted;  // tokens it shall sample, by index
    std::vector<int32_t> tokens;    // what came out
    FinishReason finish = FinishReason::kNone;
    int64_t cached_tokens = 0;
  };
  using Words = std::span<const std::string>;

  std::string line(Words words, const std::string& rest);
  std::string configure(Words words);
  std::string submit(Words words, std::string* refusal);
  std::string expect(Words words);
  std::string expect_plan(Words words) const;
  std::string expect_finished(Words words);
  std::string expect_numbers(Words words, const std::map<std::string, int64_t>& actual) const;
  std::string expect_names(Words words, std::vector<std::string> actual) const;
  void plan();
  void apply();
  Scheduler& scheduler();
  std::string name_of(SeqId id) const;
  std::map<std::string, int64_t> stats() const;

  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<FakeExecutor> executor_;
  std::map<std::string, Client> clients_;
  std::vector<std::string> names_;        // by sequence id
  std::vector<std::string> plan_;         // the last plan: name:first-end and p or d, * if sampled
  std::vector<std::string> plan_states_;  // the same with [read>write]
  std::vector<std::string> preempted_, retired_;
};

}  // namespace weft
