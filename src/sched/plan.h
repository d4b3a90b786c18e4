#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/plan_counters.h"
#include "cache/image_cache.h"
#include "sched/request.h"
#include "sched/speculation.h"

namespace weft {

/// Prefill boundaries are absolute multiples of this many tokens (docs/architecture.md, rule 3).
inline constexpr int kChunk = 64;

/// A token of a slice that the host does not know yet: the executor uses the last token it sampled
/// for that sequence. Where a step in flight verifies drafts of it, the host does not know the
/// token's position either, and Slice::first is the least it can be.
inline constexpr int32_t kDeviceToken = -1;

/// The two arithmetics of docs/architecture.md, rule 2. A slice never mixes them.
enum class Arithmetic : uint8_t {
  kPrompt,  ///< prompt tokens: chunked operators; starts at a multiple of kChunk
  kDecode,  ///< generated tokens (new or replayed), row by row: any start, any count
};

/// Some layers of a prompt: [begin, end).
struct LayerRange {
  int begin = 0, end = 0;
  bool last = false;  ///< behind them nothing is left: the prompt is computed
  bool partial() const { return end > begin; }
};

/// Consecutive tokens of one sequence in one step. Several slices of one sequence may follow each
/// other in a step (a recurrent-state checkpoint lies between them); they are in order.
struct Slice {
  SeqId seq;
  int64_t first = 0;                ///< position of tokens[0] = number of tokens already computed
  std::span<const int32_t> tokens;  ///< ids, or one kDeviceToken; lives until launch() returns
  Arithmetic arithmetic = Arithmetic::kPrompt;
  bool sample = false;              ///< sample the token that follows the last one of the slice
  std::span<const BlockId> blocks;  ///< the sequence's whole block table, covering first + size
  SlotId state_read;                ///< recurrent state before tokens[0]; invalid: zero state
  SlotId state_write;               ///< receives the state after the last token; may equal read
  /// Of a sampled slice of one token in decode arithmetic: so many drafts of the executor's own may
  /// be verified behind it, at positions below `limit`.
  int max_drafts = 0;
  int64_t limit = 0;
  /// These tokens, the first of the prompt, are what a router decides by what the heads of the
  /// prompt see: it does so now.
  bool decides = false;
  /// Of a deciding slice that is larger than a step: it comes again and again, alone in its step,
  /// for some layers each time. Else none: all layers.
  LayerRange layers;
};

/// Copy of whole blocks (all layers and planes), done before the step's slices.
struct BlockCopy {
  BlockId from, to;
};

/// Copies between a KV block (all layers and planes), or a recurrent state (all layers), and an
/// entry of the swap space, done in order before the step's slices.
struct BlockSwap {
  BlockId block;
  int32_t host = 0;
  bool out = false;  ///< to the swap space, else back
};
struct StateSwap {
  SlotId slot;
  int32_t host = 0;
  bool out = false;
};

/// An image that goes through the vision tower before the step's slices; its features then lie in
/// these pages of kImagePage tokens each.
struct ImageEncoding {
  std::shared_ptr<const ImagePatches> image;
  std::span<const int32_t> pages;  ///< lives until launch() returns
};

/// Where the features of an image lie that a prompt slice of this step has tokens of.
struct ImageUse {
  SeqId seq;
  int image = 0;                   ///< index into Request::images
  std::span<const int32_t> pages;  ///< lives until launch() returns
};

/// What the executor does in one step: plain data, the same for every rank.
struct StepPlan {
  uint64_t step = 0;
  std::vector<std::shared_ptr<const Request>> admitted;  ///< first seen in this step
  std::vector<Slice> slices;
  std::vector<SeqId> preempted;  ///< lost their blocks and state: they come back from position 0,
                                 ///< or from where they were if both were swapped
  std::vector<SeqId> retired;    ///< ended or aborted: forget them; no later step names them
  std::vector<BlockCopy> copies;
  std::vector<BlockSwap> block_swaps;
  std::vector<StateSwap> state_swaps;
  std::vector<ImageEncoding> encodings;  ///< in order; of images, any one once
  std::vector<ImageUse> image_uses;
  bool empty() const {
    return slices.empty() && preempted.empty() && retired.empty() && encodings.empty();
  }
};

/// Results of one slice with `sample`, in slice order, and of prompt slices with prompt_logprobs.
struct SampledRow {
  SeqId seq;
  /// The accepted drafts and the token behind them: one without speculation. With numeric_error
  /// those before the error.
  std::vector<int32_t> tokens;
  SpeculationStep speculation;                ///< which of them were drafts
  std::vector<TokenLogprob> logprobs;         ///< one a token, when asked for
  std::vector<TokenLogprob> prompt_logprobs;  ///< of the slice's tokens, when asked for: entry i is
                                              ///< the token at first + i + 1 within the prompt
  bool ends = false;           ///< the grammar allows nothing after them: it ends with kStop
  bool numeric_error = false;  ///< the row's logits held NaN: the request ends with kError
};

struct StepResult {
  uint64_t step = 0;
  // Of a GPU, by its own clock: how long it stood still before this step, and how long it ran.
  double device_idle_us = 0, device_us = 0;
  int device_graphs = 0;          ///< captured graphs that it launched: its forward, its drafts
  bool device_new_shape = false;  ///< one of them was captured, or will be: it took longer for that
  PlanCounters plans;             ///< what plans of heads did in its prompts
  std::vector<SampledRow> rows;
};

}  // namespace weft
