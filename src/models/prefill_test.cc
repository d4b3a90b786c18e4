#include "models/prefill.h"

#include <gmock/gmock.h>

#include <fstream>
#include <list>

#include "base/temp_dir.h"
#include "checkpoint/safetensors_writer.h"
#include "models/model.h"
#include "tests/support/oracle.h"

namespace weft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelSpec spec_of(const std::string& architecture, const std::string& changes = "") {
  const std::string text = R"({"architectures": [")" + architecture +
                           R"("], "hidden_size": 64, "intermediate_size": 128,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
      "vocab_size": 256, "max_position_embeddings": 2048)" +
                           (changes.empty() ? "" : ", " + changes) + "}";
  return parse_model(ConfigJson::parse(text, "config.json").value()).value();
}

const std::optional<SparsePrefillSpec>& sparse_of(const ModelSpec& spec, size_t layer = 0) {
  return std::get<AttentionSpec>(spec.layers[layer].mixer).sparse;
}

TEST(Prefill, OptionsAreRead) {
  using Kind = PrefillOptions::Kind;
  const auto parse = [](const char* text) { return parse_prefill("--flag", text); };
  EXPECT_FALSE(parse("xattn:stride=4,stride=8").ok());
  EXPECT_FALSE(parse("xattn:threshold=0.5,thresholds=f").ok());
  EXPECT_EQ(parse("auto").value(), PrefillOptions());
  EXPECT_EQ(parse("auto:threshold=0.8").value(), (PrefillOptions{.threshold = 0.8f}));
  EXPECT_EQ(parse("auto:thresholds=f,stride=4").value(),
            (PrefillOptions{.stride = 4, .thresholds_file = "f"}));
  EXPECT_EQ(parse("dense").value(), PrefillOptions{.kind = Kind::kDense});
  EXPECT_EQ(parse("xattn").value(), PrefillOptions{.kind = Kind::kXattn});
  EXPECT_EQ(parse("xattn:threshold=0.85,stride=8").value(),
            (PrefillOptions{.kind = Kind::kXattn, .threshold = 0.85f, .stride = 8}));
  EXPECT_EQ(parse("xattn:thresholds=a/b.json").value(),
            (PrefillOptions{.kind = Kind::kXattn, .thresholds_file = "a/b.json"}));
  EXPECT_EQ(parse("xattn").value().from, PrefillOptions::kFrom);
  EXPECT_EQ(parse("xattn:from=0").value(), (PrefillOptions{.kind = Kind::kXattn, .from = 0}));
  EXPECT_EQ(parse("xattn:heads=h.json,from=4096").value(),
            (PrefillOptions{.kind = Kind::kXattn, .from = 4096, .heads_file = "h.json"}));
  for (const char* bad :
       {"xattn:from=-1", "xattn:from=0.5", "", "sparse", "dense:x=1", "auto:from=0", "auto:heads=f",
        "xattn:", "xattn:stride=5", "xattn:stride=a", "xattn:threshold=1.5", "xattn:threshold=nan",
        "xattn:what=1"}) {
    const auto result = parse(bad);
    ASSERT_FALSE(result.ok()) << bad;
    EXPECT_THAT(result.error().message, HasSubstr("--flag")) << bad;
    EXPECT_THAT(result.error().message, HasSubstr("allowed: auto, dense, xattn")) << bad;
  }
}

TEST(Prefill, ModesOfElasticAttention) {
  struct Row {
    const char *retrieval, *toggle;
    HeadKind kept, sparse;
    bool routed;
  };
  for (const Row& row : {Row{"full", "xattn", HeadKind::kFull, HeadKind::kBlocks, true},
                         Row{"full", "streaming", HeadKind::kFull, HeadKind::kStreaming, true},
                         Row{"xattn", "streaming", HeadKind::kBlocks, HeadKind::kStreaming, true},
                         Row{"xattn", "xattn", HeadKind::kBlocks, HeadKind::kBlocks, false}}) {
    const ModelSpec spec =
        spec_of("PawQwen3ForCausalLM", std::string(R"("retrieval_mode": ")") + row.retrieval +
                                           R"(", "toggle_type": ")" + row.toggle + '"');
    ASSERT_TRUE(sparse_of(spec)) << row.retrieval << "/" << row.toggle;
    EXPECT_EQ(sparse_of(spec)->retrieval, row.kept);
    EXPECT_EQ(sparse_of(spec)->sparse, row.sparse);
    EXPECT_EQ(has_prefill_router(spec), row.routed);
  }
  EXPECT_FALSE(has_sparse_prefill(
      spec_of("PawQwen3ForCausalLM", R"("retrieval_mode": "full", "toggle_type": "full")")));
}

