#include "app/config_file.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

namespace weft {
namespace {

constexpr uintmax_t kMaxConfigBytes = 1 << 20;
constexpr int kMaxDepth = 16;

/// Only what the core schema of YAML 1.2 calls so: "no" and "off" are texts.
bool is_boolean(const YAML::Node& node) {
  if (!node.IsScalar() || node.Tag() == "!") return false;
  const std::string& text = node.Scalar();
  return text == "true" || text == "false" || text == "True" || text == "False" || text == "TRUE" ||
         text == "FALSE";
}

std::string scalar(const YAML::Node& node) {
  if (!is_boolean(node)) return node.IsNull() ? "" : node.Scalar();
  return node.Scalar()[0] == 't' || node.Scalar()[0] == 'T' ? "true" : "false";
}

Result<nlohmann::json> to_json(const YAML::Node& node, int depth) {
  if (depth > kMaxDepth) return invalid_argument("nested too deeply");
  if (node.IsMap()) {
    nlohmann::json object = nlohmann::json::object();
    for (const auto& item : node) {
      object[item.first.as<std::string>()] = TRY(to_json(item.second, depth + 1));
    }
    return object;
  }
  if (node.IsSequence()) {
    nlohmann::json array = nlohmann::json::array();
    for (const YAML::Node& item : node) array.push_back(TRY(to_json(item, depth + 1)));
    return array;
  }
  if (node.IsNull()) return nlohmann::json();
  if (node.Tag() == "!") return nlohmann::json(node.Scalar());  // quoted: a text
  const std::string text = scalar(node);
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_primitive() || value.is_discarded()) value = text;
  return value;
}

Result<ConfigEntry> to_entry(const std::string& key, const YAML::Node& node, int line) {
  ConfigEntry entry{.flag = "--" + key, .values = {}, .is_boolean = is_boolean(node), .line = line};
  std::replace(entry.flag.begin(), entry.flag.end(), '_', '-');
  if (node.IsSequence()) {
    for (const YAML::Node& item : node) {
      entry.values.push_back(item.IsScalar() ? scalar(item) : TRY(to_json(item, 1)).dump());
    }
    if (entry.values.empty()) return invalid_argument("'" + key + "' has an empty list");
  } else if (node.IsMap()) {
    entry.values.push_back(TRY(to_json(node, 1)).dump());
  } else if (node.IsNull()) {
    return invalid_argument("'" + key + "' has no value");
  } else {
    entry.values.push_back(scalar(node));
  }
  return entry;
}

Result<std::vector<ConfigEntry>> to_entries(const YAML::Node& root, const std::string& path) {
  std::vector<ConfigEntry> entries;
  if (root.IsNull()) return entries;
  if (!root.IsMap()) {
    return invalid_argument(path + ": a mapping of flags is expected, such as 'port: 8000'");
  }
  std::set<std::string> seen;
  for (const auto& item : root) {
    const int line = item.first.Mark().line + 1;
    const std::string where = path + ":" + std::to_string(line);
    if (!item.first.IsScalar()) return invalid_argument(where + ": a key must be a flag's name");
    Result<ConfigEntry> entry = to_entry(item.first.Scalar(), item.second, line);
    if (!entry.ok()) return with_context(entry.error(), where);
    if (!seen.insert(entry->flag).second) {
      return invalid_argument(where + ": '" + item.first.Scalar() + "' is there twice");
    }
    entries.push_back(*entry);
  }
  return entries;
}

}  // namespace

Result<std::vector<ConfigEntry>> read_config_file(const std::string& path) {
  std::error_code failed;
  const uintmax_t size = std::filesystem::file_size(path, failed);
  if (failed) return not_found("--config: cannot read '" + path + "': " + failed.message());
  if (size > kMaxConfigBytes)
    return invalid_argument("--config: '" + path + "' is larger than 1 MiB");
  try {
    return to_entries(YAML::LoadFile(path), path);
  } catch (const YAML::Exception& e) {
    return invalid_argument(path + ":" + std::to_string(e.mark.line + 1) + ": " + e.msg);
  }
}

}  // namespace weft
