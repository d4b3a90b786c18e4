#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "device/buffer.h"
#include "grammar/grammar.h"
#include "nn/step.h"
#include "runtime/asked_rows.h"
#include "runtime/block_table.h"
#include "runtime/token_history.h"
#include "sched/plan.h"

namespace weft {

/// Bounds of every step of an executor. Memory is planned with them and every plan is checked
/// against them.
struct StepLimits {
  int64_t max_rows = 0;       ///< tokens of one step
  int64_t max_seqs = 0;       ///< sequences of one step
  int64_t max_model_len = 0;  ///< positions: also the length of the rope table
  int64_t vocab_size = 0;
  int block_size = 64;
  int64_t num_blocks = 0;
  int64_t num_slots = 0;
  bool paged = true;         ///< the model has paged layers
  bool recurrent = false;    ///< the model has recurrent layers
  int64_t image_tokens = 0;  ///< through the vision tower in one step; 0: no images
  int64_t image_pages = 0;   ///< of kImagePage tokens: rows of image features on the device
  bool multimodal = false;   ///< its rope takes (t, h, w) positions
  int64_t layered_rows = 0;  ///< tokens of a prompt that is computed layer by layer; 0: none is
  int64_t sparse_from = 0;   ///< heads of shorter prompts see all keys
  /// Drafts that are verified in one step beside max_rows.
  int64_t max_draft_rows = 0;
  /// On a GPU: rows that every state slot keeps (kernels/gdn_slots.h), a sequence's drafts and one.
  /// 0: there is a spare state slot behind num_slots for every sequence that may have drafts.
  int64_t kept_rows = 0;
  int64_t max_draft_seqs() const { return std::min(max_seqs, max_draft_rows); }
  int64_t max_spares() const { return recurrent && kept_rows == 0 ? max_draft_seqs() : 0; }

  int64_t all_rows() const { return max_rows + max_draft_rows; }
  int64_t all_slots() const { return num_slots + max_spares(); }
  /// Slices of one step: a sequence's slices are cut at multiples of kChunk and where its prompt
  /// ends.
  int64_t max_segments() const;
  /// Rows of the pieces that such a prompt is cut into.
  int64_t piece_rows() const { return std::max<int64_t>(128, max_rows / 128 * 128); }
  int64_t max_blocks_per_seq() const { return (max_model_len + block_size - 1) / block_size; }
  /// Columns of a block table that holds any sequence.
  int64_t max_table_width() const { return std::min(max_blocks_per_seq(), num_blocks); }
};

struct DraftState;
struct ResultRow;

/// What an executor knows of one sequence. Made and forgotten by the launching thread; `history`
/// and `failed` belong to the thread that runs the steps.
struct ExecutorSequence {
  ExecutorSequence(std::shared_ptr<const Request> r, const StepLimits& limits);
  ~ExecutorSequence();
  /// Of its last token, a prompt's or a generated one, in the request.
  int64_t last_index() const { return std::ssize(request->prompt) + history.num_generated() - 1; }

  std::shared_ptr<const Request> request;
  TokenHistory history;
  std::unique_ptr<GrammarMatcher> grammar;  ///< of a constrained request; the running thread's
  std::unique_ptr<DraftState> drafts;       ///< with speculation; the running thread's
  bool failed = false;   ///< its last sample was a numeric error: there is no token to go on from
  int device_slot = -1;  ///< where a GPU keeps its last token and counts; -1: nowhere yet
};

/// Which slot of the device holds a state slot of the scheduler. Verification leaves the state
/// after all drafts of a sequence in a spare slot; where all were right it changes places with what
/// the scheduler knows, and nothing is copied.
class StateSlotMap {
 public:
  explicit StateSlotMap(const StepLimits& limits);
  int32_t of(SlotId slot) const {
    return slot.valid() ? slots_[static_cast<size_t>(slot.value)] : -1;
  }
  int32_t spare(int64_t i) const { return spares_[static_cast<size_t>(i)]; }
  void exchange(SlotId slot, int64_t spare);

 private:
  std::vector<int32_t> slots_, spares_;
};

/// With kept rows: how many of them the state in each slot lacks. A step with drafts leaves there
/// the state before them; when it is done, the right ones are what the next reader has to go
/// through first. Whoever writes a slot makes its state whole, and kept rows go where their slot is
/// swapped.
class KeptRows {
 public:
  explicit KeptRows(const StepLimits& limits)
      : room_(limits.kept_rows), counts_(static_cast<size_t>(limits.num_slots)) {}
  int count(SlotId slot) const { return counts_[static_cast<size_t>(slot.value)]; }
  /// Takes down what a slice does, in the order of a step.
  struct Codes {
    int32_t read = -1, write = -1;  ///< for GdnArgs
  };
  Codes pack(const Slice& slice);
  void swap(const StateSwap& swap);
  /// When the step is done.
  void accept(std::span<const ResultRow> rows, const StepResult& result);

