#pragma once

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "kernels/choose.h"
#include "kernels/op_table.h"
#include "models/spec.h"

namespace weft {

/// What the layers of a model ask of their kernels with weights in `format` and caches in
/// `kv_format`, each shape once, in the order of the layers.
KernelNeeds kernel_needs(const ModelSpec& spec, WeightFormat format, KvFormat kv_format);

/// The shapes that the CPU's kernels take, whatever the instruction set (they CHECK the same). The
/// error names the field of config.json and what is allowed.
Result<void> check_cpu_needs(const KernelNeeds& needs);

/// What most matrices are kept as: codes of an fp8 checkpoint stay where the backend has them.
/// `checkpoint` may be null.
WeightFormat kept_format(WeightFormat wanted, const OpTable& ops, const Checkpoint* checkpoint);

}  // namespace weft
