// DEPS: weft_text
// Two bytes that choose format, options and cutting, then an answer: every cutting gives the same,
// and arguments are valid JSON.
#include <simdjson.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "text/chat_parser.h"
#include "text/chat_parser_testing.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const weft::ChatFormat format{static_cast<weft::ChatFormat::Reasoning>(data[0] & 1),
                                static_cast<weft::ChatFormat::Tools>(data[0] >> 1 & 3)};
  const weft::ChatParserOptions options{
      .tools_enabled = (data[0] & 8) == 0,
      .starts_in_reasoning = (data[0] & 16) != 0,
      .tools_json = R"([{"function": {"name": "f", "parameters": {"properties": {
        "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": ["string", "null"]}}}}}])"};
  const size_t step = 1 + data[1] % 32;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  const auto whole = weft::parse_answer(format, options, text, [](size_t rest) { return rest; });
  require(whole.well_formed);
  require(whole == weft::parse_answer(format, options, text, [](size_t) { return 1; }));
  require(whole == weft::parse_answer(format, options, text,
                                      [step](size_t rest) { return std::min(step, rest); }));
  if (!simdjson::validate_utf8(text.data(), text.size())) return 0;
  require(simdjson::validate_utf8(whole.content) && simdjson::validate_utf8(whole.reasoning));
  simdjson::dom::parser parser;
  for (const auto& call : whole.calls) {
    simdjson::dom::object object;
    const simdjson::error_code error = parser.parse(call.arguments).get(object);
    // A number beyond 64 bits is valid JSON still.
    require(error == simdjson::SUCCESS || error == simdjson::NUMBER_ERROR);
  }
  return 0;
}
