#include <gmock/gmock.h>

#include "models/model.h"
#include "models/spec.h"
#include "tests/support/oracle.h"

namespace weft {
namespace {

using ::testing::HasSubstr;

Result<ModelSpec> parse(const std::string& text) {
  return parse_model(TRY(ConfigJson::parse(text, "config.json")));
}

/// A Qwen3 config; `changes` are fields that replace or join the others (null removes one).
std::string qwen3(const std::string& changes) {
  std::string out = R"({"architectures": ["Qwen3ForCausalLM"])";
  const std::pair<const char*, const char*> fields[] = {
      {"hidden_size", "64"},        {"intermediate_size", "128"},
      {"num_hidden_layers", "2"},   {"num_attention_heads", "4"},
      {"num_key_value_heads", "2"}, {"head_dim", "32"},
      {"vocab_size", "256"},        {"max_position_embeddings", "2048"},
      {"rope_theta", "1000000.0"}};
  for (const auto& [name, value] : fields) {
    if (changes.find('"' + std::string(name) + '"') == std::string::npos) {
      out += std::string(", \"") + name + "\": " + value;
    }
  }
  return out + (changes.empty() ? "" : ", " + changes) + "}";
}

std::string problem(const std::string& changes) {
  const auto spec = parse(qwen3(changes));
  return spec.ok() ? "accepted" : spec.error().message;
}

TEST(Families, OldAndNewFormOfRopeAreTheSame) {
  const ModelSpec a = parse(qwen3(R"("rope_scaling": {"type": "yarn", "factor": 4.0,
                     "original_max_position_embeddings": 1024})"))
                          .value();
  const ModelSpec b = parse(qwen3(R"("rope_theta": null, "rope_parameters": {"rope_type": "yarn",
                     "rope_theta": 1000000.0, "factor": 4.0,
                     "original_max_position_embeddings": 1024})"))
                          .value();
  EXPECT_EQ(rope_inverse_frequencies(a.rope), rope_inverse_frequencies(b.rope));
  EXPECT_EQ(a.max_positions, 4096);  // what YaRN stretches to
  EXPECT_GT(rope_attention_factor(b.rope), 1.1);
}

TEST(Families, TheOriginalLengthMayStandBesideTheRope) {
  const auto frequencies = [](const std::string& changes) {
    return rope_inverse_frequencies(parse(qwen3(changes))->rope);
  };
  const auto inside = frequencies(R"("rope_scaling": {"type": "yarn", "factor": 4.0,
                                     "original_max_position_embeddings": 128})");
  EXPECT_EQ(frequencies(R"("rope_scaling": {"type": "yarn", "factor": 4.0},
                           "original_max_position_embeddings": 128)"),
            inside);
  EXPECT_EQ(frequencies(R"("rope_scaling": {"type": "yarn", "factor": 4.0,
                           "original_max_position_embeddings": 256},
                           "original_max_position_embeddings": 128)"),
            inside);
  EXPECT_NE(frequencies(R"("rope_scaling": {"type": "yarn", "factor": 4.0})"), inside);
  const std::string llama3 =
      R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0)";
  EXPECT_EQ(frequencies(llama3 + R"(, "original_max_position_embeddings": 128})"),
            frequencies(llama3 + R"(}, "original_max_position_embeddings": 128)"));
}

TEST(Families, ErnieHasTheNameOfItsFirstReleasesToo) {
  const auto ernie = [](const std::string& name) {
    return parse(R"({"architectures": [")" + name + R"("], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 256, "max_position_embeddings": 2048})");
  };
  ASSERT_TRUE(ernie("Ernie4_5_ForCausalLM").ok());
  EXPECT_EQ(count_parameters(*ernie("Ernie4_5_ForCausalLM")),
            count_parameters(*ernie("Ernie4_5ForCausalLM")));
}

