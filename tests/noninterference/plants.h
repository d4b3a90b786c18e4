#pragma once

#include <span>
#include <string_view>

#include "kernels/op_table.h"
#include "tests/noninterference/schedule.h"

namespace weft {

/// A bug of one class, planted into the ops or around the executor. The noninterference test has to
/// find each: it is the proof that it would find a real one.
struct Plant {
  std::string_view name;
  std::string_view what;
  bool recurrent_only = false;                    ///< needs a family with recurrent layers
  OpTable (*ops)(const OpTable& base) = nullptr;  ///< null: unchanged. One base at a time.
  std::unique_ptr<Executor> (*executor)(std::unique_ptr<Executor> inner) = nullptr;
  bool images_only = false;  ///< needs a family with a vision tower
  bool routed_only = false;  ///< needs a family with routers of heads
};

std::span<const Plant> plants();

}  // namespace weft
