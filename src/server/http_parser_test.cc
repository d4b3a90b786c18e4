#include "server/http_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace weft {
namespace {

/// Status of a request fed in pieces of `step` bytes: 0 refused nothing yet, 200 complete.
int status_of(std::string_view text, size_t step = 1 << 20, HttpLimits limits = {}) {
  HttpParser parser(limits);
  for (size_t i = 0; i < text.size() && !parser.done() && !parser.failed(); i += step) {
    parser.feed(text.substr(i, step));
  }
  return parser.failed() ? parser.fault().status : parser.done() ? 200 : 0;
}

std::string get(std::string_view target) {
  return "GET " + std::string(target) + " HTTP/1.1\r\nHost: x\r\n\r\n";
}
std::string post(std::string_view headers, std::string_view body = "") {
  return "POST /v1 HTTP/1.1\r\nHost: x\r\n" + std::string(headers) + "\r\n" + std::string(body);
}

TEST(HttpParser, TakesARequestInAnyPieces) {
  const std::string text =
      "POST /a%20b?q=%2F HTTP/1.1\r\nhost: h:1\r\nX-Y:\t v \r\nContent-Length: 3\r\n\r\nabcGET";
  for (size_t step = 1; step <= text.size(); ++step) {
    HttpParser parser({});
    size_t at = 0;
    while (!parser.done()) at += parser.feed(std::string_view(text).substr(at, step));
    EXPECT_EQ(at, text.size() - 3);
    EXPECT_TRUE(parser.keep_alive());
    const HttpRequest r = parser.take_request();
    EXPECT_EQ(r.method, "POST");
    EXPECT_EQ(r.path, "/a b");
    EXPECT_EQ(r.query, "q=%2F");
    EXPECT_EQ(r.header("x-y"), "v");
    EXPECT_EQ(r.header("host"), "h:1");
    EXPECT_EQ(r.body, "abc");
  }
}

TEST(HttpParser, TakesChunksInAnyPieces) {
  const std::string text = post("Transfer-Encoding: chunked\r\n",
                                "3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n");
  for (size_t step = 1; step <= text.size(); ++step) {
    HttpParser parser({});
    for (size_t at = 0; !parser.done();) {
      at += parser.feed(std::string_view(text).substr(at, step));
      ASSERT_FALSE(parser.failed());
    }
    const HttpRequest r = parser.take_request();
    EXPECT_EQ(r.body, "abc0123456789");
    EXPECT_EQ(r.header("t"), "");
  }
}

TEST(HttpParser, RefusesWhatIsNoRequestLine) {
  const std::vector<std::string> bad = {
      "GET /\r\n",
      "GET / HTTP/1.1\n",
      "GET  / HTTP/1.1\r\n",
      "GET /  HTTP/1.1\r\n",
      "GET /\tHTTP/1.1\r\n",
      "get / HTTP/1.1\r\n",
      "G=T / HTTP/1.1\r\n",
      "GET / HTTP/1.2\r\n",
      "GET / http/1.1\r\n",
      "GET / HTTP/1.1 \r\n",
      " GET / HTTP/1.1\r\n",
      "\r\n\r\nGET / HTTP/1.1\r\n",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "OPTIONS * HTTP/1.1\r\n",
      "CONNECT a:1 HTTP/1.1\r\n",
      "GET http://x/ HTTP/1.1\r\n",
      "GET /\r HTTP/1.1\r\n",
      std::string("GET /\0 HTTP/1.1\r\n", 17),
      "GET /\xc3\xa4 HTTP/1.1\r\n",
      "\x16\x03\x01\x02",
      "A\x01",
  };
  for (const auto& text : bad) {
    EXPECT_EQ(status_of(text), 400) << text;
    EXPECT_EQ(status_of(text, 1), 400) << text;
  }
  EXPECT_EQ(status_of("\r\n" + get("/")), 200);
}

TEST(HttpParser, RefusesPathsWithTwoReadings) {
  for (const char* target :
       {"//v1",       "/v1//x",      "/..",          "/../v1",  "/v1/..",  "/v1/../admin", "/.",
        "/./v1",      "/%2e%2e",     "/v1/%2E%2e/x", "/%2e",    "/a;b",    "/a%3bb",       "/a\\b",
        "/a%5cb",     "/%2fb",       "/a%2F..",      "/..%2Fa", "/a%2f/b", "/a%2f%2Fb",    "/%00",
        "/%0a",       "/%7f",        "/%",           "/%4",     "/%zz",    "/%c0%af",      "/%ff",
        "/%ed%a0%80", "/a#b",        "/a?b#c",       "/a?b\\c", "/a<b",    "/a\"b",        "v1",
        "*",          "/a/%e0%80%af"}) {
    EXPECT_EQ(status_of(get(target)), 400) << target;
  }
  for (const char* target : {"/", "/v1/", "/v1/chat", "/a%20b", "/..a", "/a..", "/%C3%A4",
                             "/?x=//..;", "/V1", "/%252e%252e", "/v1?"}) {
    EXPECT_EQ(status_of(get(target)), 200) << target;
  }
  EXPECT_EQ(parse_http_target("/%252e%252e")->first, "/%2e%2e");  // decoded once
  EXPECT_EQ(parse_http_target("/v1%2fa/b%2Fc%20d")->first, "/v1%2Fa/b%2Fc d");
}

TEST(HttpParser, RefusesHeadersWithTwoReadings) {
  const std::vector<std::string> bad = {"A : 1\r\n",
                                        " A: 1\r\n",
                                        "B: 1\r\n A: 1\r\n",
                                        "A: 1\r\n\tb\r\n",
                                        "A\r\n",
                                        ": 1\r\n",
                                        "A: 1\n",
                                        "A: 1\rb\r\n",
                                        "A: \x01\r\n",
                                        "A: \x7f\r\n",
                                        "\xc3\xa4: 1\r\n",
                                        "A(: 1\r\n",
                                        std::string("A: \0\r\n", 6),
                                        "Host: y\r\n",
                                        "Authorization: a\r\nAuthorization: b\r\n",
                                        "Content-Type: a\r\ncontent-type: a\r\n"};
  for (const auto& headers : bad) {
    EXPECT_EQ(status_of(post(headers)), 400) << headers;
    EXPECT_EQ(status_of(post(headers), 1), 400) << headers;
  }
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\n\r\n"), 200);
  for (const char* host : {"", "a/v1/health?", "a b", "a@b", "a,b", "a\\b", "a?b", "a#b"}) {
    EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: " + std::string(host) + "\r\n\r\n"), 400) << host;
  }
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), 200);
}

