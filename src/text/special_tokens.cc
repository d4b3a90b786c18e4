#include "text/special_tokens.h"

#include <simdjson.h>

#include <algorithm>
#include <optional>

namespace weft::text {
namespace {

namespace json = simdjson::dom;

constexpr const char* kNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};

/// A string, or an object with the text as content.
std::optional<std::string> token_text(json::element token) {
  std::string_view text;
  if (token.is_object() && token["content"].get(token) != simdjson::SUCCESS) return std::nullopt;
  if (token.get(text) != simdjson::SUCCESS) return std::nullopt;
  return std::string(text);
}

}  // namespace

SpecialTokens special_tokens(std::string_view config, std::string_view map) {
  json::parser parsers[2];
  std::vector<json::element> roots;
  const auto add = [&](json::parser& parser, std::string_view text) {
    json::element root;
    if (text.empty()) return;
    // The copy gives simdjson its padding.
    if (parser.parse(text.data(), text.size(), true).get(root) == simdjson::SUCCESS) {
      roots.push_back(root);
    }
  };
  add(parsers[0], config);
  json::element decoder;
  const bool newer =
      !roots.empty() && roots[0]["added_tokens_decoder"].get(decoder) == simdjson::SUCCESS;
  add(parsers[1], map);
  if (!newer) std::reverse(roots.begin(), roots.end());
  SpecialTokens out;
  for (const char* name : kNames) {
    for (const json::element& root : roots) {
      json::element token;
      if (root[name].get(token) != simdjson::SUCCESS) continue;
      if (auto text = token_text(token)) out.emplace_back(name, std::move(*text));
      break;
    }
  }
  return out;
}

}  // namespace weft::text
