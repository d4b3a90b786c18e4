#include "app/engine_options.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(ParseSize, TakesSuffixes) {
  EXPECT_EQ(parse_size("--max-model-len", "4096").value(), 4096);
  EXPECT_EQ(parse_size("--max-model-len", "32k").value(), 32768);
  EXPECT_EQ(parse_size("--kv-cache-memory", "2GiB").value(), int64_t{2} << 30);
}

TEST(ParseSize, NamesTheFlagWhenItRefuses) {
  for (const char* text :
       {"", "0", "-1", "k", "12x", "1kk", "99999999999999999999", "9999999999G", "1 k", "1.5k"}) {
    const Result<int64_t> size = parse_size("--max-model-len", text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_NE(size.error().message.find("--max-model-len"), std::string::npos);
  }
}

}  // namespace
}  // namespace weft
