#include "server/live_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <iterator>
#include <string_view>

#include "base/json_text.h"

namespace weft {
namespace {

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : -1.0;
}

/// ,"name":[...] of one figure of every sample; a negative share is null.
template <class Samples, class Read>
void append_column(std::string& out, std::string_view name, const Samples& samples, Read read) {
  fmt::format_to(std::back_inserter(out), ",\"{}\":[", name);
  bool first = true;
  for (const auto& sample : samples) {
    if (!first) out += ',';
    first = false;
    const auto value = read(sample);
    if (value < 0) {
      out += "null";
    } else if constexpr (std::is_integral_v<decltype(value)>) {
      fmt::format_to(std::back_inserter(out), "{}", value);
    } else {
      fmt::format_to(std::back_inserter(out), "{:.4g}", value);
    }
  }
  out += ']';
}

/// ,"drafts":{...}: of the whole life.
void append_drafts(std::string& out, const SpeculationCounts& s) {
  const auto to = std::back_inserter(out);
  fmt::format_to(to, ",\"drafts\":{{\"sequence_steps\":{},\"draft_steps\":{}", s.steps,
                 s.draft_steps);
  for (const auto& [name, counts] :
       {std::pair{"proposed", &s.proposed}, std::pair{"accepted", &s.accepted}}) {
    fmt::format_to(to, ",\"{}\":{{\"{}\":{},\"{}\":{}}}", name, source_name(DraftSource::kMtp),
                   (*counts)[0], source_name(DraftSource::kNgram), (*counts)[1]);
  }
  fmt::format_to(to, ",\"emitted\":{},\"accepted_at\":[{}]}}", s.emitted(),
                 fmt::join(s.accepted_at, ","));
}

/// Only once heads of prompts saw less than all keys.
void append_heads(std::string& out, const SchedulerStats& s) {
  fmt::format_to(std::back_inserter(out),
                 ",\"heads\":{{\"full\":{},\"streaming\":{},\"blocks\":{},\"computed_blocks\":{},"
                 "\"causal_blocks\":{},\"layer_steps\":{}}}",
                 s.plans.full_heads, s.plans.streaming_heads, s.plans.block_heads,
                 s.plans.computed_blocks, s.plans.causal_blocks, s.layer_steps);
}

}  // namespace

LiveView::LiveView(LiveInfo info)
    : info_(std::move(info)),
      start_(Clock::now()),
      start_epoch_(
          std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
              .count()) {}

double LiveView::epoch_seconds(Clock::time_point t) const {
  return start_epoch_ + std::chrono::duration<double>(t - start_).count();
}

void LiveView::step(const StepRecord& record) {
  const std::lock_guard lock(mutex_);
  if (steps_.size() == kSteps) steps_.pop_front();
  steps_.push_back(record);
}

void LiveView::sample(const EngineStats& stats, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  const std::optional<EngineStats> before = before_;
  const double seconds = std::chrono::duration<double>(now - when_).count();
  before_ = stats;
  when_ = now;
  if (!before || seconds <= 0) return;
  const SchedulerStats &s = stats.scheduler, &b = before->scheduler;
  const auto rate = [seconds](int64_t after, int64_t earlier) {
    return static_cast<double>(after - earlier) / seconds;
  };
  // As it will be printed, so that a printed time says `since` exactly.
  Sample sample{.time = std::round(epoch_seconds(now) * 1e3) / 1e3,
                .running = stats.num_running,
                .waiting = stats.num_waiting,
                .blocks_used = stats.blocks_used,
                .blocks_cached = stats.blocks_cached,
                .slots_used = stats.slots_used,
                .slots_cached = stats.slots_cached,
                .prompt_rate = rate(stats.prompt_tokens, before->prompt_tokens),
                .generation_rate = rate(stats.generated_tokens, before->generated_tokens),
                .steps = rate(s.steps, b.steps)};
  const int64_t looked_up = s.looked_up_tokens - b.looked_up_tokens;
  sample.kv_hit = share(s.kv_hit_tokens - b.kv_hit_tokens, looked_up);
  sample.reuse = share(s.reused_tokens - b.reused_tokens, looked_up);
  const int64_t admitted = s.hits + s.misses - b.hits - b.misses;
  sample.state_hit =
      info_.num_state_slots > 0 ? share(s.state_hits - b.state_hits, admitted) : -1.0;
  const SpeculationCounts &d = stats.speculation, &e = before->speculation;
  sample.draft_acceptance =
      share(d.num_accepted() - e.num_accepted(), d.num_proposed() - e.num_proposed());
  sample.accepted_length = share(d.emitted() - e.emitted(), d.steps - e.steps);
  if (samples_.size() == kSamples) samples_.pop_front();
  samples_.push_back(sample);
}

