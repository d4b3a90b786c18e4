#include "runtime/gpu_sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/align.h"
#include "base/check.h"
#include "device/gpu.h"
#include "runtime/draft_state.h"
#include "runtime/row_sampler.h"
#include "runtime/sample_lists.h"

namespace weft {
namespace {

/// Lists of ids and masks that a step takes up without asking for more memory.
constexpr int64_t kListBytes = int64_t{1} << 20;
int64_t mask_words(const StepLimits& limits) {
  return (limits.vocab_size + 31) / 32;
}
/// The specs of all rows of a step come first, each row's at its place.
int64_t spec_bytes(const StepLimits& limits) {
  return aligned(limits.all_rows() * static_cast<int64_t>(sizeof(SampleSpec)));
}
int64_t up_bytes(const StepLimits& limits) {
  return spec_bytes(limits) +
         (limits.max_seqs + limits.max_draft_rows) * aligned(mask_words(limits) * 4) + kListBytes;
}

/// Where the results and alternatives of all rows of a step lie.
struct DownLayout {
  int64_t top_ids, top_logprobs, bytes;
  explicit DownLayout(const StepLimits& limits) {
    top_ids = aligned(limits.all_rows() * static_cast<int64_t>(sizeof(SampleResult)));
    top_logprobs = top_ids + aligned(limits.all_rows() * kMaxTopLogprobs * 4);
    bytes = top_logprobs + aligned(limits.all_rows() * kMaxTopLogprobs * 4);
  }
};

/// Last tokens of slots, and drafts.
int64_t num_fed(const StepLimits& limits) {
  return limits.max_seqs + limits.max_draft_seqs() * kMaxDrafts;
}
/// Rows of a step that only decodes, with speculation.
int64_t draft_rows(const StepLimits& limits) {
  return limits.max_draft_rows > 0 ? limits.max_seqs + limits.max_draft_rows : 0;
}
int64_t slot_bytes(const StepLimits& limits) {
  const int64_t accepted = draft_rows(limits) > 0 ? 2 * aligned(draft_rows(limits) * 4) +
                                                        2 * aligned(limits.max_seqs * 4)
                                                  : 0;
  return aligned(num_fed(limits) * 4) + aligned(limits.max_seqs * limits.vocab_size * 4) + accepted;
}

/// Room for `bytes` more in what goes up, behind the `specs` bytes of the specs: {host, device}.
struct UpPiece {
  std::byte* host;
  std::byte* device;
};
UpPiece take_up(Stream& stream, GpuSampler::Flight& flight, int64_t specs, int64_t bytes) {
  if (flight.up_used + bytes > flight.up.bytes()) {
    // Rare (very long lists): what was taken before has to arrive first.
    synchronize(stream);
    const int64_t larger = std::max(2 * flight.up.bytes(), specs + aligned(bytes));
    flight.up = Buffer();
    flight.up_device = Buffer();
    flight.up = Buffer::allocate(DeviceKind::kPinned, larger).value();
    flight.up_device = Buffer::allocate(DeviceKind::kCuda, larger).value();
    flight.up_used = specs;
  }
  const int64_t at = flight.up_used;
  flight.up_used += aligned(bytes);
  return {flight.up.data() + at, flight.up_device.data() + at};
}

/// The specs and lists of one piece, before they are copied to pinned memory.
struct Lists : SampleLists {
  std::vector<SampleSpec> specs;
  std::vector<uint32_t> masks;  // [rows, words]
  int64_t words = 0;

