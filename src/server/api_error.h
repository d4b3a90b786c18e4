#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "server/http.h"

namespace weft {

/// An error as the OpenAI API shows it: {"error":{"message","type","param","code"}}.
struct ApiError {
  int status = 500;
  std::string message;
  std::string type;   ///< invalid_request_error, authentication_error, ...
  std::string param;  ///< the field, or empty: null
  std::string code;   ///< empty: null
  HttpHeaders headers = {};
};

/// The status and type of an Error. A message "field: ..." gives `param`. kExhausted means a full
/// server (429), unless a field is named: then the request itself is too much (400).
ApiError to_api_error(const Error& error);

ApiError unauthorized();
ApiError no_such_route();
ApiError no_such_model(std::string_view model);
/// `allow`: the methods the route takes, as the header wants them ("GET, HEAD").
ApiError method_not_allowed(std::string_view allow);
ApiError unsupported_media_type();
ApiError overloaded(std::string message, int retry_after_s);
/// 503, with Retry-After.
ApiError not_ready(std::string message);
ApiError internal_error();

/// The body of an error: valid UTF-8, a message of at most 512 bytes without control characters.
std::string to_body(const ApiError& error);
HttpResponse to_response(const ApiError& error);

}  // namespace weft