std::string LiveView::json(double since, const std::string& state) const {
  std::deque<Sample> samples;
  std::deque<StepRecord> steps;
  EngineStats stats;
  {
    const std::lock_guard lock(mutex_);
    for (const Sample& s : samples_) {
      if (s.time > since) samples.push_back(s);
    }
    for (const StepRecord& r : steps_) {
      if (epoch_seconds(r.end) > since) steps.push_back(r);
    }
    if (before_) stats = *before_;
  }
  const SchedulerStats& s = stats.scheduler;
  const Clock::time_point now = Clock::now();
  std::string out;
  const auto to = std::back_inserter(out);
  fmt::format_to(to, "{{\"now\":{:.3f},\"uptime\":{:.3f},\"state\":", epoch_seconds(now),
                 std::chrono::duration<double>(now - start_).count());
  append_json_quoted(state, out);
  out += ",\"model\":";
  append_json_quoted(info_.model_name, out);
  fmt::format_to(to,
                 ",\"limits\":{{\"blocks\":{},\"block_size\":{},\"slots\":{},\"max_num_seqs\":{},"
                 "\"max_model_len\":{},\"speculative_tokens\":{}}}",
                 info_.num_blocks, info_.block_size, info_.num_state_slots, info_.max_num_seqs,
                 info_.max_model_len, info_.num_speculative_tokens);
  const int64_t finished = s.finished_stop + s.finished_length + s.aborted + s.numeric_errors;
  fmt::format_to(to,
                 ",\"totals\":{{\"prompt_tokens\":{},\"generated_tokens\":{},\"finished\":{},"
                 "\"preemptions\":{},\"steps\":{},\"computed_tokens\":{},\"looked_up_tokens\":{},"
                 "\"kv_hit_tokens\":{},\"reused_tokens\":{},\"state_lost_tokens\":{},"
                 "\"state_hits\":{}",
                 stats.prompt_tokens, stats.generated_tokens, finished, s.preemptions, s.steps,
                 s.computed_tokens, s.looked_up_tokens, s.kv_hit_tokens, s.reused_tokens,
                 s.state_lost_tokens, s.state_hits);
  if (info_.num_speculative_tokens > 0) append_drafts(out, stats.speculation);
  if (s.plans.causal_blocks > 0) append_heads(out, s);
  out += "}";
  out += ",\"samples\":{\"period\":1,\"time\":[";
  for (size_t i = 0; i < samples.size(); ++i) {
    fmt::format_to(to, "{}{:.3f}", i > 0 ? "," : "", samples[i].time);
  }
  out += ']';
  append_column(out, "running", samples, [](const Sample& x) { return x.running; });
  append_column(out, "waiting", samples, [](const Sample& x) { return x.waiting; });
  append_column(out, "blocks_used", samples, [](const Sample& x) { return x.blocks_used; });
  append_column(out, "blocks_cached", samples, [](const Sample& x) { return x.blocks_cached; });
  append_column(out, "slots_used", samples, [](const Sample& x) { return x.slots_used; });
  append_column(out, "slots_cached", samples, [](const Sample& x) { return x.slots_cached; });
  append_column(out, "prompt_tokens_per_s", samples, [](const Sample& x) { return x.prompt_rate; });
  append_column(out, "generation_tokens_per_s", samples,
                [](const Sample& x) { return x.generation_rate; });
  append_column(out, "steps_per_s", samples, [](const Sample& x) { return x.steps; });
  append_column(out, "kv_hit_rate", samples, [](const Sample& x) { return x.kv_hit; });
  append_column(out, "reuse_rate", samples, [](const Sample& x) { return x.reuse; });
  append_column(out, "state_hit_rate", samples, [](const Sample& x) { return x.state_hit; });
  if (info_.num_speculative_tokens > 0) {
    append_column(out, "draft_acceptance", samples,
                  [](const Sample& x) { return x.draft_acceptance; });
    append_column(out, "accepted_length", samples,
                  [](const Sample& x) { return x.accepted_length; });
  }
  out += "},\"steps\":[";
  for (size_t i = 0; i < steps.size(); ++i) {
    const StepRecord& r = steps[i];
    fmt::format_to(to,
                   "{}{{\"step\":{},\"start\":{:.6f},\"ms\":{:.3f},\"sequences\":{},"
                   "\"prompt_rows\":{},\"decode_rows\":{},\"running\":{},\"waiting\":{},"
                   "\"preempted\":{}}}",
                   i > 0 ? "," : "", r.step, epoch_seconds(r.start), r.seconds() * 1e3, r.sequences,
                   r.prompt_rows, r.decode_rows, r.running, r.waiting, r.preempted);
  }
  return out + "]}";
}

}  // namespace weft
