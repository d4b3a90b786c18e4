#include "nn/head_planner.h"

#include <algorithm>
#include <cmath>

#include "base/align.h"
#include "device/gpu.h"
#include "kernels/count_args.h"
#include "nn/plan_record.h"

namespace weft {
namespace {

constexpr int64_t kBlock = HeadPlan::kBlock;

/// Of a threshold: lists are expected to hold most blocks of some heads (HeadPlan::long_lists).
constexpr float kLongListMass = 0.95f;

/// Column 0 of the block table: the block of each segment that holds its plan.
TensorView first_blocks(const SeqMap& seqs) {
  TensorView rows(seqs.block_table.data, DType::kI32, {seqs.block_table.dim(0)});
  rows.stride[0] = seqs.block_table.stride[0];
  return rows;
}

int32_t sees_all(const StepBatch& batch, int64_t segment) {
  return batch.sees_all.empty() ? 0 : batch.sees_all[static_cast<size_t>(segment)];
}

/// The same on the host.
int64_t first_block(const SeqMap& seqs, int64_t segment) {
  return seqs.host_block_table[segment * seqs.block_table.stride[0]];
}

}  // namespace

void HeadPlanner::declare(WeightPlan& plan, const std::string& prefix) {
  if (!spec_.routed) return;
  const int64_t d = attention_.head_dim;
  const auto linear = [&](const std::string& name, TensorView& weight, TensorView& bias, int64_t n,
                          int64_t k) {
    const std::string p = prefix + "mask_allocator." + name;
    const TensorPart part{p + ".weight", {n, k}};
    if (plan.narrow()) {
      plan.table(weight, part);
    } else {
      plan.vector(weight, VectorRole::kOther, {part}, {n, k});
    }
    plan.vector(bias, VectorRole::kOther, {{p + ".bias", {n}}}, {n});
  };
  linear("cls_feat_extractor.0", router_.feature[0], router_.feature_bias[0], 4 * d, d);
  linear("cls_feat_extractor.2", router_.feature[1], router_.feature_bias[1], d, 4 * d);
  const std::string head = "cls_router_head_agnostic.";
  linear(head + "0", router_.router[0], router_.router_bias[0], 4 * d, d);
  linear(head + "2", router_.router[1], router_.router_bias[1], d, 4 * d);
  linear(head + "4", router_.router[2], router_.router_bias[2], 2, d);
}

Result<> HeadPlanner::prepare(Stream& stream, DeviceKind device) {
  const auto heads = static_cast<size_t>(attention_.q_heads);
  std::vector<float> thresholds(heads, 0.0f);
  std::vector<int32_t> kinds(2 * heads, static_cast<int32_t>(HeadKind::kFull));
  for (size_t h = 0; h < heads; ++h) {
    thresholds[h] = spec_.thresholds.size() == 1 ? spec_.thresholds[0] : spec_.thresholds[h];
    kinds[h] = static_cast<int32_t>(
        spec_.heads.empty() ? spec_.sparse : spec_.heads[h * spec_.heads.size() / heads]);
    // A head that has to reach all of the mass sees everything, whatever is estimated.
    if (kinds[h] == static_cast<int32_t>(HeadKind::kBlocks) && thresholds[h] >= 1) {
      kinds[h] = static_cast<int32_t>(HeadKind::kFull);
    }
    long_lists_ |= lists() && thresholds[h] >= kLongListMass && thresholds[h] < 1;
  }
  const auto bytes = static_cast<int64_t>(heads * 4);
  constants_ = TRY(Buffer::allocate(device, aligned(bytes) + 2 * bytes));
  copy_bytes(stream, constants_.data(), thresholds.data(), bytes);
  copy_bytes(stream, constants_.data() + aligned(bytes), kinds.data(), 2 * bytes);
  synchronize(stream);
  thresholds_ = TensorView(constants_.data(), DType::kF32, {attention_.q_heads});
  fixed_kinds_ =
      TensorView(constants_.data() + aligned(bytes), DType::kI32, {2, attention_.q_heads});
  return {};
}

/// Words of a list of blocks of `max_len` keys.
int64_t HeadPlanner::num_words(int64_t max_len) const {
  return divide_up(divide_up(max_len, kBlock), 32);
}

int64_t HeadPlanner::arena_bytes(const StepQuery& query) const {
  const int64_t segments = std::min(query.max_seqs, query.rows);
  int64_t bytes = aligned(segments * attention_.kv_heads * 2 * 4);  // logits
  bytes += query.ops.device != DeviceKind::kCpu ? aligned(segments * attention_.q_heads * 4)
                                                : aligned(segments * 4);
  if (lists()) {
    const int64_t units = segments * divide_up(query.rows, kBlock) * attention_.q_heads;
    bytes += aligned(units * num_words(query.max_len) * 4) + 2 * aligned(units * 4);
  }
  return bytes;
}

int64_t HeadPlanner::scratch_bytes(const StepQuery& query) const {
  if (!lists() || query.ops.sparse == nullptr) return 0;
  const AttnShape shape{attention_.q_heads, attention_.kv_heads, attention_.head_dim, 1.0f};
  return query.ops.sparse->select_scratch(shape, spec_.stride, query.rows, query.max_len,
                                          query.num_threads);
}

void HeadPlanner::decide(StepContext& context, const PagedKv& kv, LayerId layer, TensorView k,
                         TensorView k_norm) const {
  const StepBatch& batch = context.batch;
  const int64_t segments = batch.num_deciding;
  const ArenaScope scope(context.arena);
  const TensorView logits(context.arena.take(segments * attention_.kv_heads * 2 * 4), DType::kF32,
                          {segments, attention_.kv_heads, 2});
  // A GPU's kernels know segments alone: their rows are copied to the blocks.
  const bool by_segment = context.ops.device != DeviceKind::kCpu;
  TensorView kinds = kv.kinds;
  if (by_segment) {
    kinds = TensorView(context.arena.take(segments * attention_.q_heads * 4), DType::kI32,
                       {segments, attention_.q_heads});
  }
  context.ops.sparse->route(context.stream,
                            {.k = k,
                             .k_norm = k_norm,
                             .eps = options_.eps,
                             .weights = router_,
                             .cu_q = batch.seqs.cu_q,
                             .num_segments = batch.num_deciding,
                             .retrieval = spec_.retrieval,
                             .sparse = spec_.sparse,
                             .logits = logits,
                             .kinds = kinds,
                             .rows = by_segment ? TensorView() : first_blocks(batch.seqs)});
  for (int64_t s = 0; by_segment && s < segments; ++s) {
    copy_bytes(context.stream, kv.kinds.row<int32_t>(first_block(batch.seqs, s)),
               kinds.row<int32_t>(s), attention_.q_heads * 4);
  }
  if (context.plans == nullptr || context.plans->record == nullptr) return;
  const auto index = static_cast<size_t>(layer.value);
  auto& layers = context.plans->record->layers;
  if (layers.size() <= index) layers.resize(index + 1);
  layers[index].logits.assign(logits.ptr<float>(), logits.ptr<float>() + attention_.kv_heads * 2);
}

bool HeadPlanner::needed(const StepBatch& batch) const {
  if (batch.num_prompt_segments == 0) return false;
  return batch.sees_all.empty() ||
         std::find(batch.sees_all.begin(), batch.sees_all.end(), 0) != batch.sees_all.end();
}

/// [S] i32 on the host: the row of fixed_kinds_ of each prompt segment.
TensorView HeadPlanner::fixed_rows(StepContext& context, int64_t segments) const {
  TensorView rows(context.arena.take(segments * 4), DType::kI32, {segments});
  for (int64_t s = 0; s < segments; ++s) rows.ptr<int32_t>()[s] = sees_all(context.batch, s);
  return rows;
}

/// [S, H] of the prompt segments, from where they are kept.
TensorView HeadPlanner::gather_kinds(StepContext& context, const AttnArgs& attention) const {
  const int64_t segments = attention.num_prompt_segments, heads = attention_.q_heads;
  const auto kept = [&](int64_t s) {
    return spec_.routed ? attention.kv.kinds.row<int32_t>(first_block(attention.seqs, s))
                        : fixed_kinds_.row<int32_t>(sees_all(context.batch, s));
  };
  if (segments == 1) return {kept(0), DType::kI32, {1, heads}};
  TensorView kinds(context.arena.take(segments * heads * 4), DType::kI32, {segments, heads});
  for (int64_t s = 0; s < segments; ++s) {
    copy_bytes(context.stream, kinds.row<int32_t>(s), kept(s), heads * 4);
  }
  return kinds;
}

HeadPlan HeadPlanner::plan(StepContext& context, LayerId layer, const AttnArgs& attention) const {
  const int64_t segments = attention.num_prompt_segments, heads = attention_.q_heads;
  HeadPlan plan{.kinds = fixed_kinds_,
                .sink_blocks = spec_.sink_blocks,
                .window_blocks = spec_.window_blocks,
                .long_lists = long_lists_};
  if (context.ops.device != DeviceKind::kCpu) {
    plan.kinds = gather_kinds(context, attention);
  } else if (spec_.routed) {
    plan.kinds = attention.kv.kinds;
    plan.rows = first_blocks(attention.seqs);
  } else {
    plan.rows = fixed_rows(context, segments);
  }
  TensorView mass;
  if (lists()) {
    int64_t row_blocks = 0, longest = 0;
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t rows = attention.seqs.host_cu_q[s + 1] - attention.seqs.host_cu_q[s];
      row_blocks = std::max(row_blocks, divide_up(rows, kBlock));
      longest = std::max(longest, attention.seqs.host_kv_start[s] + rows);
    }
    const int64_t words = num_words(longest), units = segments * heads * row_blocks;
    Arena& arena = context.arena;
    plan.blocks = TensorView(arena.take(units * words * 4), DType::kI32,
                             {segments, heads, row_blocks, words});
    plan.counts = TensorView(arena.take(units * 4), DType::kI32, {segments, heads, row_blocks});
    if (context.plans != nullptr && context.plans->record != nullptr) {
      mass = TensorView(arena.take(units * 4), DType::kF32, {segments, heads, row_blocks});
    }
    AttnArgs args = attention;
    args.heads = &plan;
    context.ops.sparse->select(context.stream, {.attention = &args,
                                                .stride = spec_.stride,
                                                .norm = spec_.norm,
                                                .thresholds = thresholds_,
                                                .none = context.batch.sees_all,
                                                .mass = mass});
  }
  if (context.plans == nullptr) return plan;
  if (context.ops.device == DeviceKind::kCpu) {
    record(context, layer, attention, plan, mass);
  } else if (context.plans->device != nullptr) {
    context.ops.sparse->count(
        context.stream, {.attention = &attention, .plan = &plan, .sums = context.plans->device});
  }
  return plan;
}