TEST(HttpParser, RefusesLengthsWithTwoReadings) {
  const std::vector<std::string> bad = {
      "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
      "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
      "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
      "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
      "Content-Length: 1\r\nContent-Length: 1\r\n",
      "Content-Length: 1\r\nContent-Length: 2\r\n",
      "Content-Length: +5\r\n",
      "Content-Length: -5\r\n",
      "Content-Length: 0x5\r\n",
      "Content-Length: 5,5\r\n",
      "Content-Length: 5 5\r\n",
      "Content-Length: 05\r\n",
      "Content-Length: 00\r\n",
      "Content-Length:\r\n",
      "Content-Length: 18446744073709551616\r\n",
      "Content-Length: 18446744073709551617\r\n",
      "Transfer-Encoding: chunked, gzip\r\n",
      "Transfer-Encoding: gzip, chunked\r\n",
      "Transfer-Encoding: xchunked\r\n",
      "Transfer-Encoding: Chunked\r\n",
      "Transfer-Encoding:\tchunked\r\n",
      "Transfer-Encoding: chunked\t\r\n",
      "Transfer-Encoding: \r\n",
      "Transfer-Encoding: identity\r\n",
      "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
  };
  for (const auto& headers : bad) EXPECT_EQ(status_of(post(headers, "0\r\n\r\n")), 400) << headers;
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
}

