#pragma once

#include "base/plan_counters.h"
#include "kernels/args.h"

namespace weft {

class Stream;

/// Adds what a plan makes of the heads of the prompt segments. Lists count as long as `counts`
/// says.
struct CountArgs {
  const AttnArgs* attention = nullptr;
  const HeadPlan* plan = nullptr;
  PlanCounters* sums = nullptr;  ///< memory of the device
};

namespace cuda {
void count_plan(Stream& stream, const CountArgs& args);
}  // namespace cuda

}  // namespace weft
