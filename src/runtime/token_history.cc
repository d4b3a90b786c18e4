#include "runtime/token_history.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace weft {

TokenCounts::TokenCounts(int64_t max_distinct) {
  entries_.reserve(static_cast<size_t>(max_distinct));
  // At most half full, so that probing ends soon.
  if (max_distinct > 0) table_.assign(std::bit_ceil(static_cast<size_t>(2 * max_distinct)), -1);
}

TokenCounts::Entry& TokenCounts::at(int32_t token) {
  const size_t mask = table_.size() - 1;
  size_t slot = (static_cast<uint32_t>(token) * 2654435769u >> 7) & mask;
  while (table_[slot] >= 0) {
    Entry& entry = entries_[static_cast<size_t>(table_[slot])];
    if (entry.token == token) return entry;
    slot = (slot + 1) & mask;
  }
  CHECK(entries_.size() < entries_.capacity(), "more distinct tokens than were planned for");
  table_[slot] = static_cast<int32_t>(entries_.size());
  entries_.push_back({token, 0});
  return entries_.back();
}

bool uses_penalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

bool is_stop(const SamplingParams& params, int32_t token) {
  return std::find(params.stop_ids.begin(), params.stop_ids.end(), token) != params.stop_ids.end();
}

namespace {

int64_t planned_generated(const Request& request, int64_t max_generated) {
  return std::clamp<int64_t>(request.sampling.max_tokens, 0, max_generated);
}

int64_t planned_distinct(const Request& request, int64_t vocab_size, int64_t max_generated) {
  if (!uses_penalties(request.sampling)) return 0;
  // One more: with two steps in flight a token past max_tokens may be sampled and thrown away.
  return std::min(vocab_size, static_cast<int64_t>(request.prompt.size()) +
                                  planned_generated(request, max_generated) + 1);
}

}  // namespace

TokenHistory::TokenHistory(const Request& request, int64_t vocab_size, int64_t max_generated)
    : counting_(uses_penalties(request.sampling)),
      counts_(planned_distinct(request, vocab_size, max_generated)) {
  generated_.reserve(static_cast<size_t>(planned_generated(request, max_generated) + 1));
  if (counting_) {
    for (int32_t token : request.prompt) counts_.add_prompt(token);
  }
}

void TokenHistory::append(int32_t token) {
  generated_.push_back(token);
  if (counting_) counts_.add_generated(token);
}

}  // namespace weft