TEST(HttpParser, RefusesChunksWithTwoReadings) {
  const std::vector<std::string> bad = {"0x1\r\na\r\n",
                                        "1_0\r\n",
                                        "\r\n",
                                        " 1\r\na\r\n",
                                        "1 \r\na\r\n",
                                        "+1\r\na\r\n",
                                        "-1\r\n",
                                        "g\r\n",
                                        "10000000000000000\r\n",
                                        "000000001\r\na\r\n",
                                        "1\na\r\n",
                                        "1\r\nab\r\n",
                                        "1\r\na\n",
                                        "1\r\na\r1",
                                        "1;" + std::string(64, 'x') + "\r\na\r\n",
                                        "0\r\n T: 1\r\n\r\n",
                                        "0\r\nbad trailer\r\n\r\n",
                                        "1;\x01\r\na\r\n",
                                        ";a\r\n"};
  for (const auto& body : bad) {
    EXPECT_EQ(status_of(post("Transfer-Encoding: chunked\r\n", body)), 400) << body;
    EXPECT_EQ(status_of(post("Transfer-Encoding: chunked\r\n", body), 1), 400) << body;
  }
}

TEST(HttpParser, KeepsToItsLimits) {
  const HttpLimits limits{
      .max_line = 64, .max_header_bytes = 256, .max_headers = 4, .max_body = 10};
  EXPECT_EQ(status_of(get("/" + std::string(50, 'a')), 7, limits), 200);
  EXPECT_EQ(status_of("GET /" + std::string(70, 'a'), 7, limits), 414);
  EXPECT_EQ(status_of(post("A: " + std::string(300, 'a')), 7, limits), 431);
  EXPECT_EQ(status_of(post("A: 1\r\nB: 1\r\nC: 1\r\n"), 7, limits), 200);
  EXPECT_EQ(status_of(post("A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\n"), 7, limits), 431);
  EXPECT_EQ(status_of(post("Content-Length: 10\r\n", "0123456789"), 7, limits), 200);
  EXPECT_EQ(status_of(post("Content-Length: 11\r\n"), 7, limits), 413);
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  EXPECT_EQ(status_of(post(chunked, "5\r\n01234\r\n5\r\n01234\r\n0\r\n\r\n"), 7, limits), 200);
  EXPECT_EQ(status_of(post(chunked, "5\r\n01234\r\n6\r\n"), 7, limits), 413);
  EXPECT_EQ(status_of(post(chunked, "ffffffff\r\n"), 7, limits), 413);
  std::string trailers = "0\r\n";
  for (int i = 0; i < 40; ++i) trailers += "T: 1\r\n";
  EXPECT_EQ(status_of(post(chunked, trailers), 7), 431);
  EXPECT_EQ(status_of(post(chunked, "0\r\nT: " + std::string(5000, 'a')), 7), 431);
}

/// A11, as a body.
TEST(HttpParser, RefusesMillionsOfTinyChunks) {
  std::string text = post("Transfer-Encoding: chunked\r\n");
  for (int i = 0; i < 500'000; ++i) text += "1\r\na\r\n";
  EXPECT_EQ(status_of(text, 4096), 400);
}

TEST(HttpParser, KnowsWhoStays) {
  const auto stays = [](const std::string& text) {
    HttpParser parser({});
    parser.feed(text);
    EXPECT_TRUE(parser.done());
    return parser.keep_alive();
  };
  EXPECT_TRUE(stays(get("/")));
  EXPECT_FALSE(stays(post("Connection: close\r\n")));
  EXPECT_FALSE(stays(post("Connection: x, Close\r\n")));
  EXPECT_FALSE(stays("GET / HTTP/1.0\r\n\r\n"));
  EXPECT_TRUE(stays("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
}

TEST(HttpParser, KnowsExpectationsAndEncodings) {
  HttpParser parser({});
  parser.feed(post("Expect: 100-continue\r\nContent-Length: 1\r\n"));
  EXPECT_TRUE(parser.take_expect_continue());
  EXPECT_FALSE(parser.take_expect_continue());
  parser.feed("a");
  EXPECT_TRUE(parser.done());
  EXPECT_EQ(status_of(post("Expect: x\r\n")), 417);
  EXPECT_EQ(status_of(post("Content-Encoding: gzip\r\n")), 415);
  EXPECT_EQ(status_of(post("Content-Encoding: identity\r\n")), 200);
}

}  // namespace
}  // namespace weft
