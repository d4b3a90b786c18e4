#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace weft {

/// What a server has drafted so far, or during a run.
struct DraftCounts {
  double drafts = 0;                ///< times that drafts were verified
  double proposed = 0;              ///< tokens
  double accepted = 0;              ///< of them
  std::vector<double> accepted_at;  ///< of them, by their place among the drafts
};

/// From vllm:spec_decode_* of a /metrics page, summed over its other labels. Nothing where the
/// server does not draft.
std::optional<DraftCounts> read_draft_counts(std::string_view page);

/// What came between two pages; nothing where nothing was drafted.
std::optional<DraftCounts> drafts_between(const std::optional<DraftCounts>& before,
                                          const std::optional<DraftCounts>& after);

}  // namespace weft
