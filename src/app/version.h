#pragma once

namespace weft {

inline constexpr const char* kVersion = WEFT_VERSION;

}  // namespace weft
