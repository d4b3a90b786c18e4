#pragma once

#include <string>

#include "api/images.h"
#include "base/result.h"
#include "server/json.h"

namespace weft {

/// Where an image is, in the forms of OpenAI's two APIs and of transformers.
Result<std::string> read_image_uri(const std::string& field, const JsonValue& part);

/// The frames of a video and how fast they follow each other, in the forms of vLLM's and of Qwen's
/// clients.
Result<VideoSource> read_video(const std::string& field, const JsonValue& part);

/// "min_pixels" and "max_pixels" that are among the members of `owner`.
Result<PixelBounds> read_pixel_bounds(const std::string& field, const JsonValue& owner);
/// The same of "mm_processor_kwargs", which has them as "size" ("shortest_edge", "longest_edge")
/// too.
Result<PixelBounds> read_processor_bounds(const std::string& field, const JsonValue& value);

/// "media_io_kwargs" ({"video": {"fps": ...}}; the rest has no meaning for frames) or
/// "mm_processor_kwargs" ({"fps": ...} and bounds of pixels; the rest is refused) of vLLM's
/// clients: frames a second of the videos that don't say theirs; 0: not said.
Result<double> read_video_fps(const std::string& field, const JsonValue& value);

}  // namespace weft
