#pragma once

namespace weft {

/// With AddressSanitizer or ThreadSanitizer code is ten times as slow: tests of many cases take
/// fewer there, some of each path, and leave the counts to the release build.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace weft
