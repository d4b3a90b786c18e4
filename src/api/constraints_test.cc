#include "api/constraints.h"

#include <gtest/gtest.h>

#include "tests/support/demo_model.h"

namespace weft {
namespace {

/// Whether the text, token by token of the demo model, is an answer.
bool fits(const Tokenizer& tokenizer, const OutputConstraint& constraint, const std::string& text) {
  GrammarMatcher matcher(constraint);
  for (const int32_t token : tokenizer.encode(text, /*add_special_tokens=*/false).value()) {
    if (!matcher.accept(token)) return false;
  }
  return matcher.may_end();
}

TEST(ConstraintFactory, EveryKindBindsBehindTheThoughtAndABlankLine) {
  const Tokenizer tokenizer = Tokenizer::load(kDemoModel).value();
  ConstraintFactory factory(tokenizer, tokenizer.vocab_size(), {});
  using Kind = OutputFormat::Kind;
  const std::pair<OutputFormat, std::string> cases[] = {
      {{.kind = Kind::kJsonObject}, R"({"a": 1})"},
      {{.kind = Kind::kJsonSchema, .text = R"({"type":"integer"})"}, "17"},
      {{.kind = Kind::kRegex, .text = "[a-c]+"}, "abc"},
      {{.kind = Kind::kChoice, .choices = {"yes", "no"}}, "yes"},
      {{.kind = Kind::kGrammar, .text = "root ::= \"x\" | \"y\""}, "y"}};
  for (const auto& [format, answer] : cases) {
    SCOPED_TRACE(answer);
    GenerationRequest request;
    request.format = format;
    const auto at_once = factory.make(request, Thinking::kNone).value();
    EXPECT_TRUE(fits(tokenizer, *at_once, answer));
    EXPECT_FALSE(fits(tokenizer, *at_once, "\n\n" + answer));
    const auto behind = factory.make(request, Thinking::kOpen).value();
    EXPECT_TRUE(fits(tokenizer, *behind, "some thought</think>" + answer));
    EXPECT_TRUE(fits(tokenizer, *behind, "some thought</think>\n\n" + answer));
    EXPECT_FALSE(fits(tokenizer, *behind, "some thought</think>\n\nno: " + answer));
  }
}

TEST(ConstraintFactory, BadWordsAreNotWritten) {
  const Tokenizer tokenizer = Tokenizer::load(kDemoModel).value();
  ConstraintFactory factory(tokenizer, tokenizer.vocab_size(), {});
  GenerationRequest request;
  request.bad_words = {" restaurants", "the"};
  const auto allowed = [&](const OutputConstraint& constraint, const std::string& text) {
    GrammarMatcher matcher(constraint);
    for (const int32_t id : tokenizer.encode(text, /*add_special_tokens=*/false).value()) {
      const auto mask = matcher.mask();
      if (((mask[static_cast<size_t>(id) / 32] >> (id % 32)) & 1) == 0) return false;
      EXPECT_TRUE(matcher.accept(id));
    }
    return matcher.may_end();
  };
  const auto free = factory.make(request, Thinking::kOpen).value();
  EXPECT_TRUE(allowed(*free, "A restaurant, a house.</think>\n\nYes"));
  EXPECT_FALSE(allowed(*free, "restaurants"));
  EXPECT_FALSE(allowed(*free, "Some restaurants"));
  EXPECT_FALSE(allowed(*free, "in the house"));
  request.format = {.kind = OutputFormat::Kind::kRegex, .text = "in (the|a) house"};
  const auto bound = factory.make(request, Thinking::kNone).value();
  EXPECT_TRUE(allowed(*bound, "in a house"));
  EXPECT_FALSE(allowed(*bound, "in the house"));
  for (const std::string& bad : {std::string(), std::string("  "), std::string(257, 'x')}) {
    request.bad_words = {bad};
    EXPECT_TRUE(factory.make(request, Thinking::kNone).error().message.starts_with("bad_words:"));
  }
}

}  // namespace
}  // namespace weft
