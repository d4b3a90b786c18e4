#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "api/generation.h"
#include "base/result.h"
#include "grammar/grammar.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace weft {

/// Whether thinking comes before the answer proper.
enum class Thinking : uint8_t {
  kNone,     ///< the answer begins at once
  kMayOpen,  ///< the model may open a thought itself
  kOpen,     ///< the prompt has opened it
};

/// Makes what requests ask of the output: response_format, structured_outputs, tool_choice,
/// bad_words.
/// Compiled grammars are kept, least recently used first out. Thread-safe.
class ConstraintFactory {
 public:
  /// `tokenizer` must outlive it; `vocab_size`: of the model's logits.
  ConstraintFactory(const Tokenizer& tokenizer, int64_t vocab_size, const ChatFormat& format);

  /// Null when the request asks nothing of its output. Errors name the field.
  Result<std::shared_ptr<const OutputConstraint>> make(const GenerationRequest& request,
                                                       Thinking thinking);

 private:
  using GrammarPtr = std::shared_ptr<const TokenGrammar>;
  struct Entry {
    std::string key;
    GrammarPtr grammar;
  };
  Result<GrammarPtr> find_or_compile(const GenerationRequest& request, bool after_thinking);
  Result<std::vector<std::vector<int32_t>>> sequences_of(
      const std::vector<std::string>& words) const;
  std::shared_ptr<const GrammarVocab> vocab();
  GrammarPtr keep(const std::string& key, GrammarPtr grammar);

  const Tokenizer& tokenizer_;
  const int32_t vocab_size_;
  const ChatFormat format_;
  const int32_t think_begin_, think_end_;  // token ids; -1: the tokenizer has no such token

  std::mutex mutex_;                           // guards the rest
  std::shared_ptr<const GrammarVocab> vocab_;  // built when first asked for
  std::list<Entry> entries_;                   // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> index_;
};

}  // namespace weft
