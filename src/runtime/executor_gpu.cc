#include "runtime/executor_gpu.h"

#include <algorithm>

#include "base/check.h"

namespace weft {
namespace {

/// Rows of logits that are alive at once: every sequence of a decode step, and pieces of what
/// prompts ask for.
int64_t logit_rows(const StepLimits& limits) {
  return std::min(std::max<int64_t>(64, limits.max_seqs), limits.max_rows);
}

/// Every slice is one token in decode arithmetic.
bool only_decodes(const StepPlan& plan) {
  return std::all_of(plan.slices.begin(), plan.slices.end(), [](const Slice& slice) {
    return slice.arithmetic == Arithmetic::kDecode && slice.tokens.size() == 1;
  });
}

}  // namespace

int64_t GpuExecutor::padded_rows(int64_t rows, int64_t max_seqs) {
  const int64_t step = rows <= 8 ? 1 : rows <= 32 ? 4 : rows <= 128 ? 8 : 16;
  return std::min((rows + step - 1) / step * step, max_seqs);
}

int64_t GpuExecutor::device_bytes(const StepLimits& limits, int64_t hidden_size) {
  return static_cast<int64_t>(kStepsInFlight) * PackedStep::bytes(limits) +
         logit_rows(limits) * (limits.vocab_size * 4 + hidden_size * 2);
}

GpuExecutor::GpuExecutor(const Parts& parts, const StepLimits& limits,
                         const GpuExecutorOptions& options)
    : parts_(parts),
      limits_(limits),
      options_(options),
      sampler_(limits.vocab_size, logit_rows(limits), parts.stream.pool().num_threads()) {}

GpuExecutor::~GpuExecutor() {
  synchronize(parts_.stream);
}

Result<std::unique_ptr<GpuExecutor>> GpuExecutor::create(const Model& model, KvStore& kv,
                                                         Stream& stream, const OpTable& ops,
                                                         const StepLimits& limits,
                                                         const GpuExecutorOptions& options) {
  std::unique_ptr<GpuExecutor> out(new GpuExecutor({model, kv, stream, ops}, limits, options));
  out->arena_ = Arena(TRY(Buffer::allocate(ops.device, model.arena_bytes(limits.max_rows))));
  const int64_t rows = logit_rows(limits), hidden = model.spec().hidden, vocab = limits.vocab_size;
  out->logit_buffer_ =
      TRY(Buffer::allocate(ops.device, rows * (vocab * 4 + hidden * dtype_size(ops.activation))));
  std::byte* at = out->logit_buffer_.data();
  out->logits_ = TensorView(at, DType::kF32, {rows, vocab});
  out->gathered_ = TensorView(at + rows * vocab * 4, ops.activation, {rows, hidden});
  for (size_t i = 0; i < kStepsInFlight; ++i) {
    out->flights_[i].emplace(
        Flight{.index = i,
               .step = TRY(PackedStep::create(limits, ops.device)),
               .done = TRY(GpuEvent::create()),
               .logit_buffer = TRY(Buffer::allocate(DeviceKind::kPinned, rows * vocab * 4))});
  }
  return out;
}

void GpuExecutor::launch(const StepPlan& plan) {
  CHECK(num_launched_ - num_collected_ < kStepsInFlight, "too many steps in flight");
  // The tokens of the step before are made on the host, and this step may need them.
  if (num_launched_ > num_collected_) finish(*flights_[(num_launched_ - 1) % kStepsInFlight]);
  Flight& flight = *flights_[num_launched_++ % kStepsInFlight];
  const auto num_slices = static_cast<int64_t>(plan.slices.size());
  const int64_t padded =
      num_slices > 0 && only_decodes(plan) ? padded_rows(num_slices, limits_.max_seqs) : 0;
  flight.step.pack(plan, sequences_, padded);
  flight.pending = true;
  flight.rows = {};
  RowSampler::begin(flight.step, flight.result);
  for (const BlockCopy& copy : flight.step.copies()) {
    parts_.kv.copy_block(parts_.stream, copy.from, copy.to);
  }
  if (num_slices > 0) {
    RowSampler::feed(flight.step);
    flight.step.upload(parts_.stream);
    if (padded > 0) {
      run_decode(flight);
    } else {
      run_mixed(flight);
    }
  }
  flight.done.record(parts_.stream);
}

void GpuExecutor::forward_decode(const PackedStep& step) {
  const ArenaScope scope(arena_);
  StepContext context{parts_.stream, parts_.ops, arena_, step.batch(), parts_.kv};
  const TensorView hidden = parts_.model.hidden(context);
  parts_.model.logits(context, hidden, 0, logits_.rows(0, hidden.dim(0)));
}

void GpuExecutor::run_decode(Flight& flight) {
  const int64_t padded = flight.step.batch().num_rows();
  const auto [it, fresh] = graphs_.try_emplace(padded);
  if (fresh || !options_.graphs) {
    forward_decode(flight.step);
  } else {
    std::optional<GpuGraph>& graph = it->second[flight.index];
    if (!graph) {
      graph.emplace(GpuGraph::capture(parts_.stream, [&] { forward_decode(flight.step); }));
    }
    graph->launch(parts_.stream);
  }
  const std::span<const LogitRow> rows = flight.step.logit_rows();
  // Sampled rows follow each other unless some only replay.
  fetch(flight, rows, /*in_place=*/!rows.empty() && rows.back().row + 1 != std::ssize(rows));
}

void GpuExecutor::run_mixed(Flight& flight) {
  const PackedStep& step = flight.step;
  const ArenaScope scope(arena_);
  StepContext context{parts_.stream, parts_.ops, arena_, step.batch(), parts_.kv};
  const TensorView hidden = parts_.model.hidden(context);
  const std::span<const LogitRow> rows = step.logit_rows();
  const int64_t num_prompt = step.num_prompt_logit_rows(), count = std::ssize(rows);
  for (int64_t begin = 0; begin < count; begin += logits_.dim(0)) {
    const int64_t end = std::min(count, begin + logits_.dim(0));
    const TensorView gathered = gathered_.rows(0, end - begin);
    parts_.ops.embed(
        parts_.stream,
        {.ids = step.logit_row_ids().rows(begin, end), .table = hidden, .out = gathered});
    parts_.model.logits(context, gathered, std::clamp<int64_t>(num_prompt - begin, 0, end - begin),
                        logits_.rows(0, end - begin));
    if (begin > 0) {
      synchronize(parts_.stream);
      sampler_.sample(parts_.stream.pool(), step, flight.rows, flight.logits, flight.result);
    }
    fetch(flight, rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
          /*in_place=*/false);
  }
}

/// Copies the logits of `rows` to the host, where finish() makes tokens of them.
/// `in_place`: row i of the batch has row i of the logits; otherwise rows[i] has.
void GpuExecutor::fetch(Flight& flight, std::span<const LogitRow> rows, bool in_place) {
  flight.rows = rows;
  if (rows.empty()) return;
  const int64_t count = std::ssize(rows), vocab = limits_.vocab_size;
  flight.logits = TensorView(flight.logit_buffer.data(), DType::kF32, {count, vocab});
  if (in_place) {
    for (int64_t i = 0; i < count; ++i) {
      copy_bytes(parts_.stream, flight.logits.row<float>(i),
                 logits_.row<float>(rows[static_cast<size_t>(i)].row), vocab * 4);
    }
    return;
  }
  copy_bytes(parts_.stream, flight.logits.data, logits_.data, count * vocab * 4);
}

/// Waits for the step and makes its tokens.
void GpuExecutor::finish(Flight& flight) {
  if (!flight.pending) return;
  flight.done.wait();
  flight.pending = false;
  if (flight.rows.empty()) return;
  sampler_.sample(parts_.stream.pool(), flight.step, flight.rows, flight.logits, flight.result);
}

StepResult GpuExecutor::collect() {
  CHECK(num_collected_ < num_launched_, "no step in flight");
  Flight& flight = *flights_[num_collected_++ % kStepsInFlight];
  finish(flight);
  flight.step.forget_retired();
  return std::move(flight.result);
}

}  // namespace weft
