#include "api/videos.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/images.h"

namespace weft {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// PNGs of one color: 8 x 8, another color, 16 x 8.
constexpr char kDark[] =
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mPkEpFjwAaYGHCAwSkBADVcAEypK0uGAAAA"
    "AElFTkSuQmCC";
constexpr char kOrange[] =
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAE0lEQVR42mM8kcKAFTAxMAwlCQDv2AE8Vpu8LQAAAABJ"
    "RU5ErkJggg==";
constexpr char kWide[] =
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAICAIAAAB/FOjAAAAAFklEQVR42mNkZGJmIAUwMZAIRjUQAwAW6gAW7SZ0xwAA"
    "AABJRU5ErkJggg==";

// A WebP of five 8 x 8 frames, 250 ms each, whose red is 10, 200, 0, 90, 7.
constexpr char kMoving[] =
    "UklGRhoBAABXRUJQVlA4WAoAAAACAAAABwAABwAAQU5JTQYAAAAAAAAAAABBTk1GKgAAAAAAAAAAAAcAAAcAAPoA"
    "AAJWUDhMEQAAAC8HwAEAB1CKKtSj/4GI6H8AAEFOTUYoAAAAAAAAAAAABwAABwAA+gAAAFZQOEwQAAAALwfAAQAH"
    "ULIiR/8DEdH/AEFOTUYoAAAAAAAAAAAABwAABwAA+gAAAFZQOEwPAAAALwfAAQAHEFH9/gciov8BAEFOTUYqAAAA"
    "AAAAAAAABwAABwAA+gAAAFZQOEwRAAAALwfAAQAHUK1qVav/gYjofwAAQU5NRioAAAAAAAAAAAAHAAAHAAD6AAAA"
    "VlA4TBEAAAAvB8ABAAdQ5B70oP+BiOh/AAA=";

// The same as a GIF.
constexpr char kMovingGif[] =
    "R0lGODlhCAAIAIEAAAoAAAEBAQAAAAAAACH5BAAZAAAALAAAAAAIAAgAAAgPAAEIHEiwoMGDCBMqTBgQACH5BAAZAAAA"
    "LAAAAAAIAAgAgcgAAAEBAQAAAAAAAAgPAAEIHEiwoMGDCBMqTBgQACH5BAAZAAAALAAAAAAIAAgAgQAAAAEBAQAAAAAA"
    "AAgPAAEIHEiwoMGDCBMqTBgQACH5BAAZAAAALAAAAAAIAAgAgVoAAAEBAQAAAAAAAAgPAAEIHEiwoMGDCBMqTBgQACH5"
    "BAAZAAAALAAAAAAIAAgAgQcAAAEBAQAAAAAAAAgPAAEIHEiwoMGDCBMqTBgQADs=";

std::string uri(const std::string& frames) {
  return "data:video/jpeg;base64," + frames;
}

/// Patches of 4, images token 9, videos token 8. `timed`: as Qwen3-VL, else as Qwen2.5-VL.
ImageInputConfig config(bool timed) {
  ImageInputConfig out;
  out.processing.patch_size = 4;
  out.processing.min_pixels = 8 * 8;
  out.processing.max_pixels = 64 * 64;
  out.image_token = 9;
  out.max_image_tokens = max_tokens(out.processing);
  VideoInputConfig video{.video_token = 8, .start_token = 6, .end_token = 7};
  video.processing.frame = out.processing;
  video.processing.bounds_of_all = timed;
  video.tokens_per_second = timed ? 0 : 2;
  video.max_videos = 2;
  video.max_frames = 5;
  out.video = video;
  return out;
}

VideoSource source(std::vector<std::string> frames, double fps = 0) {
  return {.field = "f", .frames = std::move(frames), .fps = fps};
}

TEST(ReadVideo, GroupsFramesInTime) {
  const ImageReader reader(config(true));
  const auto video = reader.read_video(source({uri(kDark), uri(kOrange), uri(kDark)}, 4));
  ASSERT_TRUE(video.ok()) << video.error().message;
  ASSERT_EQ(video->groups.size(), 2u);
  EXPECT_THAT(video->times, ElementsAre(0.125, 0.5));
  EXPECT_EQ(video->group_seconds, 0.5);
  const ImagePatches& first = *video->groups[0];
  EXPECT_EQ(first.t, 1);
  EXPECT_EQ(first.h, 2);
  EXPECT_EQ(first.w, 2);
  EXPECT_EQ(first.num_tokens, 1);
  ASSERT_EQ(first.samples.size(), 4u * 3 * 2 * 16);
  EXPECT_EQ(first.samples[0], 10);    // red of the first frame
  EXPECT_EQ(first.samples[16], 200);  // and of the second
  EXPECT_EQ(first.samples[32], 20);   // green
  // The last group has one frame, which is shown twice.
  EXPECT_EQ(video->groups[1]->samples[0], 10);
  EXPECT_EQ(video->groups[1]->samples[16], 10);
}

TEST(ReadVideo, AListAndOneUriAreTheSame) {
  const ImageReader reader(config(true));
  const auto one = reader.read_video(source({uri(std::string(kDark) + "," + kOrange)})).value();
  const auto list = reader.read_video(source({uri(kDark), uri(kOrange)})).value();
  ASSERT_EQ(one.groups.size(), 1u);
  EXPECT_EQ(one.groups[0]->digest, list.groups[0]->digest);
  EXPECT_EQ(one.groups[0]->samples, list.groups[0]->samples);
}

TEST(ReadVideo, TheDigestIsOfTheFramesTheirOrderAndTheirSize) {
  const auto digest = [](const ImageReader& reader, std::vector<std::string> frames) {
    return reader.read_video(source(std::move(frames))).value().groups[0]->digest;
  };
  const ImageReader reader(config(true));
  const auto base = digest(reader, {uri(kDark), uri(kOrange)});
  EXPECT_EQ(base, digest(reader, {uri(kDark), uri(kOrange), uri(kDark)}));  // the first group
  EXPECT_NE(base, digest(reader, {uri(kOrange), uri(kDark)}));
  EXPECT_NE(base, digest(reader, {uri(kDark)}));
  EXPECT_NE(base, reader.read({"f", uri(kDark)}).value()->digest);
  ImageInputConfig other = config(true);
  other.video->processing.frame.min_pixels = 32 * 32;
  EXPECT_NE(base, digest(ImageReader(other), {uri(kDark), uri(kOrange)}));
  other = config(true);
  other.video->processing.frame.std[0] = 0.25;
  EXPECT_NE(base, digest(ImageReader(other), {uri(kDark), uri(kOrange)}));
}

TEST(ReadVideo, WherePositionsTellTheTimeTheDigestDoesToo) {
  const auto digest = [](bool timed, double fps) {
    return ImageReader(config(timed))
        .read_video(source({uri(kDark), uri(kDark)}, fps))
        .value()
        .groups[0]
        ->digest;
  };
  EXPECT_EQ(digest(true, 1), digest(true, 2));  // in the prompt as text
  EXPECT_NE(digest(false, 1), digest(false, 2));
  EXPECT_EQ(digest(false, 2), digest(false, 0));  // 2 unless said
}

TEST(ReadVideo, ErrorsNameTheFrame) {
  const ImageReader reader(config(true));
  const auto error = [&](std::vector<std::string> frames) {
    return reader.read_video(source(std::move(frames))).error().message;
  };
  EXPECT_EQ(error({uri(kDark), uri(kWide)}),
            "f.frames[1]: the frames of a video must have one size");
  EXPECT_EQ(error({uri(kDark), uri("AAAA")}),
            "f.frames[1]: the image is not a PNG, JPEG, WebP or GIF file");
  EXPECT_THAT(error({"data:video/mp4;base64,AAAAIGZ0eXA="}),
              HasSubstr("f: the video is no list of pictures"));
  EXPECT_EQ(error({uri(std::string(kDark) + ",")}),
            "f.frames[1]: the image is not a PNG, JPEG, WebP or GIF file");
  EXPECT_EQ(error({"http://127.0.0.1/a.png"}),
            "f: this server fetches no URLs; send the image as a data: URI");
  EXPECT_THAT(error({"file:///etc/passwd"}), HasSubstr("must be a data: URI with base64"));
  const std::string many = "f: the video has too many frames; allowed: at most 5";
  EXPECT_EQ(error(std::vector<std::string>(6, uri(kDark))), many);
  EXPECT_EQ(error({uri(std::string(1'000'000, ','))}), many);
  EXPECT_EQ(error({}), "f: the video has no frames");
  ImageInputConfig small = config(true);
  small.video->max_pixels = 100;
  EXPECT_EQ(ImageReader(small).read_video(source({uri(kDark), uri(kDark)})).error().message,
            "f.frames[0]: the video has too many pixels");
}

class Animations : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Formats, Animations, testing::Values(kMoving, kMovingGif));