  void add_grammar(GrammarMatcher& grammar, SampleSpec& spec) {
    if (!grammar.binds()) {
      spec.stop_rule = StopRule::kMasked;  // the thought ends first, then the text
      return;
    }
    spec.mask_row = static_cast<int32_t>(static_cast<int64_t>(masks.size()) / words);
    spec.stop_rule = grammar.may_end() ? StopRule::kFreed : StopRule::kMasked;
    const std::span<const uint32_t> mask = grammar.mask();
    const auto count = std::min<size_t>(mask.size(), static_cast<size_t>(words));
    masks.insert(masks.end(), mask.begin(), mask.begin() + static_cast<ptrdiff_t>(count));
    masks.resize(masks.size() + static_cast<size_t>(words) - count);
  }
};

/// The grammar of the row's sequence behind the row's draft, where it allows that one: else the row
/// counts for nothing.
void go_ahead(GrammarMatcher& grammar, const LogitRow& row, GpuSampler::Flight& flight) {
  if (is_stop(row.sequence->request->sampling, row.draft)) return;
  if (!grammar.accept(row.draft)) return;
  if (flight.ahead.empty() || flight.ahead.back().first != &grammar) {
    flight.ahead.emplace_back(&grammar, 0);
  }
  ++flight.ahead.back().second;
}

/// `drafts`: those of the row's sequence up to the row.
SampleSpec sampling_spec(const LogitRow& row, const std::vector<int32_t>& drafts, Lists& lists) {
  const Request& request = *row.sequence->request;
  const SamplingParams& params = request.sampling;
  SampleSpec spec{.slot = row.sequence->device_slot};
  if (row.prompt_entry >= 0) {
    spec.target = row.target;
    spec.num_top = params.prompt_logprobs;
    return spec;
  }
  spec.num_top = params.logprobs;
  if (uses_penalties(params)) {
    spec.counts_slot = spec.slot;
    spec.counts_later = row.draft >= 0 || row.next_draft >= 0 ? 1 : 0;
    spec.drafts = lists.add(drafts);
  }
  if (row.sequence->grammar) lists.add_grammar(*row.sequence->grammar, spec);
  const int64_t num_generated = row.position - static_cast<int64_t>(request.prompt.size());
  if (num_generated < params.min_tokens) spec.stop_rule = StopRule::kMasked;
  lists.add_draw(params, spec);
  spec.position = row.position;
  // Nobody else looks at the stop ids.
  if (spec.stop_rule != StopRule::kPlain) spec.stop_ids = lists.add(params.stop_ids);
  return spec;
}

template <class T>
int64_t bytes_of(const std::vector<T>& values) {
  return static_cast<int64_t>(values.size() * sizeof(T));
}

/// Takes the lists of a piece up, behind the specs of the step.
void put_lists(const GpuSampler::Streams& streams, GpuSampler::Flight& flight, int64_t specs,
               const Lists& lists, SampleArgs& args) {
  const int64_t biases = aligned(bytes_of(lists.biases)), ids = aligned(bytes_of(lists.ids));
  const int64_t bytes = biases + ids + bytes_of(lists.masks);
  if (bytes == 0) return;
  const UpPiece piece = take_up(streams.steps, flight, specs, bytes);
  int64_t used = 0;
  const auto put = [&](const auto& values) {
    if (!values.empty()) {
      std::memcpy(piece.host + used, values.data(), static_cast<size_t>(bytes_of(values)));
    }
    std::byte* const at = piece.device + used;
    used += aligned(bytes_of(values));
    return at;
  };
  args.biases = reinterpret_cast<const TokenBias*>(put(lists.biases));
  args.ids = reinterpret_cast<const int32_t*>(put(lists.ids));
  std::byte* const mask_data = put(lists.masks);
  if (!lists.masks.empty()) {
    const auto mask_rows = static_cast<int64_t>(lists.masks.size()) / lists.words;
    args.masks = TensorView(mask_data, DType::kI32, {mask_rows, lists.words});
  }
  copy_bytes(streams.uploads, piece.device, piece.host, bytes);
}

}  // namespace

int64_t GpuSampler::device_bytes(const StepLimits& limits, int64_t flights) {
  return slot_bytes(limits) + flights * (up_bytes(limits) + DownLayout(limits).bytes);
}

Result<GpuSampler> GpuSampler::create(const OpTable& ops, const StepLimits& limits,
                                      const DraftRule& rule) {
  CHECK(ops.sampling != nullptr);
  GpuSampler out(ops, limits, rule);
  out.slot_buffer_ = TRY(Buffer::allocate(ops.device, slot_bytes(limits)));
  std::byte* at = out.slot_buffer_.data();
  const auto take = [&at](std::initializer_list<int64_t> dims) {
    const TensorView view(at, DType::kI32, dims);
    at += aligned(view.bytes());
    return view;
  };
  out.last_token_ = take({num_fed(limits)});
  out.counts_ = take({limits.max_seqs, limits.vocab_size});
  if (const int64_t rows = draft_rows(limits); rows > 0) {
    out.tokens_ = take({rows});
    out.next_ids_ = take({rows});
    out.accepted_ = take({limits.max_seqs});
    out.last_rows_ = take({limits.max_seqs});
  }
  for (int64_t i = limits.max_seqs; i > 0; --i) out.free_slots_.push_back(static_cast<int>(i - 1));
  return out;
}

Result<GpuSampler::Flight> GpuSampler::make_flight(const StepLimits& limits) {
  Flight out;
  const int64_t up = up_bytes(limits), down = DownLayout(limits).bytes;
  out.up = TRY(Buffer::allocate(DeviceKind::kPinned, up));
  out.up_device = TRY(Buffer::allocate(DeviceKind::kCuda, up));
  out.down = TRY(Buffer::allocate(DeviceKind::kPinned, down));
  out.down_device = TRY(Buffer::allocate(DeviceKind::kCuda, down));
  out.rows.reserve(static_cast<size_t>(limits.all_rows()));
  return out;
}

void GpuSampler::release(const StepPlan& plan, const PackedStep::Sequences& sequences) {
  const auto free_slot = [&](SeqId id) {
    const auto it = sequences.find(id);
    if (it == sequences.end() || it->second->device_slot < 0) return;
    const int slot = std::exchange(it->second->device_slot, -1);
    free_slots_.push_back(slot);
    std::erase_if(late_, [slot](const LateTokens& late) { return late.slot == slot; });
  };
  for (const SeqId id : plan.preempted) free_slot(id);
  for (const SeqId id : plan.retired) free_slot(id);
}

void GpuSampler::give_slot(Stream& stream, ExecutorSequence& sequence, Flight& flight) {
  CHECK(!free_slots_.empty(), "more sequences than slots");
  sequence.device_slot = free_slots_.back();
  free_slots_.pop_back();
  const Request& request = *sequence.request;
  if (!uses_penalties(request.sampling)) return;
  const int64_t prompt = std::ssize(request.prompt), generated = sequence.history.num_generated();
  const UpPiece piece = take_up(stream, flight, spec_bytes(limits_), (prompt + generated) * 4);
  auto* ids = reinterpret_cast<int32_t*>(piece.host);
  std::copy(request.prompt.begin(), request.prompt.end(), ids);
  for (int64_t i = 0; i < generated; ++i) ids[prompt + i] = sequence.history.generated(i);
  copy_bytes(stream, piece.device, piece.host, (prompt + generated) * 4);
  auto* device_ids = reinterpret_cast<int32_t*>(piece.device);
  ops_->sampling->reset_counts(
      stream, {.counts = counts_,
               .slot = sequence.device_slot,
               .prompt = TensorView(device_ids, DType::kI32, {prompt}),
               .generated = TensorView(device_ids + prompt, DType::kI32, {generated})});
}

void GpuSampler::count_late(Stream& stream, Flight& flight) {
  for (const LateTokens& late : late_) {
    const int64_t count = std::ssize(late.tokens);
    const UpPiece piece = take_up(stream, flight, spec_bytes(limits_), count * 4);
    std::memcpy(piece.host, late.tokens.data(), static_cast<size_t>(count * 4));
    copy_bytes(stream, piece.device, piece.host, count * 4);
    ops_->sampling->reset_counts(stream,
                                 {.counts = counts_,
                                  .slot = late.slot,
                                  .generated = TensorView(piece.device, DType::kI32, {count}),
                                  .keep = true});
  }
  late_.clear();
}

void GpuSampler::admit(Stream& stream, PackedStep& step, Flight& flight) {
  flight.up_used = spec_bytes(limits_);
  flight.results_there = false;
  flight.rows.clear();
  flight.drafts.clear();
  flight.any_top = false;
  count_late(stream, flight);
  for (const FedTokens& fed : step.fed_tokens()) {
    ExecutorSequence& sequence = *fed.sequence;
    if (fed.from_device) {
      CHECK(sequence.device_slot >= 0, "no token was sampled yet");
      step.feed()[fed.row] = sequence.device_slot;
      continue;
    }
    RowSampler::replay(step, fed);
  }
  for (const LogitRow& row : step.logit_rows()) {
    if (row.sequence->device_slot < 0) give_slot(stream, *row.sequence, flight);
  }
}

void GpuSampler::feed(Stream& stream, const PackedStep& step) const {
  ops_->sampling->feed_tokens(
      stream, {.feed = step.feed_view(), .last_token = last_token_, .ids = step.batch().ids});
}

void GpuSampler::set_drafts(PackedStep& step, Flight& flight) {
  constexpr int32_t kNoToken = std::numeric_limits<int32_t>::max();
  for (LogitRow& row : flight.rows) {
    if (!row.sequence || row.prompt_entry >= 0) continue;
    const ResultRow& made = step.results()[static_cast<size_t>(row.result)];
    if (made.num_drafts == 0) continue;
    const DraftState& state = *made.sequence->drafts;
    const int64_t count = state.proposed[0] + state.proposed[1], at = row.row - made.row;
    const auto draft = [&](int64_t i) { return state.drafts[static_cast<size_t>(i)]; };
    row.next_draft = at < count ? draft(at) : -1;
    if (at == 0) continue;
    row.draft = at <= count ? draft(at - 1) : kNoToken;
    if (at <= count) step.ids()[row.row] = row.draft;
  }
}

GpuSampler::Piece GpuSampler::prepare(const Streams& streams, Flight& flight,
                                      std::span<const LogitRow> rows, TensorView logits,
                                      bool alone) {
  const int64_t base = std::ssize(flight.rows), count = std::ssize(rows);
  Lists lists;
  lists.vocab = limits_.vocab_size;
  lists.words = mask_words(limits_);
  for (const LogitRow& row : rows) {
    flight.rows.push_back(row);
    if (row.draft < 0) flight.drafts.clear();
    if (row.draft >= 0) flight.drafts.push_back(row.draft);
    if (row.draft >= 0 && row.sequence->grammar) go_ahead(*row.sequence->grammar, row, flight);
    lists.specs.push_back(row.sequence ? sampling_spec(row, flight.drafts, lists) : SampleSpec{});
    if (row.next_draft >= 0) lists.specs.back().draft_check = rule_.check(row);
    flight.any_top |= lists.specs.back().num_top > 0;
  }
  SampleArgs args;
  put_lists(streams, flight, spec_bytes(limits_), lists, args);
  const int64_t at = base * static_cast<int64_t>(sizeof(SampleSpec));
  const int64_t bytes = bytes_of(lists.specs);
  std::memcpy(flight.up.data() + at, lists.specs.data(), static_cast<size_t>(bytes));
  copy_bytes(streams.uploads, flight.up_device.data() + at, flight.up.data() + at, bytes);
  args.logits = logits;
  args.specs = reinterpret_cast<const SampleSpec*>(flight.up_device.data() + at);
  args.counts = counts_;
  args.last_token = last_token_;
  if (tokens_.defined() && base + count <= tokens_.dim(0)) {
    args.tokens = tokens_.ptr<int32_t>() + base;
  }
  args.only_greedy = std::all_of(lists.specs.begin(), lists.specs.end(), is_plainly_greedy);
  flight.results_there = alone && args.only_greedy;
  std::byte* const back = flight.results_there
                              ? static_cast<std::byte*>(device_address(flight.down.data()))
                              : flight.down_device.data();
  args.results = reinterpret_cast<SampleResult*>(back) + base;
  const DownLayout down(limits_);
  const auto alternatives = [&](int64_t offset, DType dtype) {
    return TensorView(flight.down_device.data() + offset, dtype,
                      {limits_.all_rows(), kMaxTopLogprobs})
        .rows(base, base + count);
  };
  args.top_ids = alternatives(down.top_ids, DType::kI32);
  args.top_logprobs = alternatives(down.top_logprobs, DType::kF32);
  const bool same = alone && lists.biases.empty() && lists.ids.empty() && lists.masks.empty();
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(args.specs));
  return {args, same ? address + (args.only_greedy ? 1 : 0) : 0};
}

