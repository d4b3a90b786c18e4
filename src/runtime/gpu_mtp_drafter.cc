#include "runtime/gpu_mtp_drafter.h"

#include <algorithm>
#include <cstring>

#include "base/align.h"
#include "base/check.h"
#include "runtime/carver.h"

namespace weft {
namespace {

/// Lists of ids of the sequences that draft; with longer ones a sequence gets no drafts.
constexpr int64_t kMostBiases = 4096, kMostIds = 16384;

int64_t most_steps(const SpeculationConfig& config) {
  return config.uses_ngram() ? config.num_mtp_steps : config.num_speculative_tokens;
}

int64_t follow_bytes(const StepLimits& limits) {
  return aligned(limits.all_rows() * 4) + aligned(limits.max_seqs * 4);
}

int64_t result_bytes(const StepLimits& limits, const SpeculationConfig& config) {
  return limits.max_draft_seqs() * most_steps(config) * static_cast<int64_t>(sizeof(SampleResult));
}

/// The module's outputs behind a step, and behind rows that it went over late.
int64_t kept_rows(const StepLimits& limits) {
  return 2 * limits.max_seqs;
}

/// Rows of hidden states: of a step, kept behind it, of drafts.
int64_t hidden_rows(const StepLimits& limits) {
  return limits.all_rows() + kept_rows(limits) + limits.max_draft_seqs();
}

}  // namespace

GpuMtpDrafter::GpuMtpDrafter(const Parts& parts, const StepLimits& limits,
                             const SpeculationConfig& config, bool graphs, GpuLateRows late)
    : parts_(parts),
      limits_(limits),
      most_rows_(limits.max_draft_seqs()),
      most_steps_(most_steps(config)),
      table_width_(limits.max_table_width()),
      graphs_(graphs),
      follow_graphs_(graphs),
      done_(GpuEvent::create().value()),
      seen_(limits),
      late_(std::move(late)),
      lists_{.vocab = limits.vocab_size} {}

GpuMtpDrafter::Layout GpuMtpDrafter::layout(std::byte* base, int64_t rows, int64_t steps,
                                            int64_t table_width) {
  Carver carver(base);
  Layout out{};
  carver.take(out.biases, kMostBiases);
  carver.take(out.ids, kMostIds);
  carver.take(out.gather, rows);
  carver.take(out.delta, rows);
  carver.take(out.cu_q, rows + 1);
  carver.take(out.index, steps * rows);
  carver.take(out.kv_slot, steps * rows);
  carver.take(out.specs, steps * rows);
  out.block_table.width = table_width;
  carver.take(out.block_table.data, rows * table_width);
  out.bytes = carver.used();
  return out;
}

int64_t GpuMtpDrafter::up_bytes(const StepLimits& limits, const SpeculationConfig& config) {
  return layout(nullptr, limits.max_draft_seqs(), most_steps(config), limits.max_table_width())
      .bytes;
}

int64_t GpuMtpDrafter::device_bytes(const StepLimits& limits, const SpeculationConfig& config,
                                    int64_t hidden_size) {
  return up_bytes(limits, config) + follow_bytes(limits) +
         GpuLateRows::device_bytes(limits, hidden_size) +
         aligned(hidden_rows(limits) * hidden_size * 2) + result_bytes(limits, config);
}

Result<std::unique_ptr<GpuMtpDrafter>> GpuMtpDrafter::create(const Parts& parts,
                                                             const StepLimits& limits,
                                                             const SpeculationConfig& config,
                                                             const Shared& shared, bool graphs) {
  CHECK(parts.model.spec().mtp.has_value() && limits.max_draft_rows > 0);
  std::unique_ptr<GpuMtpDrafter> out(
      new GpuMtpDrafter(parts, limits, config, graphs, TRY(GpuLateRows::create(parts, limits))));
  CHECK(shared.logits.dim(0) >= out->most_rows_ &&
        shared.drafts.dim(0) >= out->most_steps_ * out->most_rows_);
  out->logits_ = shared.logits;
  out->counts_ = shared.counts;
  out->drafts_ = shared.drafts;
  TRY(out->allocate(config, parts.model.spec().hidden));
  return out;
}

Result<> GpuMtpDrafter::allocate(const SpeculationConfig& config, int64_t hidden) {
  const DeviceKind device = parts_.ops.device;
  const int64_t up = up_bytes(limits_, config);
  up_ = TRY(Buffer::allocate(DeviceKind::kPinned, up));
  up_device_ = TRY(Buffer::allocate(device, up));
  follow_up_ = TRY(Buffer::allocate(DeviceKind::kPinned, follow_bytes(limits_)));
  follow_up_device_ = TRY(Buffer::allocate(device, follow_bytes(limits_)));
  const int64_t results = result_bytes(limits_, config);
  down_ = TRY(Buffer::allocate(DeviceKind::kPinned, results));
  const DType type = parts_.ops.activation;
  const int64_t row = hidden * dtype_size(type);
  const int64_t rows = hidden_rows(limits_);
  device_ = TRY(Buffer::allocate(device, aligned(rows * row) + results));
  std::byte* at = device_.data();
  const TensorView all(at, type, {rows, hidden});
  const int64_t kept_at = limits_.all_rows(), previous_at = kept_at + kept_rows(limits_);
  hidden_ = all.rows(0, kept_at);
  kept_ = all.rows(kept_at, previous_at);
  previous_ = all.rows(previous_at, rows);
  at += aligned(rows * row);
  results_ = reinterpret_cast<SampleResult*>(at);
  fill_bytes(parts_.stream, device_.data(), 0, device_.bytes());
  fill_bytes(parts_.stream, drafts_.data, 0, drafts_.bytes());
  return {};
}

/// The module's output of row `row` of kept_ is the sequence's.
void GpuMtpDrafter::note_kept(ExecutorSequence& sequence, int64_t row, uint64_t number) const {
  DraftState& state = draft_state(sequence);
  // With late rows the output would not know of those.
  state.hidden_at = late_.has(state) ? -1 : sequence.last_index();
  state.hidden_row = row;
  state.hidden_step = number;
}

/// The cache needs all rows, the next drafts one a sequence.
void GpuMtpDrafter::run_behind(Arena& arena, const StepBatch& batch, TensorView kept_rows) {
  const ArenaScope scope(arena);
  StepContext context{parts_.stream, parts_.ops, arena, batch, parts_.kv};
  const int64_t rows = batch.num_rows(), num_kept = kept_rows.dim(0);
  const TensorView to = kept_.rows(0, num_kept);
  const AskedRows asked{.rows = kept_rows};
  if (num_kept < rows) context.asked = &asked;
  const TensorView out = parts_.model.mtp_hidden(context, hidden(rows));
  if (context.asked != nullptr) return copy_bytes(parts_.stream, to.data, out.data, to.bytes());
  parts_.ops.embed(parts_.stream, {.ids = kept_rows, .table = out, .out = to});
}

void GpuMtpDrafter::follow(Arena& arena, PackedStep& step, const StepResult& result) {
  const int64_t rows = step.batch().num_rows();
  ++num_followed_;
  num_kept_ = 0;
  if (rows == 0) return;
  auto* next = reinterpret_cast<int32_t*>(follow_up_.data());
  const int64_t kept_at = aligned(rows * 4);
  auto* kept = reinterpret_cast<int32_t*>(follow_up_.data() + kept_at);
  StepBatch batch = step.batch();
  batch.images.runs = next_tokens_.shift(step, result, next);
  batch.ids = TensorView(follow_up_device_.data(), DType::kI32, {rows});
  const std::span<const ResultRow> results = step.results();
  for (size_t i = 0; i < results.size(); ++i) {
    const ResultRow& row = results[i];
    const auto count = std::ssize(result.rows[i].tokens);
    if (row.row < 0 || count == 0 || num_kept_ == limits_.max_seqs) continue;
    note_kept(*row.sequence, num_kept_, num_followed_);
    kept[num_kept_++] = static_cast<int32_t>(row.row + count - 1);
  }
  copy_bytes(parts_.stream, follow_up_device_.data(), follow_up_.data(), kept_at + num_kept_ * 4);
  run_behind(arena, batch,
             TensorView(follow_up_device_.data() + kept_at, DType::kI32, {num_kept_}));
}

uint64_t GpuMtpDrafter::follow_ahead(Arena& arena, const PackedStep& step,
                                     const GpuSampler::Accepted& accepted,
                                     const GpuGraphs::Key& shape) {
  StepBatch batch = step.batch();
  batch.ids = accepted.next_ids;
  num_kept_ = batch.seqs.num_segments;
  const bool graph = follow_graphs_.run(parts_.stream, shape,
                                        [&] { run_behind(arena, batch, accepted.last_rows); });
  num_graph_launches_ += graph ? 1 : 0;
  return ++num_followed_;
}

void GpuMtpDrafter::followed(const PackedStep& step, const StepResult& result,
                             uint64_t number) const {
  const std::span<const ResultRow> results = step.results();
  int64_t segment = 0;  // every one samples
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].row < 0) continue;
    if (!result.rows[i].tokens.empty()) note_kept(*results[i].sequence, segment, number);
    ++segment;
  }
}

