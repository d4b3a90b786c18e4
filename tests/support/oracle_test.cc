#include "tests/support/oracle.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

namespace weft {
namespace {

// A clone that stands alone has to bring what the other tests read.
TEST(Oracle, UnpackedDataHoldsEveryFamily) {
  const std::string root = WEFT_UNPACKED_ORACLE;
  for (const char* model : {"ernie4_5", "ernie4_5_moe", "llama3", "pawqwen3_xattn_streaming",
                            "qwen2", "qwen2_5_vl", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_5_mtp",
                            "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_yarn"}) {
    for (const char* file : {"config.json", "model.safetensors", "golden.safetensors"}) {
      const std::string path = root + "/models/" + model + "/" + file;
      EXPECT_TRUE(std::filesystem::exists(path)) << path;
    }
  }
  for (const char* text : {"qwen2", "qwen3_5", "llama3", "sentencepiece_bpe", "templates"}) {
    const std::string path = root + "/text/" + text + "/golden.jsonl";
    EXPECT_TRUE(std::filesystem::exists(path)) << path;
  }
}

TEST(Oracle, DirectoryIsThere) {
  EXPECT_TRUE(oracle_has("models/qwen3")) << oracle_dir();
  EXPECT_FALSE(oracle_has("models/no_such_model"));
}

}  // namespace
}  // namespace weft
