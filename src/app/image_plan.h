#pragma once

#include "app/local_engine.h"

namespace weft {

/// Reads how the planned model wants its images, into plan.images and plan.load. A checkpoint
/// without preprocessor_config.json is taken for a text model.
Result<void> plan_images(const EngineOptions& options, EnginePlan& plan);

/// What images take besides the model's own arena; after plan.footprint is known.
void add_images(const EnginePlan& plan, const EngineOptions& options, ModelMemory& model);

/// Scratch memory of the stream: of a step's ops, or of the vision tower's.
int64_t scratch_bytes(const EnginePlan& plan, int64_t rows, int64_t image_tokens);

}  // namespace weft
