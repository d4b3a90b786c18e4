#include "server/stats_log.h"

#include <fmt/format.h>

namespace weft {
namespace {

double percent(int64_t part, int64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

std::optional<std::string> StatsLog::tick(const EngineStats& stats, Clock::time_point now) {
  const std::optional<EngineStats> before = before_;
  const double seconds = std::chrono::duration<double>(now - when_).count();
  before_ = stats;
  when_ = now;
  if (!before || seconds <= 0) return std::nullopt;
  const int64_t prompt = stats.prompt_tokens - before->prompt_tokens;
  const int64_t generated = stats.generated_tokens - before->generated_tokens;
  const bool idle =
      stats.num_running == 0 && stats.num_waiting == 0 && prompt == 0 && generated == 0;
  const bool silent = idle && was_idle_;
  was_idle_ = idle;
  if (silent) return std::nullopt;

  const SchedulerStats& s = stats.scheduler;
  int64_t looked_up = s.looked_up_tokens - before->scheduler.looked_up_tokens;
  int64_t reused = s.reused_tokens - before->scheduler.reused_tokens;
  if (looked_up == 0) {  // nobody came in: the rate of the whole life
    looked_up = s.looked_up_tokens;
    reused = s.reused_tokens;
  }
  const int64_t blocks = int64_t{stats.blocks_free} + stats.blocks_cached + stats.blocks_used;
  std::string line = fmt::format(
      "Engine 000: Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} "
      "tokens/s, Running: {} reqs, Waiting: {} reqs, KV cache usage: {:.1f}%, Prefix cache hit "
      "rate: {:.1f}%",
      static_cast<double>(prompt) / seconds, static_cast<double>(generated) / seconds,
      stats.num_running, stats.num_waiting, percent(stats.blocks_used, blocks),
      percent(reused, looked_up));
  const int slots = stats.slots_free + stats.slots_cached + stats.slots_used;
  if (slots > 0) line += fmt::format(", State slots: {}/{}", stats.slots_used, slots);
  const SpeculationCounts &d = stats.speculation, &e = before->speculation;
  const int64_t drafted = d.num_proposed() - e.num_proposed();
  if (drafted > 0) {
    line += fmt::format(
        ", Mean acceptance length: {:.2f}, Avg Draft acceptance rate: {:.1f}%",
        static_cast<double>(d.emitted() - e.emitted()) / static_cast<double>(d.steps - e.steps),
        percent(d.num_accepted() - e.num_accepted(), drafted));
  }
  return line;
}

}  // namespace weft
