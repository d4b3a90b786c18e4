#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "app/cli.h"
#include "app/kernel_needs.h"
#include "base/temp_dir.h"

namespace weft {
namespace {

void put_program(const std::filesystem::path& path, const std::string& body) {
  std::ofstream(path) << "#!/bin/sh\n" << body << "\n";
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
}

TEST(BenchKernels, RunsTheWorkshopsOfTheDevice) {
  const TempDir directory;
  const std::filesystem::path root = directory.path();
  BenchKernelsOptions options{.device = "cpu", .directory = root.string()};
  EXPECT_NE(bench_kernels_command(options), kExitOk);  // none there
  put_program(root / "gemm_bench", "touch " + (root / "gemm_ran").string());
  put_program(root / "gdn_bench", "touch " + (root / "gdn_ran").string());
  put_program(root / "sample_gpu_bench", "touch " + (root / "sample_ran").string());
  put_program(root / "text_bench", "touch " + (root / "text_ran").string());
  options.only = "gemm";
  EXPECT_EQ(bench_kernels_command(options), kExitOk);
  EXPECT_TRUE(std::filesystem::exists(root / "gemm_ran"));
  EXPECT_FALSE(std::filesystem::exists(root / "gdn_ran"));
  options.only.clear();
  EXPECT_EQ(bench_kernels_command(options), kExitOk);
  EXPECT_TRUE(std::filesystem::exists(root / "gdn_ran"));
  EXPECT_FALSE(std::filesystem::exists(root / "sample_ran"));
  EXPECT_FALSE(std::filesystem::exists(root / "text_ran"));
}

TEST(BenchKernels, AWorkshopThatFailsIsToldByTheExitCode) {
  const TempDir directory;
  const std::filesystem::path root = directory.path();
  put_program(root / "attention_bench", "exit 3");
  put_program(root / "gemm_bench", "touch " + (root / "gemm_ran").string());
  EXPECT_EQ(bench_kernels_command({.device = "cpu", .directory = root.string()}), kExitRuntime);
  EXPECT_TRUE(std::filesystem::exists(root / "gemm_ran"));  // the others run all the same
}

TEST(KernelNeeds, EachShapeOnce) {
  ModelSpec spec;
  spec.hidden = 1024;
  spec.vocab = 5000;
  const LayerSpec attention{AttentionSpec{.q_heads = 16, .kv_heads = 8, .head_dim = 128},
                            DenseMlpSpec{3072}};
  LayerSpec recurrent = attention;
  recurrent.mixer = GdnSpec{.shape = {16, 32, 128, 128, 4}};
  recurrent.mlp = MoeSpec{.num_experts = 64, .inner = 512, .shared_inner = 256};
  spec.layers = {recurrent, attention, recurrent, attention};
  const KernelNeeds needs = kernel_needs(spec, WeightFormat::kInt4, KvFormat::kBf16);
  EXPECT_EQ(needs.attention.size(), 1u);
  EXPECT_EQ(needs.gdn.size(), 1u);
  ASSERT_EQ(needs.experts.size(), 2u);  // gate and up, down
  EXPECT_EQ(needs.experts[0].shape.n, 1024);
  EXPECT_EQ(needs.experts[0].shape.experts, 64);
  EXPECT_EQ(needs.experts[0].epilogue, Epilogue::kSiluMul);
  ASSERT_EQ(needs.dense.size(), 4u);  // of the dense layers and of the shared expert
  EXPECT_EQ(needs.dense[0].shape.n, 512);
  EXPECT_EQ(needs.dense[3].shape.k, 3072);
  EXPECT_EQ(needs.dense[3].shape.format, WeightFormat::kInt4);
  EXPECT_EQ(needs.vocab, 5000);
}

}  // namespace
}  // namespace weft