void GpuMtpDrafter::catch_up(Arena& arena, std::span<const LateRows> rows) {
  if (put_off_ && !late_.full()) return;
  if (put_off_) {  // everybody has gone on behind what was kept
    num_kept_ = 0;
    ++num_followed_;
  }
  GpuLateRows::Kept kept{kept_, num_kept_, num_followed_};
  late_.catch_up(arena, rows, hidden_, kept);
  num_kept_ = kept.used;
}

bool GpuMtpDrafter::knows(const DraftRow& row) const {
  const DraftState& state = *row.sequence->drafts;
  return state.hidden_at == row.first && state.hidden_step == num_followed_ && state.seen_to >= 0 &&
         2 * state.seen_from <= row.first;
}

/// False: its lists are too long.
bool GpuMtpDrafter::add_draw(const SamplingParams& params, SampleSpec& spec) {
  const size_t biases = lists_.biases.size(), ids = lists_.ids.size();
  lists_.add_draw(params, spec);
  if (std::ssize(lists_.biases) <= kMostBiases && std::ssize(lists_.ids) <= kMostIds) return true;
  lists_.biases.resize(biases);
  lists_.ids.resize(ids);
  return false;
}

void GpuMtpDrafter::propose(Arena& arena, std::span<DraftRow> rows) {
  order_.clear();
  specs_.clear();
  lists_.clear();
  for (DraftRow& row : rows) {
    if (row.wanted <= 0 || !knows(row)) continue;
    SampleSpec spec{.slot = static_cast<int32_t>(order_.size())};
    const SamplingParams& params = row.sequence->drafts->sampling;
    if (!add_draw(params, spec)) continue;
    if (uses_penalties(params)) {
      spec.counts_slot = row.sequence->device_slot;
      spec.counts_later = 1;
    }
    row.sequence->drafts->draft_row = std::ssize(order_);
    row.count = row.wanted;
    order_.push_back(&row);
    specs_.push_back(spec);
  }
  if (order_.empty()) return;
  const auto count = std::ssize(order_);
  CHECK(count <= most_rows_);
  const int64_t padded = padded_ = padded_rows(count, most_rows_);
  int64_t steps = 0;
  for (const DraftRow* row : order_) steps = std::max<int64_t>(steps, row->wanted);
  steps = std::min(steps, most_steps_);
  Layout host = layout(up_.data(), padded, steps, table_width_);
  std::copy(lists_.biases.begin(), lists_.biases.end(), host.biases);
  std::copy(lists_.ids.begin(), lists_.ids.end(), host.ids);
  for (int64_t i = 0; i < count; ++i) set_row(host, i, padded, steps);
  for (int64_t i = count; i < padded; ++i) set_padding(host, i, padded, steps);
  host.cu_q[padded] = static_cast<int32_t>(count);
  const bool lists = !lists_.biases.empty() || !lists_.ids.empty();
  const int64_t skipped = lists ? 0 : reinterpret_cast<std::byte*>(host.gather) - up_.data();
  upload_with(parts_.stream, host.block_table, padded, up_device_.data() + skipped,
              up_.data() + skipped);
  const bool greedy = std::all_of(specs_.begin(), specs_.end(), is_plainly_greedy);
  const bool graph = graphs_.run(parts_.stream, {padded, steps, greedy ? 1 : 0},
                                 [&] { run(arena, padded, steps, greedy); });
  num_graph_launches_ += graph ? 1 : 0;
  copy_bytes(parts_.stream, down_.data(), results_,
             steps * padded * static_cast<int64_t>(sizeof(SampleResult)));
  done_.record(parts_.stream);
}

