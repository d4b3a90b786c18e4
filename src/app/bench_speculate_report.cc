// The report of `weft bench speculate`: Markdown for people, JSON for programs, SVG for a page.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "app/bench_speculate.h"
#include "app/html.h"
#include "app/version.h"

namespace weft {
namespace {

using nlohmann::ordered_json;

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

double acceptance(const SpeculationCounts& counts) {
  return ratio(static_cast<double>(counts.num_accepted()),
               static_cast<double>(counts.num_proposed()));
}

/// Of the steps with drafts, the share whose draft at `place` was given out.
double acceptance_at(const SpeculationCounts& counts, size_t place) {
  if (place >= counts.accepted_at.size()) return 0;
  return ratio(static_cast<double>(counts.accepted_at[place]),
               static_cast<double>(counts.draft_steps));
}

double tokens_a_step(const SpeculationCounts& counts) {
  return ratio(static_cast<double>(counts.emitted()), static_cast<double>(counts.steps));
}

const SpeculateRun* plain_run(const SpeculateReport& report) {
  for (const SpeculateRun& run : report.runs) {
    if (run.num_speculative_tokens == 0 && run.refused.empty()) return &run;
  }
  return nullptr;
}

/// Tokens a second behind the first one of each answer.
double decode_rate(const SpeculateTotals& totals) {
  return ratio(static_cast<double>(totals.output_tokens - totals.requests), totals.decode_seconds);
}

double at_percentile(const LatencySummary& summary, double p) {
  for (const auto& [percent, ms] : summary.percentiles) {
    if (percent == p) return ms;
  }
  return summary.median;
}

std::string times(double factor) {
  return factor > 0 ? fmt::format("{:.2f}x", factor) : std::string("-");
}

std::string percents(const std::vector<double>& shares) {
  std::string out;
  for (const double share : shares) {
    out += fmt::format("{}{:.0f} %", out.empty() ? "" : ", ", 100 * share);
  }
  return out.empty() ? "-" : out;
}

std::vector<double> places_of(const SpeculateRun& run) {
  std::vector<double> out;
  for (int i = 0; i < run.num_speculative_tokens; ++i) {
    out.push_back(acceptance_at(run.all.counts, static_cast<size_t>(i)));
  }
  return out;
}

std::string run_row(const SpeculateRun& run, const SpeculateRun* plain) {
  if (!run.refused.empty()) {
    return fmt::format("| {} | refused: {} | | | | | | | | |\n", run.name, run.refused);
  }
  const ServeMetrics& m = run.metrics;
  const SpeculationCounts& c = run.all.counts;
  const bool drafts = run.num_speculative_tokens > 0;
  return fmt::format(
      "| {} | {:.1f} | {} | {} | {:.1f} / {:.1f} / {:.1f} | {:.2f} / {:.2f} / {:.2f} | {} | {} | "
      "{} | "
      "{} |\n",
      run.name, output_rate(run), plain ? times(ratio(output_rate(run), output_rate(*plain))) : "-",
      plain ? times(ratio(decode_rate(run.all), decode_rate(plain->all))) : "-", m.ttft.median,
      at_percentile(m.ttft, 90), at_percentile(m.ttft, 99), m.tpot.median,
      at_percentile(m.tpot, 90), at_percentile(m.tpot, 99),
      drafts ? fmt::format("{:.2f}", tokens_a_step(c)) : "1",
      drafts ? fmt::format("{} of {}", c.num_accepted(), c.num_proposed()) : "-",
      percents(places_of(run)),
      plain && drafts ? fmt::format("{} of {}", run.all.different, run.all.requests) : "-");
}

std::string task_table(const SpeculateReport& report, const SpeculateRun* plain) {
  std::string head = "| task | requests | prompt | answer |", rule = "| --- | --- | --- | --- |";
  std::vector<const SpeculateRun*> runs;
  for (const SpeculateRun& run : report.runs) {
    if (!run.refused.empty() || run.num_speculative_tokens == 0) continue;
    runs.push_back(&run);
    head += fmt::format(" {} |", run.name);
    rule += " --- |";
  }
  if (runs.empty()) return "";
  std::string out =
      "\nBy task: decoding against `none`, tokens a step, share of first drafts accepted.\n\n" +
      head + "\n" + rule + "\n";
  for (const std::string& task : report.tasks) {
    const SpeculateTotals& first = runs.front()->tasks.at(task);
    const auto mean = [&](int64_t tokens) {
      return ratio(static_cast<double>(tokens), static_cast<double>(first.requests));
    };
    out += fmt::format("| {} | {} | {:.0f} | {:.1f} |", task, first.requests,
                       mean(first.prompt_tokens), mean(first.output_tokens));
    for (const SpeculateRun* run : runs) {
      const SpeculateTotals& t = run->tasks.at(task);
      const double speed = plain ? ratio(decode_rate(t), decode_rate(plain->tasks.at(task))) : 0;
      const std::string accepted =
          t.counts.draft_steps > 0 ? percents({acceptance_at(t.counts, 0)}) : std::string("-");
      out += fmt::format(" {}, {:.2f}, {} |", times(speed), tokens_a_step(t.counts), accepted);
    }
    out += "\n";
  }
  return out;
}

ordered_json latency_json(const LatencySummary& summary) {
  ordered_json out = {{"mean_ms", summary.mean}, {"p50_ms", summary.median}};
  for (const auto& [p, ms] : summary.percentiles) out[fmt::format("p{:g}_ms", p)] = ms;
  return out;
}

ordered_json totals_json(const SpeculateTotals& t, int num_speculative_tokens) {
  ordered_json out = {{"requests", t.requests},
                      {"prompt_tokens", t.prompt_tokens},
                      {"output_tokens", t.output_tokens},
                      {"request_seconds", t.seconds},
                      {"decode_seconds", t.decode_seconds}};
  if (num_speculative_tokens == 0) return out;
  const SpeculateMetrics m = speculate_metrics(t.counts, num_speculative_tokens);
  out["different_answers"] = t.different;
  out["steps"] = t.counts.steps;
  out["draft_steps"] = t.counts.draft_steps;
  out["tokens_a_step"] = tokens_a_step(t.counts);
  out["draft_acceptance"] = acceptance(t.counts);
  out["accepted_at"] = t.counts.accepted_at;
  for (size_t i = 0; i < kNumDraftSources; ++i) {
    const std::string source(source_name(static_cast<DraftSource>(i)));
    out["proposed"][source] = t.counts.proposed[i];
    out["accepted"][source] = t.counts.accepted[i];
  }
  out["speculate_metrics"] = {
      {"accepted_tokens", m.accepted_tokens},   {"rejected_tokens", m.rejected_tokens},
      {"accept_ratio", m.accept_ratio},         {"average_accept_length", m.average_accept_length},
      {"accepted_tokens_per_head", m.per_head}, {"accept_ratio_per_head", m.ratio_per_head}};
  return out;
}

constexpr const char* kColors[] = {"#8a94a6", "#5b7fd4", "#d59a2b",
                                   "#4f9d69", "#c8553d", "#8b6bb1"};

const char* color_of(size_t run) {
  return kColors[run % std::size(kColors)];
}

/// The next round number.
double round_up(double x) {
  double size = 1;
  while (size < x) size *= 10;
  while (size / 10 >= x && size > 1e-9) size /= 10;
  for (const double part : {.1, .2, .3, .4, .5, .6, .8, 1.}) {
    if (part * size >= x) return part * size;
  }
  return size;
}

constexpr double kPanelTop = 64, kPanelFoot = 300;

/// Grid lines with their numbers, from x0 to x1.
std::string grid(double x0, double x1, double top, const std::string& unit) {
  std::string out;
  for (int i = 0; i <= 4; ++i) {
    const double y = kPanelFoot - (kPanelFoot - kPanelTop) * i / 4;
    out += fmt::format(
        "<path d=\"M{} {:.1f}H{}\" stroke=\"#8888\" stroke-width=\".6\"/><text x=\"{}\" "
        "y=\"{:.1f}\" text-anchor=\"end\">{:g}{}</text>\n",
        x0, y, x1, x0 - 6, y + 4, top * i / 4, unit);
  }
  return out;
}

double y_of(double value, double top) {
  return kPanelFoot - (kPanelFoot - kPanelTop) * value / top;
}

std::string bars(const SpeculateReport& report) {
  double highest = 0;
  for (const SpeculateRun& run : report.runs) highest = std::max(highest, output_rate(run));
  const double top = round_up(highest), x0 = 60, x1 = 440;
  std::string out = grid(x0, x1, top, "");
  const double slot = (x1 - x0) / static_cast<double>(std::max<size_t>(1, report.runs.size()));
  const SpeculateRun* const plain = plain_run(report);
  for (size_t i = 0; i < report.runs.size(); ++i) {
    const SpeculateRun& run = report.runs[i];
    const double x = x0 + slot * (static_cast<double>(i) + .5), y = y_of(output_rate(run), top);
    out += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>"
        "<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
        x - slot * .34, y, slot * .68, kPanelFoot - y, color_of(i), x, y - 5,
        !run.refused.empty() ? std::string("refused")
        : plain              ? times(ratio(output_rate(run), output_rate(*plain)))
                             : fmt::format("{:.0f}", output_rate(run)),
        x, kPanelFoot + 16, html_escaped(run.name));
  }
  return out;
}

std::string lines(const SpeculateReport& report) {
  const double x0 = 520, x1 = 860;
  int places = 1;
  for (const SpeculateRun& run : report.runs) {
    if (run.refused.empty()) places = std::max(places, run.num_speculative_tokens);
  }
  std::string out = grid(x0, x1, 100, " %");
  const auto x_of = [&](size_t place) {
    return x0 + (x1 - x0) * (static_cast<double>(place) + .5) / places;
  };
  for (size_t place = 0; place < static_cast<size_t>(places); ++place) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                       x_of(place), kPanelFoot + 16, place + 1);
  }
  double key = kPanelTop;
  for (size_t i = 0; i < report.runs.size(); ++i) {
    const SpeculateRun& run = report.runs[i];
    if (!run.refused.empty() || run.num_speculative_tokens == 0) continue;
    std::string path, dots;
    const std::vector<double> shares = places_of(run);
    for (size_t place = 0; place < shares.size(); ++place) {
      const double y = y_of(100 * shares[place], 100);
      path += fmt::format("{}{:.1f} {:.1f}", place == 0 ? "M" : "L", x_of(place), y);
      dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>",
                          x_of(place), y, color_of(i));
    }
    out += fmt::format(
        "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>{}<text x=\"{}\" y=\"{}\" "
        "style=\"fill:{}\">{}</text>\n",
        path, color_of(i), dots, x1 + 12, key + 4, color_of(i), html_escaped(run.name));
    key += 18;
  }
  return out;
}

}  // namespace

