#pragma once

#include "kv/store.h"
#include "runtime/step_upload.h"

namespace weft {

/// What displaced sequences have computed, to the swap space and back, in the order of the stream:
/// before the step's slices. `slots` says where a state lies; null: where its slot says.
void swap_displaced(Stream& stream, KvStore& kv, const PackedStep& step, const StateSlotMap* slots);

}  // namespace weft
