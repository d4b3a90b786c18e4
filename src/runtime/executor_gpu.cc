#include "runtime/executor_gpu.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "device/gpu.h"
#include "models/prefill.h"
#include "runtime/row_sampler.h"
#include "runtime/swap.h"

namespace weft {
namespace {

/// Rows of logits that are alive at once: every sequence of a decode step and its drafts, and
/// pieces of what prompts ask for.
int64_t logit_rows(const StepLimits& limits) {
  return std::min(std::max<int64_t>(64, limits.max_seqs + limits.max_draft_rows),
                  limits.all_rows());
}

/// Of a prompt that is computed layer by layer, and those of them whose logits are needed.
int64_t residual_rows(const StepLimits& limits) {
  return limits.layered_rows > 0 ? limits.layered_rows + logit_rows(limits) : 0;
}

/// Prompt logprobs are asked of all rows of such a prompt at once.
StepLimits sampler_limits(StepLimits limits) {
  limits.max_rows = std::max(limits.max_rows, limits.layered_rows);
  return limits;
}

/// Masks of grammars depend on the tokens of the step before.
bool constrained(std::span<const LogitRow> rows) {
  return std::any_of(rows.begin(), rows.end(), [](const LogitRow& row) {
    return row.sequence && row.sequence->grammar && row.prompt_entry < 0;
  });
}

}  // namespace

Result<> GpuExecutor::check_limits(const StepLimits& limits) {
  const int64_t most = kMaxDecodeSegments - limits.max_rows / kChunk - 1;
  if (limits.max_seqs <= most) return {};
  return invalid_argument(
      fmt::format("--max-num-seqs: at most {} on a GPU with --max-num-batched-tokens {}", most,
                  limits.max_rows));
}

int64_t GpuExecutor::device_bytes(const StepLimits& limits, int64_t hidden_size,
                                  const SpeculationConfig& speculation) {
  constexpr auto kFlights = static_cast<int64_t>(kStepsInFlight);
  const int64_t module =
      speculation.uses_mtp() ? GpuMtpDrafter::device_bytes(limits, speculation, hidden_size) : 0;
  const int64_t texts = speculation.uses_ngram() ? GpuNgrams::device_bytes(limits, speculation) : 0;
  return module + texts + kFlights * PackedStep::bytes(limits) +
         GpuSampler::device_bytes(sampler_limits(limits), kFlights) +
         logit_rows(limits) * (limits.vocab_size * 4 + hidden_size * 2) +
         residual_rows(limits) * hidden_size * 4;
}

GpuExecutor::GpuExecutor(const Parts& parts, const StepLimits& limits,
                         const GpuExecutorOptions& options, GpuSampler sampler, GpuStream uploads)
    : parts_(parts),
      limits_(limits),
      options_(options),
      sampler_(std::move(sampler)),
      upload_stream_(std::move(uploads)),
      uploads_(parts.stream.pool(), parts.stream.scratch(), upload_stream_.native()),
      graphs_(options.graphs) {
  if (options.speculation.on()) {
    speculator_.emplace(options.speculation, limits, /*on_gpu=*/true);
    speculator_->set_num_layers(parts.model.spec().layers.size());
    if (limits.recurrent) kept_rows_ = std::make_unique<KeptRows>(limits);
  }
  padded_.reserve(static_cast<size_t>(limits.max_seqs + limits.max_draft_rows));
}

GpuExecutor::~GpuExecutor() {
  synchronize(uploads_);
  synchronize(parts_.stream);
}

Result<std::unique_ptr<GpuExecutor>> GpuExecutor::create(const Model& model, KvStore& kv,
                                                         Stream& stream, const OpTable& ops,
                                                         const StepLimits& limits,
                                                         const GpuExecutorOptions& options) {
  const SpeculationConfig& drafts = options.speculation;
  CHECK(drafts.on() == (limits.max_draft_rows > 0));
  CHECK(!drafts.on() || !limits.recurrent || limits.kept_rows > drafts.num_speculative_tokens);
  const DraftRule rule{drafts.accept, drafts.simulated_acceptance};
  std::unique_ptr<GpuExecutor> out(new GpuExecutor(
      {model, kv, stream, ops}, limits, options,
      TRY(GpuSampler::create(ops, sampler_limits(limits), rule)), TRY(GpuStream::create())));
  out->arena_ = Arena(TRY(Buffer::allocate(ops.device, model.arena_bytes(limits.all_rows()))));
  const int64_t rows = logit_rows(limits), hidden = model.spec().hidden, vocab = limits.vocab_size;
  out->logit_buffer_ =
      TRY(Buffer::allocate(ops.device, rows * (vocab * 4 + hidden * dtype_size(ops.activation))));
  std::byte* at = out->logit_buffer_.data();
  out->logits_ = TensorView(at, DType::kF32, {rows, vocab});
  out->gathered_ = TensorView(at + rows * vocab * 4, ops.activation, {rows, hidden});
  if (model.vision() && limits.image_tokens > 0) {
    out->vision_.emplace(TRY(VisionEncoder::create(*model.vision(), stream, ops, limits)));
  }
  if (residual_rows(limits) > 0) {
    out->residual_buffer_ = TRY(Buffer::allocate(ops.device, residual_rows(limits) * hidden * 4));
    const TensorView all(out->residual_buffer_.data(), DType::kF32,
                         {residual_rows(limits), hidden});
    out->residual_ = all.rows(0, limits.layered_rows);
    out->residual_rows_ = all.rows(limits.layered_rows, residual_rows(limits));
  }
  if (has_sparse_prefill(model.spec())) {
    out->plan_buffer_ = TRY(Buffer::allocate(ops.device, sizeof(PlanCounters)));
    fill_bytes(stream, out->plan_buffer_.data(), 0, sizeof(PlanCounters));
    out->plans_.device = reinterpret_cast<PlanCounters*>(out->plan_buffer_.data());
  }
  if (drafts.uses_mtp()) {
    out->mtp_ = TRY(GpuMtpDrafter::create(
        out->parts_, limits, drafts, {out->logits_, out->sampler_.counts(), out->sampler_.drafts()},
        options.graphs));
  }
  if (drafts.uses_ngram()) {
    out->ngrams_ = TRY(GpuNgrams::create(stream, ops, limits, drafts));
    out->speculator_->set_ngrams(out->ngrams_.get());
  }
  for (size_t i = 0; i < kStepsInFlight; ++i) {
    out->flights_[i].emplace(
        Flight{.index = i,
               .step = TRY(PackedStep::create(limits, ops.device)),
               .sampling = TRY(GpuSampler::make_flight(sampler_limits(limits))),
               .uploaded = TRY(GpuEvent::create()),
               .done = TRY(GpuEvent::create()),
               .result = {},
               .plans = TRY(Buffer::allocate(DeviceKind::kPinned, sizeof(PlanCounters)))});
    PackedStep& step = out->flights_[i]->step;
    step.set_kept_rows(out->kept_rows_.get());
    if (out->vision_) step.set_image_features(out->vision_->features());
  }
  for (size_t i = 0; i < 2 * kStepsInFlight; ++i) {
    GpuEvent begin = TRY(GpuEvent::create(/*timed=*/true));
    GpuEvent forward = TRY(GpuEvent::create(/*timed=*/true));
    out->times_.push_back(
        {std::move(begin), std::move(forward), TRY(GpuEvent::create(/*timed=*/true))});
  }
  return out;
}

/// The tokens of the step before, if it has not been finished; the module's work behind them
/// belongs to this step.
void GpuExecutor::finish_for_drafts(Flight& before, Flight& flight) {
  if (!before.pending) return;
  before.done.wait();
  if (mtp_ && !flight.begun) times(flight.number).begin.record(parts_.stream);
  flight.begun = mtp_ != nullptr;
  finish(before);
}

/// With drafts, in this step or the one before, the tokens of that one say where its sequences are.
/// While nobody drafts steps overlap as they do without speculation.
const StepPlan& GpuExecutor::resolved(const StepPlan& plan, Flight& flight) {
  if (!speculator_) return plan;
  Flight& before = *flights_[1 - flight.index];
  if (before.settles) finish_for_drafts(before, flight);
  const bool drafts = speculator_->wants_drafts(plan);
  flight.ngrams = ngrams_ && drafts;
  flight.follows = mtp_ && speculator_->module_follows(plan.step);
  if (drafts || (flight.follows && mtp_->must_catch_up(true))) finish_for_drafts(before, flight);
  plan_.copy(plan);
  if (before.pending) {
    if (mtp_) mtp_->put_off(true);
    Speculator::resolve_ahead(plan_.plan);
    return plan_.plan;
  }
  const int64_t graphs = mtp_ ? mtp_->num_graph_launches() : 0;
  speculator_->resolve(plan_.plan, sequences_, mtp_.get(), arena_, /*later=*/true);
  if (mtp_) flight.result.device_graphs += static_cast<int>(mtp_->num_graph_launches() - graphs);
  return plan_.plan;
}

/// Where every slice is a token in decode arithmetic with its drafts, or has ended.
PaddedShape GpuExecutor::decode_shape(const StepPlan& plan) const {
  int64_t rows = 0, segments = 0;
  for (const Slice& slice : plan.slices) {
    if (slice.arithmetic != Arithmetic::kDecode) return {};
    if (slice.tokens.empty()) continue;
    if (std::ssize(slice.tokens) != 1 + slice.max_drafts) return {};
    rows += std::ssize(slice.tokens);
    ++segments;
  }
  if (segments > limits_.max_seqs) return {};  // a sequence has two
  PaddedShape out;
  if (rows == segments) {
    out.rows = out.segments = padded_rows(segments, limits_.max_seqs);
  } else {
    out.segments = padded_segments(segments, limits_.max_seqs);
    out.rows = padded_draft_rows(rows, out.segments, limits_.max_seqs + limits_.max_draft_rows);
  }
  return out;
}

int64_t GpuExecutor::num_new_graphs() const {
  return graphs_.num_new() + (mtp_ ? mtp_->num_new_graphs() : 0);
}

GpuGraphs::Key GpuExecutor::key(const Flight& flight) const {
  const StepBatch& batch = flight.step.batch();
  return {flight.shape.rows, flight.shape.segments, batch.max_decode_len,
          static_cast<int64_t>(flight.index), (batch.kept_rows ? 1 : 0) | (flight.follows ? 4 : 0)};
}

/// The step and, where it decodes, what its rows are sampled with. They go up beside the step
/// before, and the device's memory is free: the last step of this flight is done. Only the MTP
/// module may still go over that one's rows then, so there everything stays in one order.
void GpuExecutor::upload(Flight& flight) {
  Stream& uploads = this->uploads(flight);
  flight.step.upload(uploads);
  flight.piece.reset();
  if (flight.shape.rows > 0) {
    padded_.assign(static_cast<size_t>(flight.shape.rows), LogitRow{});
    for (const LogitRow& row : flight.step.logit_rows()) {
      padded_[static_cast<size_t>(row.row)] = row;
    }
    if (!constrained(padded_)) {
      flight.piece = sampler_.prepare({parts_.stream, uploads}, flight.sampling, padded_,
                                      logits_.rows(0, flight.shape.rows), /*alone=*/true);
    }
  }
  // Where every segment samples.
  flight.ngrams = flight.ngrams && flight.shape.rows > 0 && flight.step.next_tokens().empty();
  if (flight.ngrams) ngrams_->upload(uploads, flight.step, flight.shape.segments);
  flight.uploaded.record(uploads);
  if (!flight.module_reads) flight.uploaded.hold(parts_.stream);
}

void GpuExecutor::launch(const StepPlan& given) {
  CHECK(num_launched_ - num_collected_ < kStepsInFlight, "too many steps in flight");
  Flight& flight = *flights_[num_launched_ % kStepsInFlight];
  flight.number = num_launched_++;
  const Flight& before = *flights_[1 - flight.index];
  flight.begun = before.pending && before.followed > 0;
  flight.continues = before.pending;
  flight.aside = -1;
  flight.followed = 0;
  flight.result.device_graphs = 0;
  flight.module_reads = flight.follows;
  const StepPlan& plan = resolved(given, flight);
  flight.module_reads |= flight.follows;
  flight.shape = decode_shape(plan);
  sampler_.release(plan, sequences_);
  flight.step.pack(plan, sequences_, flight.shape);
  if (mtp_) mtp_->begin(plan, sequences_, flight.follows);
  flight.pending = true;
  const std::span<const ResultRow> results = flight.step.results();
  const bool drafts = std::any_of(results.begin(), results.end(),
                                  [](const ResultRow& row) { return row.num_drafts > 0; });
  RowSampler::begin(flight.step, flight.result);
  for (const BlockCopy& copy : flight.step.copies()) {
    parts_.kv.copy_block(parts_.stream, copy.from, copy.to);
  }
  swap_displaced(parts_.stream, parts_.kv, flight.step, nullptr);
  sampler_.admit(parts_.stream, flight.step, flight.sampling);
  const bool open = speculator_ && speculator_->is_open();
  if (open) mtp_->feed(flight.step);
  const bool any_rows = flight.step.batch().num_rows() > 0;
  if (any_rows) upload(flight);
  if (!flight.begun) times(flight.number).begin.record(parts_.stream);
  if (mtp_) times(flight.number).forward.record(parts_.stream);
  if (vision_) vision_->encode(flight.step.encodings());
  if (flight.step.layers().partial()) {
    run_layers(flight);
  } else if (flight.shape.rows > 0) {
    run_decode(flight);
    if (flight.follows && !drafts && mtp_->can_put_aside()) {
      flight.aside = mtp_->put_aside(flight.shape.rows);
    }
  } else if (any_rows) {
    run_mixed(flight);
  }
  flight.result.device_new_shape = num_new_graphs() > num_old_graphs_;
  num_old_graphs_ = num_new_graphs();
  times(flight.number).end.record(parts_.stream);
  sampler_.fetch(parts_.stream, flight.sampling);
  flight.has_plans = plans_.device != nullptr && flight.step.batch().num_prompt_segments > 0;
  if (flight.has_plans) {
    copy_bytes(parts_.stream, flight.plans.data(), plans_.device, sizeof(PlanCounters));
  }
  flight.done.record(parts_.stream);
  if (flight.follows && flight.aside < 0 && flight.shape.rows > 0 &&
      flight.step.next_tokens().empty()) {
    follow_ahead(flight);
  }
  flight.settles = drafts || (flight.follows && flight.aside < 0 && flight.followed == 0);
  if (open) settle(flight);
  if (ngrams_ && flight.follows) speculator_->read_ahead(plan, sequences_);
}

/// The module's pass behind a step that only decodes, while the host waits for its tokens: it
/// belongs to the next step.
void GpuExecutor::follow_ahead(Flight& flight) {
  times(flight.number + 1).begin.record(parts_.stream);
  const int64_t graphs = mtp_->num_graph_launches();
  flight.followed =
      mtp_->follow_ahead(arena_, flight.step, sampler_.accepted(flight.step.batch()), key(flight));
  flight.result.device_graphs += static_cast<int>(mtp_->num_graph_launches() - graphs);
}

/// The drafts, while they are verified. What went up had placeholders, and has to be there.
void GpuExecutor::settle(Flight& flight) {
  flight.uploaded.wait();
  speculator_->settle(*mtp_);
  GpuSampler::set_drafts(flight.step, flight.sampling);
}

/// `sampled`: null, or what its rows are sampled with, at once.
void GpuExecutor::forward_decode(const Flight& flight, const GpuSampler::Piece* sampled) {
  const ArenaScope scope(arena_);
  const PackedStep& step = flight.step;
  StepContext context{parts_.stream, parts_.ops, arena_, step.batch(), parts_.kv};
  sampler_.feed(parts_.stream, step);
  const TensorView hidden = parts_.model.hidden(context);
  keep(flight, hidden);
  if (!sampled) return parts_.model.logits(context, hidden, 0, logits_.rows(0, hidden.dim(0)));
  parts_.model.tokens(context, hidden, sampled->args);
  accept(flight);
}

/// What the device knows of the tokens, and where the texts go on with them.
void GpuExecutor::accept(const Flight& flight) {
  if (!speculator_) return;
  const StepBatch& batch = flight.step.batch();
  sampler_.accept(parts_.stream, batch, flight.sampling);
  if (flight.ngrams) ngrams_->propose(batch, sampler_.accepted(batch));
}

/// For the MTP module, which goes on from there when the tokens are known.
void GpuExecutor::keep(const Flight& flight, const TensorView& hidden) {
  if (flight.follows) copy_bytes(parts_.stream, mtp_->hidden(0).data, hidden.data, hidden.bytes());
}

void GpuExecutor::run_decode(Flight& flight) {
  // Sampling is a part of the graph where its arguments come again.
  GpuGraphs::Key all = key(flight);
  const bool sampled = flight.piece && flight.piece->number != 0;
  if (sampled) all.back() = flight.piece->number;
  if (sampled && flight.ngrams) all[4] |= 2;
  const bool graph = graphs_.run(
      parts_.stream, all, [&] { forward_decode(flight, sampled ? &*flight.piece : nullptr); });
  flight.result.device_graphs += graph ? 1 : 0;
  if (sampled) return;
  if (flight.piece) {
    sampler_.sample(parts_.stream, *flight.piece);
  } else {
    sample(flight, padded_);
  }
  accept(flight);
}

void GpuExecutor::run_mixed(Flight& flight) {
  const PackedStep& step = flight.step;
  const ArenaScope scope(arena_);
  StepContext context{parts_.stream, parts_.ops, arena_, step.batch(), parts_.kv};
  sampler_.feed(parts_.stream, step);
  const AskedRows& asked = step.asked();
  if (!flight.follows) context.asked = &asked;  // the module goes over all rows
  context.plans = &plans_;
  const TensorView hidden = parts_.model.hidden(context);
  keep(flight, hidden);
  const std::span<const LogitRow> rows = step.logit_rows();
  const int64_t num_prompt = step.num_prompt_logit_rows(), count = std::ssize(rows);
  for (int64_t begin = 0; begin < count; begin += logits_.dim(0)) {
    const int64_t end = std::min(count, begin + logits_.dim(0));
    TensorView wanted = gathered_.rows(0, end - begin);
    if (flight.follows) {
      parts_.ops.embed(parts_.stream,
                       {.ids = asked.rows.rows(begin, end), .table = hidden, .out = wanted});
    } else {
      wanted = hidden.rows(begin, end);
    }
    parts_.model.logits(context, wanted, std::clamp<int64_t>(num_prompt - begin, 0, end - begin),
                        logits_.rows(0, end - begin));
    sample(flight, rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
  }
}

/// Some layers of a long prompt, and behind the last of them the logits that are asked for.
void GpuExecutor::run_layers(Flight& flight) {
  const PackedStep& step = flight.step;
  const ArenaScope scope(arena_);
  StepContext context{parts_.stream, parts_.ops, arena_, step.batch(), parts_.kv};
  const TensorView residual = residual_.rows(0, step.batch().num_rows());
  if (!mtp_) context.asked = &step.asked();
  context.plans = &plans_;
  parts_.model.run_prompt_layers(context, {.pieces = step.pieces(),
                                           .ends = &step.ends(),
                                           .num_ends = step.ends().num_rows(),
                                           .residual = residual,
                                           .first_layer = step.layers().begin,
                                           .last_layer = step.layers().end});
  const std::span<const LogitRow> rows = step.logit_rows();
  for (int64_t begin = 0; begin < std::ssize(rows); begin += logits_.dim(0)) {
    const int64_t end = std::min<int64_t>(std::ssize(rows), begin + logits_.dim(0));
    const auto piece = rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    for (int64_t i = 0; i < end - begin; ++i) {
      copy_bytes(parts_.stream, residual_rows_.row<float>(i),
                 residual.row<float>(piece[static_cast<size_t>(i)].row), residual.dim(1) * 4);
    }
    const TensorView gathered = gathered_.rows(0, end - begin);
    parts_.model.final_norm(context, residual_rows_.rows(0, end - begin), gathered);
    parts_.model.logits(context, gathered, end - begin, logits_.rows(0, end - begin));
    sample(flight, piece);
  }
}

void GpuExecutor::sample(Flight& flight, std::span<const LogitRow> rows) {
  // This step's forward runs meanwhile.
  Flight& before = *flights_[1 - flight.index];
  if (constrained(rows) && before.pending) finish(before);
  const GpuSampler::Streams one{parts_.stream, parts_.stream};
  sampler_.sample(parts_.stream,
                  sampler_.prepare(one, flight.sampling, rows, logits_.rows(0, std::ssize(rows)),
                                   /*alone=*/false));
}

/// Waits for the step and takes its tokens.
void GpuExecutor::finish(Flight& flight) {
  flight.done.wait();
  flight.pending = false;
  sampler_.finish(flight.step, flight.sampling, flight.result);
  flight.result.plans = {};
  if (flight.has_plans) {
    const PlanCounters now = *reinterpret_cast<const PlanCounters*>(flight.plans.data());
    flight.result.plans = now.since(counted_);
    counted_ = now;
  }
  if (flight.aside >= 0) {
    mtp_->note(flight.step, flight.result, flight.aside);
  } else if (flight.followed > 0) {
    mtp_->followed(flight.step, flight.result, flight.followed);
  } else if (flight.follows && !flight.step.layers().partial()) {
    mtp_->follow(arena_, flight.step, flight.result);
  }
  // All else while the module goes over the rows: the device would wait for it.
  const Times& now = times(flight.number);
  flight.result.device_us = now.end.microseconds_since(now.begin);
  flight.result.device_idle_us =
      flight.number == 0 ? 0 : now.begin.microseconds_since(times(flight.number - 1).end);
  if (kept_rows_) kept_rows_->accept(flight.step.results(), flight.result);
  if (speculator_) speculator_->learn(flight.step, flight.result, module_seconds(flight));
}

/// What the device waited before the step, or the module took, more than where it does not follow.
double GpuExecutor::module_seconds(const Flight& flight) {
  if (!mtp_ || !flight.continues || flight.result.device_new_shape) return 0;
  const Times& now = times(flight.number);
  const double most = now.end.microseconds_since(now.forward);
  const double wait = std::min(now.forward.microseconds_since(times(flight.number - 1).end), most);
  double& plain = plain_waits_[flight.shape.rows > 0 ? 1 : 0];
  if (flight.follows) return std::max(wait - plain, 0.0) * 1e-6;
  if (!flight.settles) plain += (wait - plain) / 8;
  return 0;
}

StepResult GpuExecutor::collect() {
  CHECK(num_collected_ < num_launched_, "no step in flight");
  Flight& flight = *flights_[num_collected_ % kStepsInFlight];
  if (flight.pending) finish(flight);
  ++num_collected_;
  flight.step.forget_retired();
  return std::move(flight.result);
}

}  // namespace weft
