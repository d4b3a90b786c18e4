#include "app/cli.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(NearestName, FindsTyposAndRefusesTheFar) {
  const std::vector<std::string> flags = {"--max-tokens", "--max-model-len", "--temperature",
                                          "--seed"};
  EXPECT_EQ(nearest_name("--max-token", flags), "--max-tokens");
  EXPECT_EQ(nearest_name("--temprature", flags), "--temperature");
  EXPECT_EQ(nearest_name("--zzzzzzzzzzzz", flags), "");
}

}  // namespace
}  // namespace weft
