#pragma once

#include "kernels/choose.h"
#include "models/spec.h"

namespace weft {

/// What the layers of a model ask of their kernels with weights in `format`, each shape once, in
/// the order of the layers.
KernelNeeds kernel_needs(const ModelSpec& spec, WeightFormat format);

}  // namespace weft
