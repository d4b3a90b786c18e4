#include "grammar/grammar.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "grammar/banned.h"
#include "grammar/json_schema.h"
#include "grammar/tool_grammar.h"
#include "grammar/trie.h"
#include "tests/support/sanitized.h"

namespace weft {
namespace {

/// All single bytes, then some longer tokens; the last id stands for nothing.
std::shared_ptr<const GrammarVocab> vocab_of(const std::vector<std::string>& longer) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  tokens.insert(tokens.end(), longer.begin(), longer.end());
  tokens.emplace_back();
  return GrammarVocab::build(static_cast<int32_t>(tokens.size()), [&](int32_t id) {
    return std::string_view(tokens[static_cast<size_t>(id)]);
  });
}

const std::vector<std::string> kLonger = {"\": ", "\", \"", "{\"", "\"}", "true",   "null",
                                          "12",   "ab",     "a\"", "aa",  "</",     "tool_call",
                                          "}]",   "\\n",    "é",   ", ",  "b\",",   "0.",
                                          "[[",   "\n  ",   "ba",  "}}",  "\": \"", "abab"};

GrammarMatcher matcher_of(const std::shared_ptr<const Grammar>& grammar,
                          const std::shared_ptr<const GrammarVocab>& vocab) {
  return GrammarMatcher({.grammar = TokenGrammar::make(grammar, vocab)});
}

bool has(std::span<const uint32_t> mask, int32_t id) {
  return ((mask[static_cast<size_t>(id) / 32] >> (id % 32)) & 1) != 0;
}

bool matches(const std::shared_ptr<const Grammar>& grammar, const std::string& text) {
  GrammarMatcher matcher = matcher_of(grammar, vocab_of({}));
  for (const char byte : text) {
    if (!matcher.accept(static_cast<unsigned char>(byte))) return false;
  }
  return matcher.may_end();
}

std::shared_ptr<const Grammar> regex(const std::string& text) {
  return grammar_from_regex(text, "regex").value();
}

TEST(Regex, WholeTextsMatch) {
  EXPECT_TRUE(matches(regex("ab*c"), "abbbc"));
  EXPECT_FALSE(matches(regex("ab*c"), "abbb"));
  EXPECT_TRUE(matches(regex("^(a|bc){2,3}$"), "abca"));
  EXPECT_FALSE(matches(regex("(a|bc){2,3}"), "a"));
  EXPECT_TRUE(matches(regex("[^a-c]\\d\\w\\s\\.é+"), "x5_ .éé"));
  EXPECT_FALSE(matches(regex("[^a-c]"), "b"));
  EXPECT_TRUE(matches(regex("\\u00e9\\x41"), "éA"));
  EXPECT_TRUE(matches(regex("(?:x|(?<n>y))?z"), "yz"));
  EXPECT_FALSE(matches(regex("."), "\n"));
  EXPECT_TRUE(matches(regex("[\\d-]+"), "1-2"));
}

TEST(Regex, RefusesByName) {
  for (const char* bad : {"(?=a)", "(?<!a)b", "(a)\\1", "\\bword", "a++", "(", "a)", "[a", "*a",
                          "\\", "a{3,2}", "a$b", "[z-a]", "(?i)a", "\\p{L}"}) {
    const auto grammar = grammar_from_regex(bad, "structured_outputs.regex");
    ASSERT_FALSE(grammar.ok()) << bad;
    EXPECT_TRUE(grammar.error().message.starts_with("structured_outputs.regex: ")) << bad;
  }
}

TEST(Regex, HostileOnesAreBounded) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(grammar_from_regex("(a{1000}){1000}", "regex").ok());
  EXPECT_FALSE(grammar_from_regex("((a{1,900}){1,900}){1,900}", "regex").ok());
  EXPECT_FALSE(grammar_from_regex(std::string(5000, '('), "regex").ok());
  const auto slow = grammar_from_regex("(a|a)*b", "regex");
  ASSERT_TRUE(slow.ok());
  EXPECT_TRUE(matches(*slow, std::string(2000, 'a') + "b"));
  const auto blowup = grammar_from_regex("(a|b)*a(a|b){14}", "regex");
  if (blowup.ok()) {
    EXPECT_TRUE(matches(*blowup, "ba" + std::string(14, 'b')));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(Ebnf, Gbnf) {
  const auto grammar = grammar_from_ebnf(
      "# sums\nroot ::= term (\"+\" term)*\nterm ::= [0-9]+ |\n  \"(\" root \")\"\n", "grammar");
  ASSERT_TRUE(grammar.ok()) << grammar.error().message;
  EXPECT_TRUE(matches(*grammar, "1+(22+3)+4"));
  EXPECT_FALSE(matches(*grammar, "1+(2"));
  for (const char* bad : {"x ::= \"a\"", "root ::= missing", "root ::= \"a", "root \"a\"",
                          "root ::= root \"a\"", "root ::= (\"a\"", "root ::= [a"}) {
    EXPECT_FALSE(grammar_from_ebnf(bad, "grammar").ok()) << bad;
  }
}

TEST(Choices, OneOfThem) {
  const auto grammar = grammar_from_choices({"yes", "no", "yesterday"}, "choice").value();
  EXPECT_TRUE(matches(grammar, "yes"));
  EXPECT_TRUE(matches(grammar, "yesterday"));
  EXPECT_FALSE(matches(grammar, "yeste"));
  EXPECT_FALSE(grammar_from_choices({}, "choice").ok());
}

std::shared_ptr<const Grammar> schema(const std::string& text) {
  const auto grammar = grammar_from_json_schema(text, "schema");
  EXPECT_TRUE(grammar.ok()) << grammar.error().message;
  return *grammar;
}

TEST(JsonSchema, Shapes) {
  const auto person = schema(R"({"type":"object","properties":{"name":{"type":"string"},
      "age":{"type":"integer","minimum":0,"maximum":150}},"required":["name","age"],
      "additionalProperties":false})");
  EXPECT_TRUE(matches(person, R"({"name": "Ann", "age": 30})"));
  EXPECT_TRUE(matches(person, R"({"name":"Ann\n","age":0})"));
  EXPECT_FALSE(matches(person, R"({"name": "Ann", "age": 151})"));
  EXPECT_FALSE(matches(person, R"({"name": "Ann"})"));
  EXPECT_FALSE(matches(person, R"({"name": "Ann", "age": 3, "x": 1})"));
  const auto tree = schema(R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{
      "v":{"type":"number"},"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},
      "required":["v","next"],"additionalProperties":false}}})");
  EXPECT_TRUE(matches(tree, R"({"v": 1.5, "next": {"v": -2, "next": null}})"));
  EXPECT_FALSE(matches(tree, R"({"v": 1.5, "next": {"v": -2}})"));
  const auto any = grammar_from_json_object().value();
  EXPECT_TRUE(matches(any, R"({"a": [1, {"b": null}], "c": "d"})"));
  EXPECT_FALSE(matches(any, "[1]"));
}

