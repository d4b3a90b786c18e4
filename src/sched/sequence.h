#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"
#include "cache/prefix_cache.h"
#include "cache/swap_pool.h"
#include "sched/request.h"

namespace weft {

enum class SequenceState : uint8_t { kWaiting, kRunning };

/// One live request inside the scheduler.
struct Sequence {
  std::shared_ptr<const Request> request;
  uint64_t arrival = 0;  ///< order of add(); kept across preemption
  SequenceState state = SequenceState::kWaiting;
  std::vector<int32_t> tokens;  ///< prompt, then the generated tokens the host knows
  int64_t prompt_len = 0;
  int64_t max_len = 0;        ///< prompt + generated tokens at most
  int64_t num_computed = 0;   ///< planned so far, steps in flight included, of those no draft
  int pending = 0;            ///< tokens sampled in flight, which the host does not know yet
  int pending_drafts = 0;     ///< drafts in flight at most: so many tokens more there may be
  uint32_t epoch = 0;         ///< counts preemptions: results of an earlier epoch own no blocks
  uint64_t last_step = 0;     ///< last step that computes a slice of it; 0: none
  uint64_t preempted_in = 0;  ///< step whose planning took its blocks; 0: never
  bool introduced = false;    ///< the executor has seen the request
  bool paused = false;        ///< gets no tokens until it is resumed

  std::vector<BlockId> blocks;
  int num_registered = 0;       ///< leading blocks offered to the prefix index
  uint64_t twin = 0;            ///< see PrefixCache::register_block()
  std::vector<Hash128> images;  ///< one a full block, see PrefixView; empty for text
  std::vector<Hash128> hashes;  ///< root, then one a full block (prompt; all with reuse_generated)
  SlotId live;                  ///< the state slot that the next slice writes
  SlotId source;                ///< a checkpoint that the next slice reads; invalid: it reads live
  int64_t branch_point = 0;     ///< where another prompt diverged; a checkpoint is due there

  /// What the swap space holds of it since it was displaced: its first `computed` tokens; 0: none.
  struct Swapped {
    SwapHold hold;
    int64_t computed = 0;
    uint32_t epoch = 0;  ///< that it had computed them in
  } swapped;

  int64_t cached_tokens = -1;       ///< prefix tokens reused at first admission; -1: not admitted
  int64_t prompt_logprobs_end = 0;  ///< prompt positions whose logprobs were given out
  bool failed = false;              ///< a numeric error in the step being applied

  /// Tokens that there is room for beyond the prompt at first. A vector's own doubling would hold
  /// twice what a thousand long answers need.
  static constexpr int kTokenRoom = 128;
  void append(int32_t token) {
    if (tokens.size() == tokens.capacity()) {
      tokens.reserve(tokens.size() + std::max<size_t>(kTokenRoom, tokens.size() / 8));
    }
    tokens.push_back(token);
  }

  SeqId id() const { return request->id; }
  int priority() const { return request->priority; }
  /// Tokens there are to compute, the ones in flight included.
  int64_t known() const { return static_cast<int64_t>(tokens.size()) + pending; }
  int64_t num_generated() const { return static_cast<int64_t>(tokens.size()) - prompt_len; }
  bool in_prompt() const { return num_computed < prompt_len; }
  /// The last token that will ever be sampled is sampled already: it needs no computing.
  bool complete() const { return known() >= max_len; }
  PrefixView prefix() const { return {tokens, hashes, blocks, images}; }
};

}  // namespace weft
