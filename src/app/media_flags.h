#pragma once

#include <string>

#include "app/engine_options.h"

namespace weft {

/// `--limit-mm-per-prompt` of vLLM: '{"image": 4, "video": {"count": 1}}' or "image=4,video=1".
/// Kinds that it doesn't name keep their limits; without images and videos no vision tower is
/// loaded.
Result<void> read_media_limits(const std::string& text, EngineOptions& options);

/// `--mm-processor-kwargs` of vLLM: min_pixels and max_pixels (or size.shortest_edge and
/// size.longest_edge) of images, a JSON object. Returns a warning about keys that change nothing
/// here, or "".
Result<std::string> read_processor_kwargs(const std::string& text, EngineOptions& options);

}  // namespace weft