void GpuSampler::sample(Stream& stream, const Piece& piece) const {
  ops_->sampling->sample(stream, piece.args);
}

GpuSampler::Accepted GpuSampler::accepted(const StepBatch& batch) const {
  const int64_t segments = batch.seqs.num_segments;
  return {.next_ids = next_ids_.rows(0, batch.num_rows()),
          .counts = accepted_.rows(0, segments),
          .last_rows = last_rows_.rows(0, segments)};
}

void GpuSampler::accept(Stream& stream, const StepBatch& batch, const Flight& flight) const {
  const Accepted out = accepted(batch);
  ops_->sampling->accept_drafts(
      stream, {.cu_q = batch.seqs.cu_q,
               .ids = batch.ids,
               .tokens = tokens_.ptr<int32_t>(),
               .specs = reinterpret_cast<const SampleSpec*>(flight.up_device.data()),
               .next_ids = out.next_ids,
               .counts = out.counts,
               .last_rows = out.last_rows});
}

void GpuSampler::fetch(Stream& stream, Flight& flight) const {
  const int64_t count = std::ssize(flight.rows);
  const DownLayout down(limits_);
  const auto copy = [&](int64_t offset, int64_t bytes) {
    copy_bytes(stream, flight.down.data() + offset, flight.down_device.data() + offset, bytes);
  };
  if (!flight.results_there) copy(0, count * static_cast<int64_t>(sizeof(SampleResult)));
  if (!flight.any_top) return;
  copy(down.top_ids, count * kMaxTopLogprobs * 4);
  copy(down.top_logprobs, count * kMaxTopLogprobs * 4);
}

