#include "app/bench_serve_report.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace weft {
namespace {

using nlohmann::ordered_json;

struct MetricName {
  const char* name;
  const char* short_name;
  const char* title;
  LatencySummary ServeMetrics::*summary;
};
constexpr std::array<MetricName, 6> kMetrics = {{
    {"ttft", "TTFT", "Time to First Token", &ServeMetrics::ttft},
    {"tpot", "TPOT", "Time per Output Token (excl. 1st token)", &ServeMetrics::tpot},
    {"itl", "ITL", "Inter-token Latency", &ServeMetrics::itl},
    {"e2el", "E2EL", "End-to-end Latency", &ServeMetrics::e2el},
    {"client_queue_time", "Client Queue Time", "Client-side Queueing", &ServeMetrics::queue},
    {"e2el_including_client_queue", "E2EL incl. Client Queue", "Queue-inclusive End-to-end Latency",
     &ServeMetrics::e2el_with_queue},
}};

/// The queue exists only where a bound on the concurrency makes one.
bool is_told(const MetricName& metric, const BenchServeOptions& o) {
  const std::string name = metric.name;
  if (name == "client_queue_time" && !o.max_concurrency) return false;
  if (name == "e2el_including_client_queue" && (!o.max_concurrency || std::isinf(o.request_rate))) {
    return false;
  }
  const std::string list = "," + o.percentile_metrics + ",";
  return list.find("," + name + ",") != std::string::npos;
}

/// "99", "99.9": as Python writes the number in vLLM's keys.
std::string percentile_name(double p) {
  return p == std::floor(p) ? fmt::format("{}", static_cast<int64_t>(p)) : fmt::format("{}", p);
}

/// A rate as Python prints a float: "inf", "10.0", "2.5".
std::string rate_text(double rate) {
  if (std::isinf(rate)) return "inf";
  return rate == std::floor(rate) ? fmt::format("{:.1f}", rate) : fmt::format("{}", rate);
}

std::string row(const std::string& name, double value) {
  return fmt::format("{:<40} {:<10.2f}\n", name, value);
}
std::string row(const std::string& name, int64_t value) {
  return fmt::format("{:<40} {:<10}\n", name, value);
}

void add_metadata(ordered_json& out, const std::vector<std::string>& pairs) {
  const auto trim = [](std::string text) {
    text.erase(0, text.find_first_not_of(" \t"));
    text.erase(text.find_last_not_of(" \t") + 1);
    return text;
  };
  for (const std::string& pair : pairs) {
    const size_t at = pair.find('=');
    out[trim(pair.substr(0, at))] = trim(pair.substr(at + 1));
  }
}

void add_details(ordered_json& out, const std::vector<RequestOutcome>& outcomes) {
  for (const char* name : {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times",
                           "queue_times", "generated_texts", "errors"}) {
    out[name] = ordered_json::array();
  }
  for (const RequestOutcome& o : outcomes) {
    out["input_lens"].push_back(o.prompt_len);
    out["output_lens"].push_back(o.success ? o.output_len : 0);
    out["ttfts"].push_back(o.ttft);
    out["itls"].push_back(o.itl);
    out["latencies"].push_back(o.latency);
    out["start_times"].push_back(o.start_time);
    out["queue_times"].push_back(o.queue_time);
    out["generated_texts"].push_back(o.text);
    out["errors"].push_back(o.error);
  }
}

}  // namespace

Result<std::vector<std::string>> parse_metric_names(const std::string& list) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string name = list.substr(begin, end - begin);
    const bool known = std::any_of(kMetrics.begin(), kMetrics.end(),
                                   [&name](const MetricName& m) { return name == m.name; });
    if (!known) {
      return invalid_argument("--percentile-metrics: '" + name +
                              "' is none of ttft, tpot, itl, e2el, client_queue_time, "
                              "e2el_including_client_queue");
    }
    out.push_back(name);
    begin = end + 1;
  }
  return out;
}

namespace {

/// Shares of the times that drafts were verified.
std::vector<double> rates_by_place(const DraftCounts& d) {
  std::vector<double> out = d.accepted_at;
  for (double& rate : out) rate /= d.drafts;
  return out;
}

double acceptance_percent(const DraftCounts& d) {
  return d.proposed > 0 ? 100 * d.accepted / d.proposed : 0;
}

std::string drafts_block(const DraftCounts& d) {
  std::string out = fmt::format("{:-^50}\n", "Speculative Decoding");
  out += row("Acceptance rate (%):", acceptance_percent(d));
  out += row("Acceptance length:", 1 + d.accepted / d.drafts);
  out += row("Drafts:", static_cast<int64_t>(d.drafts));
  out += row("Draft tokens:", static_cast<int64_t>(d.proposed));
  out += row("Accepted tokens:", static_cast<int64_t>(d.accepted));
  const std::vector<double> rates = rates_by_place(d);
  if (!rates.empty()) out += "Per-position acceptance (%):\n";
  for (size_t i = 0; i < rates.size(); ++i) {
    out += row("  Position " + std::to_string(i) + ":", 100 * rates[i]);
  }
  return out;
}

void add_drafts(ordered_json& out, const DraftCounts& d) {
  out["spec_decode_acceptance_rate"] = acceptance_percent(d);
  out["spec_decode_acceptance_length"] = 1 + d.accepted / d.drafts;
  out["spec_decode_num_drafts"] = static_cast<int64_t>(d.drafts);
  out["spec_decode_draft_tokens"] = static_cast<int64_t>(d.proposed);
  out["spec_decode_accepted_tokens"] = static_cast<int64_t>(d.accepted);
  out["spec_decode_per_position_acceptance_rates"] = rates_by_place(d);
}

}  // namespace

