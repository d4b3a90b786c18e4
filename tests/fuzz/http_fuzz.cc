// DEPS: weft_server
// A request of arbitrary bytes: whole or in pieces, the parser says the same, keeps to its limits
// and gives only requests that can be read in one way.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "server/http_parser.h"

namespace {

constexpr weft::HttpLimits kLimits{
    .max_line = 128, .max_header_bytes = 512, .max_headers = 8, .max_body = 256};

size_t feed_in_pieces(weft::HttpParser* parser, std::string_view text, size_t step) {
  size_t taken = 0;
  while (taken < text.size() && !parser->done() && !parser->failed()) {
    taken += parser->feed(text.substr(taken, step));
  }
  return taken;
}

void check_request(const weft::HttpRequest& request) {
  CHECK(!request.method.empty() && request.path[0] == '/');
  CHECK(request.path.find("//") == std::string::npos);
  CHECK((request.path + "/").find("/../") == std::string::npos);
  CHECK(request.headers.size() <= 8 && request.body.size() <= kLimits.max_body);
  CHECK(request.header("content-length").empty() || request.header("transfer-encoding").empty());
  for (const auto& [name, value] : request.headers) {
    CHECK(!name.empty() &&
          (name + value).find_first_of(std::string_view("\r\n\0", 3)) == name.npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t step = data[0] % 16 + 1;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  weft::HttpParser whole(kLimits);
  weft::HttpParser pieces(kLimits);
  const size_t taken = feed_in_pieces(&whole, text, size);
  const size_t taken_in_pieces = feed_in_pieces(&pieces, text, step);
  CHECK(whole.done() == pieces.done() && whole.failed() == pieces.failed());
  if (!whole.done()) return 0;
  CHECK(taken == taken_in_pieces && whole.keep_alive() == pieces.keep_alive());
  const weft::HttpRequest a = whole.take_request();
  const weft::HttpRequest b = pieces.take_request();
  CHECK(a.path == b.path && a.query == b.query && a.headers == b.headers && a.body == b.body);
  check_request(a);
  return 0;
}
