#include "api/text_output.h"

#include <algorithm>
#include <utility>

namespace weft {

TextOutput::TextOutput(const Tokenizer& tokenizer, TextOptions options)
    : stop_ids_(std::move(options.stop_ids)),
      detokenizer_(tokenizer, options.skip_special),
      min_tokens_(options.min_tokens),
      include_stop_id_(options.include_stop_id) {
  if (options.stops) stops_ = std::make_unique<StopStrings>(*std::move(options.stops));
}

bool TextOutput::is_stop_id(int32_t token) const {
  return std::find(stop_ids_.begin(), stop_ids_.end(), token) != stop_ids_.end();
}

/// What of the detokenised `piece` is the answer's; false: a stop string is complete.
bool TextOutput::feed(const std::string& piece, std::string& text) {
  if (stops_ && num_tokens_ > min_tokens_) {
    stop_string_ = stops_->push(piece, text);
    return !stop_string_.has_value();
  }
  text += piece;
  return true;
}

bool TextOutput::push(int32_t token, std::string& text) {
  if (stop_string_) return false;
  ++num_tokens_;
  if (is_stop_id(token) && !include_stop_id_) return true;
  std::string piece;
  detokenizer_.push(token, piece);
  return feed(piece, text);
}

void TextOutput::finish(std::string& text) {
  if (stop_string_) return;
  std::string piece;
  detokenizer_.finish(piece);
  if (feed(piece, text) && stops_) stops_->finish(text);
}

}  // namespace weft
