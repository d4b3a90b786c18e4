#include "server/request_messages.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/json_text.h"
#include "server/request_fields.h"
#include "server/request_videos.h"

namespace weft {
namespace {

constexpr size_t kMaxToolCalls = 128;
constexpr size_t kMaxShortText = 256;  // ids and names
constexpr JsonLimits kArgumentLimits{.max_depth = 48, .max_values = 1 << 16};
constexpr std::array<std::string_view, 6> kRoles = {"system",    "developer", "user",
                                                    "assistant", "tool",      "function"};

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> list) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

/// Appends `,"name":` or `"name":` inside an object.
void begin_member(std::string_view name, std::string& out) {
  if (out.back() != '{') out += ',';
  append_json_quoted(name, out);
  out += ':';
}

/// One part of a content.
struct Part {
  enum class Kind : uint8_t { kText, kImage, kVideo };
  Kind kind = Kind::kText;
  std::string text;  ///< or the image's URI
  PixelBounds bounds;
  VideoSource video;
};

Result<Part> read_part(const std::string& field, const JsonValue& part) {
  TRY(read_object(field, part));
  const JsonValue* type = part.find("type");
  if (!type) return invalid_argument(field + ".type: it is missing");
  const std::string kind = TRY(read_string(field + ".type", *type));
  if (is_one_of(kind, {"text", "refusal", "input_text", "output_text"})) {
    const std::string name = kind == "refusal" ? "refusal" : "text";
    const JsonValue* text = part.find(name);
    if (!text) return invalid_argument(field + "." + name + ": it is missing");
    return Part{Part::Kind::kText, TRY(read_string(field + "." + name, *text)), {}, {}};
  }
  if (is_one_of(kind, {"image_url", "image", "input_image"})) {
    Part out{Part::Kind::kImage,
             TRY(read_image_uri(field, part)),
             TRY(read_pixel_bounds(field, part)),
             {}};
    const JsonValue* inner = part.find("image_url");
    if (out.bounds == PixelBounds() && inner && inner->as<JsonObject>()) {
      out.bounds = TRY(read_pixel_bounds(field + ".image_url", *inner));
    }
    return out;
  }
  if (is_one_of(kind, {"image_pil", "image_embeds"})) {
    return unsupported(field + ": images are taken as image_url alone");
  }
  if (is_one_of(kind, {"video_url", "video", "input_video"})) {
    return Part{Part::Kind::kVideo, {}, {}, TRY(read_video(field, part))};
  }
  if (is_one_of(kind, {"input_audio", "audio_url", "audio"})) {
    return unsupported(field + ": audio is not supported by this model");
  }
  if (kind == "file") return unsupported(field + ": files are not supported by this model");
  return invalid_argument(field + ".type: it must be \"text\", \"image_url\" or \"video_url\"");
}

/// A content as the template wants it, as JSON: one text (parts are joined by newlines), or with
/// images or videos the list of parts.
std::string content_json(const std::vector<Part>& parts, bool has_media) {
  std::string out;
  if (!has_media) {
    std::string joined;
    for (size_t i = 0; i < parts.size(); ++i) joined += (i > 0 ? "\n" : "") + parts[i].text;
    append_json_quoted(joined, out);
    return out;
  }
  for (const Part& part : parts) {
    out += out.empty() ? '[' : ',';
    if (part.kind != Part::Kind::kText) {
      out += part.kind == Part::Kind::kImage ? "{\"type\":\"image\"}" : "{\"type\":\"video\"}";
      continue;
    }
    out += "{\"type\":\"text\",\"text\":";
    append_json_quoted(part.text, out);
    out += '}';
  }
  return out + ']';
}

/// Nothing for null; images and videos are appended to those of `messages`.
Result<std::optional<std::string>> read_content(const std::string& field, const JsonValue* value,
                                                size_t max_parts, GenerationRequest& messages) {
  if (!value || value->is_null()) return std::optional<std::string>();
  if (const auto* text = value->as<std::string>()) {
    return std::optional(content_json({{Part::Kind::kText, *text, {}, {}}}, false));
  }
  const auto* parts = value->as<JsonArray>();
  if (!parts) return wrong_type(field, "a string or an array of parts", *value);
  if (parts->empty()) return invalid_argument(field + ": the array must have at least 1 part");
  if (parts->size() > max_parts) {
    return too_many(field, parts->size(), "parts", static_cast<int64_t>(max_parts));
  }
  std::vector<Part> list;
  bool has_media = false;
  for (size_t i = 0; i < parts->size(); ++i) {
    list.push_back(TRY(read_part(item_of(field, i), (*parts)[i])));
    Part& part = list.back();
    has_media |= part.kind != Part::Kind::kText;
    if (part.kind == Part::Kind::kImage) {
      messages.images.push_back({item_of(field, i), std::move(part.text), part.bounds});
    } else if (part.kind == Part::Kind::kVideo) {
      messages.videos.push_back(std::move(part.video));
    }
  }
  return std::optional(content_json(list, has_media));
}

/// Arguments of a call are JSON in a string; templates want the object.
Result<void> write_arguments(const std::string& field, const JsonValue* value, std::string& out) {
  if (!value || value->is_null()) {
    out += "{}";
    return {};
  }
  if (value->as<JsonObject>()) {
    append_json(*value, out);
    return {};
  }
  const auto* text = value->as<std::string>();
  if (!text) return wrong_type(field, "a string with JSON", *value);
  if (text->find_first_not_of(" \t\r\n") == std::string::npos) {
    out += "{}";
    return {};
  }
  const Result<JsonValue> parsed = parse_json(*text, kArgumentLimits);
  if (parsed && parsed->as<JsonObject>()) {
    append_json(*parsed, out);
  } else {
    append_json_quoted(*text, out);
  }
  return {};
}

Result<void> write_tool_call(const std::string& field, const JsonValue& call, std::string& out,
                             std::vector<std::string>& ids) {
  const JsonObject& members = *TRY(read_object(field, call));
  if (const JsonValue* type = call.find("type"); type && !type->is_null()) {
    if (TRY(read_string(field + ".type", *type)) != "function") {
      return invalid_argument(field + ".type: it must be \"function\"");
    }
  }
  const JsonValue* function = call.find("function");
  if (!function) return invalid_argument(field + ".function: it is missing");
  TRY(read_object(field + ".function", *function));
  const JsonValue* name = function->find("name");
  if (!name) return invalid_argument(field + ".function.name: it is missing");
  out += '{';
  for (const auto& [key, value] : members) {
    if (key == "function" || key == "type" || value.is_null()) continue;
    if (key == "id") {
      ids.push_back(TRY(read_short_string(field + ".id", value, kMaxShortText)));
    }
    begin_member(key, out);
    append_json(value, out);
  }
  begin_member("type", out);
  out += "\"function\"";
  begin_member("function", out);
  out += "{\"name\":";
  append_json_quoted(TRY(read_short_string(field + ".function.name", *name, kMaxShortText)), out);
  out += ",\"arguments\":";
  TRY(write_arguments(field + ".function.arguments", function->find("arguments"), out));
  out += "}}";
  return {};
}

Result<void> write_tool_calls(const std::string& field, const JsonValue& value, std::string& out) {
  const JsonArray& calls = *TRY(read_array(field, value));
  if (calls.size() > kMaxToolCalls) {
    return too_many(field, calls.size(), "calls", static_cast<int64_t>(kMaxToolCalls));
  }
  std::vector<std::string> ids;
  out += '[';
  for (size_t i = 0; i < calls.size(); ++i) {
    if (i > 0) out += ',';
    TRY(write_tool_call(item_of(field, i), calls[i], out, ids));
  }
  out += ']';
  std::sort(ids.begin(), ids.end());
  if (std::adjacent_find(ids.begin(), ids.end()) != ids.end()) {
    return invalid_argument(field + ": two calls of one message have the same id");
  }
  return {};
}

Result<std::string> read_role(const std::string& field, const JsonValue& message) {
  const JsonValue* value = message.find("role");
  if (!value) return invalid_argument(field + ": it is missing");
  const std::string role = TRY(read_string(field, *value));
  if (std::find(kRoles.begin(), kRoles.end(), role) == kRoles.end()) {
    return invalid_argument(field +
                            ": it must be system, developer, user, assistant, tool or function");
  }
  return role == "developer" ? std::string("system") : role;
}

/// A member of a message besides role and content.
Result<void> write_member(const std::string& field, const std::string& key, const JsonValue& value,
                          std::string& out) {
  if (is_one_of(key, {"name", "tool_call_id"})) {
    begin_member(key, out);
    append_json_quoted(TRY(read_short_string(field, value, kMaxShortText)), out);
    return {};
  }
  if (is_one_of(key, {"reasoning", "reasoning_content", "refusal"})) {
    TRY(read_string(field, value));
  }
  begin_member(key, out);
  if (key == "tool_calls") return write_tool_calls(field, value, out);
  append_json(value, out);
  return {};
}

Result<void> check_message(const std::string& field, const std::string& role,
                           const JsonValue& message, bool has_content) {
  const auto present = [&](const char* name) {
    const JsonValue* value = message.find(name);
    return value && !value->is_null();
  };
  if (!has_content && role != "assistant") {
    return invalid_argument(field + ".content: a message of the role " + role + " needs one");
  }
  if (role == "tool" && !present("tool_call_id")) {
    return invalid_argument(field + ".tool_call_id: a message of the role tool needs one");
  }
  if (role == "function" && !present("name")) {
    return invalid_argument(field + ".name: a message of the role function needs one");
  }
  if (role != "assistant" && present("tool_calls")) {
    return invalid_argument(field + ".tool_calls: only messages of the role assistant have them");
  }
  return {};
}

constexpr size_t kMaxMembers = 64;

Result<void> write_message(const std::string& field, const JsonValue& message,
                           const RequestLimits& limits, GenerationRequest& list) {
  std::string& out = list.messages;
  const JsonObject& members = *TRY(read_object(field, message));
  if (members.size() > kMaxMembers) {
    return too_many(field, members.size(), "members", int64_t{kMaxMembers});
  }
  const std::string role = TRY(read_role(field + ".role", message));
  const std::optional<std::string> content =
      TRY(read_content(field + ".content", message.find("content"), limits.max_parts, list));
  TRY(check_message(field, role, message, content.has_value()));
  out += "{\"role\":";
  append_json_quoted(role, out);
  out += ",\"content\":";
  out += content.value_or("\"\"");
  for (const auto& [key, value] : members) {
    if (key == "role" || key == "content" || value.is_null()) continue;
    TRY(write_member(field + "." + key.substr(0, kMaxShortText), key, value, out));
  }
  // Two names of one thing; templates know the older.
  const JsonValue* reasoning = message.find("reasoning");
  const JsonValue* older = message.find("reasoning_content");
  if (reasoning && !reasoning->is_null() && (!older || older->is_null())) {
    begin_member("reasoning_content", out);
    append_json(*reasoning, out);
  }
  out += '}';
  return {};
}

Result<std::string> read_tool(const std::string& field, const JsonValue& tool) {
  TRY(read_object(field, tool));
  const JsonValue* type = tool.find("type");
  if (!type) return invalid_argument(field + ".type: it is missing");
  if (TRY(read_string(field + ".type", *type)) != "function") {
    return invalid_argument(field + ".type: it must be \"function\"");
  }
  const std::string inner = field + ".function";
  const JsonValue* function = tool.find("function");
  if (!function) return invalid_argument(inner + ": it is missing");
  TRY(read_object(inner, *function));
  const JsonValue* name_value = function->find("name");
  if (!name_value) return invalid_argument(inner + ".name: it is missing");
  std::string name = TRY(read_string(inner + ".name", *name_value));
  TRY(check_name(inner + ".name", name));
  if (const JsonValue* text = function->find("description"); text && !text->is_null()) {
    TRY(read_string(inner + ".description", *text));
  }
  if (const JsonValue* parameters = function->find("parameters");
      parameters && !parameters->is_null()) {
    TRY(read_object(inner + ".parameters", *parameters));
  }
  if (const JsonValue* strict = function->find("strict"); strict && !strict->is_null()) {
    TRY(read_bool(inner + ".strict", *strict));
  }
  return name;
}

}  // namespace

