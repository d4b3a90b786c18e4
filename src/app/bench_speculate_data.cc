// Requests for `weft bench speculate`: from a file, or made up.
#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "app/bench_serve_data.h"
#include "app/bench_speculate.h"
#include "text/read_file.h"

namespace weft {
namespace {

using Json = nlohmann::json;

/// ShareGPT: the first turn is the question.
std::string first_turn(const Json& row) {
  const Json& turns =
      row.contains("conversations") ? row.at("conversations") : row.at("conversation");
  const Json& turn = turns.at(0);
  return turn.contains("value") ? turn.at("value") : turn.at("content");
}

std::string chat_of(const std::string& text) {
  return Json::array({{{"role", "user"}, {"content", text}}}).dump();
}

SpeculateItem to_item(const Json& row) {
  SpeculateItem item;
  item.task = row.value("task", "all");
  item.max_tokens = row.value("max_tokens", row.value("output_tokens", int64_t{0}));
  item.enable_thinking = row.value("enable_thinking", false);
  if (row.contains("tools")) item.tools = row.at("tools").dump();
  if (row.contains("prompt")) {
    item.prompt = row.at("prompt");
    return item;
  }
  if (!row.contains("messages")) {
    item.messages = chat_of(first_turn(row));
    return item;
  }
  item.messages = row.at("messages").dump();
  for (const Json& message : row.at("messages")) {
    if (!message.contains("content") || !message.at("content").is_array()) continue;
    for (const Json& part : message.at("content")) {
      if (part.value("type", "") == "image") item.images.push_back(part.at("image"));
    }
  }
  return item;
}

/// Simple English from a small world: sentences of things that people do in places.
class Writer {
 public:
  explicit Writer(uint64_t seed) : random_(seed) {}

  template <size_t n>
  std::string one_of(const std::array<const char*, n>& words) {
    return words[random_() % n];
  }
  std::string name() { return one_of(kNames); }
  std::string thing() { return one_of(kThings); }
  std::string place() { return one_of(kPlaces); }
  int number() { return 2 + static_cast<int>(random_() % 90); }

  std::string sentence(const std::string& who) {
    switch (random_() % 4) {
      case 0: return who + " took the " + thing() + " to the " + place() + ". ";
      case 1:
        return "In the " + place() + ", " + who + " counted " + std::to_string(number()) + " " +
               thing() + "s. ";
      case 2: return "Then " + name() + " gave " + who + " a " + thing() + ". ";
      default: return who + " left the " + place() + " and thought of the " + thing() + ". ";
    }
  }
  std::string passage(const std::string& who, int sentences) {
    std::string text;
    for (int i = 0; i < sentences; ++i) text += sentence(who);
    text.pop_back();
    return text;
  }

 private:
  static constexpr std::array<const char*, 12> kNames = {"Alice", "Bruno", "Clara",  "David",
                                                         "Emma",  "Felix", "Greta",  "Hugo",
                                                         "Ines",  "Jonas", "Katrin", "Leo"};
  static constexpr std::array<const char*, 12> kThings = {"lamp",   "letter", "basket", "clock",
                                                          "violin", "kettle", "coin",   "map",
                                                          "ladder", "mirror", "rope",   "candle"};
  static constexpr std::array<const char*, 12> kPlaces = {
      "garden", "harbour", "library", "market", "museum", "station",
      "forest", "kitchen", "theater", "tower",  "bridge", "workshop"};
  std::mt19937_64 random_;
};

}  // namespace

Result<std::vector<SpeculateItem>> read_speculate_items(const std::string& path) {
  const std::string content = TRY(text::read_file(path, kMaxFileBytes));
  std::vector<SpeculateItem> items;
  int line_number = 0;
  try {
    const size_t begin = content.find_first_not_of(" \t\r\n");
    if (begin != std::string::npos && content[begin] == '[') {
      for (const Json& row : Json::parse(content)) items.push_back(to_item(row));
    } else {
      std::istringstream lines(content);
      for (std::string line; std::getline(lines, line);) {
        ++line_number;
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        items.push_back(to_item(Json::parse(line)));
      }
    }
  } catch (const Json::exception& e) {
    const std::string where = line_number > 0 ? ":" + std::to_string(line_number) : "";
    return data_loss("--dataset-path: " + path + where + ": " + e.what() +
                     "; a row has messages, prompt or conversations");
  }
  if (items.empty()) return data_loss("--dataset-path: " + path + " has no rows");
  return items;
}

std::vector<SpeculateItem> generate_speculate_items(int64_t count, uint64_t seed) {
  Writer writer(seed);
  std::vector<SpeculateItem> items;
  for (int64_t i = 0; i < count; ++i) {
    const std::string who = writer.name();
    const std::string text = writer.passage(who, 8);
    SpeculateItem item;
    std::string ask;
    switch (i % 4) {
      case 0:
        item.task = "copy";
        ask = "Repeat this text word for word:\n\n" + text;
        break;
      case 1:
        item.task = "rewrite";
        ask = "Rewrite this text and call " + who + " Otto everywhere:\n\n" + text;
        break;
      case 2:
        item.task = "question";
        ask = text + "\n\nWhere was " + who + ", and what was there? Answer in whole sentences.";
        break;
      default:
        item.task = "story";
        ask = "Write a short story about " + who + ", a " + writer.thing() + " and a " +
              writer.place() + ".";
    }
    item.messages = chat_of(ask);
    items.push_back(std::move(item));
  }
  return items;
}

std::vector<SpeculateItem> choose_items(const std::vector<SpeculateItem>& items,
                                        const std::vector<std::string>& tasks, int64_t count) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<const SpeculateItem*>> by_task;
  for (const SpeculateItem& item : items) {
    if (!tasks.empty() && std::find(tasks.begin(), tasks.end(), item.task) == tasks.end()) continue;
    if (!by_task.contains(item.task)) order.push_back(item.task);
    by_task[item.task].push_back(&item);
  }
  std::vector<SpeculateItem> out;
  for (size_t turn = 0;; ++turn) {
    bool any = false;
    for (const std::string& task : order) {
      const auto& all = by_task[task];
      if (turn >= all.size()) continue;
      if (static_cast<int64_t>(out.size()) == count) return out;
      any = true;
      out.push_back(*all[turn]);
    }
    if (!any) return out;
  }
}

}  // namespace weft