TEST(Prefill, SettingsOfTheEstimateStandBesideARouter) {
  ModelSpec spec = spec_of("PawQwen3ForCausalLM", R"("xattn_threshold": 0.8, "xattn_stride": 8)");
  ASSERT_TRUE(apply_prefill({.threshold = 0.95f}, spec).ok());
  EXPECT_THAT(sparse_of(spec, 1)->thresholds, ElementsAre(0.95f));
  EXPECT_EQ(sparse_of(spec, 1)->stride, 8);
  EXPECT_TRUE(has_prefill_router(spec));
  ASSERT_TRUE(apply_prefill({.stride = 4}, spec).ok());
  EXPECT_THAT(sparse_of(spec)->thresholds, ElementsAre(0.95f));
  EXPECT_EQ(sparse_of(spec)->stride, 4);
  TempDir dir;
  std::ofstream(dir.file("t.json"))
      << R"({"layers": [{"thresholds": [0.5]}, {"thresholds": [0.6]}]})";
  ASSERT_TRUE(apply_prefill({.thresholds_file = dir.file("t.json")}, spec).ok());
  EXPECT_THAT(sparse_of(spec, 0)->thresholds, ElementsAre(0.5f));
  EXPECT_THAT(sparse_of(spec, 1)->thresholds, ElementsAre(0.6f));
  EXPECT_TRUE(has_prefill_router(spec));

  ModelSpec streaming = spec_of("PawQwen3ForCausalLM", R"("toggle_type": "streaming")");
  const auto refused = apply_prefill({.stride = 4}, streaming);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("no head of PawQwen3ForCausalLM chooses blocks"));
  ModelSpec plain = spec_of("Qwen3ForCausalLM");
  EXPECT_FALSE(apply_prefill({.threshold = 0.5f}, plain).ok());
}

TEST(Prefill, DefaultsAndSizesOfElasticAttention) {
  const ModelSpec silent = spec_of("PawQwen3ForCausalLM");
  const SparsePrefillSpec& d = *sparse_of(silent, 1);
  EXPECT_TRUE(d.routed);
  EXPECT_EQ(d.sink_blocks, 1);
  EXPECT_EQ(d.window_blocks, 16);
  EXPECT_EQ(d.stride, 16);
  EXPECT_THAT(d.thresholds, ElementsAre(0.9f));
  const ModelSpec spec =
      spec_of("PawQwen3ForCausalLM", R"("sink_size": 129, "local_window_size": 1, "xattn_stride": 8,
              "xattn_threshold": 0.8, "xattn_norm": 2)");
  EXPECT_EQ(sparse_of(spec)->sink_blocks, 2);
  EXPECT_EQ(sparse_of(spec)->window_blocks, 1);
  EXPECT_EQ(sparse_of(spec)->stride, 8);
  EXPECT_EQ(sparse_of(spec)->norm, 2);
  EXPECT_THAT(sparse_of(spec)->thresholds, ElementsAre(0.8f));
}

