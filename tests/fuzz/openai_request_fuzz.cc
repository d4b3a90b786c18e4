// DEPS: weft_server
// Bodies of requests: whatever comes is read or refused by a short 400, and what a template will
// get is JSON again.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "server/api_error.h"
#include "server/json.h"
#include "server/openai_request.h"

namespace {

void require(bool fact) {
  if (!fact) std::abort();
}

void check_error(const weft::Error& error) {
  const weft::ApiError shown = weft::to_api_error(error);
  require(shown.status == 400);
  const std::string body = weft::to_body(shown);
  require(body.size() < 2048);
  require(weft::parse_json(body).ok());
}

void check_request(const weft::Result<weft::GenerationRequest>& request) {
  if (!request) return check_error(request.error());
  for (const std::string* json : {&request->messages, &request->tools, &request->documents}) {
    if (!json->empty()) require(weft::parse_json(*json, {.max_depth = 128}).ok());
  }
  for (const auto& [name, json] : request->template_kwargs) require(weft::parse_json(json).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  if (const auto json = weft::parse_json(body)) {
    // What is written is read as the same.
    const std::string text = weft::to_json(*json);
    const auto again = weft::parse_json(text);
    require(again.ok() && weft::to_json(*again) == text);
  }
  check_request(weft::parse_chat_request(body));
  check_request(weft::parse_completion_request(body));
  if (const auto tokenize = weft::parse_tokenize_request(body)) {
    check_request(tokenize->request);
  } else {
    check_error(tokenize.error());
  }
  if (const auto tokens = weft::parse_detokenize_request(body); !tokens) {
    check_error(tokens.error());
  }
  return 0;
}