TEST(Families, RefusesByName) {
  EXPECT_THAT(problem(R"("rope_scaling": {"rope_type": "longrope"})"), HasSubstr("longrope"));
  EXPECT_THAT(problem(R"("rope_scaling": {"type": "dynamic", "factor": 2.0})"),
              HasSubstr("default, linear, yarn and llama3"));
  EXPECT_THAT(problem(R"("hidden_act": "gelu")"), HasSubstr("gelu"));
  EXPECT_THAT(problem(R"("use_sliding_window": true)"), HasSubstr("use_sliding_window"));
  EXPECT_THAT(problem(R"("layer_types": ["full_attention", "sliding_attention"])"),
              HasSubstr("sliding_attention"));
  EXPECT_THAT(problem(R"("quantization_config": {"quant_method": "fp8"})"),
              HasSubstr("quantization_config"));
  EXPECT_THAT(problem(R"("quantization_config": {"quant_method": "gptq", "bits": 4})"),
              HasSubstr("weight_block_size [128, 128]"));
  EXPECT_THAT(problem(R"("mlp_bias": true)"), HasSubstr("mlp_bias"));
  const auto spec = parse(R"({"architectures": ["GPT2LMHeadModel"]})");
  EXPECT_THAT(spec.error().message, HasSubstr("GPT2LMHeadModel"));
  EXPECT_THAT(spec.error().message, HasSubstr("Qwen3ForCausalLM"));
}

TEST(Families, TheCacheFormatOfAMixQuantConfiguration) {
  const auto format = [](const std::string& type) {
    return parse(qwen3(R"("quantization_config": {"quantization": "mix_quant",
                          "kv_cache_quant_type": ")" +
                       type + "\"}"));
  };
  EXPECT_EQ(format("block_wise_fp8").value().kv_format, KvFormat::kFp8Block);
  EXPECT_EQ(format("float8_e4m3fn").value().kv_format, KvFormat::kFp8);
  EXPECT_EQ(format("int8").value().kv_format, KvFormat::kInt8);
  EXPECT_EQ(format("int4_zp").value().kv_format, KvFormat::kInt4);
  EXPECT_THAT(format("int8_zp").error().message, HasSubstr("kv_cache_quant_type must be int8"));
  EXPECT_FALSE(parse(qwen3("")).value().kv_format);
  EXPECT_EQ(parse(qwen3(R"("quantization_config": {"quantization": "mix_quant",
      "kv_cache_quant_type": "block_wise_fp8", "dense_quant_type": "block_wise_fp8",
      "moe_quant_type": "block_wise_fp8"})"))
                .value()
                .kv_format,
            KvFormat::kFp8Block);
  EXPECT_THAT(problem(R"("quantization_config": {"quantization": "mix_quant",
                         "kv_cache_quant_type": "int8", "dense_quant_type": "wint4"})"),
              HasSubstr("dense_quant_type"));
}

TEST(Families, ChecksEveryRange) {
  EXPECT_THAT(problem(R"("hidden_size": 0)"), HasSubstr("hidden_size"));
  EXPECT_THAT(problem(R"("hidden_size": 9223372036854775807)"), HasSubstr("hidden_size"));
  EXPECT_THAT(problem(R"("num_hidden_layers": -1)"), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(problem(R"("num_hidden_layers": "two")"), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(problem(R"("num_key_value_heads": 3)"), HasSubstr("must divide"));
  EXPECT_THAT(problem(R"("head_dim": 33)"), HasSubstr("even"));
  EXPECT_THAT(problem(R"("vocab_size": 1e30)"), HasSubstr("vocab_size"));
  EXPECT_THAT(problem(R"("rms_norm_eps": 0)"), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(problem(R"("rope_theta": -1)"), HasSubstr("rope_theta"));
  EXPECT_THAT(problem(R"("rope_scaling": {"rope_type": "yarn", "factor": 0.5})"),
              HasSubstr("factor"));
  EXPECT_THAT(problem(R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                         "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192})"),
              HasSubstr("high_freq_factor"));
  EXPECT_THAT(problem(R"("rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 7]})"),
              HasSubstr("mrope_section"));
  EXPECT_THAT(problem(R"("layer_types": ["full_attention"])"), HasSubstr("one entry a layer"));
  EXPECT_EQ(problem(""), "accepted");
}

/// Weights and config of the checkpoints agree on the number of parameters.
TEST(Families, CountsTheParametersOfEveryCheckpoint) {
  for (const char* name :
       {"qwen3", "qwen2", "llama3", "qwen3_moe", "qwen3_next", "ernie4_5", "ernie4_5_moe",
        "qwen3_5", "qwen3_5_moe", "qwen3_5_mtp", "qwen2_5_vl", "qwen3_vl"}) {
    const std::string dir = oracle_dir() + "/models/" + name;
    const Checkpoint checkpoint = Checkpoint::open(dir).value();
    const ModelSpec spec = parse_model(load_config(dir).value().config).value();
    EXPECT_EQ(count_parameters(spec), static_cast<int64_t>(checkpoint.total_bytes() / 2)) << name;
  }
}

TEST(Families, MtpAndHeadComeFromTheCheckpoint) {
  const std::string dir = oracle_dir() + "/models/qwen3_5_mtp";
  ModelSpec spec = parse_model(load_config(dir).value().config).value();
  ASSERT_TRUE(spec.mtp.has_value());
  adapt_to_checkpoint(spec, Checkpoint::open(oracle_dir() + "/models/qwen3").value());
  EXPECT_FALSE(spec.mtp.has_value());
  EXPECT_TRUE(spec.tied_head);
  adapt_to_checkpoint(spec, Checkpoint::open(dir).value());
  EXPECT_TRUE(spec.mtp.has_value());
}

TEST(Families, ErniesConfigNamesItsModulesAndTheFirstIsRun) {
  const auto modules = [](const std::string& count) {
    const ModelSpec spec = parse(R"({"architectures": ["Ernie4_5_MoeForCausalLM"],
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 2048,
        "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 96,
        "num_nextn_predict_layers": )" +
                                 count + "}")
                               .value();
    return spec.mtp ? spec.mtp->num_layers : 0;
  };
  EXPECT_EQ(modules("0"), 0);
  EXPECT_EQ(modules("1"), 1);
  EXPECT_EQ(modules("2"), 1);
}

