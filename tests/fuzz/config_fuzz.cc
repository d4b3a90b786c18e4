// DEPS: weft_checkpoint
// config.json and generation_config.json on arbitrary bytes: every getter on every field gives a
// value in its bounds or a message, on the top level and in the nested views.
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "checkpoint/config_json.h"

namespace {

template <class T>
bool message_or_value(const weft::Result<T>& result) {
  CHECK(result.ok() || !result.error().message.empty());
  return result.ok();
}

void use_every_getter(const weft::ConfigJson& json, int depth) {
  for (const std::string& name : json.names()) {
    CHECK(json.has(name));
    message_or_value(json.integer(name));
    if (const auto value = json.integer_in(name, -5, 1000); message_or_value(value)) {
      CHECK(*value >= -5 && *value <= 1000);
    }
    if (const auto value = json.number(name); message_or_value(value)) CHECK(std::isfinite(*value));
    message_or_value(json.flag(name));
    message_or_value(json.string(name));
    message_or_value(json.integers(name));
    message_or_value(json.numbers(name));
    message_or_value(json.strings(name));
    if (const auto items = json.objects(name); message_or_value(items)) {
      for (const auto& item : *items) item.names();
    }
    CHECK(!json.dump(name).empty());
    if (const auto inner = json.object(name); message_or_value(inner) && depth < 4) {
      use_every_getter(*inner, depth + 1);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = weft::ConfigJson::parse(text, "config.json");
  if (!message_or_value(json)) return 0;
  use_every_getter(*json, 0);
  if (const auto view = json->text_config(); message_or_value(view)) {
    use_every_getter(*view, 0);
    message_or_value(weft::parse_generation_config(*view));
  }
  return 0;
}
