#include "api/answer.h"

#include <gtest/gtest.h>

#include <thread>

namespace weft {
namespace {

Tokenizer demo_tokenizer() {
  return Tokenizer::load(std::string(WEFT_SOURCE_DIR) + "/models/demo").value();
}

/// Plays the engine: gives the tokens of `text` until the sink has enough, then the end.
size_t play(const Tokenizer& tokenizer, const std::string& text, AnswerStream& stream) {
  size_t given = 0;
  bool go_on = true;
  const std::vector<int32_t> ids = tokenizer.encode(text, false).value();
  for (int32_t id : ids) {
    ++given;
    go_on = stream.on_token(id, nullptr);
    if (!go_on) break;
  }
  stream.on_finish(FinishReason::kStop,
                   {.prompt_tokens = 3, .generated_tokens = static_cast<int64_t>(given)}, nullptr);
  return given;
}

TEST(AnswerStream, StopTokenGivesNoText) {
  const Tokenizer tokenizer = demo_tokenizer();
  AnswerStream stream(&tokenizer, {.stop_ids = {4084}, .skip_special = false});
  play(tokenizer, "hello<|im_end|>", stream);
  EXPECT_EQ(stream.wait().text, "hello");
  EXPECT_EQ(stream.wait().tokens.back(), 4084);
}

TEST(AnswerStream, StopStringEndsTheRequestAndIsCut) {
  const Tokenizer tokenizer = demo_tokenizer();
  const std::string text = "one two three four five six";
  AnswerStream stream(&tokenizer, {.stops = StopStrings::make({"e fou"}, false).value()});
  const size_t given = play(tokenizer, text, stream);
  EXPECT_LT(given, tokenizer.encode(text, false).value().size());
  EXPECT_EQ(stream.wait().text, "one two thre");
  AnswerStream other(&tokenizer, {.stops = StopStrings::make({"zzz", "six seven"}, false).value()});
  play(tokenizer, text, other);
  EXPECT_EQ(other.wait().text, text);  // what was held back comes at the end
}

TEST(AnswerStream, AReaderSeesEveryByteOnce) {
  const Tokenizer tokenizer = demo_tokenizer();
  const std::string text = "Grüße aus 東京 and a long tail of plain words \xF0\x9F\x99\x82 end";
  AnswerStream stream(&tokenizer, {});
  std::thread engine([&] { play(tokenizer, text, stream); });
  std::string all, piece;
  while (stream.next_text(piece, std::chrono::milliseconds(1))) all += piece;
  engine.join();
  EXPECT_EQ(all, text);
}

TEST(AnswerStream, KeepsTheError) {
  AnswerStream stream(nullptr, {});
  const Error error = unavailable("gone");
  stream.on_finish(FinishReason::kError, {}, &error);
  EXPECT_EQ(stream.wait().error->message, "gone");
  std::string piece;
  EXPECT_FALSE(stream.next_text(piece, std::chrono::milliseconds(0)));
}

}  // namespace
}  // namespace weft
