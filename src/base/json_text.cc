#include "base/json_text.h"

#include "base/hex.h"

namespace weft {

void append_json_escaped(char c, std::string& out, JsonControls controls) {
  const bool with_letter = controls == JsonControls::kShort;
  switch (c) {
    case '"': out += "\\\""; return;
    case '\\': out += "\\\\"; return;
    case '\n': out += "\\n"; return;
    case '\r': out += "\\r"; return;
    case '\t': out += "\\t"; return;
    default: break;
  }
  if (static_cast<unsigned char>(c) >= 0x20) {
    out += c;
  } else if (with_letter && (c == '\b' || c == '\f')) {
    out += c == '\b' ? "\\b" : "\\f";
  } else {
    out += "\\u00";
    append_hex(out, static_cast<uint8_t>(c));
  }
}

void append_json_quoted(std::string_view text, std::string& out, JsonControls controls) {
  out += '"';
  for (const char c : text) append_json_escaped(c, out, controls);
  out += '"';
}

}  // namespace weft
