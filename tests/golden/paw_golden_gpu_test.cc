#include <gtest/gtest.h>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"
#include "tests/support/oracle.h"

// Elastic-Attention and XAttention on a GPU, in bf16. A bf16 estimate may choose another block
// where the choice is close, so logits are held against the reference's under the reference's own
// plan; the GPU's own plans are held against each other, bit for bit. Needs a GPU; CI compiles it.

namespace weft::testing {
namespace {

constexpr double kOfRounding = 1.5;  // of what rounding alone takes

/// The plan of a golden file, put in the place of what the ops would decide.
struct GoldenPlan {
  std::vector<int32_t> kinds;   // [L, H]
  std::vector<uint8_t> blocks;  // [L, H, n, n]
  int64_t num_blocks = 0;
  bool has_lists = true;  // else nobody asks for blocks
  size_t layer = 0;       // of the next call
  std::vector<int32_t> words, counts;
};
GoldenPlan golden_plan;  // of the test that runs

void take_kinds(Stream& stream, const RouterArgs& args) {
  const auto heads = static_cast<size_t>(args.kinds.dim(1));
  const int64_t row = args.rows.defined() ? *args.rows.ptr<int32_t>() : 0;
  copy_bytes(stream, args.kinds.row<int32_t>(row),
             golden_plan.kinds.data() + golden_plan.layer * heads, static_cast<int64_t>(heads * 4));
  synchronize(stream);
  if (!golden_plan.has_lists) ++golden_plan.layer;
}

void take_blocks(Stream& stream, const SelectArgs& args) {
  const HeadPlan& plan = *args.attention->heads;
  const int64_t heads = plan.blocks.dim(1), rows = plan.blocks.dim(2), words = plan.blocks.dim(3);
  const int64_t n = golden_plan.num_blocks;
  golden_plan.words.assign(static_cast<size_t>(heads * rows * words), 0);
  golden_plan.counts.assign(static_cast<size_t>(heads * rows), 0);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t b = 0; b < rows; ++b) {
      const auto from = ((static_cast<int64_t>(golden_plan.layer) * heads + h) * n + b) * n;
      for (int64_t c = 0; c <= b; ++c) {
        if (golden_plan.blocks[static_cast<size_t>(from + c)] == 0) continue;
        golden_plan.words[static_cast<size_t>((h * rows + b) * words + c / 32)] |=
            static_cast<int32_t>(1u << (c % 32));
        ++golden_plan.counts[static_cast<size_t>(h * rows + b)];
      }
    }
  }
  ++golden_plan.layer;
  copy_bytes(stream, plan.blocks.data, golden_plan.words.data(), plan.blocks.bytes());
  copy_bytes(stream, plan.counts.data, golden_plan.counts.data(), plan.counts.bytes());
  synchronize(stream);
}

/// [T, N] or [T, H, D].
void round_to_bf16(const TensorView& x) {
  for (int64_t t = 0; t < x.dim(0); ++t) {
    for (int64_t h = 0; h < (x.rank == 3 ? x.dim(1) : 1); ++h) {
      float* at = x.row<float>(t) + (x.rank == 3 ? h * x.stride[1] : 0);
      for (int64_t i = 0; i < x.dim(x.rank - 1); ++i) at[i] = bf16_to_float(float_to_bf16(at[i]));
    }
  }
}
/// The reference, with all that a GPU stores in bf16 rounded to it: what of a distance is bf16's.
OpTable rounded_ops() {
  OpTable ops = ref_ops();
  ops.embed = [](Stream& stream, const EmbedArgs& args) {
    ref_ops().embed(stream, args);
    round_to_bf16(args.out);
  };
  ops.rms_norm = [](Stream& stream, const RmsNormArgs& args) {
    ref_ops().rms_norm(stream, args);
    round_to_bf16(args.out);
  };
  ops.linear = [](Stream& stream, const LinearArgs& args) {
    LinearArgs product = args;
    if (args.norm.weight.defined()) {
      ref_ops().rms_norm(stream, args.norm);
      round_to_bf16(args.norm.out);
      product.norm = {};
    }
    ref_ops().linear(stream, product);
    if (args.epilogue != Epilogue::kAdd) round_to_bf16(args.out);
  };
  ops.qkv_prepare = [](Stream& stream, const QkvPrepareArgs& args) {
    ref_ops().qkv_prepare(stream, args);
    round_to_bf16(args.q);
  };
  ops.attention = [](Stream& stream, const AttnArgs& args) {
    ref_ops().attention(stream, args);
    round_to_bf16(args.out);
  };
  return ops;
}

