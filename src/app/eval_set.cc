#include "app/eval_set.h"

#include <fstream>
#include <nlohmann/json.hpp>

namespace weft {
namespace {

using Json = nlohmann::json;

constexpr const char* kSpace = " \t\n\r\f\v";

std::string trim(const std::string& text) {
  const size_t begin = text.find_first_not_of(kSpace);
  return begin == std::string::npos ? std::string()
                                    : text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

/// Calls read(line as JSON) for every line; a thrown JSON error names file and line.
template <class Read>
Result<void> read_lines(const std::string& path, Read read) {
  std::ifstream file(path);
  if (!file) return not_found(path + ": can't be opened");
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.empty()) continue;
    try {
      read(Json::parse(line));
    } catch (const Json::exception& e) {
      return data_loss(path + ":" + std::to_string(number) + ": " + e.what());
    }
  }
  return {};
}

}  // namespace

Result<std::vector<EvalItem>> read_eval_items(const std::string& path) {
  std::vector<EvalItem> items;
  TRY(read_lines(path, [&](const Json& row) {
    EvalItem item{.id = row.at("id"),
                  .task = row.at("task"),
                  .messages = row.at("messages").dump(),
                  .enable_thinking = row.value("enable_thinking", false),
                  .expected = row.at("expected").dump(),
                  .check = row.at("check"),
                  .max_tokens = row.at("max_tokens")};
    if (row.contains("tools")) item.tools = row.at("tools").dump();
    for (const Json& message : row.at("messages")) {
      if (!message.contains("content") || !message.at("content").is_array()) continue;
      for (const Json& part : message.at("content")) {
        if (part.value("type", "") == "image") item.images.push_back(part.at("image"));
      }
    }
    items.push_back(std::move(item));
  }));
  return items;
}

Result<std::vector<GoldenItem>> read_golden_items(const std::string& path) {
  std::vector<GoldenItem> items;
  TRY(read_lines(path, [&](const Json& row) {
    items.push_back({.id = row.at("id"),
                     .images = row.at("images"),
                     .prompt_ids = row.at("prompt_ids"),
                     .output_ids = row.at("output_ids"),
                     .smallest_margin = row.at("smallest_margin"),
                     .top5 = row.at("top5")});
  }));
  return items;
}

Result<std::map<std::string, double>> read_reference_accuracy(const std::string& path) {
  std::map<std::string, double> accuracy;
  std::ifstream file(path);
  if (!file) return accuracy;
  try {
    const Json results = Json::parse(file);
    for (const auto& [task, values] : results.items()) {
      accuracy[task] = values.at("accuracy");
    }
  } catch (const Json::exception& e) {
    return data_loss(path + ": " + e.what());
  }
  return accuracy;
}

bool grade_answer(const EvalItem& item, const std::string& answer) {
  const size_t thought_end = answer.rfind("</think>");
  std::string said =
      trim(thought_end == std::string::npos ? answer : answer.substr(thought_end + 8));
  const Json expected = Json::parse(item.expected);
  if (item.check == "any") return !said.empty() && said.back() == '.';
  if (item.check == "json") {
    const Json value = Json::parse(said, nullptr, false);
    return !value.is_discarded() && value == Json::parse(expected.get<std::string>());
  }
  if (item.check == "tool_call") {
    const std::string open = "<tool_call>", close = "</tool_call>";
    if (said.size() < open.size() + close.size() || !said.starts_with(open) ||
        !said.ends_with(close))
      return false;
    said = trim(said.substr(open.size(), said.size() - open.size() - close.size()));
    const Json value = Json::parse(said, nullptr, false);
    return !value.is_discarded() && value.is_object() && value == expected;
  }
  return said == trim(expected.get<std::string>());
}

}  // namespace weft
