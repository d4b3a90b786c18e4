#pragma once

namespace weft {

inline constexpr char kDemoModel[] = WEFT_SOURCE_DIR "/models/demo";

}  // namespace weft
