#include "nn/linear.h"

namespace weft {

void Linear::declare(WeightPlan& plan, WeightFormat format, std::vector<TensorPart> weight,
                     std::vector<TensorPart> bias) {
  plan.matrix(weight_, format, std::move(weight));
  if (!bias.empty()) {
    plan.vector(bias_, VectorRole::kBias, std::move(bias), {weight_.shape.n});
  }
}

void Linear::forward(StepContext& context, TensorView x, TensorView out, int64_t prompt_rows,
                     Epilogue epilogue) const {
  context.ops.linear(context.stream, {.x = x,
                                      .weight = &weight_,
                                      .bias = bias_,
                                      .out = out,
                                      .epilogue = epilogue,
                                      .prompt_rows = prompt_rows});
}

void Linear::forward(StepContext& context, const RmsNormArgs& norm, TensorView out,
                     Epilogue epilogue) const {
  context.ops.linear(context.stream, args(context, norm, out, epilogue));
}

void Linear::forward(Stream& stream, const OpTable& ops, TensorView x, TensorView out,
                     Epilogue epilogue) const {
  ops.linear(stream, {.x = x,
                      .weight = &weight_,
                      .bias = bias_,
                      .out = out,
                      .epilogue = epilogue,
                      .prompt_rows = x.dim(0)});
}

void RmsNorm::declare(WeightPlan& plan, const std::string& name, int64_t width, bool minus_one) {
  plan.vector(weight_, minus_one ? VectorRole::kNormMinusOne : VectorRole::kNorm,
              {{.name = name, .shape = {width}}}, {width});
}

void RmsNorm::forward(StepContext& context, TensorView x, TensorView residual, TensorView out,
                      float eps) const {
  context.ops.rms_norm(context.stream, args(x, residual, out, eps));
}

}  // namespace weft
