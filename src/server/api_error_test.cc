#include "server/api_error.h"

#include <gtest/gtest.h>

#include "server/json.h"

namespace weft {
namespace {

TEST(ApiError, MapsKindsToStatusAndType) {
  struct Case {
    Error error;
    int status;
    const char *type, *param, *code;
  };
  const Case cases[] = {
      {invalid_argument("top_p: 2 is not in (0, 1]"), 400, "invalid_request_error", "top_p", ""},
      {unsupported("suffix: it is not supported"), 400, "invalid_request_error", "suffix", ""},
      {{.message = "prompt: too long", .code = "context_length_exceeded"},
       400,
       "invalid_request_error",
       "prompt",
       "context_length_exceeded"},
      {invalid_argument("body: it is empty"), 400, "invalid_request_error", "", ""},
      {invalid_argument("messages[3].tool_calls[0].id: bad"), 400, "invalid_request_error",
       "messages[3].tool_calls[0].id", ""},
      {unsupported("schema.$defs.A.properties[\"a: \\\"]b\"].type: no"), 400,
       "invalid_request_error", "schema.$defs.A.properties[\"a: \\\"]b\"].type", ""},
      {unsupported("schema.properties[\"a: b\"]"), 400, "invalid_request_error", "", ""},
      {unsupported("schema.properties[\"never closed"), 400, "invalid_request_error", "", ""},
      {unsupported("schema.properties[\"ends so\\"), 400, "invalid_request_error", "", ""},
      {invalid_argument("chat template: 3: not this"), 400, "invalid_request_error", "", ""},
      {not_found("model: x is not here"), 404, "not_found_error", "model", "model_not_found"},
      {permission_denied("no"), 401, "authentication_error", "", "invalid_api_key"},
      {exhausted("the queue is full"), 429, "rate_limit_error", "", "overloaded"},
      {exhausted("messages: too many steps"), 400, "invalid_request_error", "messages", ""},
      {unavailable("loading"), 503, "server_error", "", "unavailable"},
      {data_loss("broken"), 500, "server_error", "", ""},
  };
  for (const Case& c : cases) {
    const ApiError error = to_api_error(c.error);
    EXPECT_EQ(error.status, c.status) << c.error.message;
    EXPECT_EQ(error.type, c.type) << c.error.message;
    EXPECT_EQ(error.param, c.param) << c.error.message;
    EXPECT_EQ(error.code, c.code) << c.error.message;
  }
}

TEST(ApiError, BodyIsTheOpenAiForm) {
  EXPECT_EQ(to_body(to_api_error(invalid_argument("n: 0 is not in [1, 16]"))),
            R"({"error":{"message":"n: 0 is not in [1, 16]","type":"invalid_request_error",)"
            R"("param":"n","code":null}})");
  const HttpResponse response = to_response(method_not_allowed("POST"));
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.content_type, "application/json");
  EXPECT_EQ(response.headers, (HttpHeaders{{"Allow", "POST"}}));
  EXPECT_EQ(to_response(overloaded("full", 7)).headers, (HttpHeaders{{"Retry-After", "7"}}));
  EXPECT_EQ(to_response(unauthorized()).headers, (HttpHeaders{{"WWW-Authenticate", "Bearer"}}));
}

TEST(ApiError, MessagesAreShortValidAndPrintable) {
  const std::string bad[] = {std::string(100'000, 'x'),
                             std::string("a\0b\x01\x7F\n", 6),
                             "\xC3",
                             "\xF0\x9F\x98",
                             "\xED\xA0\x80",
                             "\xC0\x80",
                             "\xF5\x80\x80\x80",
                             std::string(510, 'x') + "\xF0\x9F\x98\x80",
                             "\"quoted\\\""};
  for (const std::string& message : bad) {
    const std::string body = to_body({.status = 400, .message = message, .type = "t"});
    const Result<JsonValue> parsed = parse_json(body);
    ASSERT_TRUE(parsed.ok()) << body;
    const std::string shown = *parsed->find("error")->find("message")->as<std::string>();
    EXPECT_LE(shown.size(), 512u);
    for (const char c : shown) EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
  }
  EXPECT_LT(to_body(no_such_model(std::string(10'000, 'm'))).size(), 300u);
}

}  // namespace
}  // namespace weft
