#include "server/request_videos.h"

#include <gtest/gtest.h>

#include "server/api_error.h"
#include "server/openai_request.h"

namespace weft {
namespace {

/// The field that the error names; "" where there is none.
std::string refused(const Result<GenerationRequest>& result) {
  return result.ok() ? "" : to_api_error(result.error()).param;
}

TEST(RequestVideos, ComeInTheFormsOfVllmsAndQwensClients) {
  const auto r = parse_chat_request(
      R"({"media_io_kwargs":{"video":{"fps":3,"num_frames":-1}},"messages":[{"role":"user","content":[
          {"type":"video_url","video_url":{"url":"data:video/jpeg;base64,A,B"}},
          {"type":"image_url","image_url":{"url":"data:,i"}},
          {"type":"video","video":["data:,a",{"type":"image_url","image_url":{"url":"data:,b"}}],
           "fps":5},
          {"type":"text","text":"x"},
          {"type":"video_url","video_url":"data:,c"}]}]})");
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_EQ(r->messages,
            R"([{"role":"user","content":[{"type":"video"},{"type":"image"},{"type":"video"},)"
            R"({"type":"text","text":"x"},{"type":"video"}]}])");
  EXPECT_EQ(r->images.size(), 1u);
  ASSERT_EQ(r->videos.size(), 3u);
  EXPECT_EQ(r->videos[0].field, "messages[0].content[0]");
  EXPECT_EQ(r->videos[0].frames, std::vector<std::string>{"data:video/jpeg;base64,A,B"});
  EXPECT_EQ(r->videos[0].fps, 0);
  EXPECT_EQ(r->video_fps, 3);
  EXPECT_EQ(r->videos[1].frames, (std::vector<std::string>{"data:,a", "data:,b"}));
  EXPECT_EQ(r->videos[1].fps, 5);
  EXPECT_EQ(r->videos[2].frames, std::vector<std::string>{"data:,c"});
  const char* video = R"("messages":[{"role":"user","content":[{"type":"video","video":"x"}]}])";
  const auto fps = [&](const std::string& members) {
    return parse_chat_request("{" + members + "," + video + "}");
  };
  EXPECT_EQ(fps(R"("mm_processor_kwargs":{"fps":1.5,"do_sample_frames":false})")->video_fps, 1.5);
  EXPECT_EQ(refused(fps(R"("mm_processor_kwargs":{"do_sample_frames":true})")),
            "mm_processor_kwargs");
  EXPECT_EQ(refused(fps(R"("mm_processor_kwargs":{"max_frames":1})")), "mm_processor_kwargs");
  EXPECT_EQ(refused(fps(R"("media_io_kwargs":{"video":{"fps":-1}})")), "media_io_kwargs.video.fps");
}

TEST(RequestVideos, PixelBoundsStandBesideTheImageOrTheRequest) {
  const auto parse = [](const std::string& part, const std::string& kwargs) {
    return parse_chat_request(R"({"messages":[{"role":"user","content":[)" + part +
                              R"(]}],"mm_processor_kwargs":)" + kwargs + "}");
  };
  const auto r = parse(R"({"type":"image_url","image_url":{"url":"a","max_pixels":9}},
                          {"type":"image","image":"b","min_pixels":4,"max_pixels":8},
                          {"type":"image","image":"c","max_pixels":null})",
                       R"({"min_pixels":100,"max_pixels":20000.0})");
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_EQ(r->images[0].bounds, (PixelBounds{0, 9}));
  EXPECT_EQ(r->images[1].bounds, (PixelBounds{4, 8}));
  EXPECT_EQ(r->images[2].bounds, PixelBounds());
  EXPECT_EQ(r->image_bounds, (PixelBounds{100, 20000}));
  const std::string image = R"({"type":"image","image":"a"})";
  EXPECT_EQ(parse(image, R"({"size":{"shortest_edge":5,"longest_edge":6}})")->image_bounds,
            (PixelBounds{5, 6}));
  EXPECT_EQ(refused(parse(image, R"({"max_pixels":0})")), "mm_processor_kwargs.max_pixels");
  EXPECT_EQ(refused(parse(image, R"({"size":[1]})")), "mm_processor_kwargs.size");
  EXPECT_EQ(refused(parse(image, R"({"size":{"height":1}})")), "mm_processor_kwargs.size");
  EXPECT_EQ(refused(parse(R"({"type":"image","image":"a","min_pixels":"x"})", "{}")),
            "messages[0].content[0].min_pixels");
}

TEST(RequestVideos, ErrorsNameTheField) {
  const std::pair<const char*, const char*> cases[] = {
      {R"([{"role":"user","content":[{"type":"video"}]}])", "messages[0].content[0].video_url"},
      {R"([{"role":"user","content":[{"type":"video","video":[]}]}])",
       "messages[0].content[0].video"},
      {R"([{"role":"user","content":[{"type":"video","video":["data:,a",7]}]}])",
       "messages[0].content[0].video[1]"},
      {R"([{"role":"user","content":[{"type":"video","video":"data:,a","fps":0}]}])",
       "messages[0].content[0].fps"},
      {R"([{"role":"user","content":[{"type":"video_url","video_url":{"url":"x","fps":"2"}}]}])",
       "messages[0].content[0].video_url.fps"},
  };
  for (const auto& [messages, field] : cases) {
    EXPECT_EQ(refused(parse_chat_request(std::string("{\"messages\":") + messages + "}")), field)
        << messages;
  }
}

}  // namespace
}  // namespace weft
