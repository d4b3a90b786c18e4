#include "sched/speculation_counts.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace weft {

std::string_view source_name(DraftSource source) {
  return source == DraftSource::kMtp ? "mtp" : "ngram";
}

void SpeculationStep::cut(int count) {
  emitted = count;
  // The drafts of the later sources are the last ones.
  int left = count;
  for (int& n : accepted) {
    n = std::min(n, left);
    left -= n;
  }
}

namespace {

/// Adds one to the first `count` of them.
void count_up(std::vector<int64_t>& counts, int count) {
  const auto size = static_cast<size_t>(count);
  if (counts.size() < size) counts.resize(size);
  for (size_t i = 0; i < size; ++i) ++counts[i];
}

void add_each(std::vector<int64_t>& to, const std::vector<int64_t>& from) {
  to.resize(std::max(to.size(), from.size()));
  for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

}  // namespace

void SpeculationCounts::add(const SpeculationStep& step) {
  if (step.emitted == 0) return;
  ++steps;
  bool any = false;
  for (size_t i = 0; i < kNumDraftSources; ++i) {
    proposed[i] += step.proposed[i];
    accepted[i] += step.accepted[i];
    any = any || step.proposed[i] > 0;
  }
  draft_steps += any ? 1 : 0;
  count_up(per_head, step.emitted);
  count_up(accepted_at, step.num_accepted());
}

void SpeculationCounts::add_plain(int64_t count) {
  if (count == 0) return;
  steps += count;
  if (per_head.empty()) per_head.resize(1);
  per_head[0] += count;
}

void SpeculationCounts::add(const SpeculationCounts& other) {
  steps += other.steps;
  draft_steps += other.draft_steps;
  for (size_t i = 0; i < kNumDraftSources; ++i) {
    proposed[i] += other.proposed[i];
    accepted[i] += other.accepted[i];
  }
  add_each(per_head, other.per_head);
  add_each(accepted_at, other.accepted_at);
}

int64_t SpeculationCounts::emitted() const {
  return std::accumulate(per_head.begin(), per_head.end(), int64_t{0});
}

int64_t SpeculationCounts::num_proposed() const {
  return std::accumulate(proposed.begin(), proposed.end(), int64_t{0});
}

int64_t SpeculationCounts::num_accepted() const {
  return std::accumulate(accepted.begin(), accepted.end(), int64_t{0});
}

SpeculateMetrics speculate_metrics(const SpeculationCounts& counts, int num_speculative_tokens) {
  const size_t heads = static_cast<size_t>(num_speculative_tokens) + 1;
  CHECK(counts.per_head.size() <= heads, "a step gave out more than its drafts and one");
  SpeculateMetrics out;
  out.per_head = counts.per_head;
  out.per_head.resize(heads);
  out.ratio_per_head.resize(heads - 1);
  if (counts.steps == 0) return out;
  out.accepted_tokens = counts.emitted();
  out.rejected_tokens = counts.steps * static_cast<int64_t>(heads) - out.accepted_tokens;
  const auto steps = static_cast<double>(counts.steps);
  const auto accepted = static_cast<double>(out.accepted_tokens);
  out.accept_ratio = 1 - steps / accepted;
  out.average_accept_length = accepted / steps;
  for (size_t j = 0; j + 1 < heads; ++j) {
    if (out.per_head[j] == 0) continue;
    out.ratio_per_head[j] =
        static_cast<double>(out.per_head[j + 1]) / static_cast<double>(out.per_head[j]);
  }
  return out;
}

}  // namespace weft
