#include "models/kv_scales.h"

#include <gmock/gmock.h>

#include <array>

#include "base/temp_dir.h"
#include "checkpoint/safetensors_writer.h"

namespace weft {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

/// Two layers of two kv heads of four dims, the first one recurrent.
ModelSpec tiny_spec() {
  ModelSpec spec;
  LayerSpec attention;
  attention.mixer = AttentionSpec{.q_heads = 4, .kv_heads = 2, .head_dim = 4};
  LayerSpec recurrent;
  recurrent.mixer = GdnSpec{};
  spec.layers = {recurrent, attention};
  return spec;
}

struct Stored {
  std::string name;
  std::vector<float> values;
};

Result<Checkpoint> checkpoint_with(const TempDir& dir, const std::vector<Stored>& stored) {
  std::vector<TensorToWrite> tensors;
  for (const Stored& s : stored) {
    tensors.push_back({.name = s.name,
                       .shape = {static_cast<int64_t>(s.values.size())},
                       .data = std::as_bytes(std::span(s.values))});
  }
  TRY(write_safetensors(dir.file("model.safetensors"), tensors));
  return Checkpoint::open(dir.path());
}

const std::string kLayer = "model.layers.1.self_attn.";

TEST(KvScales, OneANumberAHeadOrAChannel) {
  const TempDir dir;
  const std::vector<float> channels = {1, 2, 3, 4, 5, 6, 7, 8};
  const Checkpoint checkpoint = checkpoint_with(dir, {{kLayer + "k_scale", {0.5f, 0.25f}},
                                                      {kLayer + "v_proj.output_scale", channels}})
                                    .value();
  ModelSpec spec = tiny_spec();
  spec.kv_format = KvFormat::kInt8;
  const KvLayers scales = kv_scales_of(spec, &checkpoint, KvFormat::kInt8).value();
  ASSERT_EQ(scales.size(), 2u);
  EXPECT_TRUE(scales[0].k.empty());
  EXPECT_EQ(scales[1].k, (std::vector<float>{0.5f, 0.5f, 0.5f, 0.5f, 0.25f, 0.25f, 0.25f, 0.25f}));
  EXPECT_EQ(scales[1].v, channels);
  const KvLayers fp8 = kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kFp8).value();
  EXPECT_EQ(fp8[1].k, scales[1].k);
  EXPECT_EQ(fp8[1].v, (std::vector<float>{4, 4, 4, 4, 8, 8, 8, 8}));
}

TEST(KvScales, ThoseOfE4m3AreNotTakenForInt8) {
  const std::vector<float> channels = {1, 2, 3, 4, 5, 6, 7, 8};
  const auto message = [&](const std::vector<float>& k, std::optional<KvFormat> made_for) {
    const TempDir dir;
    const Checkpoint checkpoint =
        checkpoint_with(dir, {{kLayer + "k_scale", k}, {kLayer + "v_scale", channels}}).value();
    ModelSpec spec = tiny_spec();
    spec.kv_format = made_for;
    EXPECT_TRUE(kv_scales_of(spec, &checkpoint, KvFormat::kFp8).ok());
    const auto scales = kv_scales_of(spec, &checkpoint, KvFormat::kInt8);
    return scales.ok() ? "" : scales.error().message;
  };
  EXPECT_THAT(message({0.5f}, {}), HasSubstr(kLayer + "k_scale is of e4m3 codes"));
  EXPECT_THAT(message({0.5f, 0.25f}, {}), HasSubstr("fp8 takes it"));
  EXPECT_THAT(message(channels, KvFormat::kFp8), HasSubstr("k_scale is of e4m3"));
  EXPECT_EQ(message(channels, {}), "");
  EXPECT_EQ(message({0.5f}, KvFormat::kInt8), "");
}

TEST(KvScales, OfOnePlaneAloneAreRefused) {
  for (const auto& [there, gone] : {std::pair("k_scale", "v_scale"), {"v_scale", "k_scale"}}) {
    const TempDir dir;
    const Checkpoint checkpoint = checkpoint_with(dir, {{kLayer + there, {0.5f}}}).value();
    const auto scales = kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kFp8);
    ASSERT_FALSE(scales.ok());
    EXPECT_THAT(scales.error().message, HasSubstr(kLayer + gone + " is not in the checkpoint"));
  }
}

TEST(KvScales, ErnieNamesHoldTheLargestValue) {
  const TempDir dir;
  const Checkpoint checkpoint =
      checkpoint_with(dir, {{kLayer + "cachek_matmul.activation_scale", {127, 254}},
                            {kLayer + "cachev_matmul.activation_scale", {448}}})
          .value();
  const KvLayers int8 = kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kInt8).value();
  EXPECT_EQ(int8[1].k[0], 1.0f);
  EXPECT_EQ(int8[1].k[7], 2.0f);
  const KvLayers fp8 = kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kFp8).value();
  EXPECT_THAT(fp8[1].v, Each(1.0f));
}

