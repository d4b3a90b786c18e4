#include "nn/mlp.h"

#include <algorithm>

namespace weft {

void DenseMlp::declare(WeightPlan& plan, WeightFormat format, const std::string& prefix,
                       int64_t hidden, int64_t inner) {
  gate_up_.declare(plan, format,
                   {{prefix + "gate_proj.weight", {inner, hidden}},
                    {prefix + "up_proj.weight", {inner, hidden}}});
  down_.declare(plan, format, {{prefix + "down_proj.weight", {hidden, inner}}});
}

int64_t DenseMlp::scratch_bytes(const StepQuery& query) const {
  return std::max({gate_up_.scratch_bytes(query, Epilogue::kSiluMul), down_.scratch_bytes(query),
                   down_.scratch_bytes(query, Epilogue::kAdd)});
}

void DenseMlp::forward(StepContext& context, TensorView x, const RmsNormArgs* norm, TensorView out,
                       Epilogue epilogue) const {
  const ArenaScope scope(context.arena);
  TensorView act = take_rows(context, x.dim(0), gate_up_.out_features() / 2);
  LinearArgs gate_up = gate_up_.args(context, x, act, Epilogue::kSiluMul);
  if (norm != nullptr) gate_up.norm = *norm;
  linear_of_linear(context.ops, context.stream, gate_up, down_.args(context, act, out, epilogue));
}

void DenseMlp::forward(StepContext& context, TensorView x, TensorView out,
                       Epilogue epilogue) const {
  forward(context, x, nullptr, out, epilogue);
}

void DenseMlp::forward(StepContext& context, const RmsNormArgs& norm, TensorView out) const {
  forward(context, norm.out, &norm, out, Epilogue::kAdd);
}

void MoeMlp::declare(WeightPlan& plan, WeightFormat format, const std::string& prefix,
                     int64_t hidden) {
  hidden_ = hidden;
  std::vector<TensorPart> router = {{prefix + "gate.weight", {spec_.num_experts, hidden}}};
  const std::string shared = prefix + spec_.shared_name;
  if (spec_.shared_gate) router.push_back({shared + "_gate.weight", {1, hidden}});
  router_.declare(plan, WeightFormat::kF32, std::move(router));
  if (spec_.correction) {
    plan.vector(correction_, VectorRole::kBias,
                {{prefix + "moe_statics.e_score_correction_bias", {1, spec_.num_experts}}},
                {spec_.num_experts});
  }
  declare_experts(plan, format, prefix + "experts.", hidden);
  if (spec_.shared_inner > 0) {
    shared_.declare(plan, format, shared + ".", hidden, spec_.shared_inner);
  }
}

/// Experts come one by one (E.gate_proj.weight ...) or as two tensors of all of them.
void MoeMlp::declare_experts(WeightPlan& plan, WeightFormat format, const std::string& p,
                             int64_t hidden) {
  const int64_t n = spec_.num_experts, inner = spec_.inner;
  if (plan.has(p + "gate_up_proj")) {
    plan.experts(gate_up_, format, n, [&](int64_t e) -> std::vector<TensorPart> {
      return {{p + "gate_up_proj", {n, 2 * inner, hidden}, e * 2 * inner, 2 * inner}};
    });
    plan.experts(down_, format, n, [&](int64_t e) -> std::vector<TensorPart> {
      return {{p + "down_proj", {n, hidden, inner}, e * hidden, hidden}};
    });
    return;
  }
  plan.experts(gate_up_, format, n, [&](int64_t e) -> std::vector<TensorPart> {
    const std::string expert = p + std::to_string(e);
    return {{expert + ".gate_proj.weight", {inner, hidden}},
            {expert + ".up_proj.weight", {inner, hidden}}};
  });
  plan.experts(down_, format, n, [&](int64_t e) -> std::vector<TensorPart> {
    return {{p + std::to_string(e) + ".down_proj.weight", {hidden, inner}}};
  });
}

int64_t MoeMlp::arena_bytes(const StepQuery& query) const {
  int64_t bytes = query.f32_bytes(router_.out_features()) + 2 * query.f32_bytes(spec_.rule.top_k);
  if (spec_.shared_inner > 0) {
    bytes += query.activation_bytes(hidden_) + shared_.arena_bytes(query);
  }
  return bytes;
}

int64_t MoeMlp::scratch_bytes(const StepQuery& query) const {
  const int64_t routed =
      query.ops.moe_scratch(gate_up_.shape, query.rows, spec_.rule.top_k, query.num_threads);
  const int64_t shared = spec_.shared_inner > 0 ? shared_.scratch_bytes(query) : 0;
  return std::max({routed, shared, router_.scratch_bytes(query)});
}

void MoeMlp::forward(StepContext& context, TensorView x, TensorView out,
                     TensorView residual) const {
  const ArenaScope scope(context.arena);
  const int64_t rows = x.dim(0), num_experts = spec_.num_experts;
  TensorView logits = take_rows_f32(context.arena, rows, router_.out_features());
  TensorView weights = take_rows_f32(context.arena, rows, spec_.rule.top_k);
  TensorView ids = take_rows_f32(context.arena, rows, spec_.rule.top_k);
  ids.dtype = DType::kI32;
  router_.forward(context, x, logits);
  context.ops.moe_route(context.stream, {.logits = logits.columns(0, num_experts),
                                         .correction = correction_,
                                         .rule = spec_.rule,
                                         .ids = ids,
                                         .weights = weights});
  context.ops.moe(context.stream, {.x = x,
                                   .ids = ids,
                                   .weights = weights,
                                   .gate_up = &gate_up_,
                                   .down = &down_,
                                   .out = out,
                                   .prompt_rows = context.batch.prompt_rows});
  if (spec_.shared_inner == 0) return;
  if (!spec_.shared_gate) {
    shared_.forward(context, x, residual, Epilogue::kAdd);
    return;
  }
  TensorView shared = take_rows(context, rows, hidden_);
  shared_.forward(context, x, shared);
  context.ops.add_gated(
      context.stream,
      {.x = shared, .gate = logits.columns(num_experts, num_experts + 1), .out = residual});
}

Mlp::Mlp(const MlpSpec& spec) {
  if (const auto* moe = std::get_if<MoeSpec>(&spec)) {
    mlp_.emplace<MoeMlp>(*moe);
  } else {
    dense_inner_ = std::get<DenseMlpSpec>(spec).inner;
  }
}

void Mlp::declare(WeightPlan& plan, WeightFormat format, const std::string& prefix,
                  int64_t hidden) {
  if (auto* moe = std::get_if<MoeMlp>(&mlp_)) {
    moe->declare(plan, format, prefix, hidden);
  } else {
    std::get<DenseMlp>(mlp_).declare(plan, format, prefix, hidden, dense_inner_);
  }
}

int64_t Mlp::arena_bytes(const StepQuery& query) const {
  return std::visit([&](const auto& mlp) { return mlp.arena_bytes(query); }, mlp_);
}

int64_t Mlp::scratch_bytes(const StepQuery& query) const {
  return std::visit([&](const auto& mlp) { return mlp.scratch_bytes(query); }, mlp_);
}

bool Mlp::forward(StepContext& context, const RmsNormArgs& norm, TensorView out,
                  TensorView residual) const {
  if (const auto* moe = std::get_if<MoeMlp>(&mlp_)) {
    context.ops.rms_norm(context.stream, norm);
    moe->forward(context, norm.out, out, residual);
    return true;
  }
  std::get<DenseMlp>(mlp_).forward(context, norm, residual);
  return false;
}

}  // namespace weft