double output_rate(const SpeculateRun& run) {
  std::vector<double> rates = run.output_rates;
  if (rates.empty()) return 0;
  std::sort(rates.begin(), rates.end());
  const size_t half = rates.size() / 2;
  return rates.size() % 2 == 1 ? rates[half] : (rates[half - 1] + rates[half]) / 2;
}

std::string speculate_markdown(const SpeculateReport& report) {
  const SpeculateRun* const plain = plain_run(report);
  std::string out = fmt::format(
      "weft {}, {}, {}, {}, {} threads; {} requests of {} behind {} that do not count, {} at once, "
      "temperature {:g}{}.\n\n",
      kVersion, report.model, report.format, report.device, report.threads, report.num_prompts,
      report.data, report.num_warmups, report.max_concurrency, report.temperature,
      report.left_out > 0
          ? fmt::format("; {} with pictures left out, which the model does not take here",
                        report.left_out)
          : "");
  out +=
      "| drafts | output tok/s | speed | decoding | TTFT ms p50 / p90 / p99 | TPOT ms p50 / p90 / "
      "p99 | "
      "tokens "
      "a step | drafts accepted | accepted by place | other answers than `none` |\n"
      "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
  for (const SpeculateRun& run : report.runs) out += run_row(run, plain);
  out +=
      "\nDecoding: tokens a second behind the first one, against `none`. Accepted by place: of the "
      "steps with drafts, the share whose n-th draft was given out.\n";
  return out + task_table(report, plain);
}

