#include "text/template.h"

#include <simdjson.h>

#include <algorithm>

#include "text/jinja_interp.h"
#include "text/read_file.h"
#include "text/special_tokens.h"

namespace weft {
namespace {

namespace json = simdjson::dom;
using jinja::Value;

constexpr size_t kMaxJsonDepth = 100;
constexpr size_t kMaxConfigBytes = size_t{64} << 20;

/// JSON as a template value, all of it the user's.
Value to_value(const json::element& e) {
  switch (e.type()) {
    case json::element_type::ARRAY: {
      std::vector<Value> items;
      for (const json::element item : json::array(e)) items.push_back(to_value(item));
      return Value::list(std::move(items), true);
    }
    case json::element_type::OBJECT: {
      auto dict = std::make_shared<jinja::DictObject>();
      for (const auto [key, value] : json::object(e)) {
        dict->set(Value::string(jinja::Tagged(std::string(key), true)), to_value(value));
      }
      return jinja::make_dict(std::move(dict), true);
    }
    case json::element_type::INT64: return Value::integer(int64_t(e), true);
    case json::element_type::UINT64: throw jinja::Failure{"an integer beyond 64 bits"};
    case json::element_type::DOUBLE: return Value::real(double(e), true);
    case json::element_type::STRING:
      return Value::string(jinja::Tagged(std::string(std::string_view(e)), true));
    case json::element_type::BOOL: {
      Value v = Value::boolean(bool(e));
      v.user = true;
      return v;
    }
    case json::element_type::NULL_VALUE: break;
  }
  Value v = Value::none();
  v.user = true;
  return v;
}

Result<Value> parse_value(const std::string& text, const std::string& field, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return invalid_argument(field + ": larger than " + std::to_string(max_bytes) + " bytes");
  }
  json::parser parser;
  if (parser.allocate(text.size() + 64, kMaxJsonDepth) != simdjson::SUCCESS)
    return exhausted(field + ": no memory");
  json::element root;
  if (const auto error = parser.parse(text.data(), text.size(), true).get(root)) {
    return invalid_argument(field + ": not valid JSON: " + simdjson::error_message(error));
  }
  try {
    return to_value(root);
  } catch (const jinja::Failure& f) {
    return invalid_argument(field + ": " + f.message);
  }
}

/// A JSON file of a model directory; without one it has no fields.
struct JsonFile {
  std::filesystem::path path;
  std::string text;
  json::parser parser;
  json::element root;
  bool present = false;

  Result<void> read(std::filesystem::path file) {
    path = std::move(file);
    std::error_code error;
    if (!std::filesystem::exists(path, error)) return {};
    text = TRY(text::read_file(path, kMaxConfigBytes));
    if (text.empty()) return {};  // as if it were not there
    if (const auto e = parser.parse(text).get(root)) {
      return invalid_argument(path.string() + ": not valid JSON: " + simdjson::error_message(e));
    }
    present = true;
    return {};
  }
  bool find(const char* name, json::element& out) const {
    return present && root[name].get(out) == simdjson::SUCCESS;
  }
};

std::string position(const std::string& name, const jinja::Failure& f) {
  if (f.line == 0) return name + ": " + f.message;
  return name + ":" + std::to_string(f.line) + ":" + std::to_string(f.column) + ": " + f.message;
}

}  // namespace

struct ChatTemplate::Parts {
  struct Named {
    std::string name;  ///< for errors
    jinja::Program program;
  };
  Named main;
  std::optional<Named> tool_use;
  std::vector<std::pair<std::string, std::string>> tokens;
  std::string source;

  static Result<Named> compile(std::string_view source, std::string name) {
    Named named{std::move(name), {}};
    try {
      named.program = jinja::parse(source);
    } catch (const jinja::Failure& f) {
      return invalid_argument(position(named.name, f));
    }
    return named;
  }

