#include "api/frontend.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/temp_dir.h"
#include "tests/support/demo_model.h"

namespace weft {
namespace {

/// The demo model's tokenizer behind a template of the test's.
class FrontendTest : public testing::Test {
 protected:
  Frontend make(const std::string& source, FrontendConfig config = {}) {
    const TempDir directory;
    std::ofstream(directory.file("template")) << source;
    ChatFrontend chat = ChatFrontend::load(kDemoModel, directory.file("template")).value();
    config.limits = {.vocab_size = chat.tokenizer().vocab_size(), .max_model_len = 64};
    return Frontend(std::move(chat), std::move(config));
  }

  static GenerationRequest chat(const std::string& content) {
    GenerationRequest request;
    request.is_chat = true;
    request.messages = R"([{"role":"user","content":")" + content + "\"}]";
    return request;
  }
  static std::string prompt(const Frontend& frontend, const GenerationRequest& request) {
    const Result<PreparedRequest> prepared = frontend.prepare(request, 1);
    return prepared ? prepared->prompt_texts[0] : prepared.error().message;
  }
};

TEST_F(FrontendTest, TheTemplateSeesWhatTheRequestGives) {
  const Frontend frontend = make(
      "{{ messages[0].content }}|{{ documents[0].text if documents else 'none' }}|"
      "{{ tools | length if tools else 0 }}|{{ mood }}|{{ add_generation_prompt }}",
      {.template_kwargs = {{"mood", "\"calm\""}}});
  GenerationRequest request = chat("hi");
  EXPECT_EQ(prompt(frontend, request), "hi|none|0|calm|True");
  request.documents = R"([{"text":"a fact"}])";
  request.tools = R"([{"type":"function","function":{"name":"f"}}])";
  request.template_kwargs = {{"mood", "\"wild\""}};
  EXPECT_EQ(prompt(frontend, request), "hi|a fact|1|wild|True");
  request.tool_choice = ToolChoice::kNone;
  EXPECT_EQ(prompt(frontend, request), "hi|a fact|0|wild|True");
}

TEST_F(FrontendTest, DocumentsAreTheUsersText) {
  const Frontend frontend = make("<|im_start|>{{ documents[0].text }}<|im_end|>");
  GenerationRequest request = chat("x");
  request.documents = R"([{"text":"<|im_end|>"}])";
  const auto ids = frontend.tokenize(request);
  ASSERT_TRUE(ids.ok()) << ids.error().message;
  const int32_t end = *frontend.tokenizer().token_to_id("<|im_end|>");
  EXPECT_EQ(std::count(ids->begin(), ids->end(), end), 1);
  EXPECT_EQ(ids->back(), end);
}

TEST_F(FrontendTest, TheTokenizersEndOfSequenceEndsAnAnswer) {
  const Frontend frontend = make("x", {.defaults = {.eos_ids = {7}}});
  const int32_t eos = *frontend.tokenizer().eos_id();
  const Result<PreparedRequest> prepared = frontend.prepare(chat("hi"), 0);
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  EXPECT_EQ(prepared->sequences[0].sampling.stop_ids, (std::vector<int32_t>{7, eos}));
  const Frontend knows = make("x", {.defaults = {.eos_ids = {eos, 7}}});
  EXPECT_EQ(knows.prepare(chat("hi"), 0)->sequences[0].sampling.stop_ids,
            (std::vector<int32_t>{eos, 7}));
}

TEST_F(FrontendTest, AModelWithoutEyesSaysSo) {
  const Frontend frontend = make("x");
  GenerationRequest request = chat("hi");
  request.images = {{"messages[0].content[0]", "data:image/png;base64,AAAA"}};
  EXPECT_EQ(frontend.prepare(request, 0).error().message,
            "messages[0].content[0]: images are not supported by this model");
}

/// A picture of 8 x 8 pixels.
constexpr char kPicture[] =
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mPkEpFjwAaYGHCA"
    "wSkBADVcAEypK0uGAAAAAElFTkSuQmCC";

TEST_F(FrontendTest, ImagesHaveTheBoundsOfTheirRequestUnlessTheySayTheirs) {
  ImageInputConfig images;
  images.processing.patch_size = 16;
  images.processing.min_pixels = 32 * 32;
  images.processing.max_pixels = 128 * 128;
  images.image_token = 4088;
  images.max_image_tokens = 100;
  const FrontendConfig config{.images = std::make_shared<const ImageReader>(images)};
  const Frontend frontend = make("<|image_pad|><|image_pad|>", config);
  GenerationRequest request = chat("");
  request.messages = R"([{"role":"user","content":[{"type":"image"},{"type":"image"}]}])";
  request.images = {{"a", kPicture}, {"b", kPicture, {.max = 32 * 32}}};
  EXPECT_EQ(frontend.tokenize(request).value().size(), 1u + 1u);
  request.image_bounds = {.min = 128 * 128};
  EXPECT_EQ(frontend.tokenize(request).value().size(), 16u + 1u);
}

TEST_F(FrontendTest, AVideoIsGroupsOfFramesWithTheirTimes) {
  ImageInputConfig images;
  images.processing.patch_size = 16;
  images.image_token = 4088;
  images.max_image_tokens = 100;
  images.video = VideoInputConfig{.video_token = 4089, .start_token = 4085, .end_token = 4086};
  images.video->processing =
      parse_video_processing(R"({"size": {"shortest_edge": 4096, "longest_edge": 50176}})", true)
          .value();
  const FrontendConfig config{.images = std::make_shared<const ImageReader>(images)};
  const Frontend frontend = make(
      "Look:{% for p in messages[0].content %}{% if p.type == 'video' %}"
      "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}!",
      config);
  GenerationRequest request = chat("");
  request.messages = R"([{"role":"user","content":[{"type":"text","text":"<|video_pad|>?"},)"
                     R"({"type":"video"}]}])";
  request.videos = {
      {.field = "messages[0].content[1]", .frames = std::vector<std::string>(3, kPicture)}};
  const auto ids = frontend.tokenize(request);
  ASSERT_TRUE(ids.ok()) << ids.error().message;
  // 2 groups at 2 frames a second, frames of 32 x 32 pixels: 1 token each. As one text, with the
  // token that the user wrote taken apart.
  const TextSegment expected[] = {{"Look:", true},
                                  {"<|video_pad|>?", false},
                                  {"<0.2 seconds><|vision_start|><|video_pad|><|vision_end|>"
                                   "<1.0 seconds><|vision_start|><|video_pad|><|vision_end|>!",
                                   true}};
  EXPECT_EQ(*ids, frontend.tokenizer().encode_segments(expected, false).value());
  const auto prepared = frontend.prepare(request, 1);
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  const Request& sequence = prepared->sequences[0];
  ASSERT_EQ(sequence.images.size(), 2u);
  EXPECT_EQ(sequence.positions.size(), sequence.prompt.size());
  EXPECT_EQ(sequence.prompt[static_cast<size_t>(sequence.images[1].first)], 4089);
  request.messages = R"([{"role":"user","content":[{"type":"text","text":"x"}]}])";
  EXPECT_NE(frontend.tokenize(request).error().message.find("shows 0 of 1 videos"),
            std::string::npos);
  EXPECT_EQ(make("x").prepare(request, 0).error().message,
            "messages[0].content[1]: videos are not supported by this model");
}

TEST_F(FrontendTest, ChoicesDifferBySeedAlone) {
  const Frontend frontend = make("{{ messages[0].content }}");
  GenerationRequest request = chat("hi");
  request.n = 3;
  request.sampling.seed = UINT64_MAX;
  const Result<PreparedRequest> prepared = frontend.prepare(request, 1);
  ASSERT_TRUE(prepared.ok());
  ASSERT_EQ(prepared->sequences.size(), 3u);
  EXPECT_EQ(prepared->sequences[0].sampling.seed, UINT64_MAX);
  EXPECT_EQ(prepared->sequences[1].sampling.seed, 0u);
  EXPECT_EQ(prepared->sequences[2].sampling.seed, 1u);
  EXPECT_EQ(prepared->sequences[2].prompt, prepared->prompts[0]);
}

TEST_F(FrontendTest, TruncationKeepsTheEnd) {
  const Frontend frontend = make("");
  GenerationRequest request;
  std::vector<int64_t> ids;
  for (int64_t i = 1; i <= 100; ++i) ids.push_back(i);
  request.prompts.emplace_back(ids);
  EXPECT_FALSE(frontend.prepare(request, 1).ok());
  request.truncate_prompt_tokens = 3;
  EXPECT_EQ(frontend.prepare(request, 1)->prompts[0], (std::vector<int32_t>{98, 99, 100}));
  request.truncate_prompt_tokens = -1;
  request.sampling.max_tokens = 60;
  EXPECT_EQ(frontend.prepare(request, 1)->prompts[0], (std::vector<int32_t>{97, 98, 99, 100}));
  for (const int64_t bad :
       {int64_t{64}, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}) {
    request.sampling.max_tokens = bad;
    EXPECT_TRUE(frontend.prepare(request, 1).error().message.starts_with("max_tokens")) << bad;
  }
  request.truncate_prompt_tokens = 65;
  EXPECT_FALSE(frontend.prepare(request, 1).ok());
}

}  // namespace
}  // namespace weft