 private:
  int64_t room_;
  std::vector<int> counts_, swapped_;  // of the slots, of the entries of the swap space
};

/// A row of the step whose logits are needed: to sample, or for a prompt logprob.
struct LogitRow {
  int64_t row = 0;        ///< in the batch
  int result = 0;         ///< index into StepResult::rows
  int prompt_entry = -1;  ///< entry of SampledRow::prompt_logprobs; -1: sample
  int32_t target = -1;    ///< the prompt token whose logprob is asked
  int64_t position = 0;   ///< of the token that follows this row
  ExecutorSequence* sequence = nullptr;
  /// With drafts, the row before was sampled first: this one counts if that became `draft`, the
  /// token of this row; -1: it counts in any case. `next_draft`: the token of the next row, or -1.
  int32_t draft = -1, next_draft = -1;
};

/// Generated tokens that a slice feeds back, in order.
struct FedTokens {
  ExecutorSequence* sequence = nullptr;
  int64_t row = 0;  ///< in the batch, of the first one
  int64_t count = 0;
  int64_t generated = 0;     ///< index of the first one among the generated tokens
  bool from_device = false;  ///< kDeviceToken: the executor fills it in
};

/// One row of the result, before it is computed.
struct ResultRow {
  SeqId seq;
  ExecutorSequence* sequence = nullptr;
  bool logprobs = false;        ///< of the sampled token
  int num_prompt_logprobs = 0;  ///< entries
  int64_t row = -1;             ///< in the batch, of the last known token, where one is sampled
  SlotId state;                 ///< where its state belongs
  int32_t state_read = -1;      ///< the slot of the device with the state before `row`
  int64_t spare = -1;           ///< index of the spare slot with the state after all drafts
  int num_drafts = 0;           ///< rows behind `row`
};

/// The token behind a slice that samples none.
struct NextToken {
  int64_t row = 0;  ///< in the batch, of the slice's last token
  int32_t token = 0;
  int64_t image_row = -1;  ///< of the batch's images.rows: the features it has; -1: none are there
};

/// What a step is padded to; 0: nothing.
struct PaddedShape {
  int64_t rows = 0, segments = 0;
};

/// A StepPlan in the form the device takes: prompt slices first, then decode slices, each in plan
/// order. Owns its memory, which is taken once. For a GPU the host half is pinned and the batch's
/// views are those of the device half, which upload() fills with one copy.
class PackedStep {
 public:
  static Result<PackedStep> create(const StepLimits& limits, DeviceKind device = DeviceKind::kCpu);
  static int64_t bytes(const StepLimits& limits);

  using Sequences = std::unordered_map<SeqId, std::unique_ptr<ExecutorSequence>>;

  /// Packs `plan`, admitting to and retiring from `sequences`. Everything is checked against the
  /// limits and the requests; a violation is a bug of the scheduler (Panic). A slice with
  /// max_drafts has as many tokens behind its first, the drafts; one without tokens has a result
  /// alone. With `padded` (for a plan of decode slices of one token and drafts) the batch has that
  /// many rows and segments, and its arrays lie where they lie for every such plan: the rest are
  /// rows of token 0 that are written nowhere and empty segments.
  void pack(const StepPlan& plan, Sequences& sequences, const PaddedShape& padded = {});
  /// The features that the image tokens of later steps are looked up in (VisionEncoder).
  void set_image_features(const TensorView& features) { image_features_ = features; }
  /// For models with recurrent layers under speculation; null: slots are what they are called.
  void set_state_slots(const StateSlotMap* slots) { state_slots_ = slots; }
  /// Likewise where the slots have kept rows.
  void set_kept_rows(KeptRows* kept) { kept_ = kept; }
  /// One copy of everything that was packed, in the order of the stream. Nothing on the CPU.
  void upload(Stream& stream);

