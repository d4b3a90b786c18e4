#include "runtime/runner.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "runtime/prefault.h"
#include "runtime/swap.h"

namespace weft {
namespace {

int64_t piece_rows(const StepLimits& limits) {
  return std::min(kLogitRows, limits.all_rows());
}

}  // namespace

Runner::Runner(const Parts& parts, const StepLimits& limits, const SpeculationConfig& speculation)
    : parts_(parts),
      sampler_(limits.vocab_size, piece_rows(limits), parts.stream.pool().num_threads(),
               speculation) {}

int64_t Runner::logit_bytes(const StepLimits& limits, int64_t hidden_size, int num_threads) {
  return (piece_rows(limits) * (limits.vocab_size + hidden_size) +
          limits.layered_rows * hidden_size) *
             4 +
         Sampler::scratch_bytes(limits.vocab_size, num_threads);
}

Result<Runner> Runner::create(const Model& model, KvStore& kv, Stream& stream, const OpTable& ops,
                              const StepLimits& limits, const SpeculationConfig& speculation) {
  Runner runner({model, kv, stream, ops}, limits, speculation);
  runner.arena_ =
      Arena(TRY(Buffer::allocate(DeviceKind::kCpu, model.arena_bytes(limits.all_rows()))));
  const int64_t rows = piece_rows(limits), hidden = model.spec().hidden;
  runner.logit_buffer_ =
      TRY(Buffer::allocate(DeviceKind::kCpu, rows * (limits.vocab_size + hidden) * 4));
  float* at = reinterpret_cast<float*>(runner.logit_buffer_.data());
  runner.logits_ = TensorView(at, DType::kF32, {rows, limits.vocab_size});
  runner.gathered_ = TensorView(at + rows * limits.vocab_size, DType::kF32, {rows, hidden});
  if (model.vision() && limits.image_tokens > 0) {
    runner.vision_.emplace(TRY(VisionEncoder::create(*model.vision(), stream, ops, limits)));
  }
  if (limits.layered_rows > 0) {
    runner.residual_buffer_ =
        TRY(Buffer::allocate(DeviceKind::kCpu, limits.layered_rows * hidden * 4));
    runner.residual_ =
        TensorView(runner.residual_buffer_.data(), DType::kF32, {limits.layered_rows, hidden});
  }
  if (limits.recurrent && limits.max_draft_rows > 0) {
    runner.state_slots_ = std::make_unique<StateSlotMap>(limits);
    TRY(runner.allocate_kept(limits));
  }
  if (speculation.uses_mtp()) {
    runner.mtp_.emplace(TRY(MtpDrafter::create(model, kv, stream, ops, limits)));
  }
  ThreadPool& pool = stream.pool();
  prefault(pool, runner.arena_);
  prefault(pool, stream.scratch());
  prefault(pool, runner.logit_buffer_.data(), runner.logit_buffer_.bytes());
  return runner;
}

void Runner::run(PackedStep& step, StepResult& result) {
  RowSampler::begin(step, result);
  for (const BlockCopy& copy : step.copies())
    parts_.kv.copy_block(parts_.stream, copy.from, copy.to);
  swap_displaced(parts_.stream, parts_.kv, step, state_slots_.get());
  if (vision_) vision_->encode(step.encodings());
  if (step.batch().num_rows() == 0) return;
  RowSampler::feed(step);

  const ArenaScope scope(arena_);
  PlanSink plans{.record = record_};
  if (state_slots_) keep_inputs(step);
  StepContext context{parts_.stream,
                      parts_.ops,
                      arena_,
                      step.batch(),
                      parts_.kv,
                      &plans,
                      kept_.rows.empty() ? nullptr : &kept_};
  // The module goes over all rows, and a record is of whole layers.
  const bool followed = mtp_ && mtp_->follows();
  if (!followed && record_ == nullptr && !step.layers().partial()) context.asked = &step.asked();
  const TensorView hidden =
      step.layers().partial() ? run_layers(step, context) : parts_.model.hidden(context);
  sample(step, context, hidden, result);
  result.plans = plans.counters;
}

/// Some layers of a long prompt; its residual, which is not normed yet.
TensorView Runner::run_layers(PackedStep& step, StepContext& context) {
  const TensorView residual = residual_.rows(0, step.batch().num_rows());
  StepContext all = context;
  if (!mtp_ && record_ == nullptr) all.asked = &step.asked();
  parts_.model.run_prompt_layers(all, {.pieces = step.pieces(),
                                       .ends = &step.ends(),
                                       .num_ends = step.ends().num_rows(),
                                       .residual = residual,
                                       .first_layer = step.layers().begin,
                                       .last_layer = step.layers().end});
  return residual;
}

/// Logits of the rows of `hidden` that need them (all of it, where the context asked for them), a
/// piece at a time, and what is sampled from them.
void Runner::sample(PackedStep& step, StepContext& context, const TensorView& hidden,
                    StepResult& result) {
  const std::span<const LogitRow> rows = step.logit_rows();
  const int64_t num_prompt = step.num_prompt_logit_rows(), count = std::ssize(rows);
  for (int64_t begin = 0; begin < count; begin += logits_.dim(0)) {
    const int64_t end = std::min(count, begin + logits_.dim(0));
    const auto piece = rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    TensorView wanted = gathered_.rows(0, end - begin);
    if (context.asked != nullptr) {
      wanted = hidden.rows(begin, end);
    } else {
      for (int64_t i = 0; i < end - begin; ++i) {
        std::memcpy(wanted.row<float>(i), hidden.row<float>(piece[static_cast<size_t>(i)].row),
                    static_cast<size_t>(wanted.dim(1)) * sizeof(float));
      }
    }
    if (step.layers().partial()) parts_.model.final_norm(context, wanted, wanted);
    parts_.model.logits(context, wanted, std::clamp<int64_t>(num_prompt - begin, 0, end - begin),
                        logits_.rows(0, end - begin));
    sampler_.sample(parts_.stream.pool(), step, piece, logits_, result);
  }
  if (state_slots_) keep_states(step, context, result);
  if (mtp_ && mtp_->follows() && !step.layers().partial())
    mtp_->follow(context, step, hidden, result);
}

Result<void> Runner::allocate_kept(const StepLimits& limits) {
  const std::span<const CacheSpec> specs = parts_.model.cache_specs();
  const int64_t rows = limits.max_draft_rows + limits.max_draft_seqs();
  kept_buffer_ =
      TRY(Buffer::allocate(DeviceKind::kCpu, rows * cache_bytes(specs, parts_.ops).per_kept_row));
  auto* at = reinterpret_cast<float*>(kept_buffer_.data());
  for (const CacheSpec& spec : specs) {
    TensorView& layer = kept_.layers.emplace_back();
    const auto* state = std::get_if<StateSpec>(&spec);
    if (state == nullptr) continue;
    const int64_t width = kept_width(state->shape);
    layer = TensorView(at, DType::kF32, {rows, width});
    at += rows * width;
  }
  return {};
}

/// Of every sequence with drafts, the rows whose number is not certain.
void Runner::keep_inputs(const PackedStep& step) {
  kept_.rows.clear();
  for (const ResultRow& row : step.results()) {
    if (row.spare >= 0) kept_.rows.push_back({row.row, row.num_drafts + 1});
  }
}

/// The state of a sequence is the one after its last accepted draft.
void Runner::keep_states(const PackedStep& step, StepContext& context, const StepResult& result) {
  const std::span<const ResultRow> rows = step.results();
  int64_t first = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const ResultRow& row = rows[i];
    if (row.spare < 0) continue;
    const int64_t begin = first;
    first += row.num_drafts + 1;
    const auto count = std::ssize(result.rows[i].tokens);
    if (count == 0) continue;
    if (count > row.num_drafts) {
      state_slots_->exchange(row.state, row.spare);
      continue;
    }
    replay_ = {0, static_cast<int32_t>(count), row.state_read, state_slots_->of(row.state)};
    StepBatch batch;
    batch.seqs.cu_q = TensorView(replay_.data(), DType::kI32, {2});
    batch.seqs.num_segments = 1;
    batch.read_slot = TensorView(replay_.data() + 2, DType::kI32, {1});
    batch.write_slot = TensorView(replay_.data() + 3, DType::kI32, {1});
    StepContext again{context.stream, context.ops, context.arena, batch,
                      context.kv,     nullptr,     &kept_};
    parts_.model.replay_states(again, {begin, count});
  }
}

}  // namespace weft
