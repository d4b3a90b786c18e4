#include "text/special_tokens.h"

#include <simdjson.h>

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

SpecialTokens special_tokens(std::span<const std::string_view> files) {
  std::vector<json::parser> parsers(files.size());
  std::vector<json::element> roots;
  for (size_t i = 0; i < files.size(); ++i) {
    json::element root;
    // The copy gives simdjson its padding.
    if (parsers[i].parse(files[i].data(), files[i].size(), true).get(root) == simdjson::SUCCESS) {
      roots.push_back(root);
    }
  }
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
