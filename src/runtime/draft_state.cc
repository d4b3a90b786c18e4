#include "runtime/draft_state.h"

#include <algorithm>

namespace weft {

DraftState& draft_state(ExecutorSequence& sequence) {
  if (!sequence.drafts) sequence.drafts = std::make_unique<DraftState>(*sequence.request);
  return *sequence.drafts;
}

std::span<const ImageRun> NextTokens::shift(PackedStep& step, const StepResult& result,
                                            int32_t* next) {
  const int64_t rows = step.batch().num_rows();
  std::copy(step.ids() + 1, step.ids() + rows, next);
  next[rows - 1] = 0;
  runs_.clear();
  for (const NextToken& open : step.next_tokens()) {
    next[open.row] = open.token;
    if (open.image_row >= 0) runs_.push_back({open.row, 1, open.image_row});
  }
  const std::span<const ResultRow> results = step.results();
  for (size_t i = 0; i < results.size(); ++i) {
    const std::vector<int32_t>& tokens = result.rows[i].tokens;
    if (results[i].row < 0 || tokens.empty()) continue;
    next[results[i].row + std::ssize(tokens) - 1] = tokens.back();
  }
  // The features of an image come a row earlier too. Those of a segment's first row belong to the
  // row before it in its sequence, whose next token the step knows; where that row is another
  // step's and the image was not encoded then, it made do with the placeholder's embedding.
  const StepBatch& batch = step.batch();
  for (const ImageRun& run : batch.images.runs) {
    const int32_t* cu_q = batch.seqs.host_cu_q;
    const bool begins = std::binary_search(cu_q, cu_q + batch.num_prompt_segments, run.row);
    const int64_t lost = begins ? 1 : 0;
    if (run.count > lost) runs_.push_back({run.row - 1 + lost, run.count - lost, run.first + lost});
  }
  return runs_;
}

}  // namespace weft
