#include "app/refusals.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>

#include "app/vllm_flags.h"

namespace weft {
namespace {

const std::map<std::string, EngineOptions> kExamples = {
    {"cuda-float32", {.dtype = "float32", .device = "cuda"}},
    {"float32-quantized", {.dtype = "float32", .quantization = "int8"}},
    {"float32-rounded-states", {.dtype = "float32", .state_dtype = "bfloat16"}},
    {"kv-scales-without-static", {.kv_cache_dtype = "int8_dynamic", .kv_scales = "x"}},
    {"dummy-without-model", {.load_format = "dummy"}},
    {"reuse-without-cache", {.prefix_caching = false, .reuse_generated = true}},
    {"cuda-topp", {.device = "cuda", .speculation = {.verify = VerifyStrategy::kTopP}}},
    {"sparse-reuse", {.reuse_generated = true, .prefill_attention = "xattn:stride=8"}},
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
  EXPECT_TRUE(check_refusals({.kv_scales = "x"}).ok());  // config.json may say int8
}

const std::map<std::string, ServeOptions> kServeExamples = {
    {"public-without-key", {.host = "0.0.0.0"}},
    {"fake-hang-without-fake", {.fake_hang_after = 3}},
    {"fake-speed-without-fake", {.fake_tokens_per_second = 10}},
};

TEST(Refusals, EveryServeRowHasAnExampleThatItRefuses) {
  for (const ServeRefusal& refusal : serve_refusals()) {
    const auto example = kServeExamples.find(refusal.id);
    ASSERT_NE(example, kServeExamples.end()) << refusal.id;
    const auto result = check_serve_refusals(example->second);
    ASSERT_FALSE(result.ok());
    EXPECT_NE(result.error().message.find(std::string("[") + refusal.id + "]"), std::string::npos);
  }
  EXPECT_EQ(kServeExamples.size(), serve_refusals().size());
  EXPECT_TRUE(check_serve_refusals(ServeOptions{}).ok());
}

TEST(Refusals, EveryRefusedFlagHasOneRow) {
  std::map<std::string, int> rows;
  for (const FlagRefusal& refusal : flag_refusals()) {
    std::istringstream flags(refusal.flags);
    for (std::string flag; flags >> flag;) ++rows[flag];
  }
  for (const KnownFlag& flag : refused_flags()) {
    EXPECT_EQ(rows[std::string(flag.name)], 1) << flag.name;
    const std::string message = flag_refusal(std::string(flag.name)).message;
    EXPECT_NE(message.find("] " + std::string(flag.name) + ": "), std::string::npos) << message;
  }
  EXPECT_EQ(rows.size(), refused_flags().size()) << "a row names a flag that is not refused";
}

TEST(Refusals, TheDocumentIsTheTable) {
  std::ifstream file(std::string(WEFT_SOURCE_DIR) + "/docs/refusals.md");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), refusals_page()) << "run `make docs`";
}

TEST(Refusals, IdsAreThereOnceAndCellsAreCells) {
  std::map<std::string, int> ids;
  const auto take = [&](const char* id, const char* reason) {
    ++ids[id];
    EXPECT_EQ(std::string(reason).find_first_of("|\n"), std::string::npos) << id;
  };
  for (const Refusal& row : refusals()) take(row.id, row.reason);
  for (const ServeRefusal& row : serve_refusals()) take(row.id, row.reason);
  for (const FlagRefusal& row : flag_refusals()) take(row.id, row.reason);
  for (const auto& [id, count] : ids) EXPECT_EQ(count, 1) << id;
}

}  // namespace
}  // namespace weft