  /// The field chat_template of a JSON file, called `name` in errors: one template, or named ones.
  Result<void> read_field(const json::element& field, const std::string& name) {
    std::string_view text;
    if (field.get(text) == simdjson::SUCCESS) {
      source = text;
      main = TRY(compile(text, name));
      return {};
    }
    const Error wrong =
        invalid_argument(name + " must be a string or an array of {name, template}");
    json::array list;
    if (field.get(list) != simdjson::SUCCESS) return wrong;
    bool has_default = false;
    for (const json::element item : list) {
      std::string_view which;
      if (item["name"].get(which) != simdjson::SUCCESS ||
          item["template"].get(text) != simdjson::SUCCESS) {
        return wrong;
      }
      if (which != "default" && which != "tool_use") continue;
      Named named = TRY(compile(text, name + "[" + std::string(which) + "]"));
      source += text;
      source += '\n';
      if (which == "default") {
        main = std::move(named);
        has_default = true;
      } else {
        tool_use = std::move(named);
      }
    }
    if (!has_default) return invalid_argument(name + " has no template named 'default'");
    return {};
  }
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

const std::string& ChatTemplate::source() const {
  return parts_->source;
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view source,
                                         std::vector<std::pair<std::string, std::string>> tokens,
                                         std::string name) {
  auto parts = std::make_unique<Parts>();
  parts->main = TRY(Parts::compile(source, std::move(name)));
  parts->tokens = std::move(tokens);
  parts->source = source;
  return ChatTemplate(std::move(parts));
}

Result<ChatTemplate> ChatTemplate::load(const std::filesystem::path& dir,
                                        const std::filesystem::path& replacement) {
  JsonFile config, map, legacy;
  TRY(config.read(dir / "tokenizer_config.json"));
  TRY(map.read(dir / "special_tokens_map.json"));
  auto parts = std::make_unique<Parts>();
  parts->tokens = text::special_tokens(config.text, map.text);
  std::error_code error;
  const auto file = replacement.empty() ? dir / "chat_template.jinja" : replacement;
  if (!replacement.empty() || std::filesystem::exists(file, error)) {
    parts->source = TRY(text::read_file(file, kMaxConfigBytes));
    parts->main = TRY(Parts::compile(parts->source, file.filename().string()));
    const auto tools = dir / "additional_chat_templates" / "tool_use.jinja";
    if (replacement.empty() && std::filesystem::exists(tools, error)) {
      const std::string source = TRY(text::read_file(tools, kMaxConfigBytes));
      parts->tool_use = TRY(Parts::compile(source, tools.filename().string()));
      parts->source += "\n" + source;
    }
    return ChatTemplate(std::move(parts));
  }
  TRY(legacy.read(dir / "chat_template.json"));
  for (const JsonFile* holder : {&config, &legacy}) {
    json::element field;
    if (!holder->find("chat_template", field) || field.is_null()) continue;
    TRY(parts->read_field(field, holder->path.filename().string() + ": chat_template"));
    return ChatTemplate(std::move(parts));
  }
  return not_found(
      dir.string() +
      ": no chat template (chat_template.jinja, or chat_template in tokenizer_config.json or in "
      "chat_template.json)");
}

Result<Rendered> ChatTemplate::render(const ChatInput& input, const RenderLimits& limits) const {
  const Value messages = TRY(parse_value(input.messages_json, "messages", limits.max_input_bytes));
  if (!messages.is(jinja::Kind::kList)) return invalid_argument("messages must be an array");
  std::vector<std::pair<std::string, Value>> variables;
  for (const auto& [name, text] : input.extra) {
    variables.emplace_back(name, TRY(parse_value(text, name, limits.max_input_bytes)));
  }
  variables.emplace_back("messages", messages);
  bool has_tools = false;
  for (const auto& [name, text] :
       {std::pair{"tools", &input.tools_json}, {"documents", &input.documents_json}}) {
    Value v = text->empty() ? Value::none() : TRY(parse_value(*text, name, limits.max_input_bytes));
    if (!v.is(jinja::Kind::kNone) && !v.is(jinja::Kind::kList))
      return invalid_argument(std::string(name) + " must be an array");
    has_tools |= name == std::string_view("tools") && v.is(jinja::Kind::kList);
    variables.emplace_back(name, std::move(v));
  }
  variables.emplace_back("add_generation_prompt", Value::boolean(input.add_generation_prompt));
  for (const auto& [name, text] : parts_->tokens) variables.emplace_back(name, Value::string(text));

  std::tm now{};
  if (input.now) {
    now = *input.now;
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &now);
  }
  const Parts::Named& chosen = has_tools && parts_->tool_use ? *parts_->tool_use : parts_->main;
  jinja::Limits inner;
  inner.max_ops = limits.max_ops;
  inner.max_output_bytes = limits.max_output_bytes;
  jinja::Interpreter interpreter(chosen.program, inner, now);
  static constexpr std::string_view kFunctions[] = {
      "range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"};
  for (auto& [name, value] : variables) {
    if (std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions)) {
      return invalid_argument("'" + name + "' is a function of chat templates and can't be given");
    }
    interpreter.define(name, std::move(value));
  }
  jinja::Tagged out;
  try {
    out = interpreter.render();
  } catch (const jinja::Failure& f) {
    return invalid_argument(position(chosen.name, f));
  }
  Rendered rendered;
  rendered.text = out.str();
  size_t begin = 0;
  bool user = !out.empty() && out.user_at(0);
  for (const size_t flip : out.flips()) {
    rendered.spans.push_back({begin, flip, user});
    begin = flip;
    user = !user;
  }
  if (begin < rendered.text.size()) rendered.spans.push_back({begin, rendered.text.size(), user});
  return rendered;
}

std::vector<TextSegment> Rendered::segments() const {
  std::vector<TextSegment> out;
  for (const RenderedSpan& s : spans) {
    out.push_back({std::string_view(text).substr(s.begin, s.end - s.begin), !s.user});
  }
  return out;
}

}  // namespace weft
