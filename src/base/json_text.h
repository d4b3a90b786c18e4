#pragma once

#include <string>
#include <string_view>

namespace weft {

/// How backspace and form feed stand in a JSON string; JSON knows both ways.
enum class JsonControls {
  kHex,    ///< \u0008, \u000c
  kShort,  ///< \b, \f, as Python and JavaScript print
};

/// Appends one byte of a JSON string: quotes, backslashes and control characters escaped, all else
/// as it is.
void append_json_escaped(char c, std::string& out, JsonControls controls = JsonControls::kHex);

/// Appends a string with quotes and escapes.
void append_json_quoted(std::string_view text, std::string& out,
                        JsonControls controls = JsonControls::kHex);

}  // namespace weft
