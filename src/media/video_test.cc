#include "media/video.h"

#include <gtest/gtest.h>

#include <string>

namespace weft {
namespace {

VideoProcessing qwen3(const std::string& bounds) {
  return parse_video_processing(
             R"({"video_processor_type": "Qwen3VLVideoProcessor", "size": )" + bounds + "}", false)
      .value();
}
constexpr char kReleased[] = R"({"shortest_edge": 4096, "longest_edge": 25165824})";

std::string size_of(int width, int height, int64_t frames, const VideoProcessing& video) {
  const auto size = video_size({width, height}, frames, video);
  if (!size) return size.error().message;
  return std::to_string(size->width) + "x" + std::to_string(size->height);
}

TEST(VideoProcessing, ReadsTheFileOfEitherFamily) {
  const VideoProcessing newer = qwen3(kReleased);
  EXPECT_TRUE(newer.bounds_of_all);
  EXPECT_EQ(newer.frame.factor(), 32);
  EXPECT_EQ(newer.frame.mean[0], 0.5);
  EXPECT_EQ(newer.frame.max_pixels, 25165824);
  const VideoProcessing older =
      parse_video_processing(R"({"video_processor_type": "Qwen2VLVideoProcessor"})", true).value();
  EXPECT_FALSE(older.bounds_of_all);
  EXPECT_EQ(older.frame.factor(), 28);
  EXPECT_EQ(older.frame.min_pixels, 128 * 28 * 28);
  EXPECT_EQ(older.frame.max_pixels, 768 * 28 * 28);
  // A preprocessor_config.json names no processor of videos: the model's family decides.
  EXPECT_TRUE(parse_video_processing("{}", true)->bounds_of_all);
  EXPECT_EQ(parse_video_processing("{}", true)->frame.min_pixels, 128 * 32 * 32);
  EXPECT_EQ(
      parse_video_processing(R"({"min_pixels": 1, "max_pixels": 5000})", false)->frame.max_pixels,
      5000);
  EXPECT_EQ(parse_video_processing(R"({"fps": 4})", false)->fps, 4);
  EXPECT_EQ(parse_video_processing(R"({"video_processor_type": "X"})", true).error().message,
            "video_processor_type must be Qwen2VLVideoProcessor or Qwen3VLVideoProcessor");
  EXPECT_EQ(parse_video_processing(R"({"fps": 0})", true).error().message,
            "fps must be a positive number");
}

TEST(VideoSize, TheBoundsAreThoseOfAllFrames) {
  const VideoProcessing video = qwen3(kReleased);
  EXPECT_EQ(size_of(1920, 1080, 8, video), "1920x1088");
  EXPECT_EQ(size_of(1920, 1080, 16, video), "1664x928");
  EXPECT_EQ(size_of(1920, 1080, 768, video), "224x128");
  EXPECT_EQ(size_of(20, 10, 2, video), "64x32");    // first enlarged to the factor
  EXPECT_EQ(size_of(31, 300, 7, video), "32x320");  // 309 rows then
  EXPECT_EQ(size_of(64, 64, 1, video), "64x64");    // a single frame counts twice
  EXPECT_EQ(size_of(1, 201, 2, video), "the image is more than 200 times as long as it is wide");
  const VideoProcessing small = qwen3(R"({"shortest_edge": 4096, "longest_edge": 50176})");
  EXPECT_EQ(size_of(1920, 1080, 3, small), "160x96");
  EXPECT_EQ(size_of(1920, 1080, 5, small), "128x64");  // 2.5 groups round to 2
  EXPECT_EQ(size_of(31, 300, 7, small), "32x256");
}

TEST(VideoSize, FramesMayBeCappedAsQwensClientsDo) {
  VideoProcessing video = qwen3(kReleased);
  video.cap_pixels_per_frame = true;
  EXPECT_EQ(size_of(1920, 1080, 8, video), "1152x640");
  EXPECT_EQ(size_of(1920, 1080, 768, video), "224x128");
}

TEST(VideoSize, OfQwen25TheBoundsAreThoseOfAFrame) {
  const VideoProcessing video = parse_video_processing("{}", false).value();
  EXPECT_EQ(size_of(1920, 1080, 2, video), size_of(1920, 1080, 100, video));
  EXPECT_EQ(size_of(1920, 1080, 2, video), "1008x560");
}

TEST(LimitTokens, BoundsAGroupAndTheVideo) {
  const VideoProcessing newer = qwen3(kReleased);
  const VideoProcessing older =
      parse_video_processing(R"({"min_pixels": 3136, "max_pixels": 12845056})", false).value();
  for (const VideoProcessing& video : {newer, older}) {
    const int64_t factor = video.frame.factor();
    for (const int64_t frames : {1, 2, 3, 10, 100}) {
      const VideoProcessing limited = limit_tokens(video, frames, 100, 1000);
      const ImageSize size = video_size({1920, 1080}, frames, limited).value();
      const int64_t group = size.width / factor * (size.height / factor);
      EXPECT_LE(group, 100);
      EXPECT_LE(group * ((frames + 1) / 2), 1000);
      EXPECT_GE(group * ((frames + 1) / 2), std::min<int64_t>(70, 1000)) << frames;
    }
  }
  EXPECT_EQ(size_of(1920, 1080, 8, limit_tokens(newer, 8, 4096, 16384)), "1920x1088");
}

TEST(SampleFrames, TakesAsManyASecondAsTheModelWants) {
  const VideoProcessing newer = qwen3(kReleased);
  using Indices = std::vector<int64_t>;
  // 10 frames at 5 a second: 4 of them; np.linspace(0, 9, 4).round()
  EXPECT_EQ(sample_frames(10, 5, newer), (Indices{0, 3, 6, 9}));
  EXPECT_EQ(sample_frames(3, 24, newer), (Indices{0, 1, 2}));  // at least 4, at most all
  EXPECT_EQ(sample_frames(6, 1, newer), (Indices{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(sample_frames(1, 1, newer), (Indices{0}));
  EXPECT_EQ(sample_frames(6, 2.4, newer), (Indices{0, 1, 2, 4, 5}));  // 2.5 rounds to 2
  const VideoProcessing older = parse_video_processing("{}", false).value();
  EXPECT_EQ(sample_frames(10, 5, older), (Indices{0, 2, 5, 7}));
  EXPECT_EQ(sample_frames(7, 1, older), (Indices{0, 1, 2, 3, 4, 5}));  // whole groups
  EXPECT_EQ(sample_frames(1, 1, older), (Indices{0}));
}

TEST(GroupTimes, AreTheMiddleOfTheirFrames) {
  const int64_t indices[] = {0, 1, 2, 3, 4};
  EXPECT_EQ(group_times(indices, 2, 2), (std::vector<double>{0.25, 1.25, 2}));
  const int64_t sampled[] = {0, 10, 20, 30};
  EXPECT_EQ(group_times(sampled, 5, 2), (std::vector<double>{1, 5}));
}

TEST(CutPatches, FramesLieWithinTheirPatch) {
  ImageProcessing p;
  p.patch_size = p.merge_size = 1;
  Image frames[2];
  for (int t = 0; t < 2; ++t) {
    frames[t] = {.width = 2, .height = 1};
    for (int x = 0; x < 2; ++x) {
      for (int channel = 0; channel < 3; ++channel) {
        frames[t].rgb.push_back(static_cast<uint8_t>(100 * x + 10 * channel + t));
      }
    }
  }
  const PatchImage two = cut_patches(frames, p);
  EXPECT_EQ(two.grid, (PatchGrid{1, 1, 2}));
  EXPECT_EQ(two.patches,
            (std::vector<uint8_t>{0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121}));
  EXPECT_EQ(cut_patches({frames, 1}, p).patches,
            (std::vector<uint8_t>{0, 0, 10, 10, 20, 20, 100, 100, 110, 110, 120, 120}));
}

}  // namespace
}  // namespace weft
