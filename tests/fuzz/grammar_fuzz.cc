// DEPS: weft_grammar
// Schemas ('0'), regexes ('1') and EBNF grammars ('2') as users send them: each is refused by name
// or walks. What the mask allows has to be accepted, what it forbids refused, and a rollback has to
// restore the mask.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "grammar/grammar.h"
#include "grammar/json_schema.h"

namespace {

using namespace weft;

constexpr int kSteps = 24;

const std::shared_ptr<const GrammarVocab>& byte_vocab() {
  static const std::shared_ptr<const GrammarVocab> vocab = [] {
    static std::string bytes;
    for (int b = 0; b < 256; ++b) bytes.push_back(static_cast<char>(b));
    return GrammarVocab::build(256,
                               [](int32_t id) { return std::string_view(bytes).substr(id, 1); });
  }();
  return vocab;
}

Result<std::shared_ptr<const Grammar>> read(uint8_t kind, std::string_view text) {
  if (kind % 3 == 0) return grammar_from_json_schema(text, "schema");
  if (kind % 3 == 1) return grammar_from_regex(text, "regex");
  return grammar_from_ebnf(text, "grammar");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2 || size > 4096) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  auto grammar = read(data[0], text);
  if (!grammar.ok()) return 0;
  OutputConstraint constraint;
  constraint.grammar = TokenGrammar::make(grammar.value(), byte_vocab());
  GrammarMatcher matcher(constraint);
  for (int step = 0; step < kSteps && !matcher.exhausted(); ++step) {
    const std::span<const uint32_t> now = matcher.mask();
    const std::vector<uint32_t> mask(now.begin(), now.end());
    const int32_t start = data[static_cast<size_t>(step) % size];
    int32_t taken = -1;
    for (int32_t i = 0; i < 256 && taken < 0; ++i) {
      const int32_t token = (start + i) % 256;
      const bool allowed = (mask[token / 32] >> (token % 32)) & 1;
      CHECK(matcher.accept(token) == allowed);
      if (allowed) taken = token;
    }
    if (taken < 0) break;
    matcher.rollback(1);
    const std::span<const uint32_t> again = matcher.mask();
    CHECK(std::vector<uint32_t>(again.begin(), again.end()) == mask);
    CHECK(matcher.accept(taken));
  }
  return 0;
}