/// Any selection of many optional members in their order, and nothing else.
TEST(JsonSchema, ManyOptionalMembers) {
  for (const int n : {16, 17, 40, kSanitized ? 100 : 1000}) {
    for (const char* more :
         {"", R"(,"required":["m7"])", R"(,"additionalProperties":{"type":"null"})",
          R"(,"required":["m0"],"additionalProperties":{"type":"null"})"}) {
      std::string text = R"({"type":"object","properties":{)";
      for (int i = 0; i < n; ++i) {
        text += (i > 0 ? ",\"m" : "\"m") + std::to_string(i) + R"(":{"type":"integer"})";
      }
      const std::string which = more;
      const bool first = which.find("m0") != std::string::npos;
      const bool seventh = which.find("m7") != std::string::npos;
      const bool open = which.find("additional") != std::string::npos;
      const auto grammar = schema(text + "}" + more + "}");
      const auto object = [&](std::vector<int> members, const std::string& behind = "") {
        if (first) members.insert(members.begin(), 0);
        if (seventh) members.push_back(7);
        std::sort(members.begin(), members.end());
        std::string out = "{";
        for (const int m : members) {
          out += (out.size() > 1 ? ", \"m" : "\"m") + std::to_string(m) + "\": 1";
        }
        return out + behind + "}";
      };
      SCOPED_TRACE(std::to_string(n) + more);
      EXPECT_TRUE(matches(grammar, object({})));
      for (int i = 1; i < n; ++i) {
        if (seventh && i == 7) continue;
        EXPECT_TRUE(matches(grammar, object({i}))) << i;
      }
      EXPECT_TRUE(matches(grammar, object({1, 2, n / 2, n - 2, n - 1})));
      EXPECT_TRUE(matches(grammar, object({n - 1}, R"(, "z": null)")) == open);
      EXPECT_FALSE(matches(grammar, object({3, 3})));
      EXPECT_FALSE(matches(grammar, object({3}, ", \"m2\": 1")));
      EXPECT_FALSE(matches(grammar, object({n})));
      EXPECT_FALSE(matches(grammar, object({3}, ",")));
    }
  }
}

