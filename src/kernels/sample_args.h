#pragma once

// Sampling on a GPU: what a step's rows of logits become there. The semantics are those of
// runtime/sampler.h; V is the vocabulary, R rows of logits, S slots. The structs are plain: arrays
// of them are filled on the host and go up with the step's one packed copy.

#include <cstdint>

#include "tensor/view.h"

namespace weft {

/// Entries [begin, begin + count) of one of the lists of SampleArgs.
struct ListRange {
  int32_t begin = 0;
  int32_t count = 0;
};

struct TokenBias {
  int32_t id = 0;
  float bias = 0;
};

/// What becomes of the stop ids of a row.
enum class StopRule : int32_t {
  kPlain,   ///< ids like others
  kMasked,  ///< can't be sampled: min_tokens is not reached, a grammar has not begun to bind, or
            ///< the text may not end here
  kFreed,   ///< may be sampled although the grammar's mask leaves them out: the text may end here
};

/// Whether the draft in the row behind this one is accepted.
enum class DraftCheck : int32_t {
  kCompare,  ///< if it is what was sampled
  kTake,     ///< in any case, in the place of what was sampled
  kReject,
};

/// What a row of logits is for. Everything but the lists' contents is in here.
struct SampleSpec {
  int32_t slot = -1;         ///< of last_token; -1: a padding row, which reads and writes nothing
  int32_t target = -1;       ///< >= 0: the log-probability of this id is asked, nothing is sampled
  int32_t num_top = -1;      ///< -1: no log-probability, else the number of alternatives
  int32_t counts_slot = -1;  ///< of counts; -1: no penalties
  int32_t mask_row = -1;     ///< of masks; -1: no grammar
  StopRule stop_rule = StopRule::kPlain;
  DraftCheck draft_check = DraftCheck::kCompare;  ///< accept_drafts() alone reads it

  float temperature = 1.0f;  ///< 0: greedy
  int32_t top_k = 0;         ///< 0: off
  float top_p = 1.0f;        ///< (0, 1]
  float min_p = 0.0f;        ///< [0, 1]
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  int32_t counts_later = 0;  ///< 1: the token is not counted; drafts lie before or behind this row
  uint64_t seed = 0;
  int64_t position = 0;  ///< in the request, of the token to sample

  ListRange biases;       ///< of SampleArgs::biases
  ListRange banned_ids;   ///< this and the following: of SampleArgs::ids
  ListRange allowed_ids;  ///< empty: all
  ListRange stop_ids;
  ListRange drafts;  ///< counted beside `counts`: the drafts up to this row
};

/// What a row became.
struct SampleResult {
  int32_t token = -1;         ///< -1 with numeric_error and for rows with a target
  int32_t numeric_error = 0;  ///< the logits hold NaN or +inf, or no id is left
  float logprob = 0;          ///< of the token or the target, if num_top >= 0
  int32_t num_top = 0;        ///< alternatives found: fewer than asked where fewer are above -inf
};

/// One row of `logits` a spec. All pointers are device memory. Logits are only read.
struct SampleArgs {
  TensorView logits;                  ///< [R, V] f32
  const SampleSpec* specs = nullptr;  ///< [R]
  const TokenBias* biases = nullptr;
  const int32_t* ids = nullptr;
  TensorView masks;   ///< [rows, ceil(V / 32)] i32: bit id % 32 of word id / 32 set: may come; or
                      ///< undefined
  TensorView counts;  ///< [S, V] i32 of kCountedInPrompt and occurrences; or undefined
  /// [S] i32: the token of a sampled row is put here (0 on an error, so that a row fed from it is
  /// defined) and counted in `counts`, but with counts_later. Only rows with that may share a slot,
  /// whose last token is one of theirs then.
  TensorView last_token;
  int32_t* tokens = nullptr;        ///< [R] or null: sampled tokens, 0 on an error; likewise
  SampleResult* results = nullptr;  ///< [R]; those of padding rows are left alone
  /// [R, max_top] i32 and f32, by rank: the first SampleResult::num_top are written. Undefined if
  /// no row asks for alternatives; at most kMaxTopLogprobs.
  TensorView top_ids, top_logprobs;
  /// is_plainly_greedy() of all specs: a faster kernel with the same results.
  bool only_greedy = false;
};

/// A row that becomes the first of its greatest logits, with nothing else asked; or a padding row.
inline bool is_plainly_greedy(const SampleSpec& spec) {
  return spec.slot < 0 ||
         (spec.temperature == 0 && spec.target < 0 && spec.num_top < 0 && spec.counts_slot < 0 &&
          spec.mask_row < 0 && spec.stop_rule != StopRule::kMasked && spec.biases.count == 0 &&
          spec.banned_ids.count == 0 && spec.allowed_ids.count == 0);
}

inline constexpr int kMaxTopLogprobs = 20;

/// This bit of a count: the id occurs in the prompt. The others: how often it was generated.
inline constexpr uint32_t kCountedInPrompt = 0x80000000u;

/// counts[slot] = what `prompt` holds, and `generated` counted on top (a sequence that is computed
/// again); with `keep` on top of what is there.
struct ResetCountsArgs {
  TensorView counts;  ///< [S, V] i32
  int32_t slot = 0;
  TensorView prompt;     ///< [n] i32 device memory, each in [0, V)
  TensorView generated;  ///< [m] i32 likewise, or undefined
  bool keep = false;
};

/// ids[t] = last_token[feed[t]] where feed[t] >= 0.
struct FeedTokensArgs {
  TensorView feed;        ///< [T] i32
  TensorView last_token;  ///< [S] i32
  TensorView ids;         ///< [T] i32
};

/// How far the drafts of a step were right, behind its sampling. A segment's first row has the last
/// known token, the others drafts; S segments, T rows, of which those behind the segments are
/// padding. Nothing here knows of ends, stop ids or grammars: behind those it says too much.
struct AcceptDraftsArgs {
  TensorView cu_q;                    ///< [S + 1] i32; a segment has at most 32 rows
  TensorView ids;                     ///< [T] i32, those of the step
  const int32_t* tokens = nullptr;    ///< [T], SampleArgs::tokens of a row of logits each
  const SampleSpec* specs = nullptr;  ///< [T]
  TensorView next_ids;                ///< out [T] i32: the token behind each row; padding: 0
  TensorView counts;                  ///< out [S] i32: accepted drafts and one; 0 without rows
  TensorView last_rows;               ///< out [S] i32: the row of the last of those, or 0
};

}  // namespace weft