TEST(Prefill, WhatIsNotSupportedIsNamedAndRunsDense) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("toggle_type": "triangle")", "full/triangle is not supported"},
      {R"("retrieval_mode": "streaming", "toggle_type": "full")", "streaming/full"},
      {R"("pooling_mode": "first_token")", "pooling_mode \"first_token\" is not supported; ctx_q"},
      {R"("use_softmax": false)", "use_softmax"},
      {R"("enable_ada_sparsity": false)", "enable_ada_sparsity"},
      {R"("block_size": 64)", "block_size 64"},
      {R"("xattn_stride": 7)", "allowed: 4, 8, 16"}};
  for (const auto& [changes, words] : cases) {
    ModelSpec spec = spec_of("PawQwen3ForCausalLM", changes);
    const auto refused = apply_prefill({}, spec);
    ASSERT_FALSE(refused.ok()) << changes;
    EXPECT_THAT(refused.error().message, HasSubstr(words));
    EXPECT_THAT(refused.error().message, HasSubstr("--prefill-attention dense"));
    EXPECT_TRUE(apply_prefill({.kind = PrefillOptions::Kind::kDense}, spec).ok());
    EXPECT_TRUE(spec.prefill_refusal.empty() && !has_sparse_prefill(spec));
  }
}

TEST(Prefill, XattnIsForDenseFamiliesAlone) {
  const PrefillOptions xattn{.kind = PrefillOptions::Kind::kXattn, .stride = 4};
  for (const char* name :
       {"Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "PawQwen3ForCausalLM"}) {
    ModelSpec spec = spec_of(name);
    ASSERT_TRUE(apply_prefill(xattn, spec).ok()) << name;
    EXPECT_EQ(sparse_of(spec)->stride, 4);
    EXPECT_FALSE(has_prefill_router(spec));
  }
  ModelSpec ernie = spec_of("Ernie4_5ForCausalLM");
  EXPECT_THAT(apply_prefill(xattn, ernie).error().message, HasSubstr("Ernie4_5ForCausalLM"));
}

TEST(Prefill, ThresholdsFromAFile) {
  const TempDir dir;
  const auto apply = [&](const std::string& text, ModelSpec& spec) {
    std::ofstream(dir.file("t.json")) << text;
    return apply_prefill(
        {.kind = PrefillOptions::Kind::kXattn, .thresholds_file = dir.file("t.json")}, spec);
  };
  ModelSpec spec = spec_of("Qwen3ForCausalLM");
  ASSERT_TRUE(
      apply(R"({"layers": [{"thresholds": [0.5]}, {"thresholds": [1, 0.9, 0, 0.25]}]})", spec)
          .ok());
  EXPECT_THAT(sparse_of(spec, 0)->thresholds, ElementsAre(0.5f));
  EXPECT_THAT(sparse_of(spec, 1)->thresholds, ElementsAre(1, 0.9f, 0, 0.25f));
  EXPECT_THAT(apply(R"({"layers": [{"thresholds": [0.5]}]})", spec).error().message,
              HasSubstr("one entry a layer, 2"));
  EXPECT_THAT(
      apply(R"({"layers": [{"thresholds": [0.5, 1]}, {"thresholds": [1]}]})", spec).error().message,
      HasSubstr("layer 0 must have 1 or 4 thresholds"));
  EXPECT_THAT(
      apply(R"({"layers": [{"thresholds": [2]}, {"thresholds": [1]}]})", spec).error().message,
      HasSubstr("within 0 and 1"));
}

TEST(Prefill, HeadsFromAFile) {
  const TempDir dir;
  const auto apply = [&](const std::string& text, ModelSpec& spec) {
    std::ofstream(dir.file("h.json")) << text;
    return apply_prefill(
        {.kind = PrefillOptions::Kind::kXattn, .stride = 8, .heads_file = dir.file("h.json")},
        spec);
  };
  ModelSpec spec = spec_of("Qwen3ForCausalLM");
  const auto given = apply(R"({"sink_size": 200, "local_window_size": 128, "layers": [
      {"heads": ["full", "streaming"]}, {"heads": ["xattn", "full"]}]})",
                           spec);
  ASSERT_TRUE(given.ok()) << given.error().message;
  EXPECT_THAT(sparse_of(spec, 0)->heads, ElementsAre(HeadKind::kFull, HeadKind::kStreaming));
  EXPECT_THAT(sparse_of(spec, 1)->heads, ElementsAre(HeadKind::kBlocks, HeadKind::kFull));
  EXPECT_EQ(sparse_of(spec, 1)->sink_blocks, 2);
  EXPECT_EQ(sparse_of(spec, 1)->window_blocks, 1);
  EXPECT_EQ(sparse_of(spec, 1)->stride, 8);
  EXPECT_FALSE(has_prefill_router(spec));
  const std::pair<const char*, const char*> wrong[] = {
      {R"({"layers": [{"heads": ["full", "full"]}]})", "one entry a layer, 2"},
      {R"({"layers": [{"heads": ["full"]}, {"heads": ["full", "full"]}]})",
       "layer 0 must have 2 heads, got 1"},
      {R"({"layers": [{"heads": ["full", "some"]}, {"heads": []}]})",
       "\"some\" is not one of full, streaming, xattn"}};
  for (const auto& [text, words] : wrong) {
    EXPECT_THAT(apply(text, spec).error().message, HasSubstr(words));
  }
}