Result<void> read_messages(const JsonValue& value, const RequestLimits& limits,
                           GenerationRequest& out) {
  const JsonArray& messages = *TRY(read_array("messages", value));
  if (messages.empty()) return invalid_argument("messages: at least 1 message is needed");
  if (messages.size() > limits.max_messages) {
    return too_many("messages", messages.size(), "messages",
                    static_cast<int64_t>(limits.max_messages));
  }
  out.messages = "[";
  for (size_t i = 0; i < messages.size(); ++i) {
    if (i > 0) out.messages += ',';
    TRY(write_message(item_of("messages", i), messages[i], limits, out));
  }
  out.messages += ']';
  return {};
}

Result<ToolList> read_tools(const JsonValue& value, const RequestLimits& limits) {
  const JsonArray& tools = *TRY(read_array("tools", value));
  if (tools.size() > limits.max_tools) {
    return too_many("tools", tools.size(), "tools", static_cast<int64_t>(limits.max_tools));
  }
  ToolList out;
  for (size_t i = 0; i < tools.size(); ++i) {
    std::string name = TRY(read_tool(item_of("tools", i), tools[i]));
    if (std::find(out.names.begin(), out.names.end(), name) != out.names.end()) {
      return invalid_argument(item_of("tools", i) +
                              ".function.name: it is the name of an earlier "
                              "tool too");
    }
    out.names.push_back(std::move(name));
  }
  if (!tools.empty()) out.json = to_json(value);
  return out;
}

}  // namespace weft