TEST_P(Animations, AreSampledInTime) {
  const std::string file = std::string("data:video/webp;base64,") + GetParam();
  // 5 frames at 4 a second, of which 2 a second but at least 4 are taken: 0, 1, 3, 4.
  const PromptVideo timed = ImageReader(config(true)).read_video(source({file})).value();
  ASSERT_EQ(timed.groups.size(), 2u);
  EXPECT_THAT(timed.times, ElementsAre(0.125, 0.875));
  EXPECT_EQ(timed.groups[0]->samples[0], 10);
  EXPECT_EQ(timed.groups[0]->samples[16], 200);
  EXPECT_EQ(timed.groups[1]->samples[0], 90);
  EXPECT_EQ(timed.groups[1]->samples[16], 7);
  EXPECT_NE(timed.groups[0]->digest, timed.groups[1]->digest);
  // The other family takes 0, 1, 2, 3: 3.2 of them a second.
  const PromptVideo spaced = ImageReader(config(false)).read_video(source({file})).value();
  ASSERT_EQ(spaced.groups.size(), 2u);
  EXPECT_EQ(spaced.groups[1]->samples[0], 0);
  EXPECT_DOUBLE_EQ(spaced.group_seconds, 2 / 3.2);
  ImageInputConfig few = config(true);
  few.video->max_frames = 2;
  EXPECT_EQ(ImageReader(few).read_video(source({file})).value().groups.size(), 1u);
  few.video->max_pixels = 64 * 4;
  EXPECT_EQ(ImageReader(few).read_video(source({file})).error().message,
            "f: the video has too many pixels");
}

