#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "http/local_server.h"
#include "http/pattern.h"
#include "http/script.h"

namespace weft {
namespace {

const std::filesystem::path kScripts = std::filesystem::path(WEFT_SOURCE_DIR) / "tests/http";

std::vector<std::string> script_names() {
  std::vector<std::string> names;
  for (const auto& file : std::filesystem::directory_iterator(kScripts)) {
    if (file.path().extension() == ".http") names.push_back(file.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class HttpScripts : public testing::TestWithParam<std::string> {};

TEST_P(HttpScripts, Holds) {
  std::ifstream in(kScripts / (GetParam() + ".http"));
  std::ostringstream text;
  text << in.rdbuf();
  EXPECT_EQ(run_http_script(text.str(), start_local_server), "");
}

INSTANTIATE_TEST_SUITE_P(All, HttpScripts, testing::ValuesIn(script_names()),
                         [](const auto& info) { return info.param; });

// The runner itself must be able to fail.
TEST(HttpScript, ReportsWhatDoesNotHold) {
  const auto run = [](const std::string& exchange) {
    return run_http_script("=== x\n" + exchange, start_local_server);
  };
  EXPECT_EQ(run("GET /version\n--- 200\n{\"version\":\"1.2.3\"}\n"), "");
  EXPECT_NE(run("GET /version\n--- 404\n"), "");
  EXPECT_NE(run("GET /version\n--- 200\n{\"version\":\"1.2.4\"}\n"), "");
  EXPECT_NE(run("GET /version\n--- 200\nX-Nothing: <any>\n"), "");
  EXPECT_NE(run("GET /version\n--- 200\n--- closed\n").find("stays open"), std::string::npos);
  EXPECT_NE(run("TABLE POST /tokenize {\"prompt\":$$}\n1 => 200\n"), "");
  EXPECT_NE(run("TABLE POST /tokenize {\"prompt\":$$}\n1 => 400 model\n"), "");
  const std::string stream =
      "POST /v1/completions\n{\"prompt\":\"hi\",\"max_tokens\":2,\"stream\":true}\n--- 200\n";
  EXPECT_EQ(run(stream + "data+ {\"choices\":\"<any>\"}\ndata [DONE]\n"), "");
  EXPECT_NE(run(stream + "data {\"choices\":\"<any>\"}\ndata [DONE]\n"), "");
  EXPECT_NE(run(stream + "data+ {\"choices\":\"<any>\"}\n").find("further frames"),
            std::string::npos);
  EXPECT_NE(run("DO dance\n"), "");
  EXPECT_NE(run_http_script("server color=red\n=== x\nGET /\n--- 200\n", start_local_server), "");
}

TEST(Pattern, ComparesSubsetsAndPlaceholders) {
  ScriptMemory memory;
  const auto fits = [&](const char* pattern, const char* value) {
    return mismatch(*parse_json(pattern), *parse_json(value), memory).empty();
  };
  EXPECT_TRUE(fits(R"({"a":1})", R"({"a":1.0,"b":2})"));
  EXPECT_FALSE(fits(R"({"a":1})", R"({"b":1})"));
  EXPECT_FALSE(fits("[1]", "[1,2]"));
  EXPECT_TRUE(fits(R"([1,"<more>"])", "[1,2]"));
  EXPECT_FALSE(fits(R"([1,2,"<more>"])", "[1]"));
  EXPECT_TRUE(fits(R"({"a":"<absent>"})", "{}"));
  EXPECT_FALSE(fits(R"({"a":"<absent>"})", R"({"a":null})"));
  EXPECT_TRUE(fits(R"("<has:b>")", R"("abc")"));
  EXPECT_FALSE(fits(R"("<lacks:b>")", R"("abc")"));
  EXPECT_TRUE(fits(R"("<range:1..2>")", "1.5"));
  EXPECT_FALSE(fits(R"("<integer>")", "1.5"));
  EXPECT_TRUE(fits(R"("<keep:x>")", "[1]") && fits(R"("<same:x>")", "[1]"));
  EXPECT_FALSE(fits(R"("<same:x>")", "[2]"));
}

}  // namespace
}  // namespace weft