std::string speculate_json(const SpeculateReport& report) {
  ordered_json out = {{"version", kVersion},
                      {"model", report.model},
                      {"format", report.format},
                      {"device", report.device},
                      {"threads", report.threads},
                      {"data", report.data},
                      {"num_prompts", report.num_prompts},
                      {"left_out", report.left_out},
                      {"num_warmups", report.num_warmups},
                      {"max_concurrency", report.max_concurrency},
                      {"temperature", report.temperature},
                      {"runs", ordered_json::array()}};
  const SpeculateRun* const plain = plain_run(report);
  for (const SpeculateRun& run : report.runs) {
    ordered_json row = {{"name", run.name}, {"num_speculative_tokens", run.num_speculative_tokens}};
    if (!run.refused.empty()) {
      row["refused"] = run.refused;
      out["runs"].push_back(std::move(row));
      continue;
    }
    row["output_tokens_per_s"] = output_rate(run);
    row["output_tokens_per_s_samples"] = run.output_rates;
    if (plain) row["speed"] = ratio(output_rate(run), output_rate(*plain));
    if (plain) row["decoding"] = ratio(decode_rate(run.all), decode_rate(plain->all));
    row["ttft"] = latency_json(run.metrics.ttft);
    row["tpot"] = latency_json(run.metrics.tpot);
    row["e2el"] = latency_json(run.metrics.e2el);
    row["all"] = totals_json(run.all, run.num_speculative_tokens);
    for (const std::string& task : report.tasks) {
      row["tasks"][task] = totals_json(run.tasks.at(task), run.num_speculative_tokens);
    }
    out["runs"].push_back(std::move(row));
  }
  return out.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string speculate_svg(const SpeculateReport& report) {
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 340\" "
             "font-family=\"sans-serif\" font-size=\"12\">\n"
             "<style>text {{ fill: #666 }} .title {{ font-size: 14px; font-weight: 600 }}</style>\n"
             "<text class=\"title\" x=\"16\" y=\"24\">Output tokens per second</text>\n"
             "<text x=\"16\" y=\"42\">{}, {}, {} at once</text>\n"
             "<text class=\"title\" x=\"480\" y=\"24\">Drafts accepted, by place</text>\n",
             html_escaped(report.model), html_escaped(report.device), report.max_concurrency) +
         bars(report) + lines(report) + "</svg>\n";
}

}  // namespace weft