class GoldenGpuPaw : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!oracle_has(std::string("models/") + GetParam())) GTEST_SKIP() << "not packed";
  }
  std::string dir() const { return oracle_dir() + "/models/" + GetParam(); }
  SafetensorsFile file() const {
    return SafetensorsFile::open(dir() + "/golden.safetensors").value();
  }
  std::unique_ptr<Driver> load(const OpTable* ops, const PrefillOptions& prefill = {},
                               KvFormat cache = KvFormat::kBf16) const {
    auto driver = Driver::load(
        dir(), {.ops = ops, .format = WeightFormat::kBf16, .kv_format = cache, .prefill = prefill});
    EXPECT_TRUE(driver.ok()) << driver.error().message;
    return driver.ok() ? std::move(driver).value() : nullptr;
  }
  /// The ops of `base`, that decide what the reference decided.
  struct PlannedOps {
    PlannedOps(const GoldenGpuPaw& test, const OpTable& base) : ops(base), sparse(*base.sparse) {
      const SafetensorsFile file = test.file();
      golden_plan = {.kinds = golden<int32_t>(file, "head_types"),
                     .blocks = golden<uint8_t>(file, "blocks"),
                     .num_blocks = (std::ssize(golden<int32_t>(file, "input_ids")) + 127) / 128,
                     .has_lists = std::string(test.GetParam()).find("xattn") != std::string::npos};
      sparse.route = take_kinds;
      sparse.select = take_blocks;
      ops.sparse = &sparse;
    }
    PlannedOps(const PlannedOps&) = delete;
    PlannedOps& operator=(const PlannedOps&) = delete;
    OpTable ops;
    SparseOps sparse;
  };
  /// Of the logits under the plan of the reference, of those of a dense prompt.
  double distance_under_the_plan(const OpTable& base) const {
    const PlannedOps planned(*this, base);
    const double out = distance(planned.ops, {}, "logits_last8");
    const auto layers = load(&base)->model().spec().layers.size();
    EXPECT_EQ(golden_plan.layer, layers);  // each was asked for once
    return out;
  }
  /// Logits over a cache of `format` under the plan of the reference.
  std::vector<float> logits_over(KvFormat format) const {
    const PlannedOps planned(*this, *cuda_ops());
    const auto driver = load(&planned.ops, {}, format);
    return driver ? driver->prefill(golden<int32_t>(file(), "input_ids"), 0, 8)
                  : std::vector<float>();
  }
  double dense_distance(const OpTable& ops) const {
    return distance(ops, {.kind = PrefillOptions::Kind::kDense}, "dense_logits_last8");
  }

 private:
  double distance(const OpTable& ops, const PrefillOptions& prefill, const char* expected) const {
    const auto driver = load(&ops, prefill);
    if (!driver) return INFINITY;
    const auto logits = driver->prefill(golden<int32_t>(file(), "input_ids"), 0, 8);
    return difference(logits, golden<float>(file(), expected)).relative_l2();
  }
};

/// Heads that see few keys average over few: bf16 alone takes some checkpoints further away than
/// kBf16Tolerance. Then a GPU may be no further than the reference is with the same roundings.
TEST_P(GoldenGpuPaw, LogitsUnderThePlanOfTheReference) {
  const OpTable rounded = rounded_ops();
  const double dense = dense_distance(*cuda_ops()), dense_rounded = dense_distance(rounded);
  std::printf("%s: dense within %.4f (the reference rounded: %.4f)\n", GetParam(), dense,
              dense_rounded);
  EXPECT_LE(dense, std::max(kBf16Tolerance, kOfRounding * dense_rounded));
  const double planned = distance_under_the_plan(*cuda_ops());
  const double planned_rounded = distance_under_the_plan(rounded);
  std::printf("%s: its plan within %.4f (the reference rounded: %.4f)\n", GetParam(), planned,
              planned_rounded);
  EXPECT_LE(planned, std::max(kBf16Tolerance, kOfRounding * planned_rounded));
}

