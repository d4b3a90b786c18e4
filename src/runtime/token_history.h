#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/request.h"

namespace weft {

/// How often each token occurs in a request: the distinct tokens of the prompt and of the generated
/// text, as penalties need them. Memory is taken once, for `max_distinct` tokens.
class TokenCounts {
 public:
  struct Entry {
    int32_t token;
    int32_t generated;  ///< occurrences among the generated tokens
  };

  explicit TokenCounts(int64_t max_distinct);
  void add_prompt(int32_t token) { at(token); }
  void add_generated(int32_t token) { ++at(token).generated; }
  /// Every token that was added, in order of first appearance.
  std::span<const Entry> entries() const { return entries_; }

 private:
  Entry& at(int32_t token);

  std::vector<Entry> entries_;
  std::vector<int32_t> table_;  // open addressing: index into entries_, or -1
};

/// The generated tokens of one sequence as its executor knows them (it is ahead of the scheduler by
/// the steps in flight). Survives preemption: replayed tokens must equal the remembered ones.
class TokenHistory {
 public:
  /// Reserves for min(max_tokens, max_generated) generated tokens.
  TokenHistory(const Request& request, int64_t vocab_size, int64_t max_generated);

  int64_t num_generated() const { return static_cast<int64_t>(generated_.size()); }
  int32_t generated(int64_t i) const { return generated_[static_cast<size_t>(i)]; }
  /// Undefined for a request without penalties.
  const TokenCounts& counts() const { return counts_; }
  void append(int32_t token);

 private:
  bool counting_;
  std::vector<int32_t> generated_;
  TokenCounts counts_;
};

/// True if the sampling of `params` looks at the tokens so far.
bool uses_penalties(const SamplingParams& params);
/// True if an answer may end with `token`.
bool is_stop(const SamplingParams& params, int32_t token);

}  // namespace weft
