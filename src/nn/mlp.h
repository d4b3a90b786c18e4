#pragma once

#include <string>
#include <variant>

#include "nn/linear.h"
#include "nn/specs.h"

namespace weft {

/// down( silu(gate x) * up x ), gate and up in one matrix.
class DenseMlp {
 public:
  /// Declares gate_proj, up_proj and down_proj below `prefix` ("model.layers.3.mlp.").
  void declare(WeightPlan& plan, WeightFormat format, const std::string& prefix, int64_t hidden,
               int64_t inner);
  int64_t arena_bytes(const StepQuery& query) const {
    return query.activation_bytes(gate_up_.out_features() / 2);
  }
  int64_t scratch_bytes(const StepQuery& query) const;
  /// out = mlp(x), or out += mlp(x); [T, hidden].
  void forward(StepContext& context, TensorView x, TensorView out,
               Epilogue epilogue = Epilogue::kStore) const;
  /// out += mlp(norm's out).
  void forward(StepContext& context, const RmsNormArgs& norm, TensorView out) const;

 private:
  /// `norm`: x is its out, which is computed first; null: x is there.
  void forward(StepContext& context, TensorView x, const RmsNormArgs* norm, TensorView out,
               Epilogue epilogue) const;

  Linear gate_up_, down_;
};

/// Routed experts, and a shared expert where the spec has one. The router is f32.
class MoeMlp {
 public:
  explicit MoeMlp(const MoeSpec& spec) : spec_(spec) {}
  void declare(WeightPlan& plan, WeightFormat format, const std::string& prefix, int64_t hidden);
  int64_t arena_bytes(const StepQuery& query) const;
  int64_t scratch_bytes(const StepQuery& query) const;
  /// out = the routed experts of x, residual += the shared one of x; [T, hidden], residual f32.
  void forward(StepContext& context, TensorView x, TensorView out, TensorView residual) const;

 private:
  void declare_experts(WeightPlan& plan, WeightFormat format, const std::string& prefix,
                       int64_t hidden);

  MoeSpec spec_;
  int64_t hidden_ = 0;
  Linear router_;  // E rows, then the shared expert's gate
  TensorView correction_;
  Weight gate_up_, down_;
  DenseMlp shared_;
};

/// The feed-forward part of a layer.
class Mlp {
 public:
  explicit Mlp(const MlpSpec& spec);
  /// Declares the weights below `prefix` ("model.layers.3.mlp.").
  void declare(WeightPlan& plan, WeightFormat format, const std::string& prefix, int64_t hidden);
  int64_t arena_bytes(const StepQuery& query) const;
  int64_t scratch_bytes(const StepQuery& query) const;
  /// residual += mlp(norm's out), or part of it: true if `out` has to be added too. All [T,
  /// hidden], residual f32, out in the backend's activation type.
  bool forward(StepContext& context, const RmsNormArgs& norm, TensorView out,
               TensorView residual) const;

 private:
  int64_t dense_inner_ = 0;
  std::variant<DenseMlp, MoeMlp> mlp_;
};

}  // namespace weft
