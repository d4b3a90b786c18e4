#include "text/detokenizer.h"

#include "text/tokenizer_parts.h"
#include "text/unicode.h"

namespace weft {
namespace {
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special)
    : parts_(tokenizer.parts_.get()),
      skip_special_(skip_special),
      strip_left_(parts_->decode.strip_start) {}

void Detokenizer::push(int32_t id, std::string& out) {
  using Parts = Tokenizer::Parts;
  if (id < 0 || static_cast<size_t>(id) >= parts_->flags.size()) return;
  const uint8_t flags = parts_->flags[static_cast<size_t>(id)];
  if (!(flags & Parts::kPresent) || (skip_special_ && (flags & Parts::kSpecial))) return;
  const std::string_view bytes = parts_->bytes_of(id);
  if (parts_->decode.kind == DecodeRules::kByteLevel) {
    if (pending_.empty() && (flags & Parts::kWhole)) {
      emit(bytes, out);
    } else {
      push_broken(bytes, out);
    }
  } else if (flags & Parts::kByte) {
    pending_.append(bytes);
  } else {
    flush_run(out);
    emit(bytes, out);
  }
}

void Detokenizer::finish(std::string& out) {
  if (parts_->decode.kind == DecodeRules::kByteLevel) {
    if (!pending_.empty()) emit(kReplacement, out);
  } else {
    flush_run(out);
  }
  pending_.clear();
  strip_left_ = parts_->decode.strip_start;
}

void Detokenizer::push_broken(std::string_view bytes, std::string& out) {
  pending_.append(bytes);
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const text::Utf8Step step = text::next_utf8(rest);
    if (step.kind == text::Utf8Step::kIncomplete) break;
    const auto length = static_cast<size_t>(step.length);
    emit(step.kind == text::Utf8Step::kValid ? rest.substr(0, length) : kReplacement, out);
    rest.remove_prefix(length);
  }
  pending_.erase(0, pending_.size() - rest.size());
}

void Detokenizer::flush_run(std::string& out) {
  if (pending_.empty()) return;
  if (text::is_valid_utf8(pending_)) {
    emit(pending_, out);
  } else {
    for (size_t i = 0; i < pending_.size(); ++i) emit(kReplacement, out);
  }
  pending_.clear();
}

void Detokenizer::emit(std::string_view text, std::string& out) {
  while (strip_left_ > 0 && !text.empty()) {
    const text::Decoded d = text::decode_valid(text.data());
    if (d.code != parts_->decode.strip) {
      strip_left_ = 0;
      break;
    }
    --strip_left_;
    text.remove_prefix(static_cast<size_t>(d.length));
  }
  out.append(text);
}

}  // namespace weft
