#include "nn/attention_mixer.h"

#include <algorithm>
#include <cmath>

namespace weft {

int64_t AttentionMixer::q_width() const {
  return int64_t{spec_.q_heads} * spec_.head_dim * (spec_.output_gate ? 2 : 1);
}

CacheSpec AttentionMixer::cache_spec() const {
  return PagedSpec{.format = options_.kv_format,
                   .heads = spec_.kv_heads,
                   .head_dim = spec_.head_dim,
                   .block_size = options_.block_size,
                   .planned_heads = planner_ && planner_->routed() ? spec_.q_heads : 0};
}

void AttentionMixer::declare(WeightPlan& plan, const std::string& prefix) {
  const std::string p = prefix + "self_attn.";
  const int64_t hidden = options_.hidden, out_width = int64_t{spec_.q_heads} * spec_.head_dim;
  std::vector<TensorPart> bias;
  if (spec_.qkv_bias) {
    bias = {{p + "q_proj.bias", {q_width()}},
            {p + "k_proj.bias", {kv_width()}},
            {p + "v_proj.bias", {kv_width()}}};
  }
  qkv_.declare(plan, options_.format,
               {{p + "q_proj.weight", {q_width(), hidden}},
                {p + "k_proj.weight", {kv_width(), hidden}},
                {p + "v_proj.weight", {kv_width(), hidden}}},
               std::move(bias));
  bias.clear();
  if (spec_.out_bias) bias = {{p + "o_proj.bias", {hidden}}};
  out_.declare(plan, options_.format, {{p + "o_proj.weight", {hidden, out_width}}},
               std::move(bias));
  if (planner_) planner_->declare(plan, p);
  if (spec_.qk_norm) {
    q_norm_.declare(plan, p + "q_norm.weight", spec_.head_dim, options_.norm_minus_one);
    k_norm_.declare(plan, p + "k_norm.weight", spec_.head_dim, options_.norm_minus_one);
  }
}

int64_t AttentionMixer::arena_bytes(const StepQuery& query) const {
  return query.activation_bytes(q_width() + 2 * kv_width()) +
         query.activation_bytes(int64_t{spec_.q_heads} * spec_.head_dim) +
         (planner_ ? planner_->arena_bytes(query) : 0);
}

int64_t AttentionMixer::scratch_bytes(const StepQuery& query) const {
  const AttnShape shape{spec_.q_heads, spec_.kv_heads, spec_.head_dim, 1.0f, options_.kv_format};
  const int64_t planning = planner_ ? planner_->scratch_bytes(query) : 0;
  return std::max({planning, qkv_.scratch_bytes(query), out_.scratch_bytes(query, Epilogue::kAdd),
                   query.ops.attention_scratch(shape, query.max_seqs, query.max_len)});
}

Result<> AttentionMixer::prepare(Stream& stream, DeviceKind device) {
  return planner_ ? planner_->prepare(stream, device) : Result<>();
}

void AttentionMixer::decide(StepContext& context, LayerId layer, TensorView x) const {
  if (!planner_ || !planner_->routed()) return;
  const ArenaScope scope(context.arena);
  TensorView qkv = take_rows(context, x.dim(0), q_width() + 2 * kv_width());
  qkv_.forward(context, x, qkv);
  const TensorView k = qkv.columns(q_width(), q_width() + kv_width());
  planner_->decide(context, std::get<PagedKv>(context.kv.layer(layer)), layer,
                   k.split_last(spec_.kv_heads, spec_.head_dim), k_norm_.weight());
}

void AttentionMixer::forward(StepContext& context, LayerId layer, const RmsNormArgs& norm,
                             TensorView residual) const {
  const ArenaScope scope(context.arena);
  const int64_t rows = residual.dim(0), q_heads = spec_.q_heads, head_dim = spec_.head_dim;
  PagedKv kv = std::get<PagedKv>(context.kv.layer(layer));
  if (kv_has_static_scales(kv.shape.format)) {
    const KvScalePointers& scales = (*options_.kv_scales)[static_cast<size_t>(layer.value)];
    kv.k_scale = scales.k;
    kv.v_scale = scales.v;
  }
  const AskedRows* asked = context.last ? context.asked : nullptr;
  const int64_t first = asked != nullptr ? asked->first_row : 0;  // of those that attend
  TensorView qkv = take_rows(context, rows, q_width() + 2 * kv_width());
  TensorView attended = take_rows(context, rows - first, q_heads * head_dim);

  // With a gate, each head's columns are [q | gate].
  const TensorView q_part = qkv.columns(0, q_width()).split_last(q_heads, q_width() / q_heads);
  const TensorView q = q_part.columns(0, head_dim);
  const TensorView k = qkv.columns(q_width(), q_width() + kv_width());
  const TensorView v = qkv.columns(q_width() + kv_width(), q_width() + 2 * kv_width());
  const TensorView keys = k.split_last(spec_.kv_heads, head_dim);
  const QkvPrepareArgs prepare{.q = q,
                               .k = keys,
                               .v = v.split_last(spec_.kv_heads, head_dim),
                               .q_norm = q_norm_.weight(),
                               .k_norm = k_norm_.weight(),
                               .eps = options_.eps,
                               .rope = *options_.rope,
                               .positions = context.batch.positions,
                               .kv_slot = context.batch.kv_slot,
                               .kv = kv};
  const OpTable& ops = context.ops;
  const LinearArgs project_in = qkv_.args(context, norm, qkv, Epilogue::kStore);
  // Routers read the keys before their rope.
  const bool decides = planner_ && planner_->routed() && context.batch.num_deciding > 0;
  const bool prepared = !decides && ops.linear_prepare != nullptr &&
                        ops.linear_prepare(context.stream, project_in, prepare);
  if (!prepared) ops.linear(context.stream, project_in);
  if (decides) planner_->decide(context, kv, layer, keys, k_norm_.weight());
  if (asked != nullptr && asked->rows.dim(0) == 0) {
    if (!prepared) ops.qkv_prepare(context.stream, prepare);
    return;
  }
  const TensorView heads = attended.split_last(q_heads, head_dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  AttnArgs attention{.shape = {spec_.q_heads, spec_.kv_heads, spec_.head_dim, scale},
                     .q = q.rows(first, rows),
                     .out = heads,
                     .kv = kv,
                     .seqs = first > 0 ? asked->seqs : context.batch.seqs,
                     .prompt_rows = context.batch.prompt_rows - first,
                     .num_prompt_segments = context.batch.num_prompt_segments,
                     .max_decode_len = context.batch.max_decode_len};
  HeadPlan plan;
  bool attended_too = false;
  if (planner_ && attention.prompt_rows > 0 && planner_->needed(context.batch)) {
    if (!prepared) ops.qkv_prepare(context.stream, prepare);
    plan = planner_->plan(context, layer, attention);
    attention.heads = &plan;
  } else if (!prepared && first > 0) {
    ops.qkv_prepare(context.stream, prepare);
  } else if (!prepared) {
    attended_too = prepare_attention(context.ops, context.stream, prepare, attention);
  }
  LinearArgs project = out_.args(context, attended, residual.rows(first, rows), Epilogue::kAdd);
  project.prompt_rows = attention.prompt_rows;
  if (!attended_too && !spec_.output_gate) {
    return linear_of_attention(context.ops, context.stream, attention, project);
  }
  if (!attended_too) context.ops.attention(context.stream, attention);
  if (spec_.output_gate) {
    context.ops.mul_sigmoid(
        context.stream,
        {.x = heads, .gate = q_part.columns(head_dim, 2 * head_dim).rows(first, rows)});
  }
  context.ops.linear(context.stream, project);
}

}  // namespace weft
