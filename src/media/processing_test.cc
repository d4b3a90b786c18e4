#include "media/processing.h"

#include <gtest/gtest.h>

#include <string>

namespace weft {
namespace {

ImageProcessing parsed(const std::string& json) {
  return parse_image_processing(json).value();
}

std::string error_of(const std::string& json) {
  const auto result = parse_image_processing(json);
  return result ? "" : result.error().message;
}

TEST(ImageProcessing, ReadsOldAndNewBounds) {
  const ImageProcessing old = parsed(R"({"min_pixels": 3136, "max_pixels": 12845056})");
  EXPECT_EQ(old.min_pixels, 3136);
  EXPECT_EQ(old.max_pixels, 12845056);
  const ImageProcessing now = parsed(
      R"({"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16,
          "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})");
  EXPECT_EQ(now.min_pixels, 65536);
  EXPECT_EQ(now.max_pixels, 16777216);
  EXPECT_EQ(now.factor(), 32);
  EXPECT_EQ(now.mean[2], 0.5);
  // The old names win where a file has both, as in transformers.
  EXPECT_EQ(parsed(R"({"max_pixels": 5000, "size": {"longest_edge": 9000}})").max_pixels, 5000);
  EXPECT_EQ(parsed("{}").max_pixels, 28 * 28 * 1280);
}

TEST(ImageProcessing, ErrorsNameTheField) {
  EXPECT_EQ(error_of("[]"), "it must be a JSON object");
  EXPECT_EQ(error_of(R"({"patch_size": 0})"), "patch_size must be an integer in [1, 256]");
  EXPECT_EQ(error_of(R"({"patch_size": 1.5})"), "patch_size must be an integer in [1, 256]");
  EXPECT_EQ(error_of(R"({"image_std": [1, 2]})"), "image_std must be a list of 3 numbers");
  EXPECT_EQ(error_of(R"({"image_std": [1, 2, 0]})"), "image_std must be positive");
  EXPECT_EQ(error_of(R"({"do_resize": 1})"), "do_resize must be true or false");
  EXPECT_EQ(error_of(R"({"resample": 5})"),
            "resample must be 0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)");
  EXPECT_EQ(error_of(R"({"min_pixels": 10, "max_pixels": 9})"),
            "min_pixels (size.shortest_edge) must not exceed max_pixels");
}

std::string resized(int width, int height, const ImageProcessing& processing) {
  const auto size = smart_resize({width, height}, processing);
  if (!size) return size.error().message;
  return std::to_string(size->width) + "x" + std::to_string(size->height);
}

TEST(SmartResize, RoundsAndKeepsToTheBounds) {
  const ImageProcessing p{};  // factor 28, 3136 to 1003520 pixels
  EXPECT_EQ(resized(280, 140, p), "280x140");
  EXPECT_EQ(resized(294, 154, p), "280x168");  // 10.5 goes to 10, 5.5 to 6
  EXPECT_EQ(resized(1920, 1080, p), "1316x728");
  EXPECT_EQ(resized(10, 10, p), "56x56");
  EXPECT_EQ(resized(1, 1, p), "56x56");
  EXPECT_EQ(resized(1, 200, p), "28x812");
  EXPECT_EQ(resized(1, 201, p), "the image is more than 200 times as long as it is wide");
}

TEST(MakePatches, FollowsTheOrderOfMergeBlocks) {
  ImageProcessing p;
  p.patch_size = 1;
  p.merge_size = 2;
  p.resize = false;
  Image image{.width = 4, .height = 2};
  for (uint8_t i = 0; i < 8; ++i) {
    for (const uint8_t channel : {uint8_t{0}, uint8_t{100}, uint8_t{200}}) {
      image.rgb.push_back(static_cast<uint8_t>(channel + i));
    }
  }
  const PatchImage got = make_patches(image, p).value();
  EXPECT_EQ(got.grid, (PatchGrid{1, 2, 4}));
  EXPECT_EQ(got.grid.tokens(2), 2);
  ASSERT_EQ(got.patches.size(), 8u * 6);
  const int order[] = {0, 1, 4, 5, 2, 3, 6, 7};
  for (size_t i = 0; i < 8; ++i) {
    for (size_t j = 0; j < 6; ++j) {  // channel, then frame
      EXPECT_EQ(got.patches[i * 6 + j], order[i] + static_cast<int>(j / 2) * 100);
    }
  }
  p.merge_size = 3;
  EXPECT_FALSE(make_patches(image, p).ok());
}

TEST(SampleValues, RescalesAndNormalises) {
  ImageProcessing p;
  p.mean = {0.5, 0, 0};
  p.std = {0.5, 1, 2};
  const auto values = sample_values(p);
  EXPECT_EQ(values[0], -1);
  EXPECT_EQ(values[255], 1);
  EXPECT_EQ(values[256 + 255], 1);
  EXPECT_EQ(values[512 + 255], 0.5f);
}

}  // namespace
}  // namespace weft
