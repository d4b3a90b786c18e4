#include "server/exposition.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>

namespace weft {
namespace {

/// Shortest text that reads back as the same double; integers without an exponent.
std::string number(double value) {
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  if (value == std::floor(value) && std::abs(value) < 1e15) return fmt::format("{:.0f}", value);
  return fmt::format("{}", value);
}

}  // namespace

std::string prometheus_label(std::string_view name, std::string_view value) {
  std::string out = std::string(name) + "=\"";
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out + '"';
}

void Exposition::family(std::string_view name, std::string_view type, std::string_view help) {
  name_ = name;
  fmt::format_to(std::back_inserter(text_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void Exposition::line(std::string_view suffix, std::string_view labels, double value) {
  const std::string_view comma = labels.empty() || labels_.empty() ? "" : ",";
  fmt::format_to(std::back_inserter(text_), "{}{}{{{}{}{}}} {}\n", name_, suffix, labels_, comma,
                 labels, number(value));
}

void Exposition::sample(double value, std::string_view labels) {
  line("", labels, value);
}

void Exposition::counter(std::string_view name, double value, std::string_view help) {
  family(name, "counter", help);
  sample(value);
}

void Exposition::gauge(std::string_view name, double value, std::string_view help) {
  family(name, "gauge", help);
  sample(value);
}

void Exposition::histogram(std::string_view name, const Histogram& histogram,
                           std::string_view help) {
  family(name, "histogram", help);
  const Histogram::Reading reading = histogram.read();
  uint64_t below = 0;
  for (size_t i = 0; i < reading.counts.size(); ++i) {
    below += reading.counts[i];
    const double bound = i < reading.bounds.size() ? reading.bounds[i] : INFINITY;
    line("_bucket", prometheus_label("le", number(bound)), static_cast<double>(below));
  }
  // The count is the last bucket, so that the two always agree.
  line("_sum", "", reading.sum);
  line("_count", "", static_cast<double>(below));
}

}  // namespace weft
