#pragma once

#include "app/local_engine.h"

namespace weft {

/// What --prefill-policy says: how many tokens of a prompt, from the first, a router decides by.
/// "exact": all of them; "sticky": the first 2048; "sticky:tokens=4096".
Result<int64_t> parse_prefill_policy(const std::string& flag, std::string_view text);

/// What --prefill-attention and --prefill-policy make of the planned model: writes its spec, and
/// how prompts are cut. `weights` may be null. Refuses what the model or the other options don't
/// allow.
Result<void> plan_prefill(const EngineOptions& options, const Checkpoint* weights,
                          EnginePlan& plan);

/// "heads by a router: full or xattn (stride 16, threshold 0.9), decided by the whole prompt".
std::string describe_prefill(const EnginePlan& plan);

}  // namespace weft
