#include "app/sse_reader.h"

#include <gtest/gtest.h>

#include <vector>

namespace weft {
namespace {

std::vector<std::string> read_pieces(const std::vector<std::string_view>& pieces) {
  std::vector<std::string> out;
  const auto keep = [&out](std::string_view data) { out.emplace_back(data); };
  SseReader reader;
  for (std::string_view piece : pieces) EXPECT_TRUE(reader.read(piece, keep));
  reader.finish(keep);
  return out;
}

TEST(SseReader, EveryCutGivesTheSameEvents) {
  const std::string_view stream =
      "\xEF\xBB\xBF"
      "data: {\"a\": 1}\n\n: ping\n\nevent: x\r\ndata:two\r\ndata:  lines\r\n\r\n"
      "data\rid: 7\r\rdata: [DONE]\n\n";
  const std::vector<std::string> expected = {"{\"a\": 1}", "two\n lines", "", "[DONE]"};
  EXPECT_EQ(read_pieces({stream}), expected);
  for (size_t i = 0; i <= stream.size(); ++i) {
    for (size_t j = i; j <= stream.size(); ++j) {
      ASSERT_EQ(read_pieces({stream.substr(0, i), stream.substr(i, j - i), stream.substr(j)}),
                expected)
          << i << " " << j;
    }
  }
}

TEST(SseReader, EndOfStreamClosesTheLastEvent) {
  EXPECT_EQ(read_pieces({"data: a\n\ndata: b"}), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(read_pieces({"data: a\n"}), (std::vector<std::string>{"a"}));
  EXPECT_TRUE(read_pieces({": nothing"}).empty());
}

TEST(SseReader, AnEventWithoutEndIsRefused) {
  SseReader reader;
  const std::string piece(size_t{1} << 20, 'x');
  bool ok = true;
  for (int i = 0; i < 66 && ok; ++i) ok = reader.read(piece, [](std::string_view) {});
  EXPECT_FALSE(ok);
}

}  // namespace
}  // namespace weft
