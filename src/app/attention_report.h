#pragma once

#include <string>

#include "nn/plan_record.h"

namespace weft {

/// What `weft inspect attention` shows of one prompt.
struct AttentionReport {
  std::string model, prefill;  ///< names; describe_prefill()
  int64_t tokens = 0;
  PlanRecord record;
};

/// Shares of one head, over its rows.
struct HeadShares {
  double computed = 0;    ///< of the causal blocks
  double mass = 0;        ///< of the softmax that is kept: the mean over rows of blocks
  double least_mass = 1;  ///< the row of blocks that keeps least
};
HeadShares head_shares(const PlanRecord& record, size_t layer, size_t head);

/// A page that stands alone: a table of layers and heads coloured by kind, and the kept blocks of
/// the head that is pointed at.
std::string attention_page(const AttentionReport& report);
/// The same as lines of text: one a layer.
std::string attention_text(const AttentionReport& report);

}  // namespace weft
