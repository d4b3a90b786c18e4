#pragma once

#include <string>
#include <vector>

#include "base/align.h"
#include "nn/step.h"
#include "nn/weights.h"

namespace weft {

/// An uninitialised [T, n] temporary of this step in f32 or in the backend's activation type, and
/// the bytes that it takes.
inline TensorView take_rows_f32(Arena& arena, int64_t rows, int64_t n) {
  return {arena.take(rows * n * 4), DType::kF32, {rows, n}};
}
inline TensorView take_rows(StepContext& context, int64_t rows, int64_t n) {
  const DType dtype = context.ops.activation;
  return {context.arena.take(rows * n * dtype_size(dtype)), dtype, {rows, n}};
}

/// How large a step memory is planned for.
struct StepQuery {
  const OpTable& ops;
  int64_t rows = 0;
  int64_t max_seqs = 0;  ///< sequences of the step
  int num_threads = 1;
  int64_t max_len = 0;  ///< positions of the longest sequence

  int64_t f32_bytes(int64_t n) const { return aligned(rows * n * 4); }
  int64_t activation_bytes(int64_t n) const {
    return aligned(rows * n * dtype_size(ops.activation));
  }
};

/// out = x W^T (+ bias), one weight made of several pieces of the checkpoint.
class Linear {
 public:
  /// `bias` may be empty.
  void declare(WeightPlan& plan, WeightFormat format, std::vector<TensorPart> weight,
               std::vector<TensorPart> bias = {});
  /// x [T, K]; out [T, N], or [T, N/2] for kSiluMul. The first `prompt_rows` rows use prompt
  /// arithmetic.
  void forward(StepContext& context, TensorView x, TensorView out, int64_t prompt_rows,
               Epilogue epilogue = Epilogue::kStore) const;
  /// x = norm's out, which is computed first and of use to nobody else.
  void forward(StepContext& context, const RmsNormArgs& norm, TensorView out,
               Epilogue epilogue = Epilogue::kStore) const;
  /// Outside a step: all rows in prompt arithmetic.
  void forward(Stream& stream, const OpTable& ops, TensorView x, TensorView out,
               Epilogue epilogue = Epilogue::kStore) const;
  /// As above for the rows of the step.
  void forward(StepContext& context, TensorView x, TensorView out,
               Epilogue epilogue = Epilogue::kStore) const {
    forward(context, x, out, context.batch.prompt_rows, epilogue);
  }
  /// What forward() asks of OpTable::linear, for the rows of the step.
  LinearArgs args(const StepContext& context, TensorView x, TensorView out,
                  Epilogue epilogue) const {
    return {.x = x,
            .weight = &weight_,
            .bias = bias_,
            .out = out,
            .epilogue = epilogue,
            .prompt_rows = context.batch.prompt_rows};
  }
  LinearArgs args(const StepContext& context, const RmsNormArgs& norm, TensorView out,
                  Epilogue epilogue) const {
    LinearArgs both = args(context, norm.out, out, epilogue);
    both.norm = norm;
    return both;
  }
  /// What forward() takes of the stream's scratch memory, at most.
  int64_t scratch_bytes(const StepQuery& query, Epilogue epilogue = Epilogue::kStore) const {
    return query.ops.linear_scratch(weight_.shape, epilogue, query.rows, query.num_threads);
  }
  int64_t out_features() const { return weight_.shape.n; }
  const Weight& weight() const { return weight_; }

 private:
  Weight weight_;
  TensorView bias_;
};

/// RMS norm over the hidden dimension.
class RmsNorm {
 public:
  /// `minus_one`: the checkpoint stores w - 1.
  void declare(WeightPlan& plan, const std::string& name, int64_t width, bool minus_one);
  /// out = norm(x); with a residual: residual += x, out = norm(residual).
  void forward(StepContext& context, TensorView x, TensorView residual, TensorView out,
               float eps) const;
  /// What forward() would do.
  RmsNormArgs args(TensorView x, TensorView residual, TensorView out, float eps) const {
    return {.x = x, .residual = residual, .weight = weight_, .out = out, .eps = eps};
  }
  const TensorView& weight() const { return weight_; }

 private:
  TensorView weight_;
};

}  // namespace weft