void GpuMtpDrafter::take() {
  if (order_.empty()) return;
  done_.wait();
  for (int64_t i = 0; i < std::ssize(order_); ++i) take_row(*order_[static_cast<size_t>(i)], i);
}

void GpuMtpDrafter::feed(PackedStep& step) const {
  for (const ResultRow& row : step.results()) {
    for (int64_t i = 0; i < row.num_drafts; ++i) {
      step.feed()[row.row + 1 + i] =
          static_cast<int32_t>(limits_.max_seqs + i * padded_ + row.sequence->drafts->draft_row);
    }
  }
}

/// A step feeds the draft before it, at the position of the token before that one. Behind what the
/// row wants nothing is written.
void GpuMtpDrafter::set_row(Layout& to, int64_t row, int64_t rows, int64_t steps) {
  const DraftRow& draft = *order_[static_cast<size_t>(row)];
  to.gather[row] = static_cast<int32_t>(draft.sequence->drafts->hidden_row);
  to.delta[row] = draft.sequence->request->rope_delta;
  to.cu_q[row] = static_cast<int32_t>(row);
  to.block_table.set(row, draft.blocks);
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step * rows + row;
    const bool fed = step > 0 && step < draft.wanted;
    const int64_t position = fed ? draft.first + step - 1 : draft.first;
    const int64_t block = position / limits_.block_size, in_block = position % limits_.block_size;
    to.index[at] = static_cast<int32_t>(position);
    to.kv_slot[at] =
        !fed ? -1
             : int64_t{draft.blocks[static_cast<size_t>(block)].value} * limits_.block_size +
                   in_block;
    SampleSpec& spec = to.specs[at] = specs_[static_cast<size_t>(row)];
    if (step >= draft.wanted) spec.slot = -1;
    spec.position = draft.first + 1 + step;
  }
}