TEST_P(Animations, EveryTruncationIsRefusedOrDecoded) {
  const ImageReader reader(config(true));
  const std::string whole = GetParam();
  for (size_t size = 0; size < whole.size(); size += 4) {
    const auto video = reader.read_video(source({uri(whole.substr(0, size))}));
    if (video) {
      EXPECT_EQ(video->groups.size(), video->times.size());
    } else {
      EXPECT_TRUE(video.error().message.starts_with("f: ")) << video.error().message;
    }
  }
}

TEST(ReadVideo, CountsVideos) {
  const ImageReader reader(config(true));
  const VideoSource video = source({uri(kDark)});
  EXPECT_EQ(reader.read_videos({video, video}).value().size(), 2u);
  EXPECT_EQ(reader.read_videos({video, video, video}).error().message,
            "messages: they hold 3 videos; allowed: at most 2");
}

TEST(ReadVideo, FramesAreReducedUntilTheVideoHasFewTokens) {
  ImageInputConfig c = config(true);
  c.video->processing.frame.min_pixels = 4096;  // 8 x 8 tokens of a group, were they not limited
  c.video->max_tokens = 12;
  const auto video =
      ImageReader(c).read_video(source(std::vector<std::string>(4, uri(kDark)))).value();
  ASSERT_EQ(video.groups.size(), 2u);
  EXPECT_LE(video.groups[0]->num_tokens, 6);
}

TEST(TimedTexts, HaveOneDigitBehindThePoint) {
  const std::vector<PromptVideo> videos{{.groups = {}, .times = {0.25, 1.25, 1.96}}};
  EXPECT_THAT(timed_texts(videos, {"[", "v", "]", {}}),
              ElementsAre("<0.2 seconds>[v]<1.2 seconds>[v]<2.0 seconds>[v]"));
}

using Triple = std::array<int32_t, 3>;

TEST(ExpandVideo, ATimedGroupIsAnImageOfItsOwn) {
  const ImageReader reader(config(true));
  const auto videos =
      reader.read_videos({source({uri(kWide), uri(kWide), uri(kWide), uri(kWide)})}).value();
  ASSERT_EQ(videos[0].groups[0]->num_tokens, 2);  // 1 x 2
  const auto image = reader.read({"f", uri(kDark)}).value();
  const ImagePrompt got = reader.expand({1, 8, 2, 9, 8}, {image}, videos).value();
  EXPECT_THAT(got.ids, ElementsAre(1, 8, 8, 2, 9, 8, 8));
  ASSERT_EQ(got.images.size(), 3u);
  EXPECT_EQ(got.images[0].content, videos[0].groups[0]);
  EXPECT_EQ(got.images[1].content, image);
  EXPECT_EQ(got.images[2].content, videos[0].groups[1]);
  EXPECT_EQ(got.images[2].first, 5);
  EXPECT_THAT(got.positions,
              ElementsAre(Triple{0, 0, 0}, Triple{1, 1, 1}, Triple{1, 1, 2}, Triple{3, 3, 3},
                          Triple{4, 4, 4}, Triple{5, 5, 5}, Triple{5, 5, 6}));
  EXPECT_EQ(got.rope_delta, 0);
  EXPECT_THAT(reader.expand({1, 8}, {}, videos).error().message,
              HasSubstr("shows 1 of 2 groups of a video's frames"));
}

TEST(ExpandVideo, OfQwen25AllFramesAreOneGrid) {
  const ImageReader reader(config(false));
  const auto videos = reader.read_videos({source(std::vector<std::string>(4, uri(kWide)), 1)});
  ASSERT_TRUE(videos.ok()) << videos.error().message;
  const ImagePrompt got = reader.expand({1, 8, 2}, {}, *videos).value();
  EXPECT_THAT(got.ids, ElementsAre(1, 8, 8, 8, 8, 2));
  ASSERT_EQ(got.images.size(), 2u);
  EXPECT_EQ(got.images[1].first, 3);
  // 2 seconds a group and 2 positions a second
  EXPECT_THAT(got.positions, ElementsAre(Triple{0, 0, 0}, Triple{1, 1, 1}, Triple{1, 1, 2},
                                         Triple{5, 1, 1}, Triple{5, 1, 2}, Triple{6, 6, 6}));
  EXPECT_EQ(got.rope_delta, 1);
  EXPECT_THAT(reader.expand({1, 8, 8}, {}, *videos).error().message,
              HasSubstr("shows 2 of 1 videos"));
  const auto slow = reader.read_videos({source(std::vector<std::string>(4, uri(kWide)), 1e-9)});
  EXPECT_THAT(reader.expand({8}, {}, *slow).error().message, HasSubstr("too far apart"));
}

}  // namespace
}  // namespace weft
