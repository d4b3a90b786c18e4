// DEPS: weft_text
// tokenizer.json, a NUL, then text: loading refuses or gives a tokenizer whose promises hold.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\0');
  const std::string_view text = cut == input.npos ? std::string_view() : input.substr(cut + 1);
  const auto tokenizer = weft::Tokenizer::from_json(input.substr(0, cut), "");
  if (!tokenizer.ok()) {
    require(!tokenizer.error().message.empty());
    return 0;
  }
  const auto ids = tokenizer->encode(text, true);
  if (!ids.ok()) return 0;
  for (const int32_t id : *ids) require(tokenizer->id_to_token(id).has_value());
  const std::string whole = tokenizer->decode(*ids, false);
  require(weft::text::is_valid_utf8(whole));

  weft::Detokenizer stream(*tokenizer, false);
  std::string out;
  for (const int32_t id : *ids) {
    stream.push(id, out);
    require(weft::text::is_valid_utf8(out) && whole.starts_with(out));
  }
  stream.finish(out);
  require(out == whole);

  const std::string valid = weft::text::to_valid_utf8(text);
  size_t middle = valid.size() / 2;
  while (middle < valid.size() && (valid[middle] & 0xC0) == 0x80) ++middle;
  const std::string_view view = valid;
  const weft::TextSegment trusted[] = {{view.substr(0, middle), true}, {view.substr(middle), true}};
  const auto again = tokenizer->encode_segments(trusted, true);
  require(again.ok() && *again == *ids);
  const weft::TextSegment mixed[] = {{view.substr(0, middle), true}, {view.substr(middle), false}};
  const auto user = tokenizer->encode_segments(mixed, false);
  if (user.ok()) require(weft::text::is_valid_utf8(tokenizer->decode(*user, true)));
  return 0;
}
