// Masks, accepted tokens and compile times on a vocabulary of 151,000 synthetic tokens, as JSON
// lines (microseconds of one core). usage: grammar_bench
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/json_schema.h"

namespace {

using weft::GrammarMatcher;

/// CPU seconds of this thread: a busy machine does not count.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// All bytes, pieces of JSON, numbers, characters of other scripts and 140,000 word-like tokens,
/// half of them with a space in front.
std::vector<std::string> vocabulary() {
  std::mt19937 random(1);
  std::set<std::string> tokens;
  for (int b = 0; b < 256; ++b) tokens.insert(std::string(1, static_cast<char>(b)));
  for (int i = 0; i < 1000; ++i) tokens.insert(std::to_string(i));
  static const char* const kPieces[] = {"\"", ":", ",", "{", "}", "[", "]", " ", "\n", "  ", "\\"};
  while (tokens.size() < 4000) {
    std::string token;
    for (size_t k = 2 + random() % 4; k > 0; --k) token += kPieces[random() % std::size(kPieces)];
    tokens.insert(token);
  }
  while (tokens.size() < 12000) {  // two characters of three bytes
    std::string token;
    for (int k = 0; k < 2; ++k) {
      const unsigned c = 0x4E00 + random() % 0x2000;
      token += static_cast<char>(0xE0 | (c >> 12));
      token += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
      token += static_cast<char>(0x80 | (c & 0x3F));
    }
    tokens.insert(token);
  }
  static const char* const kSyllables[] = {
      "the", "an",   "re", "in", "ti", "on", "er", "al", "st", "or", "com", "pro", "ing",
      "ly",  "ment", "de", "un", "be", "ex", "ta", "lo", "ma", "si", "ne",  "ra",  "wi"};
  while (tokens.size() < 151000) {
    std::string token = random() % 2 ? " " : "";
    for (size_t k = 1 + random() % 4; k > 0; --k)
      token += kSyllables[random() % std::size(kSyllables)];
    if (random() % 40 == 0) token += "\",";
    if (random() % 60 == 0) token += ".\n";
    tokens.insert(token);
  }
  return {tokens.begin(), tokens.end()};
}

struct Case {
  const char* name;
  weft::Result<std::shared_ptr<const weft::Grammar>> (*compile)();
  std::string text;  // spelled token by token, the longest that fits first
};

void run(const Case& c, const std::vector<std::string>& tokens,
         const std::shared_ptr<const weft::GrammarVocab>& vocab) {
  double start = cpu_seconds();
  auto grammar = c.compile();
  const double compile = cpu_seconds() - start;
  if (!grammar.ok()) {
    std::printf("{\"case\": \"%s\", \"compile_us\": %.0f, \"refused\": true}\n", c.name,
                1e6 * compile);
    return;
  }
  const auto bound = weft::TokenGrammar::make(*grammar, vocab);
  double worst[2] = {}, sum[2] = {}, worst_accept = 0, sum_accept = 0;
  size_t count = 0;
  for (int round = 0; round < 2; ++round) {  // cold, then with every state's mask there
    GrammarMatcher matcher({.grammar = bound});
    for (size_t at = 0; at < c.text.size();) {
      start = cpu_seconds();
      const auto mask = matcher.mask();
      const double mask_time = cpu_seconds() - start;
      worst[round] = std::max(worst[round], mask_time);
      sum[round] += mask_time;
      size_t length = std::min<size_t>(c.text.size() - at, 8);
      int32_t token = -1;
      for (; length > 0; --length) {
        const auto it = std::lower_bound(tokens.begin(), tokens.end(), c.text.substr(at, length));
        if (it == tokens.end() || *it != c.text.substr(at, length)) continue;
        token = static_cast<int32_t>(it - tokens.begin());
        if (((mask[static_cast<size_t>(token) / 32] >> (token % 32)) & 1) != 0) break;
      }
      if (length == 0) {
        std::printf("{\"case\": \"%s\", \"stuck_at\": %zu, \"mask_worst_us\": %.0f}\n", c.name, at,
                    1e6 * worst[round]);
        return;
      }
      start = cpu_seconds();
      (void)matcher.accept(token);
      const double accept_time = cpu_seconds() - start;
      if (round == 1) {
        worst_accept = std::max(worst_accept, accept_time);
        sum_accept += accept_time;
        ++count;
      }
      at += length;
    }
  }
  const auto n = static_cast<double>(count);
  std::printf(
      "{\"case\": \"%s\", \"compile_us\": %.0f, \"tokens\": %zu, \"cold_mask_worst_us\": %.0f, "
      "\"cold_mask_mean_us\": %.1f, \"mask_worst_us\": %.1f, \"mask_mean_us\": %.1f, "
      "\"accept_worst_us\": %.1f, \"accept_mean_us\": %.2f}\n",
      c.name, 1e6 * compile, count, 1e6 * worst[0], 1e6 * sum[0] / n, 1e6 * worst[1],
      1e6 * sum[1] / n, 1e6 * worst_accept, 1e6 * sum_accept / n);
  std::fflush(stdout);
}

}  // namespace

