// DEPS: weft_text
// A template, a NUL, then messages as JSON: an error with a message, or text with spans that cover
// it.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "text/template.h"
#include "text/unicode.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\0');
  const auto chat = weft::ChatTemplate::parse(input.substr(0, cut), {{"bos_token", "<s>"}});
  if (!chat.ok()) {
    require(!chat.error().message.empty());
    return 0;
  }
  weft::ChatInput chat_input;
  if (cut != input.npos) chat_input.messages_json = input.substr(cut + 1);
  chat_input.tools_json = R"([{"name": "f", "n": [1, 2.5, null, true]}])";
  chat_input.add_generation_prompt = true;
  chat_input.now = std::tm{};
  weft::RenderLimits limits;
  limits.max_ops = 200'000;
  limits.max_output_bytes = 1 << 18;
  const auto rendered = chat->render(chat_input, limits);
  if (!rendered.ok()) return 0;
  require(rendered->text.size() <= limits.max_output_bytes);
  require(weft::text::is_valid_utf8(rendered->text));
  size_t covered = 0;
  bool previous = false;
  for (const weft::RenderedSpan& span : rendered->spans) {
    require(span.begin == covered && span.end > span.begin);
    require(covered == 0 || span.user != previous);
    previous = span.user;
    covered = span.end;
  }
  require(covered == rendered->text.size());
  return 0;
}
