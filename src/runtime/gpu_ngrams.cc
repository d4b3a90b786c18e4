#include "runtime/gpu_ngrams.h"

#include <algorithm>

#include "base/align.h"
#include "base/check.h"
#include "base/random_key.h"
#include "device/gpu.h"

namespace weft {
namespace {

/// Of texts and their indexes: 2 % of what an H100 has.
constexpr int64_t kMostBytes = int64_t{1600} << 20;
/// Tokens that go up at once.
constexpr int64_t kUpTokens = 128 * 1024;

NgramIndex index_of(const StepLimits& limits, const SpeculationConfig& config) {
  NgramIndex out{.slots = 1,
                 .capacity = std::min(limits.max_model_len, kMaxNgramText),
                 .min_size = config.min_ngram_size,
                 .max_size = config.max_ngram_size,
                 .keys = {}};
  out.slots = std::min(limits.max_seqs, kMostBytes / out.bytes());
  return out;
}

/// What goes up, in host memory and on the device.
struct UpLayout {
  int64_t tokens, slots, zeros, bytes;
  explicit UpLayout(const StepLimits& limits) {
    tokens = aligned(limits.max_seqs * static_cast<int64_t>(sizeof(NgramText)));
    slots = tokens + aligned(kUpTokens * 4);
    zeros = slots + aligned(limits.max_seqs * 4);
    bytes = zeros + aligned((limits.max_seqs + 1) * 4);
  }
};

int64_t num_tokens(const ExecutorSequence& sequence) {
  return sequence.last_index() + 1;
}

}  // namespace

GpuNgrams::GpuNgrams(Stream& stream, const OpTable& ops, const StepLimits& limits,
                     const SpeculationConfig& config)
    : stream_(stream),
      ops_(ops),
      limits_(limits),
      config_(config),
      index_(index_of(limits, config)),
      owners_(static_cast<size_t>(index_.slots)) {}

int64_t GpuNgrams::device_bytes(const StepLimits& limits, const SpeculationConfig& config) {
  return aligned(index_of(limits, config).bytes()) + UpLayout(limits).bytes;
}

Result<std::unique_ptr<GpuNgrams>> GpuNgrams::create(Stream& stream, const OpTable& ops,
                                                     const StepLimits& limits,
                                                     const SpeculationConfig& config) {
  std::unique_ptr<GpuNgrams> out(new GpuNgrams(stream, ops, limits, config));
  const UpLayout up(limits);
  out->device_ = TRY(Buffer::allocate(ops.device, device_bytes(limits, config)));
  out->up_ = TRY(Buffer::allocate(DeviceKind::kPinned, up.bytes));
  const int64_t found = std::max<int64_t>(1, out->index_.slots * (2 + kMaxDrafts) * 4);
  out->found_ = TRY(Buffer::allocate(DeviceKind::kPinned, found));
  out->index_.memory = out->device_.data();
  out->index_.keys = GramKeys(random_key());
  std::byte *host = out->up_.data(), *device = out->device_.data() + aligned(out->index_.bytes());
  out->texts_ = reinterpret_cast<NgramText*>(host);
  out->texts_device_ = reinterpret_cast<NgramText*>(device);
  out->tokens_ = reinterpret_cast<int32_t*>(host + up.tokens);
  out->tokens_device_ = reinterpret_cast<int32_t*>(device + up.tokens);
  out->slots_ = reinterpret_cast<int32_t*>(host + up.slots);
  out->slots_device_ = TensorView(device + up.slots, DType::kI32, {limits.max_seqs});
  out->zeros_ = TensorView(device + up.zeros, DType::kI32, {limits.max_seqs + 1});
  fill_bytes(stream, out->zeros_.data, 0, out->zeros_.bytes());
  return out;
}

bool GpuNgrams::takes(const ExecutorSequence& sequence) const {
  return sequence.device_slot >= 0 && sequence.device_slot < index_.slots && !sequence.grammar &&
         num_tokens(sequence) <= index_.capacity;
}

int64_t GpuNgrams::known(const ExecutorSequence& sequence) const {
  const auto slot = static_cast<size_t>(sequence.device_slot);
  if (owners_[slot] != sequence.request->id) return 0;
  const int64_t length = reinterpret_cast<const int32_t*>(found_.data())[slot];
  return length <= num_tokens(sequence) ? length : 0;
}

std::optional<NgramSource::Found> GpuNgrams::find(const ExecutorSequence& sequence) const {
  if (!takes(sequence) || known(sequence) != num_tokens(sequence)) return std::nullopt;
  const auto* lengths = reinterpret_cast<const int32_t*>(found_.data());
  const int32_t *matched = lengths + index_.slots, *drafts = matched + index_.slots;
  const int k = config_.num_speculative_tokens;
  return Found{.matched = matched[sequence.device_slot],
               .drafts = {drafts + int64_t{sequence.device_slot} * k, static_cast<size_t>(k)}};
}

void GpuNgrams::catch_up(std::span<const DraftRow> rows) {
  int64_t segments = 0;
  for (const DraftRow& row : rows) {
    if (row.most <= 0 || !takes(*row.sequence)) continue;
    const ExecutorSequence& sequence = *row.sequence;
    const Request& request = *sequence.request;
    const int64_t prompt = std::ssize(request.prompt), total = num_tokens(sequence);
    int64_t at = known(sequence);
    if (at == total) continue;
    const int64_t limit = std::min(index_.capacity, prompt + request.sampling.max_tokens);
    while (at < total) {
      if (num_tokens_ == kUpTokens) extend();
      const int64_t count = std::min(total - at, kUpTokens - num_tokens_);
      texts_[num_texts_++] = {.slot = sequence.device_slot,
                              .known = static_cast<int32_t>(at),
                              .count = static_cast<int32_t>(count),
                              .first = static_cast<int32_t>(num_tokens_),
                              .limit = static_cast<int32_t>(std::max(limit, total))};
      any_new_ |= at == 0;
      most_tokens_ = std::max(most_tokens_, count);
      for (const int64_t end = at + count; at < end; ++at) {
        tokens_[num_tokens_++] = at < prompt ? request.prompt[static_cast<size_t>(at)]
                                             : sequence.history.generated(at - prompt);
      }
    }
    owners_[static_cast<size_t>(sequence.device_slot)] = request.id;
    slots_[segments++] = sequence.device_slot;
  }
  if (segments == 0) return;
  extend();
  ask(segments);
}

/// What was gathered, which has to be gone before more is.
void GpuNgrams::extend() {
  if (num_texts_ == 0) return;
  copy_bytes(stream_, texts_device_, texts_, num_texts_ * static_cast<int64_t>(sizeof(NgramText)));
  copy_bytes(stream_, tokens_device_, tokens_, num_tokens_ * 4);
  ops_.sampling->extend_ngrams(stream_, {.index = index_,
                                         .texts = texts_device_,
                                         .num_texts = num_texts_,
                                         .any_new = any_new_,
                                         .most_tokens = most_tokens_,
                                         .tokens = tokens_device_});
  synchronize(stream_);
  num_texts_ = 0;
  num_tokens_ = most_tokens_ = 0;
  any_new_ = false;
}

/// What follows those texts, without anything new.
void GpuNgrams::ask(int64_t segments) {
  copy_bytes(stream_, slots_device_.data, slots_, segments * 4);
  propose({.index = {},
           .slots = slots_device_.rows(0, segments),
           .cu_q = zeros_.rows(0, segments + 1),
           .next_ids = zeros_,
           .counts = zeros_.rows(0, segments),
           .most_tokens = 0,
           .behind = {},
           .behind_counts = {},
           .drafts = {},
           .matched = {},
           .lengths = {}});
  synchronize(stream_);
}

void GpuNgrams::upload(Stream& uploads, const PackedStep& step, int64_t segments) {
  std::fill_n(slots_, segments, -1);
  int64_t segment = 0;  // every one samples
  for (const ResultRow& result : step.results()) {
    if (result.row < 0) continue;
    const ExecutorSequence& sequence = *result.sequence;
    if (takes(sequence) && known(sequence) == num_tokens(sequence)) {
      slots_[segment] = sequence.device_slot;
    }
    ++segment;
  }
  CHECK(segment <= segments);
  copy_bytes(uploads, slots_device_.data, slots_, segments * 4);
}

void GpuNgrams::propose(const StepBatch& batch, const GpuSampler::Accepted& accepted) const {
  propose({.index = {},
           .slots = slots_device_.rows(0, batch.seqs.num_segments),
           .cu_q = batch.seqs.cu_q,
           .next_ids = accepted.next_ids,
           .counts = accepted.counts,
           .most_tokens = config_.num_speculative_tokens + 1,
           .behind = {},
           .behind_counts = {},
           .drafts = {},
           .matched = {},
           .lengths = {}});
}

void GpuNgrams::propose(const ProposeNgramsArgs& rows) const {
  if (index_.slots == 0) return;
  auto* const found = static_cast<int32_t*>(device_address(found_.data()));
  const int64_t slots = index_.slots;
  ProposeNgramsArgs args = rows;
  args.index = index_;
  args.lengths = TensorView(found, DType::kI32, {slots});
  args.matched = TensorView(found + slots, DType::kI32, {slots});
  args.drafts = TensorView(found + 2 * slots, DType::kI32, {slots, config_.num_speculative_tokens});
  ops_.sampling->propose_ngrams(stream_, args);
}

}  // namespace weft