std::string result_block(const ServeReport& report) {
  const ServeMetrics& m = report.metrics;
  const BenchServeOptions& o = report.options;
  std::string out = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  out += row("Successful requests:", m.completed);
  out += row("Failed requests:", m.failed);
  if (o.max_concurrency) out += row("Maximum request concurrency:", *o.max_concurrency);
  if (!std::isinf(o.request_rate)) out += row("Request rate configured (RPS):", o.request_rate);
  out += row("Benchmark duration (s):", m.duration);
  out += row("Total input tokens:", m.total_input);
  out += row("Total generated tokens:", m.total_output);
  out += row("Request throughput (req/s):", m.request_throughput);
  if (report.has_goodput) out += row("Request goodput (req/s):", m.request_goodput);
  out += row("Output token throughput (tok/s):", m.output_throughput);
  out += row("Peak output token throughput (tok/s):", m.max_output_tokens_per_s);
  out += row("Peak concurrent requests:", static_cast<double>(m.max_concurrent_requests));
  out += row("Total token throughput (tok/s):", m.total_token_throughput);
  for (const MetricName& metric : kMetrics) {
    if (!is_told(metric, o)) continue;
    const LatencySummary& s = m.*metric.summary;
    const std::string name = std::string(metric.short_name) + " (ms):";
    out += fmt::format("{:-^50}\n", metric.title);
    out += row("Mean " + name, s.mean);
    out += row("Median " + name, s.median);
    for (const auto& [p, ms] : s.percentiles) out += row("P" + percentile_name(p) + " " + name, ms);
  }
  if (report.drafts) out += drafts_block(*report.drafts);
  return out + std::string(50, '=') + "\n";
}

std::string result_json(const ServeReport& report) {
  const ServeMetrics& m = report.metrics;
  const BenchServeOptions& o = report.options;
  const auto or_null = [](bool there, const auto& value) {
    return there ? ordered_json(value) : ordered_json();
  };
  ordered_json out;
  out["date"] = report.date;
  out["endpoint_type"] = o.backend;
  out["backend"] = o.backend;
  out["label"] = or_null(!o.label.empty(), o.label);
  out["model_id"] = report.model_id;
  out["tokenizer_id"] = or_null(!report.tokenizer_id.empty(), report.tokenizer_id);
  out["num_prompts"] = o.num_prompts;
  add_metadata(out, o.metadata);
  out["request_rate"] =
      std::isinf(o.request_rate) ? ordered_json("inf") : ordered_json(o.request_rate);
  out["burstiness"] = std::isinf(o.burstiness) ? ordered_json("inf") : ordered_json(o.burstiness);
  out["max_concurrency"] = or_null(o.max_concurrency.has_value(), o.max_concurrency.value_or(0));
  if (!o.ramp_up_strategy.empty()) {
    out["ramp_up_strategy"] = o.ramp_up_strategy;
    out["ramp_up_start_rps"] = o.ramp_up_start_rps.value_or(0);
    out["ramp_up_end_rps"] = o.ramp_up_end_rps.value_or(0);
  }
  out["duration"] = m.duration;
  out["completed"] = m.completed;
  out["failed"] = m.failed;
  out["total_input_tokens"] = m.total_input;
  out["total_output_tokens"] = m.total_output;
  out["request_throughput"] = m.request_throughput;
  out["request_goodput"] = or_null(report.has_goodput, m.request_goodput);
  out["output_throughput"] = m.output_throughput;
  out["total_token_throughput"] = m.total_token_throughput;
  if (o.save_detailed) add_details(out, report.outcomes);
  out["max_output_tokens_per_s"] = m.max_output_tokens_per_s;
  out["max_concurrent_requests"] = m.max_concurrent_requests;
  out["rtfx"] = 0.0;  // of audio
  if (report.drafts) add_drafts(out, *report.drafts);
  for (const MetricName& metric : kMetrics) {
    if (!is_told(metric, o)) continue;
    const LatencySummary& s = m.*metric.summary;
    const std::string name = std::string("_") + metric.name + "_ms";
    out["mean" + name] = s.mean;
    out["median" + name] = s.median;
    out["std" + name] = s.std;
    for (const auto& [p, ms] : s.percentiles) out["p" + percentile_name(p) + name] = ms;
  }
  return out.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string result_path(const ServeReport& report) {
  const BenchServeOptions& o = report.options;
  std::string name = o.result_filename;
  if (name.empty()) {
    const std::string label = o.label.empty() ? o.backend : o.label;
    const std::string rate =
        o.ramp_up_strategy.empty()
            ? rate_text(o.request_rate) + "qps"
            : fmt::format("ramp-up-{}-{}qps-{}qps", o.ramp_up_strategy,
                          o.ramp_up_start_rps.value_or(0), o.ramp_up_end_rps.value_or(0));
    const std::string concurrency =
        o.max_concurrency ? fmt::format("-concurrency{}", *o.max_concurrency) : "";
    const std::string model = report.model_id.substr(report.model_id.rfind('/') + 1);
    name = label + "-" + rate + concurrency + "-" + model + "-" + report.date + ".json";
  }
  return (std::filesystem::path(o.result_dir) / name).string();
}

}  // namespace weft
