#include "server/metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "base/check.h"
#include "server/exposition.h"

namespace weft {
namespace {

// Half of what matters to a reader happens below 300 ms: vLLM's buckets there are too coarse.
constexpr std::array kLatency = {.001, .0025, .005, .0075, .01,  .015, .02,  .03,  .04, .05,
                                 .06,  .08,   .1,   .125,  .15,  .2,   .25,  .3,   .4,  .5,
                                 .75,  1.,    1.5,  2.,    2.5,  5.,   7.5,  10.,  15., 20.,
                                 30.,  40.,   60.,  120.,  240., 480., 960., 1920.};
constexpr std::array kTokenGap = {.001, .0025, .005, .0075, .01,  .015, .02, .025, .03, .04,
                                  .05,  .06,   .075, .1,    .125, .15,  .2,  .25,  .3,  .4,
                                  .5,   .75,   1.,   2.5,   5.,   7.5,  10., 20.,  40., 80.};
constexpr std::array kTokens = {1.,    2.,    5.,     10.,    20.,    50., 100., 200., 500., 1000.,
                                2000., 5000., 10000., 20000., 50000., 1e5, 2e5,  5e5,  1e6};
constexpr std::array kIteration = {1.,   8.,    16.,   32.,   64.,   128.,  256.,
                                   512., 1024., 2048., 4096., 8192., 16384.};
constexpr std::array kChoices = {1., 2., 5., 10., 20.};
constexpr std::array kStep = {.0001, .00025, .0005, .001, .0025, .005, .0075, .01, .015, .02, .03,
                              .05,   .075,   .1,    .15,  .25,   .5,   1.,    2.5, 5.,   10., 30.};

constexpr std::array<std::string_view, 4> kReasons = {"stop", "length", "abort", "error"};
constexpr size_t kMaxRoutes = 256;  // route x status; the table has some dozens

std::string_view reason_label(std::string_view reason) {
  if (reason == "tool_calls") return "stop";  // as vLLM counts it
  const auto* const known = std::find(kReasons.begin(), kReasons.end(), reason);
  return known == kReasons.end() ? std::string_view("error") : *known;
}

using Time = RequestRecord::Clock::time_point;

bool happened(Time t) {
  return t != Time();
}

void observe_span(Histogram& histogram, Time from, Time to) {
  if (!happened(from) || !happened(to)) return;
  histogram.observe(std::max(0.0, std::chrono::duration<double>(to - from).count()));
}

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

Histogram::Histogram(std::span<const double> bounds)
    : bounds_(bounds.begin(), bounds.end()), counts_(bounds.size() + 1) {
  CHECK(std::is_sorted(bounds_.begin(), bounds_.end()));
}

void Histogram::observe(double value) {
  // "le": a value on a bound belongs below it.
  const auto place = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  counts_[static_cast<size_t>(place - bounds_.begin())].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

Histogram::Reading Histogram::read() const {
  Reading reading{.bounds = bounds_, .counts = {}, .sum = sum_.load(std::memory_order_relaxed)};
  for (const auto& count : counts_) {
    reading.counts.push_back(count.load(std::memory_order_relaxed));
  }
  return reading;
}

Metrics::Metrics(MetricsInfo info)
    : info_(std::move(info)),
      time_to_first_token_(kLatency),
      inter_token_(kTokenGap),
      time_per_output_token_(kTokenGap),
      e2e_latency_(kLatency),
      queue_time_(kLatency),
      inference_time_(kLatency),
      prefill_time_(kLatency),
      decode_time_(kLatency),
      prompt_tokens_(kTokens),
      generation_tokens_(kTokens),
      max_generation_tokens_(kTokens),
      computed_prompt_tokens_(kTokens),
      params_n_(kChoices),
      params_max_tokens_(kTokens),
      iteration_tokens_(kIteration),
      step_time_(kStep) {
  for (const std::string_view reason : kReasons) finished_by_reason_[std::string(reason)] = 0;
}

void Metrics::first_token(const RequestRecord& record) {
  observe_span(time_to_first_token_, record.arrival, record.first_token);
}

void Metrics::finished(const RequestRecord& record) {
  observe_span(e2e_latency_, record.arrival, record.finished);
  observe_span(queue_time_, record.arrival, record.scheduled);
  observe_span(inference_time_, record.scheduled, record.last_token);
  observe_span(prefill_time_, record.scheduled, record.first_token);
  observe_span(decode_time_, record.first_token, record.last_token);
  if (record.generated_tokens > 1 && happened(record.first_token)) {
    const std::chrono::duration<double> decode = record.last_token - record.first_token;
    time_per_output_token_.observe(std::max(0.0, decode.count()) /
                                   static_cast<double>(record.generated_tokens - 1));
  }
  prompt_tokens_.observe(static_cast<double>(record.prompt_tokens));
  generation_tokens_.observe(static_cast<double>(record.generated_tokens));
  if (happened(record.first_token)) {
    computed_prompt_tokens_.observe(
        static_cast<double>(record.prompt_tokens - record.cached_tokens));
  }
  if (record.most_generated) {  // once for all choices of a prompt
    max_generation_tokens_.observe(static_cast<double>(*record.most_generated));
    params_n_.observe(static_cast<double>(record.n));
  }
  params_max_tokens_.observe(static_cast<double>(record.max_tokens));
  const std::lock_guard lock(mutex_);
  ++finished_by_reason_.find(reason_label(record.finish_reason))->second;
}

void Metrics::step(const StepRecord& record) {
  if (record.rows() == 0) return;  // only told the executor who has ended
  iteration_tokens_.observe(record.rows());
  step_time_.observe(record.seconds());
}

void Metrics::http_answered(std::string_view route, int status) {
  const std::lock_guard lock(mutex_);
  std::pair key(std::string(route), status);
  if (http_by_route_.size() >= kMaxRoutes && !http_by_route_.contains(key)) key.first = "other";
  ++http_by_route_[std::move(key)];
}

namespace {

void render_engine(Exposition& out, const MetricsInfo& info, const EngineStats& stats) {
  const SchedulerStats& s = stats.scheduler;
  const int64_t blocks = int64_t{stats.blocks_free} + stats.blocks_cached + stats.blocks_used;
  const double kv_usage = ratio(stats.blocks_used, blocks);
  out.gauge("vllm:num_requests_running", stats.num_running, "Requests in execution batches.");
  out.gauge("vllm:num_requests_waiting", stats.num_waiting, "Requests waiting to be processed.");
  out.gauge("weft:num_requests_paused", stats.num_paused,
            "Of these requests, the ones whose clients do not read.");
  out.gauge("vllm:kv_cache_usage_perc", kv_usage, "KV cache usage; 1 means 100 percent.");
  out.gauge("vllm:gpu_cache_usage_perc", kv_usage, "The same, under its older name.");
  out.counter("vllm:num_preemptions_total", static_cast<double>(s.preemptions),
              "Sequences that lost their cache to others and came back.");
  out.counter("weft:swaps_out_total", static_cast<double>(s.swap_outs),
              "Of them, the ones whose cache was kept in the swap space.");
  out.counter("weft:swaps_in_total", static_cast<double>(s.swap_ins),
              "Sequences that went on with what the swap space had kept.");
  out.counter("vllm:prompt_tokens_total", static_cast<double>(stats.prompt_tokens),
              "Prompt tokens processed, cached ones included.");
  out.counter("vllm:generation_tokens_total", static_cast<double>(stats.generated_tokens),
              "Tokens generated.");
  for (const char* prefix : {"vllm:", "vllm:gpu_"}) {
    out.counter(std::string(prefix) + "prefix_cache_queries_total",
                static_cast<double>(s.looked_up_tokens), "Tokens looked up in the prefix cache.");
    out.counter(std::string(prefix) + "prefix_cache_hits_total",
                static_cast<double>(s.reused_tokens),
                "Looked-up tokens that were not computed again.");
  }
  out.family("vllm:cache_config_info", "gauge", "Configuration of the cache, in the labels.");
  out.sample(1,
             prometheus_label("block_size", std::to_string(info.block_size)) + "," +
                 prometheus_label("num_gpu_blocks", std::to_string(info.num_blocks)) + "," +
                 prometheus_label("num_cpu_blocks", std::to_string(info.num_swap_blocks)) + "," +
                 prometheus_label("cache_dtype", info.kv_cache_dtype) + "," +
                 prometheus_label("enable_prefix_caching", info.prefix_caching ? "True" : "False"));
}

/// Only of a server that drafts, as vLLM has it.
void render_speculation(Exposition& out, const MetricsInfo& info, const EngineStats& stats) {
  if (info.num_speculative_tokens == 0) return;
  const SpeculationCounts& s = stats.speculation;
  out.counter("vllm:spec_decode_num_drafts_total", static_cast<double>(s.draft_steps),
              "Times that drafts of a sequence were verified.");
  out.counter("vllm:spec_decode_num_draft_tokens_total", static_cast<double>(s.num_proposed()),
              "Draft tokens verified.");
  out.counter("vllm:spec_decode_num_accepted_tokens_total", static_cast<double>(s.num_accepted()),
              "Of them, given out.");
  out.family("vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter",
             "Draft tokens given out, by their place among the drafts of a step.");
  for (int i = 0; i < info.num_speculative_tokens; ++i) {
    const auto place = static_cast<size_t>(i);
    out.sample(place < s.accepted_at.size() ? static_cast<double>(s.accepted_at[place]) : 0,
               prometheus_label("position", std::to_string(i)));
  }
  const auto by_source = [&](const char* name, const char* help, const auto& counts) {
    out.family(name, "counter", help);
    for (size_t i = 0; i < kNumDraftSources; ++i) {
      out.sample(static_cast<double>(counts[i]),
                 prometheus_label("source", source_name(static_cast<DraftSource>(i))));
    }
  };
  by_source("weft:draft_tokens_total", "Draft tokens verified, by who proposed them.", s.proposed);
  by_source("weft:accepted_draft_tokens_total", "Of them, given out.", s.accepted);
  out.counter("weft:generation_steps_total", static_cast<double>(s.steps),
              "Steps that gave a sequence tokens, once a sequence.");
}

void render_own(Exposition& out, const MetricsInfo& info, const EngineStats& stats) {
  const SchedulerStats& s = stats.scheduler;
  const auto count = [&out](const char* name, int64_t value, const char* help) {
    out.counter(name, static_cast<double>(value), help);
  };
  count("weft:kv_hit_tokens_total", s.kv_hit_tokens, "Looked-up tokens whose KV was found.");
  count("weft:reused_tokens_total", s.reused_tokens, "Of them, not computed again.");
  count("weft:state_lost_tokens_total", s.state_lost_tokens,
        "Of them, computed again for want of a recurrent-state checkpoint that deep.");
  count("weft:state_hits_total", s.state_hits, "Sequences that began from a state checkpoint.");
  count("weft:admissions_total", s.hits + s.misses, "Sequences that entered the batch.");
  count("weft:state_checkpoints_total", s.checkpoints, "State checkpoints registered.");
  count("weft:block_evictions_total", s.block_evictions, "Cached KV blocks given up.");
  count("weft:state_evictions_total", s.state_evictions, "State checkpoints given up.");
  count("weft:steps_total", s.steps, "Steps launched.");
  count("weft:computed_tokens_total", s.computed_tokens, "Rows computed, replays included.");
  count("weft:stalls_total", s.stalls, "Times a running sequence waited a step for blocks.");
  count("weft:numeric_errors_total", s.numeric_errors, "Sequences ended by NaN logits.");
  const PlanCounters& plans = s.plans;
  if (plans.causal_blocks > 0) {
    out.family("weft:prefill_heads_total", "counter",
               "Heads of prompt slices, a layer each, by what they saw.");
    out.sample(static_cast<double>(plans.full_heads), prometheus_label("kind", "full"));
    out.sample(static_cast<double>(plans.streaming_heads), prometheus_label("kind", "streaming"));
    out.sample(static_cast<double>(plans.block_heads), prometheus_label("kind", "blocks"));
    count("weft:prefill_computed_blocks_total", plans.computed_blocks,
          "Pairs of 128 rows and 128 keys of prompts that heads computed.");
    count("weft:prefill_causal_blocks_total", plans.causal_blocks,
          "The same, had every head seen all keys.");
    count("weft:prefill_layer_steps_total", s.layer_steps,
          "Steps that computed some layers of one long prompt.");
  }
  out.gauge("weft:kv_blocks_used", stats.blocks_used, "KV blocks held by sequences.");
  out.gauge("weft:kv_blocks_cached", stats.blocks_cached, "KV blocks free, holding a prefix.");
  out.gauge("weft:kv_blocks", info.num_blocks, "KV blocks in all.");
  out.gauge("weft:state_slots_used", stats.slots_used, "Recurrent-state slots in use.");
  out.gauge("weft:state_slots_cached", stats.slots_cached, "State slots that hold a checkpoint.");
  out.gauge("weft:state_slots", info.num_state_slots, "Recurrent-state slots in all.");
}

/// The process itself, under the names that Prometheus' client libraries use.
void render_process(Exposition& out, double start_time) {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  out.counter("process_cpu_seconds_total", seconds(used.ru_utime) + seconds(used.ru_stime),
              "User and system CPU time spent, in seconds.");
  double size = 0, resident = 0;  // pages
  if (std::ifstream statm("/proc/self/statm"); statm >> size >> resident) {
    const auto page = static_cast<double>(sysconf(_SC_PAGESIZE));
    out.gauge("process_virtual_memory_bytes", size * page, "Virtual memory size in bytes.");
    out.gauge("process_resident_memory_bytes", resident * page, "Resident memory size in bytes.");
  }
  std::error_code none;
  const std::filesystem::directory_iterator descriptors("/proc/self/fd", none);
  if (!none) {
    out.gauge("process_open_fds",
              static_cast<double>(std::distance(begin(descriptors), end(descriptors))),
              "Open file descriptors.");
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    out.gauge("process_max_fds", static_cast<double>(limit.rlim_cur), "How many there may be.");
  }
  out.gauge("process_start_time_seconds", start_time,
            "When the server began, in seconds of the Unix epoch.");
}

}  // namespace

std::string Metrics::render(const EngineStats& stats, bool healthy) const {
  const std::string labels =
      prometheus_label("engine", "0") + "," + prometheus_label("model_name", info_.model_name);
  Exposition out(labels);
  render_engine(out, info_, stats);
  std::map<std::string, uint64_t, std::less<>> finished;
  std::map<std::pair<std::string, int>, uint64_t> http;
  {
    const std::lock_guard lock(mutex_);
    finished = finished_by_reason_;
    http = http_by_route_;
  }
  out.family("vllm:request_success_total", "counter", "Requests by the reason of their end.");
  for (const auto& [reason, count] : finished) {
    out.sample(static_cast<double>(count), prometheus_label("finished_reason", reason));
  }
  out.histogram("vllm:time_to_first_token_seconds", time_to_first_token_,
                "Seconds from arrival to the first token.");
  out.histogram("vllm:inter_token_latency_seconds", inter_token_, "Seconds between two tokens.");
  out.histogram("vllm:time_per_output_token_seconds", inter_token_,
                "The same, under its older name.");
  out.histogram("vllm:request_time_per_output_token_seconds", time_per_output_token_,
                "Mean seconds a token after the first, a request.");
  out.histogram("vllm:e2e_request_latency_seconds", e2e_latency_, "Seconds from arrival to end.");
  out.histogram("vllm:request_queue_time_seconds", queue_time_, "Seconds spent waiting.");
  out.histogram("vllm:request_inference_time_seconds", inference_time_,
                "Seconds from the first step to the last token.");
  out.histogram("vllm:request_prefill_time_seconds", prefill_time_,
                "Seconds from the first step to the first token.");
  out.histogram("vllm:request_decode_time_seconds", decode_time_,
                "Seconds from the first token to the last.");
  out.histogram("vllm:request_prompt_tokens", prompt_tokens_, "Prompt tokens of a request.");
  out.histogram("vllm:request_generation_tokens", generation_tokens_,
                "Generated tokens of a request.");
  out.histogram("vllm:request_max_num_generation_tokens", max_generation_tokens_,
                "Generated tokens of the longest choice of a prompt.");
  out.histogram("vllm:request_prefill_kv_computed_tokens", computed_prompt_tokens_,
                "Prompt tokens of a request that were not in the cache.");
  out.histogram("vllm:request_params_n", params_n_, "n, as requested.");
  out.histogram("vllm:request_params_max_tokens", params_max_tokens_, "max_tokens, as requested.");
  out.histogram("vllm:iteration_tokens_total", iteration_tokens_, "Tokens of a step.");
  render_speculation(out, info_, stats);
  render_own(out, info_, stats);
  out.histogram("weft:step_seconds", step_time_, "Seconds of a step on the device.");
  render_process(out, start_time_);
  out.gauge("weft:healthy", healthy ? 1 : 0, "1 while the engine makes progress.");
  out.gauge("weft:open_streams", static_cast<double>(open_streams_.load()),
            "Streamed answers under way.");
  out.counter("weft:disconnected_total", static_cast<double>(disconnected_.load()),
              "Requests ended because their client went away.");
  out.counter("weft:refused_overload_total", static_cast<double>(refused_.load()),
              "Requests refused because the queue was full.");
  out.family("weft:http_requests_total", "counter", "HTTP answers by route and status.");
  for (const auto& [key, count] : http) {
    out.sample(static_cast<double>(count),
               prometheus_label("route", key.first) + "," +
                   prometheus_label("status", std::to_string(key.second)));
  }
  return out.take();
}

}  // namespace weft
