#include "runtime/mtp_drafter.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/thread_pool.h"
#include "runtime/carver.h"

namespace weft {
namespace {

/// Rows of prompts of a step from which on the module leaves out what nobody reads.
constexpr int64_t kManyRows = 32;
/// Of a text of which the module has not seen all, behind what it has not.
constexpr int64_t kSeenAtLeast = 128;

/// Adds the time of this thread.
class Watch {
 public:
  explicit Watch(double& to) : to_(to), begin_(busy_seconds()) {}
  ~Watch() { to_ += busy_seconds() - begin_; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  double& to_;
  double begin_;
};

/// Of a pass: a row a sequence, or late rows of some.
int64_t most_rows(const StepLimits& limits) {
  return std::max(limits.max_draft_seqs(), DraftState::kMostLate);
}

}  // namespace

MtpDrafter::MtpDrafter(const Parts& parts, const StepLimits& limits)
    : parts_(parts),
      limits_(limits),
      seen_(limits),
      sampler_(limits.vocab_size, parts.stream.pool().num_threads()),
      sampled_(static_cast<size_t>(limits.max_draft_seqs())) {}

MtpDrafter::Layout MtpDrafter::layout(std::byte* base, const StepLimits& limits,
                                      int64_t hidden_size) {
  const int64_t rows = limits.max_draft_seqs(), most = most_rows(limits);
  Carver carver(base);
  Layout out{};
  carver.take(out.next_ids, limits.all_rows());
  carver.take(out.previous, most * hidden_size);
  carver.take(out.logits, rows * limits.vocab_size);
  carver.take(out.ids, most);
  carver.take(out.index, most);
  carver.take(out.delta, most);
  carver.take(out.cu_q, rows + 1);
  carver.take(out.kv_start, rows);
  carver.take(out.block_table, rows * limits.max_table_width());
  carver.take(out.kv_slot, most);
  out.bytes = carver.used();
  return out;
}

int64_t MtpDrafter::bytes(const StepLimits& limits, int64_t hidden_size, int num_threads) {
  return layout(nullptr, limits, hidden_size).bytes +
         Sampler::scratch_bytes(limits.vocab_size, num_threads);
}

Result<MtpDrafter> MtpDrafter::create(const Model& model, KvStore& kv, Stream& stream,
                                      const OpTable& ops, const StepLimits& limits) {
  CHECK(model.spec().mtp.has_value() && limits.max_draft_rows > 0);
  MtpDrafter out({model, kv, stream, ops}, limits);
  const int64_t hidden = model.spec().hidden, rows = limits.max_draft_seqs();
  out.buffer_ = TRY(Buffer::allocate(DeviceKind::kCpu, layout(nullptr, limits, hidden).bytes));
  out.at_ = layout(out.buffer_.data(), limits, hidden);
  out.next_ids_ = TensorView(out.at_.next_ids, DType::kI32, {limits.all_rows()});
  out.previous_ = TensorView(out.at_.previous, DType::kF32, {most_rows(limits), hidden});
  out.logits_ = TensorView(out.at_.logits, DType::kF32, {rows, limits.vocab_size});
  return out;
}

void MtpDrafter::follow(StepContext& context, PackedStep& step, TensorView hidden,
                        const StepResult& result) {
  const Watch watch(seconds_);
  if (put_off_ && take_note(step, hidden, result)) return;
  const int64_t rows = step.batch().num_rows();
  const std::span<const ResultRow> results = step.results();
  StepBatch batch = step.batch();
  batch.ids = next_ids_.rows(0, rows);
  batch.images.runs = next_tokens_.shift(step, result, next_ids_.ptr<int32_t>());

  const ArenaScope scope(context.arena);
  StepContext own{context.stream, context.ops, context.arena, batch, context.kv};
  if (batch.prompt_rows >= kManyRows && limits_.all_rows() >= DraftState::kMostLate) {
    // Keys and values of all rows; those that drafts start from go through the whole module when
    // somebody drafts.
    const AskedRows none{step.asked().rows.rows(0, 0)};
    own.asked = &none;
    parts_.model.mtp_hidden(own, hidden);
    take_last_rows(step, hidden, result);
    return;
  }
  const TensorView out = parts_.model.mtp_hidden(own, hidden);
  for (size_t i = 0; i < results.size(); ++i) {
    const ResultRow& row = results[i];
    const auto count = std::ssize(result.rows[i].tokens);
    if (row.row < 0 || count == 0) continue;
    DraftState& state = draft_state(*row.sequence);
    if (state.seen_from > 0) {  // this pass looked further back
      take_last_row(row, hidden, result.rows[i].tokens);
      continue;
    }
    const float* from = out.row<float>(row.row + count - 1);
    state.hidden.assign(from, from + out.dim(1));
    state.hidden_at = row.sequence->last_index();
  }
}

/// False: these rows can't wait.
bool MtpDrafter::take_note(const PackedStep& step, TensorView hidden, const StepResult& result) {
  const std::span<const ResultRow> results = step.results();
  const bool one_each = step.batch().num_rows() == std::ssize(results) &&
                        std::all_of(results.begin(), results.end(), [](const ResultRow& row) {
                          return row.row >= 0 && row.num_drafts == 0;
                        });
  if (!one_each || limits_.all_rows() < DraftState::kMostLate) return false;
  take_last_rows(step, hidden, result);
  return true;
}

/// Takes note of the row before the last token of every sequence that got one.
void MtpDrafter::take_last_rows(const PackedStep& step, TensorView hidden,
                                const StepResult& result) {
  const std::span<const ResultRow> results = step.results();
  for (size_t i = 0; i < results.size(); ++i) {
    take_last_row(results[i], hidden, result.rows[i].tokens);
  }
}

void MtpDrafter::take_last_row(const ResultRow& row, TensorView hidden,
                               const std::vector<int32_t>& tokens) {
  if (row.row < 0 || tokens.empty()) return;
  DraftState& state = draft_state(*row.sequence);
  const int64_t at = row.sequence->last_index() - 1;
  if (at < state.seen_from) return;
  if (state.late_first + std::ssize(state.late_tokens) != at) state.forget_late();
  if (state.late_tokens.empty()) state.late_first = at;
  state.late_tokens.push_back(tokens.back());
  const float* from = hidden.row<float>(row.row + std::ssize(tokens) - 1);
  state.late_hidden.insert(state.late_hidden.end(), from, from + hidden.dim(1));
}

void MtpDrafter::catch_up(Arena& arena, std::span<const LateRows> rows) {
  const Watch watch(seconds_);
  while (!rows.empty()) {
    int64_t count = 0;
    size_t taken = 0;
    for (; taken < rows.size() && std::ssize(rows.first(taken)) < limits_.max_draft_seqs();
         ++taken) {
      const int64_t more = std::ssize(rows[taken].sequence->drafts->late_tokens);
      if (taken > 0 && count + more > DraftState::kMostLate) break;
      count += more;
    }
    catch_up_at_once(arena, rows.first(taken));
    rows = rows.subspan(taken);
  }
}

void MtpDrafter::catch_up_at_once(Arena& arena, std::span<const LateRows> rows) {
  int64_t count = 0, longest = 1;
  at_.cu_q[0] = 0;
  for (size_t s = 0; s < rows.size(); ++s) {
    const DraftState& state = *rows[s].sequence->drafts;
    const auto segment = static_cast<int64_t>(s), tokens = std::ssize(state.late_tokens);
    CHECK(count + tokens <= previous_.dim(0), "too many rows were put off");
    const int64_t skipped = set_block_table(segment, state, rows[s].blocks);
    at_.kv_start[s] = static_cast<int32_t>(state.late_first - skipped);
    std::copy(state.late_hidden.begin(), state.late_hidden.end(), previous_.row<float>(count));
    for (int64_t i = 0; i < tokens; ++i, ++count) {
      const int64_t at = state.late_first + i, block = at / limits_.block_size;
      at_.ids[count] = state.late_tokens[static_cast<size_t>(i)];
      at_.index[count] = static_cast<int32_t>(at);
      at_.delta[count] = rows[s].sequence->request->rope_delta;
      at_.kv_slot[count] =
          rows[s].blocks[static_cast<size_t>(block)].value * int64_t{limits_.block_size} +
          at % limits_.block_size;
    }
    at_.cu_q[s + 1] = static_cast<int32_t>(count);
    longest = std::max(longest, tokens);
  }
  const auto segments = std::ssize(rows);
  set_batch(count, segments);
  batch_.max_decode_len = static_cast<int>(longest);
  const ArenaScope scope(arena);
  StepContext context{parts_.stream, parts_.ops, arena, batch_, parts_.kv};
  const TensorView out = parts_.model.mtp_hidden(context, previous_.rows(0, count));
  for (size_t s = 0; s < rows.size(); ++s) {
    DraftState& state = *rows[s].sequence->drafts;
    const float* from = out.row<float>(at_.cu_q[s + 1] - 1);
    state.hidden.assign(from, from + out.dim(1));
    state.hidden_at = state.late_first + std::ssize(state.late_tokens);
    state.forget_late();
  }
}

/// Of what the module has seen; says how many tokens are left out before that.
int64_t MtpDrafter::set_block_table(int64_t segment, const DraftState& state,
                                    std::span<const BlockId> blocks) {
  blocks = blocks.subspan(static_cast<size_t>(state.seen_from / limits_.block_size));
  const int64_t width = limits_.max_table_width();
  int32_t* table = at_.block_table + segment * width;
  for (size_t b = 0; b < blocks.size(); ++b) table[b] = blocks[b].value;
  std::fill(table + blocks.size(), table + width, -1);
  return state.seen_from;
}

/// The batch over the arrays; a segment is one row unless the caller says more.
void MtpDrafter::set_batch(int64_t rows, int64_t segments) {
  batch_ = {};
  batch_.ids = TensorView(at_.ids, DType::kI32, {rows});
  batch_.positions = {.index = TensorView(at_.index, DType::kI32, {rows}),
                      .delta = TensorView(at_.delta, DType::kI32, {rows})};
  batch_.kv_slot = TensorView(at_.kv_slot, DType::kI64, {rows});
  batch_.seqs.cu_q = TensorView(at_.cu_q, DType::kI32, {segments + 1});
  batch_.seqs.kv_start = TensorView(at_.kv_start, DType::kI32, {segments});
  batch_.seqs.block_table =
      TensorView(at_.block_table, DType::kI32, {segments, limits_.max_table_width()});
  batch_.seqs.num_segments = static_cast<int>(segments);
}

void MtpDrafter::propose(Arena& arena, std::span<DraftRow> rows) {
  order_.clear();
  for (DraftRow& row : rows) {
    const DraftState& state = *row.sequence->drafts;
    const bool seen = state.seen_from == 0 || row.first - state.seen_from >= kSeenAtLeast;
    if (row.wanted > 0 && seen && state.hidden_at == row.first) order_.push_back(&row);
  }
  if (order_.empty()) return;
  CHECK(std::ssize(order_) <= previous_.dim(0));
  // Those that want many come first, so that the rows of every pass are the first ones.
  std::stable_sort(order_.begin(), order_.end(),
                   [](const DraftRow* a, const DraftRow* b) { return a->wanted > b->wanted; });
  const int64_t width = previous_.dim(1);
  for (size_t i = 0; i < order_.size(); ++i) {
    const std::vector<float>& hidden = order_[i]->sequence->drafts->hidden;
    std::copy(hidden.begin(), hidden.end(), previous_.row<float>(static_cast<int64_t>(i)));
  }
  for (int step = 0; step < order_.front()->wanted; ++step) {
    auto count = static_cast<int64_t>(
        std::find_if(order_.begin(), order_.end(),
                     [step](const DraftRow* row) { return row->wanted <= step; }) -
        order_.begin());
    const std::span<DraftRow* const> active = std::span(order_).first(static_cast<size_t>(count));
    const bool alive = std::any_of(active.begin(), active.end(),
                                   [step](const DraftRow* row) { return row->count == step; });
    if (!alive) break;
    const ArenaScope scope(arena);
    make_batch(active, step);
    StepContext context{parts_.stream, parts_.ops, arena, batch_, parts_.kv};
    const TensorView previous = previous_.rows(0, count);
    if (step > 0) {
      const TensorView hidden = parts_.model.mtp_hidden(context, previous);
      std::memcpy(previous.data, hidden.data, static_cast<size_t>(count * width * 4));
    }
    parts_.model.draft_logits(context, previous, logits_.rows(0, count));
    sample(active, step);
  }
  for (DraftRow* row : order_) {
    if (!row->sequence->grammar) continue;
    const SamplingParams& params = row->sequence->drafts->sampling;
    int taken = row->count;
    if (taken > 0 && is_stop(params, row->drafts[static_cast<size_t>(taken) - 1])) --taken;
    row->sequence->grammar->rollback(taken);
  }
}

/// Row i feeds the draft before `step` of rows[i], at the position of the token before it.
void MtpDrafter::make_batch(std::span<DraftRow* const> rows, int step) {
  const auto count = std::ssize(rows);
  for (int64_t i = 0; i < count; ++i) {
    const DraftRow& row = *rows[static_cast<size_t>(i)];
    const int64_t at = row.first + step - 1;
    at_.cu_q[i] = static_cast<int32_t>(i);
    at_.ids[i] = step > 0 && row.count >= step ? row.drafts[static_cast<size_t>(step) - 1] : 0;
    at_.index[i] = static_cast<int32_t>(std::max<int64_t>(at, 0));
    at_.delta[i] = row.sequence->request->rope_delta;
    const int64_t skipped = set_block_table(i, *row.sequence->drafts, row.blocks);
    at_.kv_start[i] = static_cast<int32_t>(std::max<int64_t>(at_.index[i] - skipped, 0));
    const auto block = static_cast<size_t>(at_.index[i] / limits_.block_size);
    at_.kv_slot[i] =
        int64_t{row.blocks[block].value} * limits_.block_size + at_.index[i] % limits_.block_size;
  }
  at_.cu_q[count] = static_cast<int32_t>(count);
  set_batch(count, count);
}

/// The next draft of every row that still goes on, drawn as the request draws its tokens: with the
/// same random number at the same position, a good module then draws the same token.
void MtpDrafter::sample(std::span<DraftRow* const> rows, int step) {
  sample_rows_.clear();
  sampled_rows_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    DraftRow& row = *rows[i];
    ExecutorSequence& sequence = *row.sequence;
    const bool ended = row.count > 0 && is_stop(sequence.drafts->sampling,
                                                row.drafts[static_cast<size_t>(row.count) - 1]);
    if (ended || row.count != step) continue;
    const int64_t position = row.first + 1 + row.count;
    const std::span<float> logits(logits_.row<float>(static_cast<int64_t>(i)),
                                  static_cast<size_t>(limits_.vocab_size));
    sample_rows_.push_back({logits, &sequence.drafts->sampling, &sequence.history, position,
                            position - std::ssize(sequence.request->prompt),
                            sequence.grammar.get()});
    sampled_rows_.push_back(&row);
  }
  const std::span<SampledToken> out = std::span(sampled_).first(sample_rows_.size());
  sampler_.sample(parts_.stream.pool(), sample_rows_, out);
  for (size_t i = 0; i < out.size(); ++i) {
    DraftRow& row = *sampled_rows_[i];
    if (out[i].numeric_error) continue;
    GrammarMatcher* grammar = row.sequence->grammar.get();
    const bool stop = is_stop(row.sequence->drafts->sampling, out[i].token);
    if (grammar != nullptr && !stop && !grammar->accept(out[i].token)) continue;
    row.drafts[static_cast<size_t>(row.count++)] = out[i].token;
  }
}

}  // namespace weft
