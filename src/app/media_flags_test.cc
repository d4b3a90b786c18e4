#include "app/media_flags.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

EngineOptions limited(const std::string& text) {
  EngineOptions out;
  const Result<void> done = read_media_limits(text, out);
  EXPECT_TRUE(done.ok()) << text << (done.ok() ? "" : done.error().message);
  return out;
}

TEST(MediaFlags, LimitsComeAsJsonOrAsAList) {
  for (const char* text : {R"({"image": 5, "video": 2, "audio": 0})", "image=5,video=2",
                           R"({"image": {"count": 5, "width": 512}, "video": {"count": 2}})"}) {
    EXPECT_EQ(limited(text).max_images, 5) << text;
    EXPECT_EQ(limited(text).max_videos, 2) << text;
    EXPECT_GT(limited(text).max_image_tokens, 0) << text;
  }
  const EngineOptions defaults;
  EXPECT_EQ(limited(R"({"image": 1})").max_videos, defaults.max_videos);
  EXPECT_EQ(limited(R"({"video": {"num_frames": 8}})").max_videos, defaults.max_videos);
  EXPECT_EQ(limited(R"({"image": 0})").max_images, 0);
  EXPECT_GT(limited(R"({"image": 0})").max_image_tokens, 0) << "videos are taken";
  EXPECT_EQ(limited("image=0,video=0").max_image_tokens, 0);
}

TEST(MediaFlags, BadLimitsAreNamed) {
  for (const char* text :
       {"4", "image", "image=x", "[1]", R"({"image": -1})", "image=1025", R"({"image": 1.5})",
        R"({"image": "4"})", R"({"picture": 4})", R"({"image": 99999999999999999999})"}) {
    EngineOptions options;
    const Result<void> done = read_media_limits(text, options);
    ASSERT_FALSE(done.ok()) << text;
    EXPECT_TRUE(done.error().message.starts_with("--limit-mm-per-prompt")) << text;
  }
}

TEST(MediaFlags, ProcessorKwargsBoundImages) {
  EngineOptions o;
  EXPECT_EQ(read_processor_kwargs(R"({"min_pixels": 784, "max_pixels": 50176})", o).value(), "");
  EXPECT_EQ(o.min_image_pixels, 784);
  EXPECT_EQ(o.max_image_pixels, 50176);
  EngineOptions newer;
  EXPECT_EQ(read_processor_kwargs(R"({"size": {"shortest_edge": 9, "longest_edge": 99},
                                      "use_fast": true, "fps": 2})",
                                  newer)
                .value(),
            "--mm-processor-kwargs.fps, --mm-processor-kwargs.use_fast change nothing in weft; "
            "min_pixels, max_pixels and size do");
  EXPECT_EQ(newer.min_image_pixels, 9);
  EXPECT_EQ(newer.max_image_pixels, 99);
  for (const char* text : {"", "7", "{", R"({"max_pixels": 0})", R"({"max_pixels": "1"})",
                           R"({"min_pixels": 5, "max_pixels": 4})"}) {
    EngineOptions bad;
    EXPECT_FALSE(read_processor_kwargs(text, bad).ok()) << text;
  }
}

}  // namespace
}  // namespace weft
