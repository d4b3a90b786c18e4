// Our side of the differential tests: JSON lines in, JSON lines out.
//   text_cli tokenize DIR   {"text", "special"}     -> {"ids", "decoded", "skipped"} or {"error"}
//   text_cli render         {"template", "input"}   -> {"text"} or {"error"}
#include <iostream>
#include <nlohmann/json.hpp>

#include "text/template.h"
#include "text/tokenizer.h"

namespace {

using Json = nlohmann::ordered_json;

Json tokenize(const weft::Tokenizer& tokenizer, const Json& line) {
  auto ids = tokenizer.encode(line["text"].get<std::string>(), line["special"]);
  if (!ids.ok()) return {{"error", ids.error().message}};
  return {{"ids", *ids},
          {"decoded", tokenizer.decode(*ids, false)},
          {"skipped", tokenizer.decode(*ids, true)}};
}

Json render(const Json& line) {
  auto chat = weft::ChatTemplate::parse(line["template"].get<std::string>(), {{"bos_token", "<s>"}},
                                        "template");
  if (!chat.ok()) return {{"error", chat.error().message}};
  weft::ChatInput input;
  for (const auto& [key, value] : line["input"].items()) {
    if (key == "messages") {
      input.messages_json = value.dump();
    } else if (key == "tools") {
      input.tools_json = value.dump();
    } else if (key == "documents") {
      input.documents_json = value.dump();
    } else if (key == "add_generation_prompt") {
      input.add_generation_prompt = value;
    } else {
      input.extra.emplace_back(key, value.dump());
    }
  }
  auto out = chat->render(input);
  if (!out.ok()) return {{"error", out.error().message}};
  return {{"text", out->text}};
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  std::optional<weft::Tokenizer> tokenizer;
  if (mode == "tokenize" && argc == 3) {
    auto loaded = weft::Tokenizer::load(argv[2]);
    if (!loaded.ok()) {
      std::cerr << loaded.error().message << "\n";
      return 1;
    }
    tokenizer = std::move(*loaded);
  } else if (mode != "render" || argc != 2) {
    std::cerr << "usage: text_cli tokenize DIR | text_cli render\n";
    return 2;
  }
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    const Json j = Json::parse(line);
    std::cout << (tokenizer ? tokenize(*tokenizer, j) : render(j)).dump() << "\n";
  }
  return 0;
}