/// A row that nothing is written for, in a segment without rows.
void GpuMtpDrafter::set_padding(Layout& to, int64_t row, int64_t rows, int64_t steps) const {
  to.gather[row] = to.delta[row] = 0;
  to.cu_q[row] = static_cast<int32_t>(order_.size());
  to.block_table.set(row, {});
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step * rows + row;
    to.index[at] = 0;
    to.kv_slot[at] = -1;
    to.specs[at] = {};
  }
}

void GpuMtpDrafter::run(Arena& arena, int64_t rows, int64_t steps, bool greedy) {
  const Layout device = layout(up_device_.data(), rows, steps, table_width_);
  const TensorView previous = previous_.rows(0, rows), logits = logits_.rows(0, rows);
  parts_.ops.embed(
      parts_.stream,
      {.ids = TensorView(device.gather, DType::kI32, {rows}), .table = kept_, .out = previous});
  for (int64_t step = 0; step < steps; ++step) {
    const ArenaScope scope(arena);
    StepBatch batch;
    if (step > 0) batch.ids = drafts_.rows((step - 1) * rows, step * rows);
    batch.positions = {.index = TensorView(device.index + step * rows, DType::kI32, {rows}),
                       .delta = TensorView(device.delta, DType::kI32, {rows})};
    batch.kv_slot = TensorView(device.kv_slot + step * rows, DType::kI64, {rows});
    batch.seqs = {
        .cu_q = TensorView(device.cu_q, DType::kI32, {rows + 1}),
        .kv_start = batch.positions.index,
        .block_table = TensorView(device.block_table.data, DType::kI32, {rows, table_width_}),
        .num_segments = static_cast<int>(rows)};
    StepContext context{parts_.stream, parts_.ops, arena, batch, parts_.kv};
    TensorView hidden = previous;
    if (step > 0) {
      hidden = parts_.model.mtp_hidden(context, previous);
      copy_bytes(parts_.stream, previous.data, hidden.data, previous.bytes());
    }
    parts_.model.draft_tokens(context, hidden,
                              {.logits = logits,
                               .specs = device.specs + step * rows,
                               .biases = device.biases,
                               .ids = device.ids,
                               .counts = counts_,
                               .last_token = drafts_.rows(step * rows, (step + 1) * rows),
                               .results = results_ + step * rows,
                               .only_greedy = greedy});
  }
}

/// The drafts of a row, up to an error, the end of the text, or what its grammar does not take.
void GpuMtpDrafter::take_row(DraftRow& row, int64_t at) const {
  const auto* results = reinterpret_cast<const SampleResult*>(down_.data());
  const SamplingParams& params = row.sequence->drafts->sampling;
  GrammarMatcher* const grammar = row.sequence->grammar.get();
  int advanced = 0;
  row.count = 0;
  for (int step = 0; step < row.wanted; ++step) {
    const SampleResult& one = results[step * padded_ + at];
    if (one.numeric_error != 0) break;
    const bool stop = is_stop(params, one.token);
    if (grammar != nullptr && !stop) {
      if (!grammar->accept(one.token)) break;
      ++advanced;
    }
    row.drafts[static_cast<size_t>(row.count++)] = one.token;
    if (stop) break;
  }
  if (grammar != nullptr) grammar->rollback(advanced);
}

}  // namespace weft
