#include "checkpoint/config_json.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "checkpoint/model_file.h"

namespace weft {
namespace {

using Json = nlohmann::json;

/// First pass over the text: checks the limits and duplicate keys without building anything.
class LimitChecker : public nlohmann::json_sax<Json> {
 public:
  explicit LimitChecker(const ConfigJsonLimits& limits) : limits_(limits) {}

  const std::string& reason() const { return reason_; }

  bool null() override { return count(); }
  bool boolean(bool) override { return count(); }
  bool number_integer(number_integer_t) override { return count(); }
  bool number_unsigned(number_unsigned_t) override { return count(); }
  bool number_float(number_float_t, const string_t&) override { return count(); }
  bool string(string_t&) override { return count(); }
  bool binary(binary_t&) override { return fail("has a binary value"); }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return open();
  }
  bool key(string_t& name) override {
    if (name.size() > limits_.max_key_bytes) {
      return fail("has a key of " + std::to_string(name.size()) + " bytes; at most " +
                  std::to_string(limits_.max_key_bytes) + " are accepted");
    }
    if (!keys_.back().insert(name).second) return fail("has the key " + in_quotes(name) + " twice");
    return count();
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(size_t) override { return open(); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception& error) override {
    const bool range = error.id == 406;  // out_of_range: a number that no double can hold
    return fail((range ? "has a number that is too large, " : "is not valid JSON, ") +
                std::string("at byte ") + std::to_string(position) + " near " + in_quotes(token));
  }

 private:
  bool fail(std::string reason) {
    if (reason_.empty()) reason_ = std::move(reason);
    return false;
  }
  bool count() {
    if (++values_ <= limits_.max_values) return true;
    return fail("has more than " + std::to_string(limits_.max_values) + " values");
  }
  bool open() {
    if (++depth_ <= limits_.max_depth) return count();
    return fail("is nested deeper than " + std::to_string(limits_.max_depth) + " levels");
  }

  const ConfigJsonLimits limits_;
  int depth_ = 0;
  int64_t values_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;
  std::string reason_;
};

/// A value as a message shows it: short, and never with foreign control characters.
std::string shown(const Json& value) {
  switch (value.type()) {
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return "an array of " + std::to_string(value.size());
    case Json::value_t::string:
      return "the string " + in_quotes(value.get_ref<const std::string&>());
    default: return value.dump();
  }
}

std::string number_text(double value) {
  return Json(value).dump();
}

}  // namespace

struct ConfigJson::Node {
  std::shared_ptr<const Json> root;
  const Json* object = nullptr;        // into *root
  std::shared_ptr<const Node> parent;  // where absent fields are looked up next; may be null
  std::string source;
  std::string prefix;  // "text_config."

