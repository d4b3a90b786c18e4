#include "runtime/gpu_late_rows.h"

#include <algorithm>

#include "base/check.h"
#include "runtime/carver.h"

namespace weft {
namespace {

/// Steps that can be put aside: as many rows as a pass of the module is worth.
int64_t most_steps(const StepLimits& limits) {
  return std::clamp<int64_t>(8192 / limits.max_seqs, 4, DraftState::kMostLate);
}

}  // namespace

GpuLateRows::GpuLateRows(const Parts& parts, const StepLimits& limits)
    : parts_(parts),
      limits_(limits),
      most_steps_(most_steps(limits)),
      went_up_(GpuEvent::create().value()) {}

GpuLateRows::Layout GpuLateRows::layout(std::byte* base, const StepLimits& limits) {
  Carver carver(base);
  const int64_t rows = limits.max_rows, segments = limits.max_seqs;
  Layout out{};
  carver.take(out.ids, rows);
  carver.take(out.gather, rows);
  carver.take(out.index, rows);
  carver.take(out.delta, rows);
  carver.take(out.kv_slot, rows);
  carver.take(out.cu_q, segments + 1);
  carver.take(out.kv_start, segments);
  carver.take(out.last, segments);
  out.block_table.width = limits.max_table_width();
  carver.take(out.block_table.data, segments * limits.max_table_width());
  out.bytes = carver.used();
  return out;
}

int64_t GpuLateRows::device_bytes(const StepLimits& limits, int64_t hidden_size) {
  return layout(nullptr, limits).bytes + most_steps(limits) * limits.max_seqs * hidden_size * 2;
}

Result<GpuLateRows> GpuLateRows::create(const Parts& parts, const StepLimits& limits) {
  GpuLateRows out(parts, limits);
  const int64_t hidden = parts.model.spec().hidden;
  const DType type = parts.ops.activation;
  const int64_t rows = out.most_steps_ * limits.max_seqs, bytes = layout(nullptr, limits).bytes;
  out.aside_buffer_ = TRY(Buffer::allocate(parts.ops.device, rows * hidden * dtype_size(type)));
  out.aside_ = TensorView(out.aside_buffer_.data(), type, {rows, hidden});
  out.up_ = TRY(Buffer::allocate(DeviceKind::kPinned, bytes));
  out.up_device_ = TRY(Buffer::allocate(parts.ops.device, bytes));
  out.host_ = layout(out.up_.data(), limits);
  return out;
}

int32_t GpuLateRows::put_aside(TensorView hidden) {
  CHECK(!full() && hidden.dim(0) <= limits_.max_seqs);
  const int64_t place = num_steps_++ * limits_.max_seqs;
  copy_bytes(parts_.stream, aside_.rows(place, place + hidden.dim(0)).data, hidden.data,
             hidden.bytes());
  return static_cast<int32_t>(place);
}

void GpuLateRows::note(const PackedStep& step, const StepResult& result, int32_t place) const {
  const std::span<const ResultRow> results = step.results();
  for (size_t i = 0; i < results.size(); ++i) {
    const ResultRow& row = results[i];
    if (row.row < 0 || result.rows[i].tokens.empty()) continue;
    ExecutorSequence& sequence = *row.sequence;
    DraftState& state = draft_state(sequence);
    if (!has(state)) state.late_rows.clear();
    state.late_round = round_;
    state.late_rows.push_back({.position = sequence.last_index() - 1,
                               .token = result.rows[i].tokens.back(),
                               .hidden = place + static_cast<int32_t>(row.row)});
  }
}

void GpuLateRows::catch_up(Arena& arena, std::span<const LateRows> sequences, TensorView work,
                           Kept& kept) {
  num_rows_ = num_segments_ = num_last_ = longest_ = 0;
  for (const LateRows& late : sequences) {
    DraftState& state = *late.sequence->drafts;
    const std::span<const DraftState::LateRow> rows = state.late_rows;
    // A preempted sequence may be back with the blocks of a part of its prompt.
    const bool known = has(state) && std::ssize(rows) <= limits_.max_rows &&
                       rows.back().position / limits_.block_size < std::ssize(late.blocks);
    for (size_t begin = 0, end = 0; known && begin < rows.size(); begin = end) {
      do {
        ++end;
      } while (end < rows.size() && rows[end].position == rows[end - 1].position + 1);
      if (num_segments_ == limits_.max_seqs ||
          num_rows_ + std::ssize(rows.subspan(begin, end - begin)) > limits_.max_rows) {
        run(arena, work, kept);
      }
      add_segment(late, rows.subspan(begin, end - begin));
    }
    const int64_t last = late.sequence->last_index();
    if (known && rows.back().position + 1 == last && kept.used + num_last_ < kept.rows.dim(0)) {
      state.hidden_at = last;
      state.hidden_row = kept.used + num_last_;
      state.hidden_step = kept.step;
      host_.last[num_last_++] = static_cast<int32_t>(num_rows_ - 1);
    }
    state.late_rows.clear();
  }
  run(arena, work, kept);
  num_steps_ = 0;
  ++round_;
}

/// Consecutive rows of one sequence.
void GpuLateRows::add_segment(const LateRows& late, std::span<const DraftState::LateRow> rows) {
  if (num_segments_ == 0) {
    went_up_.wait();
    host_.block_table.used = 0;
  }
  host_.block_table.set(num_segments_, late.blocks);
  host_.cu_q[num_segments_] = static_cast<int32_t>(num_rows_);
  host_.kv_start[num_segments_++] = static_cast<int32_t>(rows[0].position);
  for (const DraftState::LateRow& row : rows) {
    const int64_t block = row.position / limits_.block_size;
    host_.ids[num_rows_] = row.token;
    host_.gather[num_rows_] = row.hidden;
    host_.index[num_rows_] = static_cast<int32_t>(row.position);
    host_.delta[num_rows_] = late.sequence->request->rope_delta;
    host_.kv_slot[num_rows_++] =
        int64_t{late.blocks[static_cast<size_t>(block)].value} * limits_.block_size +
        row.position % limits_.block_size;
  }
  longest_ = std::max(longest_, std::ssize(rows));
}

/// The rows so far; then the next pass can be put together.
void GpuLateRows::run(Arena& arena, TensorView work, Kept& kept) {
  if (num_rows_ == 0) return;
  host_.cu_q[num_segments_] = static_cast<int32_t>(num_rows_);
  upload_with(parts_.stream, host_.block_table, num_segments_, up_device_.data(), up_.data());
  went_up_.record(parts_.stream);
  const Layout device = layout(up_device_.data(), limits_);
  const TensorView hidden = work.rows(0, num_rows_);
  parts_.ops.embed(
      parts_.stream,
      {.ids = TensorView(device.gather, DType::kI32, {num_rows_}), .table = aside_, .out = hidden});
  StepBatch batch;
  batch.ids = TensorView(device.ids, DType::kI32, {num_rows_});
  batch.positions = {.index = TensorView(device.index, DType::kI32, {num_rows_}),
                     .delta = TensorView(device.delta, DType::kI32, {num_rows_})};
  batch.kv_slot = TensorView(device.kv_slot, DType::kI64, {num_rows_});
  batch.seqs = {.cu_q = TensorView(device.cu_q, DType::kI32, {num_segments_ + 1}),
                .kv_start = TensorView(device.kv_start, DType::kI32, {num_segments_}),
                .block_table = TensorView(device.block_table.data, DType::kI32,
                                          {num_segments_, limits_.max_table_width()}),
                .num_segments = static_cast<int>(num_segments_)};
  batch.max_decode_len = static_cast<int>(longest_);
  {
    const ArenaScope scope(arena);
    StepContext context{parts_.stream, parts_.ops, arena, batch, parts_.kv};
    const TensorView out = parts_.model.mtp_hidden(context, hidden);
    parts_.ops.embed(parts_.stream, {.ids = TensorView(device.last, DType::kI32, {num_last_}),
                                     .table = out,
                                     .out = kept.rows.rows(kept.used, kept.used + num_last_)});
  }
  kept.used += num_last_;
  num_rows_ = num_segments_ = num_last_ = longest_ = 0;
}

}  // namespace weft
