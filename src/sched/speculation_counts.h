#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace weft {

/// Who proposed a draft token.
enum class DraftSource : uint8_t { kMtp, kNgram };
inline constexpr size_t kNumDraftSources = 2;
std::string_view source_name(DraftSource source);  ///< mtp, ngram

/// What one step did for one request under speculation: `emitted` tokens were given out, the first
/// of them that were drafts, then, unless the answer was cut, one of the target's own.
struct SpeculationStep {
  int emitted = 0;
  std::array<int, kNumDraftSources> proposed{};  ///< drafts that were verified
  std::array<int, kNumDraftSources> accepted{};  ///< of them, given out; in all at most emitted
  int num_proposed() const { return proposed[0] + proposed[1]; }
  int num_accepted() const { return accepted[0] + accepted[1]; }
  /// Only the first `count` of the emitted tokens were given out.
  void cut(int count);
};

/// The same, summed over the steps of a request, or of many.
struct SpeculationCounts {
  int64_t steps = 0;        ///< that gave out tokens; the one of the first token is one of them
  int64_t draft_steps = 0;  ///< of them, those that verified drafts
  std::array<int64_t, kNumDraftSources> proposed{}, accepted{};
  std::vector<int64_t> per_head;     ///< [j]: steps that gave out more than j tokens
  std::vector<int64_t> accepted_at;  ///< [i]: steps that gave out more than i drafts

  void add(const SpeculationStep& step);
  void add(const SpeculationCounts& other);
  /// So many steps that gave out one token each and tried no draft.
  void add_plain(int64_t count);
  int64_t emitted() const;  ///< tokens given out: the sum of per_head
  int64_t num_proposed() const;
  int64_t num_accepted() const;
};

/// FastDeploy's speculate_metrics. A slot that no draft filled counts as rejected, and the token
/// that the target adds to each step as accepted: figures of different engines compare.
struct SpeculateMetrics {
  int64_t accepted_tokens = 0;         ///< tokens given out
  int64_t rejected_tokens = 0;         ///< steps (K + 1) - accepted_tokens
  double accept_ratio = 0;             ///< 1 - steps / accepted_tokens
  double average_accept_length = 0;    ///< accepted_tokens / steps, in [1, K + 1]
  std::vector<int64_t> per_head;       ///< [K + 1]: steps that gave out more than j tokens
  std::vector<double> ratio_per_head;  ///< [K]: per_head[j + 1] / per_head[j]; 0 where that is 0
};
/// `num_speculative_tokens`: K. All zeros for no steps.
SpeculateMetrics speculate_metrics(const SpeculationCounts& counts, int num_speculative_tokens);

}  // namespace weft