  struct Found {
    const Json* value = nullptr;
    const Node* node = nullptr;
  };
  Found find(std::string_view name) const {
    for (const Node* node = this; node != nullptr; node = node->parent.get()) {
      const auto it = node->object->find(std::string(name));
      if (it != node->object->end() && !it->is_null()) return {&*it, node};
    }
    return {nullptr, this};
  }
  std::string field(std::string_view name) const {
    return source + ": " + prefix + std::string(name);
  }
  Error missing(std::string_view name, const char* expected) const {
    return invalid_argument(field(name) + " is missing; it must be " + expected);
  }
};

namespace {

template <class Found>
Error mismatch(const Found& found, std::string_view name, const std::string& expected) {
  return invalid_argument(found.node->field(name) + " must be " + expected + ", got " +
                          shown(*found.value));
}

bool to_integer(const Json& value, int64_t& out) {
  if (value.is_number_unsigned()) {
    const auto wide = value.get<uint64_t>();
    if (wide > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
    out = static_cast<int64_t>(wide);
    return true;
  }
  if (!value.is_number_integer()) return false;
  out = value.get<int64_t>();
  return true;
}

bool to_number(const Json& value, double& out) {
  if (!value.is_number()) return false;
  out = value.get<double>();
  return std::isfinite(out);
}

bool to_string_value(const Json& value, std::string& out) {
  if (!value.is_string()) return false;
  out = value.get_ref<const std::string&>();
  return true;
}

}  // namespace

Result<ConfigJson> ConfigJson::parse(std::string_view text, std::string source,
                                     ConfigJsonLimits limits) {
  if (text.size() > limits.max_bytes) {
    return exhausted(source + ": is " + std::to_string(text.size()) + " bytes; at most " +
                     std::to_string(limits.max_bytes) + " are accepted");
  }
  LimitChecker checker(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &checker)) {
    return invalid_argument(source + ": " + checker.reason());
  }
  auto root = std::make_shared<const Json>(Json::parse(text.begin(), text.end(), nullptr, false));
  CHECK(!root->is_discarded());
  if (!root->is_object()) {
    return invalid_argument(source + ": must be a JSON object, got " + shown(*root));
  }
  auto node = std::make_shared<Node>();
  node->object = root.get();
  node->root = std::move(root);
  node->source = std::move(source);
  return ConfigJson(std::move(node));
}

Result<ConfigJson> ConfigJson::load(const ModelDirectory& dir, const std::string& name,
                                    ConfigJsonLimits limits) {
  const ModelFile file = TRY(dir.open_file(name));
  const std::string text = TRY(file.read_text(limits.max_bytes));
  return parse(text, file.path(), limits);
}

bool ConfigJson::has(std::string_view name) const {
  return node_->find(name).value != nullptr;
}

std::vector<std::string> ConfigJson::names() const {
  std::vector<std::string> out;
  for (auto it = node_->object->begin(); it != node_->object->end(); ++it) {
    if (!it->is_null()) out.push_back(it.key());
  }
  return out;
}

std::string ConfigJson::field(std::string_view name) const {
  return node_->find(name).node->field(name);
}

Result<int64_t> ConfigJson::integer(std::string_view name) const {
  const auto found = node_->find(name);
  if (!found.value) return node_->missing(name, "an integer");
  int64_t value = 0;
  if (!to_integer(*found.value, value)) return mismatch(found, name, "an integer of 64 bits");
  return value;
}

Result<int64_t> ConfigJson::integer_or(std::string_view name, int64_t fallback) const {
  if (!has(name)) return fallback;
  return integer(name);
}

Result<int64_t> ConfigJson::integer_in(std::string_view name, int64_t low, int64_t high) const {
  const int64_t value = TRY(integer(name));
  if (value < low || value > high) {
    const auto found = node_->find(name);
    return mismatch(found, name,
                    "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return value;
}

Result<int64_t> ConfigJson::integer_in_or(std::string_view name, int64_t low, int64_t high,
                                          int64_t fallback) const {
  if (!has(name)) return fallback;
  return integer_in(name, low, high);
}

Result<double> ConfigJson::number(std::string_view name) const {
  const auto found = node_->find(name);
  if (!found.value) return node_->missing(name, "a number");
  double value = 0;
  if (!to_number(*found.value, value)) return mismatch(found, name, "a finite number");
  return value;
}

Result<double> ConfigJson::number_or(std::string_view name, double fallback) const {
  if (!has(name)) return fallback;
  return number(name);
}

Result<double> ConfigJson::number_in(std::string_view name, double low, double high) const {
  const double value = TRY(number(name));
  if (value < low || value > high) {
    const auto found = node_->find(name);
    return mismatch(found, name, "a number from " + number_text(low) + " to " + number_text(high));
  }
  return value;
}

Result<double> ConfigJson::number_in_or(std::string_view name, double low, double high,
                                        double fallback) const {
  if (!has(name)) return fallback;
  return number_in(name, low, high);
}

Result<bool> ConfigJson::flag(std::string_view name) const {
  const auto found = node_->find(name);
  if (!found.value) return node_->missing(name, "true or false");
  if (!found.value->is_boolean()) return mismatch(found, name, "true or false");
  return found.value->get<bool>();
}

Result<bool> ConfigJson::flag_or(std::string_view name, bool fallback) const {
  if (!has(name)) return fallback;
  return flag(name);
}

Result<std::string> ConfigJson::string(std::string_view name) const {
  const auto found = node_->find(name);
  if (!found.value) return node_->missing(name, "a string");
  std::string value;
  if (!to_string_value(*found.value, value)) return mismatch(found, name, "a string");
  return value;
}

Result<std::string> ConfigJson::string_or(std::string_view name, std::string fallback) const {
  if (!has(name)) return fallback;
  return string(name);
}

template <class T, class Convert>
Result<std::vector<T>> ConfigJson::array(std::string_view name, const char* what,
                                         Convert convert) const {
  const auto found = node_->find(name);
  const std::string expected = std::string("an array of ") + what;
  if (!found.value) return node_->missing(name, expected.c_str());
  if (!found.value->is_array()) return mismatch(found, name, expected);
  std::vector<T> out;
  out.reserve(found.value->size());
  for (size_t i = 0; i < found.value->size(); ++i) {
    const Json& item = (*found.value)[i];
    T value{};
    if (!convert(item, value)) {
      return invalid_argument(found.node->field(name) + " must be " + expected + ", but item " +
                              std::to_string(i) + " is " + shown(item));
    }
    out.push_back(std::move(value));
  }
  return out;
}

Result<std::vector<int64_t>> ConfigJson::integers(std::string_view name) const {
  return array<int64_t>(name, "integers", to_integer);
}

Result<std::vector<double>> ConfigJson::numbers(std::string_view name) const {
  return array<double>(name, "finite numbers", to_number);
}

Result<std::vector<std::string>> ConfigJson::strings(std::string_view name) const {
  return array<std::string>(name, "strings", to_string_value);
}

Result<std::vector<ConfigJson>> ConfigJson::objects(std::string_view name) const {
  const auto found = node_->find(name);
  using NodePtr = std::shared_ptr<const Node>;
  const auto convert = [&](const Json& item, NodePtr& out) {
    if (!item.is_object()) return false;
    auto node = std::make_shared<Node>();
    node->root = node_->root;
    node->object = &item;
    node->source = node_->source;
    node->prefix = found.node->prefix + std::string(name) + "[].";
    out = std::move(node);
    return true;
  };
  const auto nodes = TRY(array<NodePtr>(name, "objects", convert));
  std::vector<ConfigJson> out;
  out.reserve(nodes.size());
  for (const NodePtr& node : nodes) out.push_back(ConfigJson(node));
  return out;
}

Result<ConfigJson> ConfigJson::object(std::string_view name) const {
  const auto found = node_->find(name);
  if (!found.value) return node_->missing(name, "an object");
  if (!found.value->is_object()) return mismatch(found, name, "an object");
  auto node = std::make_shared<Node>();
  node->root = node_->root;
  node->object = found.value;
  node->source = node_->source;
  node->prefix = found.node->prefix + std::string(name) + ".";
  return ConfigJson(std::move(node));
}

bool ConfigJson::is_object(std::string_view name) const {
  const auto found = node_->find(name);
  return found.value && found.value->is_object();
}

bool ConfigJson::is_array(std::string_view name) const {
  const auto found = node_->find(name);
  return found.value && found.value->is_array();
}

bool ConfigJson::is_string(std::string_view name) const {
  const auto found = node_->find(name);
  return found.value && found.value->is_string();
}

Result<ConfigJson> ConfigJson::nested(std::string_view name) const {
  if (!has(name)) return *this;
  auto node = std::make_shared<Node>(*TRY(object(name)).node_);
  node->parent = node_;
  return ConfigJson(std::move(node));
}

std::string ConfigJson::dump(std::string_view name) const {
  const auto found = node_->find(name);
  return found.value ? found.value->dump() : "null";
}

namespace {

constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();

Result<std::vector<int64_t>> token_ids(const ConfigJson& json, std::string_view name) {
  if (!json.has(name)) return std::vector<int64_t>();
  if (!json.is_array(name)) {
    return std::vector<int64_t>{TRY(json.integer_in(name, 0, kMaxTokenId))};
  }
  const auto ids = TRY(json.integers(name));
  for (const int64_t id : ids) {
    if (id < 0 || id > kMaxTokenId) {
      return invalid_argument(json.field(name) + " must be token ids from 0 to " +
                              std::to_string(kMaxTokenId) + ", got " + std::to_string(id));
    }
  }
  return ids;
}

Result<std::optional<int64_t>> optional_integer(const ConfigJson& json, std::string_view name,
                                                int64_t low, int64_t high) {
  if (!json.has(name)) return std::optional<int64_t>();
  return std::optional<int64_t>(TRY(json.integer_in(name, low, high)));
}

Result<std::optional<double>> optional_number(const ConfigJson& json, std::string_view name,
                                              double low, double high) {
  if (!json.has(name)) return std::optional<double>();
  return std::optional<double>(TRY(json.number_in(name, low, high)));
}

}  // namespace

Result<GenerationConfig> parse_generation_config(const ConfigJson& json) {
  GenerationConfig out;
  out.eos_token_ids = TRY(token_ids(json, "eos_token_id"));
  out.bos_token_id = TRY(optional_integer(json, "bos_token_id", 0, kMaxTokenId));
  // Some exports write -1 for "no padding token".
  out.pad_token_id = TRY(optional_integer(json, "pad_token_id", -1, kMaxTokenId));
  if (out.pad_token_id == -1) out.pad_token_id.reset();
  if (json.has("do_sample")) out.do_sample = TRY(json.flag("do_sample"));
  out.temperature = TRY(optional_number(json, "temperature", 0.0, 100.0));
  out.top_k = TRY(optional_integer(json, "top_k", -1, kMaxTokenId));
  out.top_p = TRY(optional_number(json, "top_p", 0.0, 1.0));
  out.min_p = TRY(optional_number(json, "min_p", 0.0, 1.0));
  out.repetition_penalty = TRY(optional_number(json, "repetition_penalty", 1e-3, 1000.0));
  return out;
}

Result<ModelConfig> load_config(const std::string& dir) {
  const ModelDirectory directory = TRY(ModelDirectory::open(dir));
  if (!directory.has("config.json")) {
    return not_found(dir + ": has no config.json; a Hugging Face model directory is expected");
  }
  ModelConfig out{.config = TRY(ConfigJson::load(directory, "config.json")), .generation = {}};
  if (directory.has("generation_config.json")) {
    const ConfigJson json = TRY(ConfigJson::load(directory, "generation_config.json"));
    out.generation = TRY(parse_generation_config(json));
  }
  const ConfigJson text = TRY(out.config.text_config());
  if (out.generation.eos_token_ids.empty()) {
    out.generation.eos_token_ids = TRY(token_ids(text, "eos_token_id"));
  }
  if (!out.generation.bos_token_id) {
    out.generation.bos_token_id = TRY(optional_integer(text, "bos_token_id", 0, kMaxTokenId));
  }
  return out;
}

}  // namespace weft
