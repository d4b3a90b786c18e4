#include "app/refusals.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>

namespace weft {
namespace {

const std::map<std::string, EngineOptions> kExamples = {
    {"cuda-models", {.device = "cuda"}},
    {"float32-quantized", {.dtype = "float32", .quantization = "int8"}},
    {"dummy-without-model", {.load_format = "dummy"}},
    {"reuse-without-cache", {.prefix_caching = false, .reuse_generated = true}},
};

TEST(Refusals, EveryRowHasAnExampleThatItRefuses) {
  for (const Refusal& refusal : refusals()) {
    const auto example = kExamples.find(refusal.id);
    ASSERT_NE(example, kExamples.end()) << refusal.id;
    const auto result = check_refusals(example->second);
    ASSERT_FALSE(result.ok());
    EXPECT_NE(result.error().message.find(std::string("[") + refusal.id + "]"), std::string::npos);
  }
  EXPECT_EQ(kExamples.size(), refusals().size());
  EXPECT_TRUE(check_refusals(EngineOptions{}).ok());
}

TEST(Refusals, TheDocumentShowsTheTable) {
  std::ifstream file(std::string(WEFT_SOURCE_DIR) + "/docs/refusals.md");
  std::stringstream text;
  text << file.rdbuf();
  for (const Refusal& refusal : refusals()) {
    EXPECT_NE(text.str().find("| `" + std::string(refusal.id) + "` | " + refusal.reason + " |"),
              std::string::npos)
        << refusal.id;
  }
}

}  // namespace
}  // namespace weft
