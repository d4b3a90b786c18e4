#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "text/detokenizer.h"
#include "text/stop_strings.h"

namespace weft {

/// How the tokens of an answer become its text.
struct TextOptions {
  std::vector<int32_t> stop_ids;     ///< tokens that end the answer; they give no text
  std::optional<StopStrings> stops;  ///< texts that end the answer
  int min_tokens = 0;                ///< texts don't end it before so many tokens
  bool include_stop_id = false;      ///< the token that ends the answer gives its text too
  bool skip_special = true;          ///< special tokens give no text
};

/// Detokeniser and stop strings of one answer: token ids in, certain text out.
class TextOutput {
 public:
  /// `tokenizer` must outlive it.
  TextOutput(const Tokenizer& tokenizer, TextOptions options);

  /// Appends to `text` what became certain with `token`. False: a stop string is complete; the
  /// answer ends here and later tokens give no text.
  bool push(int32_t token, std::string& text);
  /// The answer has ended: appends what was held back.
  void finish(std::string& text);
  /// Whether `token` is one of stop_ids.
  bool is_stop_id(int32_t token) const;
  /// The stop string that ended the answer: its index in the list given to StopStrings::make().
  std::optional<size_t> stop_string() const { return stop_string_; }

 private:
  bool feed(const std::string& piece, std::string& text);

  std::vector<int32_t> stop_ids_;
  std::unique_ptr<StopStrings> stops_;  // null: none
  Detokenizer detokenizer_;
  int min_tokens_ = 0;
  int num_tokens_ = 0;
  bool include_stop_id_ = false;
  std::optional<size_t> stop_string_;
};

}  // namespace weft
