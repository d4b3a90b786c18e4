#pragma once

#include "device/stream.h"
#include "kernels/args.h"

namespace weft::cuda {

/// OpTable::prepared_attention: of a few decode segments of one row each.
bool attention_prepared(Stream& stream, const QkvPrepareArgs& prepare, const AttnArgs& args);

}  // namespace weft::cuda
