#pragma once

#include "app/cli.h"

namespace weft {

/// Mean, largest KL divergence and agreement of the best token a task, between the cache that
/// options.engine asks for and a bf16 one, both on the CPU; printed as a table.
Result<void> run_eval_kl(const EvalOptions& options);

}  // namespace weft