TEST(JsonSchema, RefusesByName) {
  for (const char* bad :
       {R"({"not":{}})", R"({"type":"array","uniqueItems":true,"items":{"type":"string"}})",
        R"({"type":"strin"})", R"({"$ref":"http://x"})", R"x({"type":"string","pattern":"(?=a)"})x",
        R"({"type":"number","multipleOf":0.1})", R"({"if":{}})", "[", "3"}) {
    const auto grammar = grammar_from_json_schema(bad, "schema");
    ASSERT_FALSE(grammar.ok()) << bad;
    EXPECT_TRUE(grammar.error().message.starts_with("schema")) << grammar.error().message;
  }
}

TEST(JsonSchema, HostileOnesAreBounded) {
  const auto begin = std::chrono::steady_clock::now();
  std::string deep, cycle = R"({"$ref":"#"})", many = R"({"enum":[0)";
  for (int i = 0; i < 100000; ++i) deep += R"({"items":)";
  for (int i = 1; i < 9000; ++i) many += "," + std::to_string(i);
  EXPECT_FALSE(grammar_from_json_schema(deep, "schema").ok());
  EXPECT_FALSE(grammar_from_json_schema(cycle, "schema").ok());
  (void)grammar_from_json_schema(many + "]}", "schema");
  EXPECT_FALSE(
      grammar_from_json_schema(R"({"type":"array","items":{},"minItems":1000000000})", "schema")
          .ok());
  (void)grammar_from_json_schema(R"({"type":"string","maxLength":1000000000,"pattern":"^a+$"})",
                                 "schema");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
}

