#include "server/api_error.h"

#include <algorithm>

#include "base/json_text.h"

namespace weft {
namespace {

constexpr size_t kMaxMessage = 512;
constexpr size_t kMaxParam = 192;

/// Length of the valid UTF-8 character at `i`, or 0 (RFC 3629).
size_t char_len(std::string_view s, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(s[k]); };
  const unsigned char lead = byte(i);
  if (lead < 0x80) return 1;
  const size_t len = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || i + len > s.size()) return 0;
  for (size_t k = 1; k < len; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  }
  const unsigned char second = byte(i + 1);
  const bool bad = (lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) ||
                   (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F);
  return bad ? 0 : len;
}

/// At most kMaxMessage bytes, printable, whole characters.
std::string clean(std::string_view message) {
  std::string out;
  for (size_t i = 0; i < message.size();) {
    const size_t len = char_len(message, i);
    const bool control =
        len == 1 && (static_cast<unsigned char>(message[i]) < 0x20 || message[i] == 0x7F);
    const std::string_view piece = len == 0 || control ? " " : message.substr(i, len);
    if (out.size() + piece.size() > kMaxMessage - 3) return out + "...";
    out += piece;
    i += std::max<size_t>(len, 1);
  }
  return out;
}

bool is_field_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '.' || c == '[' || c == ']' || c == '$';
}

/// Behind the name in quotation marks that begins at `i`.
size_t skip_quoted(std::string_view text, size_t i) {
  for (++i; i < text.size() && text[i] != '"'; ++i) i += text[i] == '\\' ? 1 : 0;
  return i + 1;
}

/// The field that a message "field: ..." names, or nothing. "body" stands for the whole. Names that
/// are a user's may stand in brackets and quotation marks.
std::string field_of(const std::string& message) {
  size_t end = 0;
  while (end < message.size() && is_field_char(message[end])) {
    const bool quoted = message.compare(end, 2, "[\"") == 0;
    end = quoted ? skip_quoted(message, end + 1) : end + 1;
  }
  if (end == 0 || end > std::min(kMaxParam, message.size())) return {};
  if (message.compare(end, 2, ": ") != 0) return {};
  std::string field = message.substr(0, end);
  return field == "body" ? std::string() : field;
}

}  // namespace

ApiError to_api_error(const Error& error) {
  ApiError out{
      .message = error.message, .param = field_of(error.message), .code = std::string(error.code)};
  switch (error.kind) {
    case ErrorKind::kInvalidArgument:
    case ErrorKind::kUnsupported:
      out.status = 400;
      out.type = "invalid_request_error";
      break;
    case ErrorKind::kNotFound:
      out.status = 404;
      out.type = "not_found_error";
      if (out.param == "model") out.code = "model_not_found";
      break;
    case ErrorKind::kPermission:
      out.status = 401;
      out.type = "authentication_error";
      out.code = "invalid_api_key";
      out.headers = {{"WWW-Authenticate", "Bearer"}};
      break;
    case ErrorKind::kExhausted:
      if (!out.param.empty()) {
        out.status = 400;
        out.type = "invalid_request_error";
        break;
      }
      return overloaded(error.message, 1);
    case ErrorKind::kUnavailable: return not_ready(error.message);
    case ErrorKind::kDataLoss:
      out.status = 500;
      out.type = "server_error";
      break;
  }
  return out;
}

ApiError unauthorized() {
  return {.status = 401,
          .message = "A valid API key is needed: Authorization: Bearer KEY.",
          .type = "authentication_error",
          .code = "invalid_api_key",
          .headers = {{"WWW-Authenticate", "Bearer"}}};
}

ApiError no_such_route() {
  return {.status = 404,
          .message = "There is no such route; docs/server.md lists them.",
          .type = "not_found_error",
          .code = "route_not_found"};
}

ApiError no_such_model(std::string_view model) {
  std::string shown(model.substr(0, 64));
  if (shown.size() < model.size()) shown += "...";
  return {.status = 404,
          .message = "model: \"" + shown + "\" is not served here; /v1/models lists what is",
          .type = "not_found_error",
          .param = "model",
          .code = "model_not_found"};
}

ApiError method_not_allowed(std::string_view allow) {
  return {.status = 405,
          .message = "This route takes " + std::string(allow) + " only.",
          .type = "invalid_request_error",
          .code = "method_not_allowed",
          .headers = {{"Allow", std::string(allow)}}};
}

ApiError unsupported_media_type() {
  return {.status = 415,
          .message = "The body must be JSON: Content-Type: application/json.",
          .type = "invalid_request_error",
          .code = "unsupported_media_type"};
}

ApiError overloaded(std::string message, int retry_after_s) {
  return {.status = 429,
          .message = std::move(message),
          .type = "rate_limit_error",
          .code = "overloaded",
          .headers = {{"Retry-After", std::to_string(retry_after_s)}}};
}

ApiError not_ready(std::string message) {
  return {.status = 503,
          .message = std::move(message),
          .type = "server_error",
          .code = "unavailable",
          .headers = {{"Retry-After", "1"}}};
}

ApiError internal_error() {
  return {.status = 500, .message = "An internal error ended the request.", .type = "server_error"};
}

std::string to_body(const ApiError& error) {
  std::string out = "{\"error\":{\"message\":";
  append_json_quoted(clean(error.message), out);
  const auto member = [&](const char* name, const std::string& value) {
    out += name;
    if (value.empty()) {
      out += "null";
    } else {
      append_json_quoted(clean(value), out);
    }
  };
  member(",\"type\":", error.type);
  member(",\"param\":", error.param);
  member(",\"code\":", error.code);
  out += "}}";
  return out;
}

HttpResponse to_response(const ApiError& error) {
  return {.status = error.status, .body = to_body(error), .headers = error.headers};
}

}  // namespace weft
