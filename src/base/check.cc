#include "base/check.h"

namespace weft {

void panic(const char* condition, const std::string& message, std::source_location where) {
  std::string text = std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                     ": CHECK(" + condition + ") failed";
  if (!message.empty()) text += ": " + message;
  throw Panic(text);
}

}  // namespace weft
