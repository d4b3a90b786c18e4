#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "grammar/json_text.h"

namespace weft {

/// What else holds for a text with a pattern.
struct PatternUse {
  TextForm form = TextForm::kJson;
  int64_t min_len = 0;
  int64_t max_len = -1;  ///< in code points; -1: no bound
};

/// The texts (without quotes) in which a `pattern` of JSON Schema is found: like ECMA-262 and
/// Python it is not anchored. Where the two read a class differently (\d, \w, \s and their
/// complements outside ASCII, `.` and line ends), only what both accept is written. Groups,
/// alternatives, quantifiers, classes, ^ and $ at the ends of the pattern or of one of its
/// alternatives. Errors name `path`: kUnsupported for look-around, back references, \b, \p, flags,
/// anchors elsewhere, and for lengths that can't be put into the pattern.
Result<GrammarRules::Node> pattern_node(JsonText& text, std::string_view pattern,
                                        const PatternUse& use, const std::string& path);

}  // namespace weft
