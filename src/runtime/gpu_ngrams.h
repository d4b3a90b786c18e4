#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/op_table.h"
#include "runtime/draft_state.h"
#include "runtime/gpu_sampler.h"

namespace weft {

/// NgramMatcher on a GPU, with the same proposals: the texts of the sequences that decode and their
/// indexes are on the device, by the slot that a sequence has there. Behind a step that drafts and
/// only decodes its tokens are appended there and what follows them is known when the step is.
/// Other tokens (prompts, what other steps made) go up when a step wants drafts. Sequences with a
/// grammar, which may cut what the device takes for accepted, and those beyond the slots are left
/// to NgramMatcher.
class GpuNgrams final : public NgramSource {
 public:
  /// Error when memory can't be had. `stream` and `ops` must outlive it.
  static Result<std::unique_ptr<GpuNgrams>> create(Stream& stream, const OpTable& ops,
                                                   const StepLimits& limits,
                                                   const SpeculationConfig& config);
  static int64_t device_bytes(const StepLimits& limits, const SpeculationConfig& config);

  void catch_up(std::span<const DraftRow> rows) override;
  std::optional<Found> find(const ExecutorSequence& sequence) const override;

  /// Before the launch of a step that only decodes, when all before are done: which of its
  /// sequences' texts the device has. `segments`: what the step is padded to.
  void upload(Stream& uploads, const PackedStep& step, int64_t segments);
  /// Behind GpuSampler::accept(): appends and proposes.
  void propose(const StepBatch& batch, const GpuSampler::Accepted& accepted) const;

 private:
  GpuNgrams(Stream& stream, const OpTable& ops, const StepLimits& limits,
            const SpeculationConfig& config);
  bool takes(const ExecutorSequence& sequence) const;
  /// Tokens of its text that the device has.
  int64_t known(const ExecutorSequence& sequence) const;
  void extend();
  void ask(int64_t segments);
  void propose(const ProposeNgramsArgs& rows) const;

  Stream& stream_;
  const OpTable& ops_;
  StepLimits limits_;
  SpeculationConfig config_;
  NgramIndex index_;
  std::vector<SeqId> owners_;  // of the slots
  Buffer device_;              // the index, and what goes up
  Buffer up_, found_;          // pinned: what goes up, what comes back
  // Host and device each: texts that grow, their tokens, slots of the segments.
  NgramText *texts_ = nullptr, *texts_device_ = nullptr;
  int32_t *tokens_ = nullptr, *tokens_device_ = nullptr;
  int32_t* slots_ = nullptr;
  TensorView slots_device_, zeros_;
  int num_texts_ = 0;
  int64_t num_tokens_ = 0, most_tokens_ = 0;
  bool any_new_ = false;
};

}  // namespace weft