/// Counts what the plan makes of each head, and keeps the plan of the first segment where that is
/// asked.
void HeadPlanner::record(StepContext& context, LayerId layer, const AttnArgs& attention,
                         const HeadPlan& plan, TensorView mass) const {
  PlanSink& sink = *context.plans;
  PlanRecord::Layer* kept = nullptr;
  const int64_t n = sink.record != nullptr ? sink.record->num_blocks : 0;
  const int64_t heads = attention_.q_heads;
  if (sink.record != nullptr) {
    const auto index = static_cast<size_t>(layer.value);
    auto& layers = sink.record->layers;
    if (layers.size() <= index) layers.resize(index + 1);
    kept = &layers[index];
    kept->kinds.resize(static_cast<size_t>(heads));
    kept->blocks.resize(static_cast<size_t>(heads * n * n));
    kept->estimated.resize(static_cast<size_t>(heads * n), 1.0f);
  }
  const SeqMap& seqs = attention.seqs;
  for (int64_t s = 0; s < attention.num_prompt_segments; ++s) {
    const int64_t start = seqs.host_kv_start[s];
    const int64_t rows = seqs.host_cu_q[s + 1] - seqs.host_cu_q[s];
    for (int64_t h = 0; h < heads && rows > 0; ++h) {
      const auto kind = static_cast<HeadKind>(kind_of(plan.kinds, plan.rows, s, h));
      ++(kind == HeadKind::kFull        ? sink.counters.full_heads
         : kind == HeadKind::kStreaming ? sink.counters.streaming_heads
                                        : sink.counters.block_heads);
      if (kept != nullptr && s == 0)
        kept->kinds[static_cast<size_t>(h)] = static_cast<int32_t>(kind);
      for (int64_t row = 0; row * kBlock < rows; ++row) {
        const int64_t b = start / kBlock + row;
        sink.counters.causal_blocks += b + 1;
        for (int64_t c = 0; c <= b; ++c) {
          const bool seen = sees(plan, s, h, start, b * kBlock, c * kBlock);
          sink.counters.computed_blocks += seen;
          if (kept == nullptr || s > 0) continue;
          kept->blocks[static_cast<size_t>((h * n + b) * n + c)] = seen;
        }
        if (kept != nullptr && s == 0 && mass.defined() && kind == HeadKind::kBlocks) {
          kept->estimated[static_cast<size_t>(h * n + b)] =
              mass.row<float>(0)[h * mass.stride[1] + row];
        }
      }
    }
  }
  if (kept == nullptr || !sink.record->true_mass) return;

  // The share of a row's softmax that a plan keeps is the quotient of the two sums of powers.
  const int64_t total = attention.q.dim(0);
  std::vector<float> sums[2];
  for (const bool planned : {false, true}) {
    std::vector<float>& lse = sums[planned ? 1 : 0];
    lse.assign(static_cast<size_t>(total * heads), 0.0f);
    AttnArgs args = attention;
    args.heads = planned ? &plan : nullptr;
    args.lse = TensorView(lse.data(), DType::kF32, {total, heads});
    context.ops.attention(context.stream, args);
  }
  kept->mass.resize(static_cast<size_t>(heads * n));
  const int64_t start = seqs.host_kv_start[0], end = seqs.host_cu_q[1];
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t row = 0; row * kBlock < end; ++row) {
      double sum = 0;
      const int64_t last = std::min(end, (row + 1) * kBlock);
      for (int64_t i = row * kBlock; i < last; ++i) {
        const auto at = static_cast<size_t>(i * heads + h);
        sum += std::exp(double{sums[1][at]} - double{sums[0][at]});
      }
      kept->mass[static_cast<size_t>(h * n + start / kBlock + row)] =
          static_cast<float>(sum / static_cast<double>(last - row * kBlock));
    }
  }
}

}  // namespace weft
