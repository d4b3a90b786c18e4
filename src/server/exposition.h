#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "server/metrics.h"

namespace weft {

/// Builds a Prometheus text exposition (format 0.0.4). Every sample carries the labels given to
/// the constructor.
class Exposition {
 public:
  /// `labels`: as written between the braces, values escaped: a="b",c="d".
  explicit Exposition(std::string labels) : labels_(std::move(labels)) {}

  /// Begins a family: its HELP and TYPE lines. `type`: counter, gauge or histogram.
  void family(std::string_view name, std::string_view type, std::string_view help);
  /// A sample of the family begun last; `labels` come on top of the common ones.
  void sample(double value, std::string_view labels = {});
  /// family() and the one sample() it has.
  void counter(std::string_view name, double value, std::string_view help);
  void gauge(std::string_view name, double value, std::string_view help);
  void histogram(std::string_view name, const Histogram& histogram, std::string_view help);

  std::string take() { return std::move(text_); }

 private:
  void line(std::string_view suffix, std::string_view labels, double value);

  std::string labels_;
  std::string name_;
  std::string text_;
};

/// name="value", with backslash, quote and line feed escaped.
std::string prometheus_label(std::string_view name, std::string_view value);

}  // namespace weft
