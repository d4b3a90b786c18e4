#pragma once

#include "sched/plan.h"

namespace weft {

/// Runs steps in order. The seam between thought (scheduler, engine) and device.
/// launch() may return before the work is done; collect() returns the results of the oldest
/// launched step that has not been collected. At most two steps are in flight.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual void launch(const StepPlan& plan) = 0;
  virtual StepResult collect() = 0;
};

}  // namespace weft