/// The tokens that the mask allows are those whose bytes lead on: asked one by one of a matcher
/// over single bytes.
TEST(GrammarMatcher, MasksAreExact) {
  const auto vocab = vocab_of(kLonger);
  const std::vector<std::shared_ptr<const Grammar>> grammars = {
      regex("(ab|a\"|[b-d]+\\.)*x"), regex("(a|ab|b)*"), grammar_from_json_object().value(),
      schema(
          R"({"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"type":"number"}},
              "c":{"enum":["ab","aa",null,12]}},"required":["a"]})"),
      grammar_from_ebnf("root ::= \"[\" root \"]\" root | \"a\" | \"\"\n", "grammar").value(),
      // Very many stacks at once: they share what they have in common.
      grammar_from_ebnf("root ::= item root? [a-b]? item? | item\n"
                        "item ::= [a\"] item? \"b\"? | [b-c}]",
                        "grammar")
          .value()};
  std::mt19937_64 random(20261121);
  size_t compared = 0;
  for (const auto& grammar : grammars) {
    const auto tokens = TokenGrammar::make(grammar, vocab);
    for (int round = 0; round < (kSanitized ? 2 : 12); ++round) {
      GrammarMatcher matcher({.grammar = tokens});
      std::string text;
      for (int step = 0; step < 24; ++step) {
        const std::span<const uint32_t> mask = matcher.mask();
        std::vector<int32_t> allowed;
        for (int32_t id = 0; id < vocab->size(); ++id) {
          GrammarMatcher probe({.grammar = tokens});
          bool fits = true;
          if (step % 6 == 0) {  // the slow way: all of the text byte by byte, then the token
            for (const char byte : text) fits &= probe.accept(static_cast<unsigned char>(byte));
            ASSERT_TRUE(fits);
            const std::string bytes = id < 256 ? std::string(1, static_cast<char>(id))
                                      : id < 256 + static_cast<int32_t>(kLonger.size())
                                          ? kLonger[static_cast<size_t>(id - 256)]
                                          : "";
            fits = !bytes.empty();
            for (const char byte : bytes)
              fits = fits && probe.accept(static_cast<unsigned char>(byte));
            ASSERT_EQ(has(mask, id), fits) << text << " + " << bytes;
            ++compared;
          }
          if (has(mask, id)) allowed.push_back(id);
        }
        if (allowed.empty()) {
          EXPECT_TRUE(matcher.may_end());
          break;
        }
        const int32_t id = allowed[random() % allowed.size()];
        text += id < 256 ? std::string(1, static_cast<char>(id))
                         : kLonger[static_cast<size_t>(id - 256)];
        ASSERT_TRUE(matcher.accept(id));
      }
    }
  }
  EXPECT_GT(compared, kSanitized ? 1000U : 10000U);
}

