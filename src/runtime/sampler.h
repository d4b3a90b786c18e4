#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "grammar/grammar.h"
#include "runtime/token_history.h"
#include "sched/request.h"

namespace weft {

/// One row to sample from.
struct SampleRow {
  std::span<float> logits;  ///< [V], overwritten
  const SamplingParams* params = nullptr;
  const TokenHistory* history = nullptr;  ///< read only if uses_penalties(*params)
  int64_t position = 0;                   ///< in the request, of the token to sample
  int64_t num_generated = 0;              ///< tokens generated before it
  GrammarMatcher* grammar = nullptr;      ///< where the text stands in its grammar; null: none
  /// VerifyStrategy::kTopP: the draft of the next row, which is taken for the token where it is
  /// among the first `max_candidates` that may be drawn; -1: none.
  int32_t draft = -1;
  int max_candidates = 0;
  bool takes_second = false;  ///< also where it is the second of the ranking, whatever may be drawn
};

struct SampledToken {
  int32_t token = -1;  ///< -1 with numeric_error
  /// The logits hold NaN or +inf, or no id is left that may be sampled.
  bool numeric_error = false;
  TokenLogprob logprob;  ///< when params->logprobs >= 0
};

/// One row whose log-probability of a known token is asked (prompt logprobs).
struct LogprobRow {
  std::span<const float> logits;  ///< [V]
  int32_t token = 0;
  int num_top = 0;
};

struct LogprobResult {
  bool numeric_error = false;
  TokenLogprob logprob;
};

/// Turns logits into tokens. The order is vLLM's: log-probabilities of the raw logits; allowed and
/// banned ids, logit_bias, min_tokens (stop ids masked), the grammar (its mask; stop ids exactly
/// where the text may end), repetition penalty (prompt and generated
/// tokens), frequency and presence penalties (generated tokens); then greedy (the lowest id of the
/// greatest logit) or temperature, top-k, top-p, min-p and a draw.
///
/// Definitions, with w = exp((logit - max) / temperature), ranked by descending logit, then by
/// ascending id:
/// - top-k keeps the first k; top-p keeps an id if those before it hold less than p of the weight
///   that top-k left; min-p keeps w >= min_p (the greatest w is 1);
/// - the draw takes the first kept id in ascending order whose cumulative weight exceeds u times
///   the total, with u in [0, 1) of 53 bits from Philox(seed, position). Sums are doubles in a
///   fixed order.
/// So a token is a function of its row, the request's parameters and tokens, and the position. A
/// draft is accepted iff it equals that token (docs/architecture.md, rule 6).
///
/// Ids outside [0, V) in masks and biases have no logit and are ignored.
class Sampler {
 public:
  /// Takes all working memory: scratch_bytes(vocab_size, num_threads).
  Sampler(int64_t vocab_size, int num_threads);
  ~Sampler();
  Sampler(Sampler&&) noexcept;

  static int64_t scratch_bytes(int64_t vocab_size, int num_threads);

  /// out[i] from rows[i]. Rows are spread over the pool (which has at most num_threads threads), or
  /// the vocabulary where there are fewer rows than threads.
  void sample(ThreadPool& pool, std::span<const SampleRow> rows, std::span<SampledToken> out);

  /// out[i] from rows[i], likewise.
  void logprobs(ThreadPool& pool, std::span<const LogprobRow> rows, std::span<LogprobResult> out);

 private:
  struct Scratch;
  template <class Body>
  void for_rows(ThreadPool& pool, size_t num_rows, Body&& body);

  int64_t vocab_size_;
  std::vector<std::unique_ptr<Scratch>> scratch_;  // one a thread
};

}  // namespace weft