TEST_P(GoldenGpuPaw, OwnPlanInOnePieceAndLayerByLayer) {
  const auto driver = load(cuda_ops());
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto whole = driver->prefill(ids, 0, 8);
  EXPECT_EQ(driver->kinds(), golden<int32_t>(file(), "head_types"));
  const double distance = difference(whole, golden<float>(file(), "logits_last8")).relative_l2();
  RecordProperty("distance", std::to_string(distance));
  std::printf("%s: logits within %.4f of the reference\n", GetParam(), distance);
  EXPECT_LE(distance, 5 * kBf16Tolerance);  // close calls of a block included
  for (const int64_t piece : {128, 640}) {
    driver->reset();
    EXPECT_EQ(driver->prefill(ids, piece, 8), whole) << "piece " << piece;
  }
}

TEST_P(GoldenGpuPaw, ChunksOfXattnKeepTheBits) {
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto driver = load(cuda_ops(), {.kind = PrefillOptions::Kind::kXattn, .threshold = 0.6f});
  ASSERT_TRUE(driver);
  const auto whole = driver->prefill(ids, 0, 8);
  for (const int64_t chunk : {128, 384}) {
    driver->reset();
    EXPECT_EQ(driver->prefill(ids, chunk, 8), whole) << "chunk " << chunk;
  }
  const auto all = load(cuda_ops(), {.kind = PrefillOptions::Kind::kXattn, .threshold = 1.0f});
  const auto dense = load(cuda_ops(), {.kind = PrefillOptions::Kind::kDense});
  ASSERT_TRUE(all && dense);
  const auto dense_logits = dense->prefill(ids, 0, 8);
  EXPECT_EQ(all->prefill(ids, 128, 8), dense_logits);
  EXPECT_NE(whole, dense_logits);
}

/// As kv_formats_test.cc does with dense prompts, and by its bounds; where a dense prompt of the
/// checkpoint is further away than that, by what it takes.
TEST_P(GoldenGpuPaw, CachesOfEveryFormat) {
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto dense_over = [&](KvFormat format) {
    const auto driver = load(cuda_ops(), {.kind = PrefillOptions::Kind::kDense}, format);
    return driver ? driver->prefill(ids, 0, 8) : std::vector<float>();
  };
  const auto near = logits_over(KvFormat::kBf16), dense_near = dense_over(KvFormat::kBf16);
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt8,
                                KvFormat::kFp8, KvFormat::kInt4}) {
    SCOPED_TRACE(kv_format_name(format));
    const double distance = difference(logits_over(format), near).relative_l2();
    const double dense = difference(dense_over(format), dense_near).relative_l2();
    std::printf("%s: %s within %.4f of the bf16 cache (dense %.4f)\n", GetParam(),
                std::string(kv_format_name(format)).c_str(), distance, dense);
    EXPECT_GT(distance, 0) << "not in use";
    EXPECT_LT(distance, std::max(format == KvFormat::kInt4 ? 0.25 : 0.1, kOfRounding * dense));
    for (const PrefillOptions& prefill :
         {PrefillOptions{},
          PrefillOptions{.kind = PrefillOptions::Kind::kXattn, .threshold = 0.6f}}) {
      const auto driver = load(cuda_ops(), prefill, format);
      ASSERT_TRUE(driver);
      const auto whole = driver->prefill(ids, 0, 8);
      for (const int64_t piece : {128, 640}) {
        driver->reset();
        EXPECT_EQ(driver->prefill(ids, piece, 8), whole) << "piece " << piece;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenGpuPaw,
                         ::testing::Values("pawqwen3_full_xattn", "pawqwen3_full_streaming",
                                           "pawqwen3_xattn_streaming"));

}  // namespace
}  // namespace weft::testing
