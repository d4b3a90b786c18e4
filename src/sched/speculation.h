#pragma once

#include <cstdint>

#include "sched/speculation_counts.h"

namespace weft {

/// Drafts of one sequence in one step, at most: a verification has 16 rows.
inline constexpr int kMaxDrafts = 15;

enum class SpeculationMethod : uint8_t {
  kNone,
  kNgram,   ///< what followed the last time that the text's end occurred
  kMtp,     ///< the checkpoint's multi-token prediction module
  kHybrid,  ///< MTP drafts, then what followed accepted ++ MTP drafts before
};

/// Which drafts are accepted. All but kNormal are for tests and benchmarks.
enum class AcceptPolicy : uint8_t {
  kNormal,     ///< those that equal the token which plain decoding samples there
  kAcceptAll,  ///< all (that the grammar allows): the answer is NOT that of plain decoding
  kRejectAll,  ///< none
  kSimulated,  ///< each with probability simulated_acceptance, whatever it is: a benchmark; the
               ///< answer is NOT that of plain decoding
};

/// What a draft is measured by.
enum class VerifyStrategy : uint8_t {
  kTargetMatch,  ///< it is accepted iff it is the token that plain decoding samples there
  /// LOSSY, FastDeploy's `topp`: iff it is one of the first max_candidates tokens that top-k, top-p
  /// and min-p leave; or the second of all, where the next verify_window drafts are each the first
  /// of the raw logits. What is accepted depends on who drafts and when.
  kTopP,
};

/// What `--speculative-config` asks for, checked.
struct SpeculationConfig {
  SpeculationMethod method = SpeculationMethod::kNone;
  int num_speculative_tokens = 1;  ///< K, 1 .. kMaxDrafts
  int num_mtp_steps = 1;           ///< drafts of the MTP module a step, 1 .. K; with kMtp it is K
  int min_ngram_size = 2, max_ngram_size = 5;
  AcceptPolicy accept = AcceptPolicy::kNormal;
  double simulated_acceptance = 0;  ///< [0, 1], of each draft behind accepted ones
  VerifyStrategy verify = VerifyStrategy::kTargetMatch;
  int max_candidates = 5, verify_window = 2;  ///< of kTopP
  bool adaptive = true;  ///< fewer drafts where they don't pay; false: K wherever there are so many
  int disable_by_batch_size = 0;  ///< steps of more sequences have no drafts; 0: all may
  bool on() const { return method != SpeculationMethod::kNone; }
  bool uses_mtp() const {
    return method == SpeculationMethod::kMtp || method == SpeculationMethod::kHybrid;
  }
  bool uses_ngram() const {
    return method == SpeculationMethod::kNgram || method == SpeculationMethod::kHybrid;
  }
};

}  // namespace weft
