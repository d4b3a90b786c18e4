#include <gtest/gtest.h>

#include "kernels/choose.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft {
namespace {

/// What was chosen for the op, and the reason against `other`.
std::pair<std::string, std::string> find(const std::vector<KernelChoice>& choices,
                                         const std::string& op, const std::string& other) {
  for (const KernelChoice& choice : choices) {
    if (choice.op.find(op) == std::string::npos) continue;
    for (const KernelChoice::Other& o : choice.others) {
      if (o.name == other) return {choice.name, o.why_not};
    }
    return {choice.name, ""};
  }
  return {"no such op", ""};
}

TEST(CudaChoices, Attention) {
  for (const auto& [dim, width] : {std::pair{64, "64"}, {96, "128"}, {128, "128"}, {256, "256"}}) {
    const auto choices = cuda::kernel_choices({.attention = {{32, 8, dim}}, .vocab = 1000});
    EXPECT_EQ(find(choices, "heads: prompts", "").first, std::string("wgmma, width ") + width);
    EXPECT_EQ(find(choices, "heads: decode", "").first, std::string("split KV, width ") + width);
  }
  const auto with = [](KvFormat format) {
    return cuda::kernel_choices({.attention = {{32, 8, 128}}, .kv_format = format, .vocab = 1000});
  };
  EXPECT_EQ(find(with(KvFormat::kInt4), "heads: prompts", "").first, "wgmma, width 128");
  EXPECT_EQ(find(with(KvFormat::kF32), "heads: prompts", "wgmma, width 128"),
            std::pair(std::string(), std::string("it reads no cache of float32")));
  const auto wide = cuda::kernel_choices({.attention = {{32, 8, 320}}, .vocab = 1000});
  EXPECT_EQ(find(wide, "heads: prompts", "wgmma, width 256"),
            std::pair(std::string(), std::string("D 320 is not a multiple of 8 up to 256")));
}

TEST(CudaChoices, GatedDeltaRule) {
  const GdnShape released{.key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128};
  const auto fast = cuda::kernel_choices({.gdn = {released}, .vocab = 1000});
  EXPECT_EQ(find(fast, "rule, 16/32 heads: prompts", "token by token"),
            std::pair(std::string("chunks of 64, wgmma"), std::string("slower")));
  GdnShape tiny = released;
  tiny.key_dim = tiny.value_dim = 16;
  const auto slow = cuda::kernel_choices({.gdn = {tiny}, .vocab = 1000});
  EXPECT_EQ(find(slow, "heads: prompts", "chunks of 64, wgmma"),
            std::pair(std::string("token by token"),
                      std::string("K 16, V 16, W 4 is not K 128, V 128, W 4")));
  EXPECT_EQ(find(slow, "heads: decode", "").first, "token by token, any shape");
}

TEST(CudaChoices, Matrices) {
  const auto with = [](WeightFormat format, int64_t inner) {
    return cuda::kernel_choices(
        {.dense = {{{format, 2 * inner, 1024}, Epilogue::kSiluMul}}, .vocab = 1000});
  };
  EXPECT_EQ(find(with(WeightFormat::kBf16, 3072), "matrices", "wgmma e4m3, scales by block"),
            std::pair(std::string("wgmma bf16"), std::string("the weights are bf16")));
  EXPECT_EQ(find(with(WeightFormat::kFp8Block, 3072), "matrices", "").first,
            "wgmma e4m3, scales by block");
  EXPECT_EQ(find(with(WeightFormat::kFp8Block, 3080), "matrices", "wgmma e4m3, scales by block"),
            std::pair(std::string("wgmma bf16 of weights made bf16"),
                      std::string("half of N (3080) is not a multiple of 16")));
  EXPECT_EQ(find(with(WeightFormat::kInt4, 3072), "matrices", "").first,
            "wgmma bf16 of weights made bf16");
  const auto experts = cuda::kernel_choices(
      {.experts = {{{WeightFormat::kInt4, 1536, 1024, 8}, Epilogue::kSiluMul}}, .vocab = 1000});
  EXPECT_EQ(find(experts, "K 1024: prompts", "").first, "wgmma bf16 of codes, by expert");
}

TEST(CudaChoices, Vocabulary) {
  EXPECT_FALSE(find(cuda::kernel_choices({.vocab = 248320}), "sampling", "").first.empty());
  EXPECT_TRUE(find(cuda::kernel_choices({.vocab = 500000}), "sampling", "").first.empty());
}

}  // namespace
}  // namespace weft
