#pragma once

#include "models/spec.h"
#include "runtime/step_upload.h"

namespace weft {

/// Upper bound of what one op of the CPU backend takes of Stream::scratch in any step of this
/// model: the greatest over all its layers and the head.
int64_t op_scratch_bytes(const ModelSpec& spec, WeightFormat format, const StepLimits& limits,
                         int num_threads);

}  // namespace weft