/// A copy of a checkpoint with changed tensors.
class ChangedCheckpoint {
 public:
  ChangedCheckpoint() : file_(SafetensorsFile::open(source() + "/model.safetensors").value()) {
    for (const TensorInfo& info : file_.tensors()) {
      bytes_.push_back(file_.load(info.name).value());
      tensors_.push_back({info.name, info.dtype, info.shape, bytes_.back()});
    }
  }
  static std::string source() { return oracle_dir() + "/models/pawqwen3_xattn_streaming"; }
  std::vector<TensorToWrite>& tensors() { return tensors_; }
  TensorToWrite& find(const std::string& name) {
    for (TensorToWrite& tensor : tensors_) {
      if (tensor.name == name) return tensor;
    }
    CHECK(false, name);
    return tensors_[0];
  }
  /// Loads it; empty, or why not.
  std::string load(const PrefillOptions& prefill = {}) {
    write_safetensors(dir_.file("model.safetensors"), tensors_).value();
    const Checkpoint checkpoint = Checkpoint::open(dir_.path()).value();
    ModelSpec spec = parse_model(load_config(source()).value().config).value();
    apply_prefill(prefill, spec).value();
    ThreadPool pool(1);
    Arena scratch;
    Stream stream(pool, scratch);
    const auto model =
        Model::load(spec, &checkpoint, {.max_model_len = 64, .num_threads = 1}, stream, ref_ops());
    return model.ok() ? "" : model.error().message;
  }

 private:
  TempDir dir_;
  SafetensorsFile file_;
  std::list<std::vector<std::byte>> bytes_;
  std::vector<TensorToWrite> tensors_;
};

const std::string kRouter = "model.layers.0.self_attn.mask_allocator.cls_feat_extractor.0.weight";

/// Property 19 of docs/kernels/elastic.md.
TEST(Prefill, P19WhatTrainingLeftBehindIsIgnoredAndARouterIsNot) {
  ChangedCheckpoint changed;
  const std::vector<std::byte> zeros(64);
  for (const char* name : {"model.sparsity_lambda_1", "model.sparsity_lambda2_task",
                           "model.layers.1.self_attn.attn_mask_log_alphas"}) {
    changed.tensors().push_back({name, DType::kBF16, {4}, std::span(zeros).first(8)});
  }
  EXPECT_EQ(changed.load(), "");
  std::erase_if(changed.tensors(), [](const TensorToWrite& t) { return t.name == kRouter; });
  EXPECT_THAT(changed.load(), HasSubstr("1 tensor missing: " + kRouter));
  EXPECT_EQ(changed.load({.kind = PrefillOptions::Kind::kDense}), "");
  EXPECT_EQ(changed.load({.kind = PrefillOptions::Kind::kXattn}), "");
}

TEST(Prefill, ARouterOfFluxAttentionIsRefusedByName) {
  ChangedCheckpoint changed;
  TensorToWrite& router = changed.find(kRouter);
  const std::vector<std::byte> twice(2 * router.data.size());
  router.shape[0] *= 2;
  router.data = twice;
  EXPECT_THAT(changed.load(), HasSubstr("Flux Attention"));
  EXPECT_EQ(changed.load({.kind = PrefillOptions::Kind::kDense}), "");
}

}  // namespace
}  // namespace weft