  const StepBatch& batch() const { return batch_; }
  /// The step is some layers of one prompt: see LayeredPrompt. Then batch() is the whole prompt,
  /// pieces() its parts and ends() the segment that decides.
  const LayerRange& layers() const { return layers_; }
  std::span<const StepBatch> pieces() const { return pieces_; }
  const StepBatch& ends() const { return ends_; }
  uint64_t step() const { return step_; }
  std::span<const FedTokens> fed_tokens() const { return fed_; }
  /// Prompt rows first, then decode rows, in batch order.
  std::span<const LogitRow> logit_rows() const { return logit_rows_; }
  int64_t num_prompt_logit_rows() const { return num_prompt_logit_rows_; }
  /// They as rows of the batch.
  const AskedRows& asked() const { return asked_; }
  std::span<const ResultRow> results() const { return results_; }
  /// With speculation alone.
  std::span<const NextToken> next_tokens() const { return next_tokens_; }
  std::span<const BlockCopy> copies() const { return copies_; }
  std::span<const BlockSwap> block_swaps() const { return block_swaps_; }
  std::span<const StateSwap> state_swaps() const { return state_swaps_; }
  /// Images that go through the vision tower before the step.
  struct Encoding {
    std::shared_ptr<const ImagePatches> image;
    std::vector<int32_t> pages;
  };
  std::span<const Encoding> encodings() const { return encodings_; }
  /// Host memory [T]; written before upload().
  int32_t* ids() { return ids_; }
  /// [T], host memory: the device slot whose last token a row takes; -1: the row has its id.
  int32_t* feed() { return feed_; }
  const TensorView& feed_view() const { return feed_view_; }
  /// Destroys what the step retired; call it when the step and all before it are done.
  void forget_retired() { retired_.clear(); }

 private:
  struct Extents {
    int64_t rows = 0, segments = 0, table_width = 0;
    bool triples = false;
    int64_t pieces = 0;  // of a prompt that is computed layer by layer
  };
  void carve(const Extents& extents);
  void pad(const PaddedShape& shape);
  void make_views(bool padded);
  void make_pieces();
  TensorView view(void* host, DType dtype, std::initializer_list<int64_t> dims) const;
  void check_slice(const Slice& slice, const ExecutorSequence& sequence) const;
  void add_slice(const Slice& slice, ExecutorSequence& sequence, int result);
  void add_tokens(const Slice& slice, ExecutorSequence& sequence, int64_t row);
  void add_position(const Request& request, int64_t index, int64_t row);
  void add_images(const Slice& slice, const ExecutorSequence& sequence, int64_t row);
  void add_encodings(const StepPlan& plan);
  void add_logit_rows(const Slice& slice, ExecutorSequence& sequence, int64_t row, int result);
  void add_states(const Slice& slice, int64_t segment, int64_t end, int result);
  void add_next_token(const Slice& slice, const ExecutorSequence& sequence, int64_t row);
  int64_t next_image_row(const Slice& slice, const Request& request);
  const ImageUse* find_use(SeqId seq, size_t image) const;
  void add_image_row(const ImageUse& use, int64_t at);

  StepLimits limits_;
  Buffer buffer_, device_buffer_;
  int64_t used_bytes_ = 0;
  int32_t* ids_ = nullptr;
  int32_t* feed_ = nullptr;
  int32_t* logit_ids_ = nullptr;
  int32_t* chains_ = nullptr;
  int32_t* index_ = nullptr;
  int32_t* delta_ = nullptr;
  int32_t* triples_ = nullptr;     // null: no row of the step has axes apart
  int32_t* image_rows_ = nullptr;  // likewise
  int64_t* kv_slot_ = nullptr;
  int32_t* cu_q_ = nullptr;
  int32_t* kv_start_ = nullptr;
  AskedSegments asked_segments_;
  int32_t* sees_all_ = nullptr;
  int32_t* read_slot_ = nullptr;
  int32_t* write_slot_ = nullptr;
  BlockTable block_table_;
  int32_t* piece_cu_q_ = nullptr;   // [pieces + 1][2]; the last pair is that of the ends
  int32_t* piece_start_ = nullptr;  // [pieces + 1]

  uint64_t step_ = 0;
  StepBatch batch_;
  LayerRange layers_;
  std::vector<StepBatch> pieces_;
  StepBatch ends_;
  int64_t num_rows_ = 0, num_spares_ = 0;
  const StateSlotMap* state_slots_ = nullptr;
  KeptRows* kept_ = nullptr;
  TensorView feed_view_;
  AskedRows asked_;
  SeqId chain_seq_;  // of the last segment
  std::vector<FedTokens> fed_;
  std::vector<LogitRow> logit_rows_;
  int64_t num_prompt_logit_rows_ = 0;
  std::vector<ResultRow> results_;
  std::vector<NextToken> next_tokens_;
  std::vector<BlockCopy> copies_;
  std::vector<BlockSwap> block_swaps_;
  std::vector<StateSwap> state_swaps_;
  std::vector<Encoding> encodings_;
  std::span<const ImageUse> image_uses_;  // of the plan being packed
  std::vector<ImageRun> image_runs_;
  int64_t num_image_rows_ = 0;
  TensorView image_features_;
  std::vector<std::unique_ptr<ExecutorSequence>> retired_;
};

}  // namespace weft
