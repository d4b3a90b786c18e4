#include "app/bench_serve_drafts.h"

#include <charconv>
#include <cstddef>

namespace weft {
namespace {

constexpr size_t kMaxPlaces = 64;

template <class Number>
std::optional<Number> number_in(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// Of a sample "NAME{LABELS} VALUE [TIME]".
struct Sample {
  std::string_view name, labels;
  double value = 0;
};

std::optional<Sample> read_sample(std::string_view line) {
  if (line.empty() || line[0] == '#') return std::nullopt;
  Sample out;
  const size_t name = line.find_first_of("{ ");
  if (name == std::string_view::npos) return std::nullopt;
  out.name = line.substr(0, name);
  line.remove_prefix(name);
  if (line[0] == '{') {
    const size_t end = line.rfind('}');
    if (end == std::string_view::npos) return std::nullopt;
    out.labels = line.substr(1, end - 1);
    line.remove_prefix(end + 1);
  }
  const size_t begin = line.find_first_not_of(' ');
  if (begin == std::string_view::npos) return std::nullopt;
  line.remove_prefix(begin);
  const auto value = number_in<double>(line.substr(0, line.find(' ')));
  if (!value) return std::nullopt;
  out.value = *value;
  return out;
}

std::optional<size_t> place_of(std::string_view labels) {
  constexpr std::string_view kKey = "position=\"";
  const size_t at = labels.find(kKey);
  if (at == std::string_view::npos) return std::nullopt;
  labels.remove_prefix(at + kKey.size());
  return number_in<size_t>(labels.substr(0, labels.find('"')));
}

}  // namespace

std::optional<DraftCounts> read_draft_counts(std::string_view page) {
  DraftCounts out;
  bool found = false;
  while (!page.empty()) {
    const size_t end = page.find('\n');
    const auto sample = read_sample(page.substr(0, end));
    page.remove_prefix(end == std::string_view::npos ? page.size() : end + 1);
    if (!sample) continue;
    if (sample->name == "vllm:spec_decode_num_drafts_total") {
      out.drafts += sample->value;
      found = true;
    } else if (sample->name == "vllm:spec_decode_num_draft_tokens_total") {
      out.proposed += sample->value;
    } else if (sample->name == "vllm:spec_decode_num_accepted_tokens_total") {
      out.accepted += sample->value;
    } else if (sample->name == "vllm:spec_decode_num_accepted_tokens_per_pos_total") {
      const auto place = place_of(sample->labels);
      if (!place || *place >= kMaxPlaces) continue;
      if (out.accepted_at.size() <= *place) out.accepted_at.resize(*place + 1);
      out.accepted_at[*place] += sample->value;
    }
  }
  if (!found) return std::nullopt;
  return out;
}

std::optional<DraftCounts> drafts_between(const std::optional<DraftCounts>& before,
                                          const std::optional<DraftCounts>& after) {
  if (!before || !after || after->drafts <= before->drafts) return std::nullopt;
  DraftCounts out = *after;
  out.drafts -= before->drafts;
  out.proposed -= before->proposed;
  out.accepted -= before->accepted;
  for (size_t i = 0; i < out.accepted_at.size() && i < before->accepted_at.size(); ++i) {
    out.accepted_at[i] -= before->accepted_at[i];
  }
  return out;
}

}  // namespace weft