/// Many stacks at once over many tokens: a step has to stay short for everybody else.
TEST(GrammarMatcher, AmbiguousStacksAreBounded) {
  std::vector<std::string> longer;
  for (int i = 0; i < 1 << 15; ++i) {
    std::string& token = longer.emplace_back();
    for (int shift = 0; shift < 15; shift += 3) token += "thesrauo"[(i >> shift) % 8];
  }
  const auto grammar = grammar_from_ebnf(
      "root ::= item root? [a-z]? item? | item\nitem ::= \"t\" item? \"h\"? | [a-z ]", "grammar");
  GrammarMatcher matcher = matcher_of(grammar.value(), vocab_of(longer));
  const auto begin = std::chrono::steady_clock::now();
  for (const char byte : std::string("the restaurant the restaurant")) {
    ASSERT_TRUE(has(matcher.mask(), byte));
    ASSERT_TRUE(has(matcher.mask(), 256 + 4681));
    ASSERT_TRUE(matcher.accept(byte));
    ASSERT_TRUE(matcher.may_end());
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

/// Takes what `choose` prefers of the mask till nothing may come; the most brackets open at once.
int deepest_text(const std::shared_ptr<const Grammar>& grammar, const std::string& wanted,
                 const std::shared_ptr<const GrammarVocab>& vocab) {
  GrammarMatcher matcher = matcher_of(grammar, vocab);
  int open = 0, deepest = 0;
  for (int step = 0; step < 20'000; ++step) {
    const std::span<const uint32_t> mask = matcher.mask();
    int32_t next = -1;
    for (const char byte : wanted) {
      if (next < 0 && has(mask, static_cast<unsigned char>(byte))) {
        next = static_cast<unsigned char>(byte);
      }
    }
    if (next < 0) {
      EXPECT_TRUE(matcher.may_end()) << "nothing fits after " << step;
      return deepest;
    }
    if (has(mask, 256)) next = 256;  // two brackets at once
    EXPECT_TRUE(matcher.accept(next)) << step;
    open += next == 256 ? 2 : next == '[' || next == '{' ? 1 : next == ']' || next == '}' ? -1 : 0;
    deepest = std::max(deepest, open);
    if (step % 50 == 0 && matcher.num_accepted() > 8) {
      matcher.rollback(1);
      EXPECT_TRUE(matcher.accept(next));
    }
  }
  ADD_FAILURE() << "no end";
  return deepest;
}

/// A model that only opens brackets is led back before the stacks outgrow their bound; whatever the
/// mask allows is taken.
TEST(GrammarMatcher, DeepTextsEnd) {
  const auto vocab = vocab_of({"[["});
  const auto ebnf = [](std::string text) {
    std::replace(text.begin(), text.end(), '\'', '"');
    return grammar_from_ebnf(text, "grammar").value();
  };
  for (const auto& [grammar, least] :
       {std::pair{ebnf("root ::= '[' root ']' | '1'"), 800},
        std::pair{ebnf("root ::= '[' root ']' | one\n"
                       "one ::= two two\ntwo ::= three three\n"
                       "three ::= [0-9]{10} | '(' one ')'"),
                  800},
        std::pair{ebnf("root ::= '[' root ']' [0-9]? | '1'"), 800},
        std::pair{schema(R"({"type":"array","items":{"$ref":"#"}})"), 250}}) {
    const int deepest = deepest_text(grammar, "[{]}1", vocab);
    EXPECT_GE(deepest, least);
    EXPECT_LE(deepest, 1000);
  }
  // Brackets that need not be closed: very many stacks at once, and the text may end anywhere.
  GrammarMatcher matcher = matcher_of(ebnf("root ::= '[' root? ']'?"), vocab);
  int open = 0;
  for (; has(matcher.mask(), 256); open += 2) {
    ASSERT_TRUE(matcher.accept(256));
    ASSERT_TRUE(matcher.may_end());
  }
  EXPECT_GE(open, 800);
  EXPECT_LE(open, 1000);
  for (int closed = 0; closed < 500; ++closed) {
    ASSERT_TRUE(has(matcher.mask(), ']'));
    ASSERT_TRUE(matcher.accept(']'));
    ASSERT_TRUE(matcher.may_end());
  }
}

TEST(GrammarMatcher, RollbackIsExact) {
  const auto vocab = vocab_of(kLonger);
  const auto tokens = TokenGrammar::make(grammar_from_json_object().value(), vocab);
  std::mt19937_64 random(5);
  GrammarMatcher matcher({.grammar = tokens});
  std::vector<std::vector<uint32_t>> masks;
  std::vector<int32_t> taken;
  for (int step = 0; step < 400; ++step) {
    const auto mask = matcher.mask();
    if (step % 3 == 2 && !taken.empty()) {
      const int back = 1 + static_cast<int>(random() % std::min<size_t>(taken.size(), 4));
      matcher.rollback(back);
      taken.resize(taken.size() - static_cast<size_t>(back));
      masks.resize(masks.size() - static_cast<size_t>(back));
      const auto now = matcher.mask();
      GrammarMatcher replay({.grammar = tokens});
      for (const int32_t id : taken) ASSERT_TRUE(replay.accept(id));
      ASSERT_TRUE(std::equal(now.begin(), now.end(), replay.mask().begin()));
      continue;
    }
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < vocab->size(); ++id) {
      if (has(mask, id)) allowed.push_back(id);
    }
    if (allowed.empty()) break;
    masks.emplace_back(mask.begin(), mask.end());
    taken.push_back(allowed[random() % allowed.size()]);
    ASSERT_TRUE(matcher.accept(taken.back()));
  }
  EXPECT_EQ(matcher.num_accepted(), static_cast<int64_t>(taken.size()));
}

/// The bound on a mask's work is far from what a large schema needs: none of its tokens is missing.
TEST(GrammarMatcher, MasksOfThousandPropertiesAreWhole) {
  std::mt19937 random(5);
  const char* const syllables[] = {"the", "an", "re", "in", "ti", "on", "er", "al", "st", "or"};
  const auto word = [&](size_t most) {
    std::string out;
    for (size_t n = 1 + random() % most; n > 0; --n) out += syllables[random() % 10];
    return out;
  };
  std::set<std::string> longer;
  while (longer.size() < 10'000) {
    longer.insert((random() % 4 == 0 ? "\"" : "") + word(5) + (random() % 6 == 0 ? "\": " : ""));
  }
  const auto vocab = vocab_of({longer.begin(), longer.end()});
  std::string properties;
  for (int i = 0; i < 1200; ++i) {
    properties += (i > 0 ? ",\"" : "\"") + word(4) + std::to_string(i) +
                  "\":{\"type\":[\"string\",\"number\"]}";
  }
  const auto grammar =
      grammar_from_json_schema(
          R"({"type":"object","additionalProperties":false,"properties":{)" + properties + "}}",
          "schema")
          .value();
  GrammarMatcher matcher = matcher_of(grammar, vocab);
  for (int step = 0; step < 8; ++step) {
    const auto now = matcher.mask();
    const std::vector<uint32_t> mask(now.begin(), now.end());
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < vocab->size(); ++id) {
      const bool fits = matcher.accept(id);
      if (fits) matcher.rollback(1);
      if (fits) allowed.push_back(id);
      ASSERT_EQ(fits, has(mask, id)) << vocab->parts().bytes_of(id);
    }
    ASSERT_FALSE(allowed.empty());
    ASSERT_TRUE(matcher.accept(allowed[random() % allowed.size()]));
  }
}

TEST(TokenClasses, AreWhatTheGrammarTellsApart) {
  const auto vocab = vocab_of({"ab", "ba", "bb", "at", "tt", "a!", "xyz", "zyx"});
  const auto tokens = TokenGrammar::make(regex("[a-z]*t[a-z]{3}"), vocab);
  const TokenClasses& classes = tokens->parts().classes();
  // By length, and where their t's are: single letters, t; ab, at, tt; xyz. No '!', no other byte.
  ASSERT_EQ(classes.size(), 6U);
  std::set<size_t> sizes;
  size_t all = 0;
  for (int32_t one = 0; one < 6; ++one) {
    const auto alike = classes.tokens_of(one);
    sizes.insert(alike.size());
    all += alike.size();
    EXPECT_TRUE(std::is_sorted(alike.begin(), alike.end()));
  }
  EXPECT_EQ(all, 26U + 7U);
  EXPECT_EQ(sizes, (std::set<size_t>{1, 2, 3, 25}));
  GrammarMatcher matcher({.grammar = tokens});
  const auto mask = matcher.mask();
  for (int32_t id = 0; id < vocab->size(); ++id) {
    const std::string_view bytes = vocab->parts().bytes_of(id);
    const bool letters = !bytes.empty() && std::all_of(bytes.begin(), bytes.end(),
                                                       [](char c) { return c >= 'a' && c <= 'z'; });
    EXPECT_EQ(has(mask, id), letters) << bytes;
  }
}

TEST(GrammarMatcher, BannedSequences) {
  const auto vocab = vocab_of(kLonger);
  const std::vector<std::vector<int32_t>> banned = {{'q'}, {'a', 'b'}, {'b', 'b', 'c'}};
  GrammarMatcher free({.grammar = without_sequences(nullptr, vocab, banned)});
  EXPECT_FALSE(has(free.mask(), 'q'));
  EXPECT_TRUE(has(free.mask(), vocab->size() - 1));  // a control token
  EXPECT_TRUE(free.may_end());
  EXPECT_TRUE(free.accept('a'));
  EXPECT_FALSE(has(free.mask(), 'b'));
  EXPECT_TRUE(has(free.mask(), 'c'));
  free.rollback(1);
  EXPECT_TRUE(has(free.mask(), 'b'));
  for (const char c : {'b', 'b', 'b'}) {
    EXPECT_TRUE(has(free.mask(), 'c') == (free.num_accepted() < 2));
    EXPECT_TRUE(free.accept(c));
  }
  EXPECT_FALSE(has(free.mask(), 'c'));
  EXPECT_FALSE(free.exhausted());
  const auto base = TokenGrammar::make(regex("a[bc]|qx"), vocab);
  GrammarMatcher bound({.grammar = without_sequences(base, vocab, banned)});
  EXPECT_FALSE(has(bound.mask(), 'q'));
  EXPECT_TRUE(bound.accept('a'));
  EXPECT_FALSE(has(bound.mask(), 'b'));
  EXPECT_TRUE(has(bound.mask(), 'c'));
  GrammarMatcher only(
      {.grammar = without_sequences(TokenGrammar::make(regex("q"), vocab), vocab, banned)});
  EXPECT_TRUE(has(only.mask(), 'q'));  // nothing else is left
}

TEST(GrammarMatcher, BindsAfterTheThought) {
  const auto vocab = vocab_of({"<think>", "</think>"});
  const auto tokens = TokenGrammar::make(regex("yes"), vocab);
  GrammarMatcher open({.grammar = tokens, .begins_after = 257});
  EXPECT_FALSE(open.binds());
  EXPECT_TRUE(open.accept('q'));
  EXPECT_TRUE(open.accept(257));
  EXPECT_TRUE(open.binds());
  EXPECT_FALSE(open.accept('q'));
  GrammarMatcher may({.grammar = tokens, .begins_after = 257, .opened_by = 256});
  EXPECT_TRUE(has(may.mask(), 256));
  EXPECT_TRUE(has(may.mask(), 'y'));
  EXPECT_FALSE(has(may.mask(), 'q'));
  EXPECT_TRUE(may.accept(256));
  EXPECT_FALSE(may.binds());
  EXPECT_TRUE(may.accept(257));
  for (const char c : std::string("yes")) EXPECT_TRUE(may.accept(c));
  EXPECT_TRUE(may.may_end());
  EXPECT_TRUE(may.exhausted());
}

TEST(ToolGrammar, BothMarkups) {
  const std::string tools =
      R"([{"type":"function","function":{"name":"add","parameters":{"type":"object",
      "properties":{"a":{"type":"integer"},"note":{"type":"string"}},"required":["a"],
      "additionalProperties":false}}},{"type":"function","function":{"name":"now"}}])";
  const auto compile = [&](const ToolGrammarOptions& options) {
    GrammarRules rules;
    const GrammarRules::Rule root = rules.declare("root");
    rules.define(root, tool_call_node(rules, tools, options).value());
    return rules.compile(root).value();
  };
  const auto json = compile({.parallel = true});
  const std::string add =
      "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 3}}\n</tool_call>";
  const std::string now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
  EXPECT_TRUE(matches(json, add));
  EXPECT_TRUE(matches(json, add + "\n" + now));
  EXPECT_FALSE(matches(json, "<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>"));
  EXPECT_FALSE(matches(compile({.name = "now"}), add));
  const auto xml = compile({.markup = ToolMarkup::kQwenXml, .name = "add"});
  EXPECT_TRUE(matches(xml,
                      "<tool_call>\n<function=add>\n<parameter=a>\n-3\n</parameter>\n"
                      "<parameter=note>\nhi\nthere\n</parameter>\n</function>\n</tool_call>"));
  EXPECT_FALSE(matches(xml, "<tool_call>\n<function=add>\n</function>\n</tool_call>"));
  EXPECT_FALSE(tool_call_node(*std::make_unique<GrammarRules>(), tools, {.name = "zzz"}).ok());
}

