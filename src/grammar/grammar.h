#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "grammar/rules.h"

namespace weft {

/// Front ends: what they read as a part of `rules`, and as a grammar of its own. Errors name
/// `field` and what is wrong or not supported.
Result<GrammarRules::Node> regex_node(GrammarRules& rules, std::string_view regex,
                                      const std::string& field);
Result<GrammarRules::Node> choices_node(GrammarRules& rules,
                                        const std::vector<std::string>& choices,
                                        const std::string& field);
/// Its rule `root`.
Result<GrammarRules::Rule> ebnf_rule(GrammarRules& rules, std::string_view text,
                                     const std::string& field);
Result<std::shared_ptr<const Grammar>> grammar_from_regex(std::string_view regex,
                                                          const std::string& field,
                                                          const GrammarLimits& limits = {});
Result<std::shared_ptr<const Grammar>> grammar_from_choices(const std::vector<std::string>& choices,
                                                            const std::string& field,
                                                            const GrammarLimits& limits = {});
Result<std::shared_ptr<const Grammar>> grammar_from_ebnf(std::string_view text,
                                                         const std::string& field,
                                                         const GrammarLimits& limits = {});

/// The tokens of a vocabulary as bytes, in a trie. Immutable, one per tokenizer.
class GrammarVocab {
 public:
  /// `bytes_of(id)`: what the token stands for; empty: it can't be part of a constrained text
  /// (control tokens).
  static std::shared_ptr<const GrammarVocab> build(
      int32_t vocab_size, const std::function<std::string_view(int32_t)>& bytes_of);
  struct Parts;
  explicit GrammarVocab(std::unique_ptr<const Parts> parts);
  ~GrammarVocab();
  int32_t size() const;
  const Parts& parts() const { return *parts_; }

 private:
  std::unique_ptr<const Parts> parts_;
};

/// A grammar over the tokens of a vocabulary, with the masks computed so far (shared by all
/// requests that use it, bounded in bytes, thread-safe).
class TokenGrammar {
 public:
  static std::shared_ptr<const TokenGrammar> make(std::shared_ptr<const Grammar> grammar,
                                                  std::shared_ptr<const GrammarVocab> vocab);
  struct Parts;
  explicit TokenGrammar(std::unique_ptr<Parts> parts);
  ~TokenGrammar();
  Parts& parts() const { return *parts_; }

 private:
  std::unique_ptr<Parts> parts_;
};

/// What a request asks of its output: the grammar, and where it begins to bind.
struct OutputConstraint {
  std::shared_ptr<const TokenGrammar> grammar;
  int32_t begins_after = -1;  ///< after this token (the end of thinking); -1: at once
  /// With begins_after: the answer need not begin with a thought. This token opens one as the first
  /// of the answer; any other is bound already. -1: the thought is open.
  int32_t opened_by = -1;
};

/// Where one sequence stands in its grammar. Not thread-safe; cheap to make.
class GrammarMatcher {
 public:
  static constexpr int kMaxRollback = 64;
  explicit GrammarMatcher(const OutputConstraint& constraint);
  ~GrammarMatcher();
  GrammarMatcher(GrammarMatcher&&) noexcept;
  GrammarMatcher& operator=(GrammarMatcher&&) noexcept;

  /// Whether the next token is bound at all (false while thinking).
  bool binds() const;
  /// Bit i of word i / 32: token i may come next. Empty while !binds(). Lives until the next call.
  std::span<const uint32_t> mask();
  /// The text may end here: stop ids are allowed beside the mask.
  bool may_end() const;
  /// Takes a token; false (and no change) when the mask forbids it.
  bool accept(int32_t token);
  /// Takes back the last `count` accepted tokens (at most kMaxRollback, thinking ones included).
  void rollback(int count);
  /// The text may end and nothing may come next: it is over.
  bool exhausted();
  /// Tokens taken since the start.
  int64_t num_accepted() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace weft