TEST(KvScales, WithoutAnyFp8HasOneAndInt8IsRefusedWithAHint) {
  const TempDir dir;
  const Checkpoint checkpoint = checkpoint_with(dir, {{"x", {1}}}).value();
  const KvLayers fp8 = kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kFp8).value();
  EXPECT_THAT(fp8[1].k, Each(1.0f));
  const auto int8 = kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kInt8);
  ASSERT_FALSE(int8.ok());
  EXPECT_THAT(int8.error().message, HasSubstr(kLayer + "k_scale"));
  for (const char* other : {"bfloat16", "int8_dynamic", "fp8_block", "int4", "fp8 "}) {
    EXPECT_THAT(int8.error().message, HasSubstr(other));
  }
  EXPECT_THAT(int8.error().message, HasSubstr("weft calibrate"));
}

TEST(KvScales, RefusesWhatIsNoScale) {
  using Limits = std::numeric_limits<float>;
  for (const float bad :
       {0.0f, -1.0f, Limits::infinity(), Limits::quiet_NaN(), Limits::denorm_min(), 3e38f}) {
    const TempDir dir;
    const Checkpoint checkpoint = checkpoint_with(dir, {{kLayer + "k_scale", {bad}}}).value();
    const auto scales = kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kFp8);
    ASSERT_FALSE(scales.ok());
    EXPECT_THAT(scales.error().message, HasSubstr(kLayer + "k_scale: scales must be from 1e-30"));
  }
  const TempDir dir;
  const Checkpoint checkpoint = checkpoint_with(dir, {{kLayer + "k_scale", {1, 1, 1}}}).value();
  EXPECT_THAT(kv_scales_of(tiny_spec(), &checkpoint, KvFormat::kFp8).error().message,
              HasSubstr("1, 2 (one a head) or 8 (one a channel)"));
}

TEST(KvScales, ARangeBecomesScalesOfEitherFormat) {
  const TempDir dir;
  KvLayers range(2);
  range[1].k = {127, 1, 254, 127, 1, 2, 3, 4};
  range[1].v = {448, 1, 1, 1, 896, 1, 1, 1};
  ASSERT_TRUE(write_kv_range(dir.file("s"), tiny_spec(), range).ok());
  const KvLayers int8 = read_kv_scales(tiny_spec(), dir.file("s"), KvFormat::kInt8).value();
  EXPECT_EQ(int8[1].k[0], 1.0f);
  EXPECT_EQ(int8[1].k[2], 2.0f);
  EXPECT_EQ(int8[1].k[1], 254.0f / 64 / 127);  // not less than a part of the head's largest
  const KvLayers fp8 = read_kv_scales(tiny_spec(), dir.file("s"), KvFormat::kFp8).value();
  EXPECT_EQ(fp8[1].v[1], 1.0f);
  EXPECT_EQ(fp8[1].v[5], 2.0f);
}

TEST(KvScales, ARangeOfAnotherModelIsRefused) {
  const TempDir dir;
  const std::string path = dir.file("s");
  const auto write = [&](const ModelSpec& spec) {
    KvLayers range = unit_kv_scales(spec, KvFormat::kInt8);
    ASSERT_TRUE(write_kv_range(path, spec, range).ok());
  };
  const auto message = [&](const ModelSpec& spec) {
    const auto scales = read_kv_scales(spec, path, KvFormat::kInt8);
    return scales.ok() ? "" : scales.error().message;
  };
  ModelSpec longer = tiny_spec();
  longer.layers.push_back(longer.layers.back());
  // Fewer layers than the model, more of them (of the same widths), one of another kind.
  write(tiny_spec());
  EXPECT_EQ(message(tiny_spec()), "");
  EXPECT_EQ(
      message(longer),
      path +
          ": no tensor layers.2.k_range; of the model's layers 2 have a KV cache (4 tensors), "
          "and the file has 2 tensors: it is of another model");
  write(longer);
  EXPECT_EQ(message(tiny_spec()),
            path +
                ": tensor layers.2.k_range is of no such layer; of the model's layers 1 have a KV "
                "cache (2 tensors), and the file has 4 tensors: it is of another model");
  ModelSpec shifted = tiny_spec();
  std::swap(shifted.layers[0], shifted.layers[1]);
  write(shifted);
  EXPECT_THAT(message(tiny_spec()), HasSubstr("tensor layers.0.k_range is of no such layer"));
  ModelSpec other = tiny_spec();  // all of the same shapes
  other.architecture = "OtherForCausalLM";
  write(other);
  EXPECT_EQ(message(tiny_spec()),
            path + ": is of OtherForCausalLM of hidden size 0, and this is " + " of hidden size 0");
  // The same number of channels in other heads.
  ModelSpec wider = tiny_spec();
  wider.layers[1].mixer = AttentionSpec{.q_heads = 4, .kv_heads = 1, .head_dim = 8};
  write(wider);
  EXPECT_EQ(message(tiny_spec()),
            path +
                ": layers.1.k_range is [1, 8], and the model's layer [2, 4] (kv heads, dims of "
                "a head): it is of another model");
}

}  // namespace
}  // namespace weft