TEST(Families, WithoutItsModuleAModelIsSmaller) {
  const std::string dir = oracle_dir() + "/models/qwen3_5_mtp";
  ModelSpec spec = parse_model(load_config(dir).value().config).value();
  const Checkpoint checkpoint = Checkpoint::open(dir).value();
  adapt_to_checkpoint(spec, checkpoint);
  const LoadOptions options{.max_model_len = 64, .num_threads = 1};
  const ModelFootprint with = measure_model(spec, options, ref_ops(), &checkpoint);
  leave_out_mtp(spec);
  EXPECT_TRUE(spec.mtp_left_out.has_value());
  const ModelFootprint without = measure_model(spec, options, ref_ops(), &checkpoint);
  EXPECT_LT(without.weight_bytes, with.weight_bytes);
  EXPECT_EQ(without.cache_specs.size() + 1, with.cache_specs.size());
  ThreadPool pool(1);
  Arena scratch;
  Stream stream(pool, scratch);
  const auto model = Model::load(spec, &checkpoint, options, stream, ref_ops());
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ((*model)->weight_bytes(), without.weight_bytes);
}

TEST(Families, FootprintIsWhatLoadingTakes) {
  const std::string dir = oracle_dir() + "/models/qwen3_next";
  const ModelSpec spec = parse_model(load_config(dir).value().config).value();
  const Checkpoint checkpoint = Checkpoint::open(dir).value();
  ThreadPool pool(1);
  Arena scratch;
  Stream stream(pool, scratch);
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kInt4}) {
    const LoadOptions options{.format = format, .max_model_len = 64, .num_threads = 1};
    const auto model = Model::load(spec, &checkpoint, options, stream, ref_ops()).value();
    const ModelFootprint footprint = measure_model(spec, options, ref_ops());
    EXPECT_EQ(footprint.weight_bytes, model->weight_bytes());
    EXPECT_EQ(footprint.cache_specs.size(), model->cache_specs().size());
    EXPECT_EQ(footprint.arena_bytes(100), model->arena_bytes(100));
  }
}

TEST(Families, DummyWeightsNeedNoCheckpoint) {
  ThreadPool pool(1);
  Arena scratch;
  Stream stream(pool, scratch);
  const ModelSpec spec = parse(qwen3("")).value();
  const auto model = Model::load(spec, nullptr, {.dummy_weights = true}, stream, ref_ops()).value();
  EXPECT_GT(model->weight_bytes(), 0);
  EXPECT_EQ(model->cache_specs().size(), 2u);
}

}  // namespace
}  // namespace weft
