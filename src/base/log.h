#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace weft {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

/// Writes one line "LEVEL time text" to standard error. Thread-safe; never in the step path.
void log_line(LogLevel level, std::string_view text);
void set_log_level(LogLevel level);
LogLevel log_level();

inline void log_info(std::string_view text) {
  log_line(LogLevel::kInfo, text);
}
inline void log_warning(std::string_view text) {
  log_line(LogLevel::kWarning, text);
}
inline void log_error(std::string_view text) {
  log_line(LogLevel::kError, text);
}

}  // namespace weft