void GpuSampler::finish(const PackedStep& step, Flight& flight, StepResult& result) {
  const DownLayout down(limits_);
  for (const auto& [grammar, count] : flight.ahead) grammar->rollback(count);
  flight.ahead.clear();
  const auto* results = reinterpret_cast<const SampleResult*>(flight.down.data());
  const auto* top_ids = reinterpret_cast<const int32_t*>(flight.down.data() + down.top_ids);
  const auto* top_values = reinterpret_cast<const float*>(flight.down.data() + down.top_logprobs);
  for (size_t i = 0; i < flight.rows.size(); ++i) {
    const LogitRow& row = flight.rows[i];
    if (!row.sequence || (row.prompt_entry < 0 && !rule_.counts(row, result))) continue;
    const SampleResult& one = results[i];
    TokenLogprob logprob{.logprob = one.logprob, .top = {}};
    for (int32_t j = 0; j < one.num_top; ++j) {
      const size_t at = i * kMaxTopLogprobs + static_cast<size_t>(j);
      logprob.top.push_back({top_ids[at], top_values[at]});
    }
    if (row.prompt_entry < 0) {
      const int32_t token = rule_.takes_draft(row) ? row.next_draft : one.token;
      RowSampler::accept(step, row, {token, one.numeric_error != 0, std::move(logprob)}, result);
    } else {
      RowSampler::accept_prompt(row, {one.numeric_error != 0, std::move(logprob)}, result);
    }
  }
  const std::span<const ResultRow> made = step.results();
  for (size_t i = 0; i < made.size(); ++i) {
    const std::vector<int32_t>& tokens = result.rows[i].tokens;
    if (made[i].num_drafts == 0 || tokens.empty()) continue;
    if (!uses_penalties(made[i].sequence->request->sampling)) continue;
    late_.push_back({made[i].sequence->device_slot, tokens});
  }
}

}  // namespace weft
