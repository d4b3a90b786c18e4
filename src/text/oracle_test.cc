// Every line of the reference data: ids, both decodings, and the stream against decode().
#include "tests/support/oracle.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace weft {
namespace {

using Json = nlohmann::json;

class OracleTest : public ::testing::TestWithParam<const char*> {
 protected:
  OracleTest()
      : dir_(oracle_dir() + "/text/" + GetParam()),
        tokenizer_(
            std::move(Tokenizer::from_json(file_text(dir_ + "/tokenizer.json"), "")).value()) {
    std::ifstream file(dir_ + "/golden.jsonl");
    for (std::string line; std::getline(file, line);) golden_.push_back(Json::parse(line));
  }
  const std::string dir_;
  const Tokenizer tokenizer_;
  std::vector<Json> golden_;
};

TEST_P(OracleTest, IdsAndTextsEqual) {
  ASSERT_EQ(golden_.size(), 299u);
  for (const Json& line : golden_) {
    const std::string text = line["text"];
    const auto ids = tokenizer_.encode(text, true).value();
    EXPECT_EQ(ids, line["ids"].get<std::vector<int32_t>>()) << text;
    const auto bare = tokenizer_.encode(text, false).value();
    EXPECT_EQ(bare, line["ids_no_special"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(tokenizer_.decode(bare, false), line["decoded"].get<std::string>()) << text;
    EXPECT_EQ(tokenizer_.decode(bare, true), line["decoded_skip_special"].get<std::string>());
    EXPECT_EQ(tokenizer_.decode(ids, true), line["decoded_skip_special"].get<std::string>());
  }
}

/// The stream cut anywhere: what was given out is a prefix of the whole, valid UTF-8, at each step.
void check_stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  const std::string whole = tokenizer.decode(ids, skip);
  ASSERT_TRUE(text::is_valid_utf8(whole));
  Detokenizer stream(tokenizer, skip);
  std::string out;
  for (size_t i = 0; i < ids.size(); ++i) {
    const size_t before = out.size();
    stream.push(ids[i], out);
    ASSERT_TRUE(text::is_valid_utf8(std::string_view(out).substr(before)));
    ASSERT_EQ(whole.compare(0, out.size(), out), 0);
    if (ids.size() > 64) continue;
    // Ended here, it must say what decode() says of the ids so far.
    Detokenizer ended = stream;
    std::string cut = out;
    ended.finish(cut);
    const std::vector<int32_t> some(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(i) + 1);
    ASSERT_EQ(cut, tokenizer.decode(some, skip));
  }
  stream.finish(out);
  ASSERT_EQ(out, whole);
}

TEST_P(OracleTest, StreamEqualsDecode) {
  for (const Json& line : golden_) {
    const auto ids = line["ids"].get<std::vector<int32_t>>();
    check_stream(tokenizer_, ids, false);
    check_stream(tokenizer_, ids, true);
  }
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids(1 + random() % 40);
    // Mostly the byte tokens, where characters come in parts; some ids that don't exist.
    for (auto& id : ids) {
      id = static_cast<int32_t>(random() % (random() % 3 ? 260 : tokenizer_.vocab_size() + 5));
    }
    check_stream(tokenizer_, ids, round % 2);
  }
}

/// Splitting a text into trusted segments changes nothing; distrusting it leaves no added token.
TEST_P(OracleTest, Segments) {
  std::mt19937 random(11);
  for (const Json& line : golden_) {
    const std::string text = line["text"];
    const size_t a = random() % (text.size() + 1), b = a + random() % (text.size() - a + 1);
    const std::string_view view = text;
    if (!text::is_valid_utf8(view.substr(0, a)) || !text::is_valid_utf8(view.substr(a, b - a)))
      continue;
    const TextSegment trusted[] = {
        {view.substr(0, a), true}, {view.substr(a, b - a), true}, {view.substr(b), true}};
    EXPECT_EQ(tokenizer_.encode_segments(trusted, true).value(),
              line["ids"].get<std::vector<int32_t>>());
    const TextSegment user{view, false};
    const std::vector<int32_t> ids = tokenizer_.encode_segments({&user, 1}, false).value();
    for (const int32_t id : ids) {
      // (the byte tokens of this SentencePiece vocabulary are also added tokens)
      EXPECT_TRUE(!tokenizer_.is_added(id) || tokenizer_.is_byte_token(id)) << text;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Text, OracleTest,
                         ::testing::Values("qwen2", "qwen3_5", "llama3", "sentencepiece_bpe"));

}  // namespace
}  // namespace weft
