#include "server/request_format.h"

#include <algorithm>
#include <array>

#include "server/request_fields.h"

namespace weft {
namespace {

using Kind = OutputFormat::Kind;

Result<void> check_size(const std::string& field, size_t bytes, const RequestLimits& limits) {
  if (bytes <= limits.max_grammar_bytes) return {};
  return too_many(field, bytes, "bytes", static_cast<int64_t>(limits.max_grammar_bytes));
}

/// A schema is an object or a boolean; vLLM's fields take it as a string too.
Result<OutputFormat> read_schema(const std::string& field, const JsonValue& value, bool or_text,
                                 const RequestLimits& limits) {
  OutputFormat out{.kind = Kind::kJsonSchema, .field = field};
  if (const auto* text = value.as<std::string>(); text && or_text) {
    TRY(check_size(field, text->size(), limits));
    const Result<JsonValue> parsed = parse_json(*text);
    if (!parsed) return with_context(parsed.error(), field);
    return read_schema(field, *parsed, false, limits);
  }
  if (!value.as<JsonObject>() && !value.as<bool>()) {
    return wrong_type(field, "a JSON schema (an object)", value);
  }
  append_json(value, out.text);
  TRY(check_size(field, out.text.size(), limits));
  return out;
}

Result<OutputFormat> read_text(Kind kind, const std::string& field, const JsonValue& value,
                               const RequestLimits& limits) {
  OutputFormat out{.kind = kind, .text = TRY(read_string(field, value)), .field = field};
  if (out.text.empty()) return invalid_argument(field + ": it must not be empty");
  TRY(check_size(field, out.text.size(), limits));
  return out;
}

Result<OutputFormat> read_choice(const std::string& field, const JsonValue& value,
                                 const RequestLimits& limits) {
  OutputFormat out{.kind = Kind::kChoice, .field = field};
  out.choices = TRY(read_string_list(field, value));
  if (out.choices.empty()) return invalid_argument(field + ": at least 1 choice is needed");
  if (out.choices.size() > limits.max_choice_list) {
    return too_many(field, out.choices.size(), "choices",
                    static_cast<int64_t>(limits.max_choice_list));
  }
  size_t bytes = 0;
  for (const std::string& choice : out.choices) {
    if (choice.empty()) return invalid_argument(field + ": a choice must not be empty");
    bytes += choice.size();
  }
  TRY(check_size(field, bytes, limits));
  return out;
}

Result<OutputFormat> read_json_object(const std::string& field, const JsonValue& value) {
  if (!TRY(read_bool(field, value))) {
    return invalid_argument(field + ": it must be true where it is given");
  }
  return OutputFormat{.kind = Kind::kJsonObject, .field = field};
}

/// One constraint in vLLM's naming.
Result<OutputFormat> read_kind(const std::string& kind, const std::string& field,
                               const JsonValue& value, const RequestLimits& limits) {
  if (kind == "json") return read_schema(field, value, /*or_text=*/true, limits);
  if (kind == "regex") return read_text(Kind::kRegex, field, value, limits);
  if (kind == "grammar") return read_text(Kind::kGrammar, field, value, limits);
  if (kind == "choice") return read_choice(field, value, limits);
  if (kind == "json_object") return read_json_object(field, value);
  return unsupported(field +
                     ": it is not supported; json, regex, choice, grammar and json_object are");
}

}  // namespace

Result<OutputFormat> read_response_format(const JsonValue& value, const RequestLimits& limits) {
  TRY(read_object("response_format", value));
  const JsonValue* type = value.find("type");
  if (!type) return invalid_argument("response_format.type: it is missing");
  const std::string kind = TRY(read_string("response_format.type", *type));
  if (kind == "text") return OutputFormat{};
  if (kind == "json_object") {
    return OutputFormat{.kind = Kind::kJsonObject, .field = "response_format"};
  }
  if (kind != "json_schema") {
    return invalid_argument("response_format.type: it must be text, json_object or json_schema");
  }
  const std::string field = "response_format.json_schema";
  const JsonValue* inner = value.find("json_schema");
  if (!inner) return invalid_argument(field + ": it is missing");
  TRY(read_object(field, *inner));
  const JsonValue* name = inner->find("name");
  if (!name) return invalid_argument(field + ".name: it is missing");
  TRY(check_name(field + ".name", TRY(read_string(field + ".name", *name))));
  if (const JsonValue* strict = inner->find("strict"); strict && !strict->is_null()) {
    TRY(read_bool(field + ".strict", *strict));
  }
  if (const JsonValue* text = inner->find("description"); text && !text->is_null()) {
    TRY(read_string(field + ".description", *text));
  }
  const JsonValue* schema = inner->find("schema");
  if (!schema || schema->is_null()) {
    return OutputFormat{.kind = Kind::kJsonObject, .field = field};
  }
  return read_schema(field + ".schema", *schema, /*or_text=*/false, limits);
}

Result<OutputFormat> read_structured_outputs(const JsonValue& value, const RequestLimits& limits) {
  static constexpr std::array<std::string_view, 6> kKinds = {
      "json", "regex", "choice", "grammar", "json_object", "structural_tag"};
  static constexpr std::array<std::string_view, 3> kOptions = {
      "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"};
  OutputFormat out;
  for (const auto& [key, item] : *TRY(read_object("structured_outputs", value))) {
    if (item.is_null()) continue;
    const std::string field = "structured_outputs." + key.substr(0, 64);
    if (std::find(kOptions.begin(), kOptions.end(), key) != kOptions.end()) {
      const auto* off = item.as<bool>();
      if (!off || *off) return unsupported(field + ": it is not supported");
    }
    if (std::find(kKinds.begin(), kKinds.end(), key) == kKinds.end()) continue;
    if (out.kind != Kind::kText) {
      return invalid_argument("structured_outputs: " + out.field + " and " + field +
                              " are both given; one constraint is allowed");
    }
    out = TRY(read_kind(key, field, item, limits));
  }
  if (out.kind == Kind::kText) {
    return invalid_argument(
        "structured_outputs: one of json, regex, choice, grammar and json_object is needed");
  }
  return out;
}

Result<OutputFormat> read_guided(const std::string& kind, const JsonValue& value,
                                 const RequestLimits& limits) {
  return read_kind(kind, "guided_" + kind, value, limits);
}

Result<std::vector<std::pair<std::string, std::string>>> read_template_kwargs(
    const JsonValue& value, const RequestLimits& limits) {
  // What the server gives to the template itself, and what would change how it is rendered.
  static constexpr std::array<std::string_view, 24> kReserved = {"messages",
                                                                 "conversation",
                                                                 "tools",
                                                                 "documents",
                                                                 "chat_template",
                                                                 "add_generation_prompt",
                                                                 "tokenize",
                                                                 "bos_token",
                                                                 "continue_final_message",
                                                                 "padding",
                                                                 "truncation",
                                                                 "max_length",
                                                                 "return_tensors",
                                                                 "return_dict",
                                                                 "return_assistant_tokens_mask",
                                                                 "eos_token",
                                                                 "tokenizer_kwargs",
                                                                 "pad_token",
                                                                 "unk_token",
                                                                 "raise_exception",
                                                                 "strftime_now",
                                                                 "namespace",
                                                                 "range",
                                                                 "self"};
  const std::string name = "chat_template_kwargs";
  const JsonObject& members = *TRY(read_object(name, value));
  if (members.size() > limits.max_kwargs) {
    return too_many(name, members.size(), "members", static_cast<int64_t>(limits.max_kwargs));
  }
  std::vector<std::pair<std::string, std::string>> out;
  size_t bytes = 0;
  for (const auto& [key, item] : members) {
    const auto is_word = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    };
    if (key.empty() || key.size() > 64 || (key[0] >= '0' && key[0] <= '9') ||
        !std::all_of(key.begin(), key.end(), is_word)) {
      return invalid_argument(name + ": names must be 1 to 64 letters, digits and '_'");
    }
    if (std::find(kReserved.begin(), kReserved.end(), key) != kReserved.end()) {
      return invalid_argument(name + "." + key + ": it can't be set here");
    }
    out.emplace_back(key, to_json(item));
    bytes += key.size() + out.back().second.size();
    if (bytes > limits.max_kwargs_bytes) {
      return invalid_argument(name + ": it has more than " +
                              std::to_string(limits.max_kwargs_bytes) + " bytes");
    }
  }
  return out;
}

}  // namespace weft
