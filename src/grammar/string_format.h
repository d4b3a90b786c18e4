#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "grammar/rules.h"

namespace weft {

/// The texts of a `format` of JSON Schema, without quotes. All are ASCII without characters that
/// JSON escapes, so a text is as long as its bytes.
struct StringFormat {
  GrammarRules::Node node;
  int64_t min_len = 0;
  int64_t max_len = 0;
};

/// The grammar of a format; nullopt: a format that is an annotation only. A subset of what the
/// format's standard allows, each text of which is valid: date, time and date-time (RFC 3339, days
/// as the calendar has them), duration, email, idn-email, hostname, ipv4, ipv6, uuid, uri.
/// `max_len` (-1: none): where a format has no length of its own (uri), it stays within this.
std::optional<StringFormat> string_format(GrammarRules& rules, std::string_view name,
                                          int64_t max_len);

}  // namespace weft
