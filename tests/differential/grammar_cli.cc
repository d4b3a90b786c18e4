// Our side of the schema differential: JSON lines in, JSON lines out.
//   grammar_cli      {"schema", "texts"}     -> {"accepted": [bool]} or {"error"}
#include <iostream>
#include <nlohmann/json.hpp>

#include "grammar/grammar.h"
#include "grammar/json_schema.h"

namespace {

using Json = nlohmann::ordered_json;

std::shared_ptr<const weft::GrammarVocab> single_bytes() {
  std::string bytes;
  for (int b = 0; b < 256; ++b) bytes += static_cast<char>(b);
  return weft::GrammarVocab::build(256, [&bytes](int32_t id) {
    return std::string_view(bytes).substr(static_cast<size_t>(id), 1);
  });
}

bool accepts(const weft::OutputConstraint& constraint, const std::string& text) {
  weft::GrammarMatcher matcher(constraint);
  for (const char byte : text) {
    if (!matcher.accept(static_cast<unsigned char>(byte))) return false;
  }
  return matcher.may_end();
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  const auto vocab = single_bytes();
  for (std::string line; std::getline(std::cin, line);) {
    const Json j = Json::parse(line);
    const auto grammar = weft::grammar_from_json_schema(j["schema"].get<std::string>(), "schema");
    Json out;
    if (!grammar.ok()) {
      out["error"] = grammar.error().message;
    } else {
      const weft::OutputConstraint constraint{.grammar = weft::TokenGrammar::make(*grammar, vocab)};
      out["accepted"] = Json::array();
      for (const auto& text : j["texts"]) out["accepted"].push_back(accepts(constraint, text));
    }
    std::cout << out.dump() << "\n" << std::flush;
  }
  return 0;
}
