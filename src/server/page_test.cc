#include "server/page.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

namespace weft {
namespace {

HttpRequest get(HttpHeaders headers = {}) {
  HttpRequest request;
  request.method = "GET";
  request.headers = std::move(headers);
  return request;
}

std::string header(const HttpResponse& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    if (key == name) return value;
  }
  return "";
}

std::string read_web_file(const std::string& name) {
  std::ifstream file(std::string(WEFT_SOURCE_DIR) + "/web/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Page, EmbedsTheFilesAsTheyAre) {
  for (const std::string name : {"style.css", "app.js", "chat.js", "markdown.js", "icon.svg"}) {
    const PageAsset* asset = find_page_asset("/assets/" + name);
    ASSERT_NE(asset, nullptr) << name;
    EXPECT_EQ(asset->content, read_web_file(name)) << name;
  }
  ASSERT_NE(find_page_asset("/"), nullptr);
  EXPECT_EQ(find_page_asset("/")->content, read_web_file("index.html"));
}

TEST(Page, EveryFileThatThePageNamesIsThere) {
  for (const std::string_view from : {"/", "/assets/app.js", "/assets/chat.js", "/assets/live.js",
                                      "/assets/message.js", "/assets/params.js"}) {
    const std::string_view text = find_page_asset(from)->content;
    const std::string_view mark = from == "/" ? "\"assets/" : "from \"./";
    for (size_t at = text.find(mark); at != text.npos; at = text.find(mark, at + 1)) {
      const size_t begin = at + mark.size();
      const std::string name(text.substr(begin, text.find('"', begin) - begin));
      EXPECT_NE(find_page_asset("/assets/" + name), nullptr) << from << " names " << name;
    }
  }
}

TEST(Page, KnowsNoOtherPath) {
  for (const char* path : {"", "/assets", "/assets/", "/index.html", "/assets/index.html",
                           "/assets/../style.css", "/assets//style.css", "style.css"}) {
    EXPECT_EQ(find_page_asset(path), nullptr) << path;
  }
}

TEST(Page, AnswersWithTypeAndPolicy) {
  const PageAsset& page = *find_page_asset("/");
  const HttpResponse response = page_response(page, get());
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, page.content);
  EXPECT_EQ(response.content_type, "text/html; charset=utf-8");
  const std::string policy = header(response, "Content-Security-Policy");
  EXPECT_TRUE(policy.starts_with("default-src 'self'")) << policy;
  EXPECT_EQ(policy.find("unsafe"), policy.npos) << policy;
  EXPECT_EQ(header(response, "X-Content-Type-Options"), "nosniff");
  EXPECT_EQ(page_response(*find_page_asset("/assets/app.js"), get()).content_type,
            "text/javascript; charset=utf-8");
}

TEST(Page, PacksForThoseWhoTakeIt) {
  const PageAsset& asset = *find_page_asset("/assets/style.css");
  for (const char* accept : {"gzip", "deflate, gzip;q=0.5, br", "br,gzip"}) {
    const HttpResponse response = page_response(asset, get({{"accept-encoding", accept}}));
    EXPECT_EQ(header(response, "Content-Encoding"), "gzip") << accept;
    EXPECT_EQ(response.body, asset.gzip);
    EXPECT_EQ(response.body.substr(0, 2), "\x1f\x8b");
    EXPECT_LT(response.body.size(), asset.content.size() / 2);
  }
  for (const char* accept : {"", "identity", "gzip;q=0", "gzip; q=0.000", "br, xgzip"}) {
    const HttpResponse response = page_response(asset, get({{"accept-encoding", accept}}));
    EXPECT_EQ(header(response, "Content-Encoding"), "") << accept;
    EXPECT_EQ(response.body, asset.content);
  }
}

TEST(Page, IsNotSentAgainToThoseWhoHaveIt) {
  const PageAsset& asset = *find_page_asset("/assets/app.js");
  const std::string etag = header(page_response(asset, get()), "ETag");
  ASSERT_EQ(etag, asset.etag);
  for (const std::string& tags : {etag, etag.substr(2), "\"x\", " + etag, std::string("*")}) {
    const HttpResponse response = page_response(asset, get({{"if-none-match", tags}}));
    EXPECT_EQ(response.status, 304) << tags;
    EXPECT_EQ(response.body, "") << tags;
    EXPECT_EQ(header(response, "ETag"), etag);
  }
  EXPECT_EQ(page_response(asset, get({{"if-none-match", "\"other\""}})).status, 200);
  EXPECT_NE(find_page_asset("/")->etag, asset.etag);
}

}  // namespace
}  // namespace weft
