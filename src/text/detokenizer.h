#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"

namespace weft {

/// Turns a stream of token ids into text, never splitting a character. The pieces joined are
/// exactly Tokenizer::decode() of all ids. Linear time; holds at most three bytes back for
/// byte-level vocabularies, and the current run of <0xHH> tokens for byte-fallback ones (whether
/// such a run is text is known only at its end).
class Detokenizer {
 public:
  /// `tokenizer` must outlive it.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special);

  /// Appends to `out` the text that became certain with `id`; ids without a token add nothing.
  void push(int32_t id, std::string& out);
  /// Appends what is still held, broken characters as U+FFFD. Afterwards the stream is fresh.
  void finish(std::string& out);
  /// The undecided bytes.
  const std::string& pending() const { return pending_; }

 private:
  void push_broken(std::string_view bytes, std::string& out);
  void flush_run(std::string& out);
  void emit(std::string_view text, std::string& out);

  const Tokenizer::Parts* parts_;
  bool skip_special_;
  size_t strip_left_;  // leading characters that may still be stripped
  std::string pending_;
};

}  // namespace weft
