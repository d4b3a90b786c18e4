#include "api/text_output.h"

#include <algorithm>
#include <utility>

namespace weft {

TextOutput::TextOutput(const Tokenizer& tokenizer, TextOptions options)
    : options_(std::move(options)), detokenizer_(tokenizer, options_.skip_special) {}

bool TextOutput::is_stop_id(int32_t token) const {
  return std::find(options_.stop_ids.begin(), options_.stop_ids.end(), token) !=
         options_.stop_ids.end();
}

/// What of the detokenised `piece` is the answer's; false: a stop string is complete.
bool TextOutput::feed(const std::string& piece, std::string& text) {
  if (options_.stops && num_tokens_ > options_.min_tokens) {
    stop_string_ = options_.stops->push(piece, text);
    return !stop_string_.has_value();
  }
  text += piece;
  return true;
}

bool TextOutput::push(int32_t token, std::string& text) {
  if (stop_string_) return false;
  ++num_tokens_;
  if (is_stop_id(token) && !options_.include_stop_id) return true;
  std::string piece;
  detokenizer_.push(token, piece);
  return feed(piece, text);
}

void TextOutput::finish(std::string& text) {
  if (stop_string_) return;
  std::string piece;
  detokenizer_.finish(piece);
  if (feed(piece, text) && options_.stops) options_.stops->finish(text);
}

}  // namespace weft