/// Calls of `f` in the XML markup: whether `body` stands for valid arguments of `parameters`.
Result<bool> xml_call_fits(const std::string& parameters, const std::string& body) {
  GrammarRules rules;
  const std::string tools =
      R"([{"type":"function","function":{"name":"f","parameters":)" + parameters + "}}]";
  const auto node = TRY(tool_call_node(rules, tools, {.markup = ToolMarkup::kQwenXml}));
  const GrammarRules::Rule root = rules.declare("root");
  rules.define(root, node);
  const auto grammar = TRY(rules.compile(root));
  return matches(grammar, "<tool_call>\n<function=f>\n" + body + "</function>\n</tool_call>");
}

TEST(ToolGrammar, XmlValuesKeepTheirSchemas) {
  struct Case {
    const char* schema;  // of the parameter a
    std::string value;
    bool fits;
  };
  const Case cases[] = {
      {R"({"type":"string"})", "if a < b: <b></param", true},
      {R"({"type":"string"})", "<</parameter", true},
      {R"({"type":"string"})", "x</parameter>y", false},
      {R"({"type":"string"})", "x</function>y", false},
      {R"({"type":"string"})", "<</parameter>", false},
      {R"({})", "any <text>", true},
      {R"({"type":"string","maxLength":3})", "abc", true},
      {R"({"type":"string","maxLength":3})", "abcd", false},
      {R"({"minLength":3})", "1", false},
      {R"({"type":"string","pattern":"^[0-9]+$"})", "12", true},
      {R"({"type":"string","pattern":"^[0-9]+$"})", "x", false},
      {R"({"type":"string","format":"date"})", "2023-02-29", false},
      {R"({"type":"string","format":"date"})", "2024-02-29", true},
      {R"({"const":"q"})", "q", true},
      {R"({"const":"q"})", "x", false},
      {R"({"$ref":"#/$defs/T"})", "hello", true},
      {R"({"anyOf":[{"type":"string"},{"type":"null"}]})", "hello", true},
      {R"({"type":["string","null"],"maxLength":1})", "null", true},
      {R"({"type":["string","integer"],"maximum":5})", "7", false},
      {R"({"type":["string","integer"],"maximum":5})", "5", true},
      {R"({"type":["string","integer"],"maximum":5})", "seven", true},
      {R"({"enum":["a",1,null]})", "1", true},
      {R"({"enum":["a",1,null]})", "\"a\"", false},
      {R"({"type":"object","properties":{"x":{"$ref":"#/properties/b"}}})", "{\"x\": 1}", true},
  };
  for (const Case& c : cases) {
    const std::string parameters = R"({"type":"object","required":["a"],"properties":{"a":)" +
                                   std::string(c.schema) +
                                   R"(,"b":{"type":"integer"}},"$defs":{"T":{"type":"string"}}})";
    const auto fits = xml_call_fits(parameters, "<parameter=a>\n" + c.value + "\n</parameter>\n");
    ASSERT_TRUE(fits.ok()) << c.schema << ": " << fits.error().message;
    EXPECT_EQ(*fits, c.fits) << c.schema << ": " << c.value;
  }
}

TEST(ToolGrammar, XmlReadsTheWholeSchema) {
  EXPECT_TRUE(*xml_call_fits(R"({"$ref":"#/$defs/T","$defs":{"T":{"type":"object",
      "properties":{"a":{"type":"integer"}},"required":["a"]}}})",
                             "<parameter=a>\n1\n</parameter>\n"));
  EXPECT_FALSE(*xml_call_fits(R"({"type":"object","properties":{},"required":["z"]})", ""));
  for (const char* refused : {R"({"type":"object","properties":{"a":{"type":"string","not":{}}}})",
                              R"({"type":"object","properties":{"a":{"type":"integer"}},"not":{}})",
                              R"({"type":"object","properties":{"a":{"enum":["p</parameter>q"]}}})",
                              R"({"type":"object","properties":{"a b":{"type":"string"}}})",
                              R"({"type":"object","properties":{"a":{}},"minProperties":1})"}) {
    const auto fits = xml_call_fits(refused, "");
    ASSERT_FALSE(fits.ok()) << refused;
    EXPECT_EQ(fits.error().kind, ErrorKind::kUnsupported);
    EXPECT_TRUE(fits.error().message.starts_with("tools[0].function.parameters")) << refused;
  }
  GrammarRules rules;
  EXPECT_FALSE(tool_call_node(rules, "[1]", {}).ok());
  EXPECT_FALSE(tool_call_node(rules, R"([{"function":{"name":3}}])", {}).ok());
}

}  // namespace
}  // namespace weft