int main() {
  const std::vector<std::string> tokens = vocabulary();
  double start = cpu_seconds();
  const auto vocab = weft::GrammarVocab::build(
      static_cast<int32_t>(tokens.size()),
      [&](int32_t id) -> std::string_view { return tokens[static_cast<size_t>(id)]; });
  std::printf("{\"case\": \"vocabulary\", \"tokens\": %zu, \"build_us\": %.0f}\n", tokens.size(),
              1e6 * (cpu_seconds() - start));
  const std::string json =
      R"({"name": "the restaurant", "tags": ["an", "inti", "com.\n"], "at": {"x": -12.5e3, "y": [[1, 2], [3, {"deep": null}]]}, "ok": true})";
  const Case cases[] = {
      {"json_object", [] { return weft::grammar_from_json_object(); }, json},
      {"json_schema",
       [] {
         return weft::grammar_from_json_schema(
             R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},"tags":{"type":"array","items":{"type":"string"}}},"required":["name","age"],"additionalProperties":false})",
             "schema");
       },
       R"({"name": "the restaurant", "age": 127, "tags": ["an", "inti"]})"},
      {"regex_email",
       [] { return weft::grammar_from_regex("[a-z0-9._]+@[a-z]+\\.(com|org)", "regex"); },
       "the.restaurant@common.com"},
      {"ebnf_sum",
       [] {
         return weft::grammar_from_ebnf(
             "root ::= term (\"+\" term)*\nterm ::= [0-9]+ | \"(\" root \")\"", "grammar");
       },
       "12+(3+(45+6))+789"},
      {"hostile_many_threads",
       [] { return weft::grammar_from_regex("[a-z ]*t[a-z ]{300}", "regex"); },
       "the restaurant the restaurant the restaurant"},
      {"hostile_ambiguous_stacks",
       [] {
         return weft::grammar_from_ebnf(
             "root ::= item root? [a-z]? item? | item\nitem ::= \"t\" item? \"h\"? | [a-z ]",
             "grammar");
       },
       "the restaurant the restaurant the restaurant"},
      {"ebnf_json",  // as llama.cpp writes it
       [] {
         return weft::grammar_from_ebnf(
             R"gbnf(root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" char* "\"" ws
char   ::= [^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4})
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,3})? ws
ws ::= | " " | "\n" [ \t]{0,20})gbnf",
             "grammar");
       },
       json},
      {"ebnf_names",
       [] {
         return weft::grammar_from_ebnf(
             "root ::= sum\nsum ::= part (\" + \" part)*\npart ::= name | \"(\" sum \")\"\n"
             "name ::= [a-z]+ (\"_\" [a-z]+)*",
             "grammar");
       },
       "restaurant + (inti + the_common + (an)) + proming"},
      {"hostile_lagging_stacks",
       [] {
         return weft::grammar_from_ebnf(
             "root ::= \" \"? half root? half? [a-n]? | half\nhalf ::= [a-z] half? \"e\"? | [a-z ] "
             "[a-z]? root?",
             "grammar");
       },
       "the restaurant the restaurant the restaurant"},
      {"hostile_letters_apart",  // the same with no two letters alike
       [] {
         std::string apart = "apart ::= \"A\"";
         for (char c = 'a'; c <= 'z'; ++c) {
           apart += std::string(" | \"") + c + "\" \"" + static_cast<char>(c - 'a' + 'A') + "\"{" +
                    std::to_string(1 + (c - 'a')) + "}";
         }
         return weft::grammar_from_ebnf(
             "root ::= \" \"? half root? half? [a-n]? apart? | half\nhalf ::= [a-z] half? \"e\"? | "
             "[a-z ] [a-z]? root? | apart\n" +
                 apart,
             "grammar");
       },
       "the restaurant the restaurant the restaurant"},
      {"hostile_counted", [] { return weft::grammar_from_regex("(a{1000}){1000}", "regex"); }, "a"},
      {"hostile_same_options", [] { return weft::grammar_from_regex("(a|a)*b", "regex"); }, "aab"},
      {"hostile_nested", [] { return weft::grammar_from_regex("(((a*)*)*)*b", "regex"); }, "aab"},
      {"hostile_unread_counter",
       [] { return weft::grammar_from_regex("(.*t){20}.{100}", "regex"); },
       "tttttttttttttttttttttt"},
  };
  for (const Case& c : cases) run(c, tokens, vocab);
}
