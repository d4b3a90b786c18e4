#include "text/tokenizer.h"

#include <algorithm>

#include "text/detokenizer.h"
#include "text/tokenizer_parts.h"

namespace weft {
namespace text {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";

void replace_all(std::string& text, std::string* mask, const ReplaceNormalizer& step) {
  size_t at = text.find(step.pattern);
  if (at == std::string::npos) return;
  std::string out, out_mask;
  out.reserve(text.size() + text.size() / 4);
  size_t done = 0;
  for (; at != std::string::npos; at = text.find(step.pattern, done)) {
    out.append(text, done, at - done).append(step.content);
    if (mask) {
      const bool trusted = mask->find('0', at) >= at + step.pattern.size();
      out_mask.append(*mask, done, at - done).append(step.content.size(), trusted ? '1' : '0');
    }
    done = at + step.pattern.size();
  }
  out.append(text, done);
  if (mask) {
    out_mask.append(*mask, done);
    *mask = std::move(out_mask);
  }
  text = std::move(out);
}

void split_literal(std::string_view s, std::string_view literal, std::vector<Piece>& out) {
  size_t done = 0;
  for (size_t at; (at = s.find(literal, done)) != std::string_view::npos;
       done = at + literal.size()) {
    if (at > done) out.push_back({done, at, false});
    out.push_back({at, at + literal.size(), true});
  }
  if (done < s.size()) out.push_back({done, s.size(), false});
}

/// Turns matches and gaps into pieces as `tokenizers`' SplitDelimiterBehavior says.
void apply_behavior(SplitBehavior behavior, std::vector<Piece>& pieces) {
  std::vector<Piece> out;
  bool previous_match = false;
  switch (behavior) {
    case SplitBehavior::kIsolated: return;
    case SplitBehavior::kRemoved:
      for (const Piece& p : pieces) {
        if (!p.match) out.push_back(p);
      }
      break;
    case SplitBehavior::kContiguous:
      for (const Piece& p : pieces) {
        if (!out.empty() && out.back().match == p.match) {
          out.back().end = p.end;
        } else {
          out.push_back(p);
        }
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Piece& p : pieces) {
        if (p.match && !previous_match && !out.empty()) {
          out.back().end = p.end;
        } else {
          out.push_back(p);
        }
        previous_match = p.match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = pieces.size(); i-- > 0;) {
        if (pieces[i].match && !previous_match && !out.empty()) {
          out.back().begin = pieces[i].begin;
        } else {
          out.push_back(pieces[i]);
        }
        previous_match = pieces[i].match;
      }
      std::reverse(out.begin(), out.end());
      break;
  }
  pieces = std::move(out);
}

Result<void> apply_split(const SplitStep& step, std::string_view s, std::vector<Piece>& pieces) {
  if (step.known != KnownPattern::kNone) {
    const CharTable& table = char_table();
    for (size_t i = 0; i < s.size();) {
      const size_t end = next_piece(step.known, s, i, table);
      pieces.push_back({i, end, true});
      i = end;
    }
  } else if (step.regex) {
    TRY(step.regex->split(s, pieces));
  } else {
    split_literal(s, step.literal, pieces);
  }
  if (step.invert) {
    for (Piece& p : pieces) p.match = !p.match;
  }
  apply_behavior(step.behavior, pieces);
  return {};
}

void split_metaspace(std::string_view s, std::vector<std::string>& out) {
  size_t begin = 0;
  while (begin < s.size()) {
    const size_t end = std::min(s.find(kMetaspace, begin + 1), s.size());
    out.emplace_back(s.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace

void normalize(const std::vector<Normalizer>& steps, std::string& text, std::string* mask) {
  for (const Normalizer& step : steps) {
    if (std::holds_alternative<NfcNormalizer>(step)) {
      normalize_nfc(text, mask);
    } else if (const auto* prepend = std::get_if<PrependNormalizer>(&step)) {
      if (text.empty()) continue;
      text.insert(0, prepend->prefix);
      if (mask) mask->insert(0, prepend->prefix.size(), (*mask)[0]);
    } else {
      replace_all(text, mask, std::get<ReplaceNormalizer>(step));
    }
  }
}

}  // namespace text

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<void> Tokenizer::Parts::pre_tokenize(std::string_view s, bool first,
                                            std::vector<std::string>& pieces) const {
  pieces.assign(1, std::string(s));
  std::vector<std::string> next;
  std::vector<text::Piece> cuts;
  for (const text::PreTokenizer& step : pre_tokenizers) {
    next.clear();
    bool first_piece = first;
    for (std::string& piece : pieces) {
      if (const auto* split = std::get_if<text::SplitStep>(&step)) {
        cuts.clear();
        TRY(text::apply_split(*split, piece, cuts));
        for (const text::Piece& cut : cuts)
          next.push_back(piece.substr(cut.begin, cut.end - cut.begin));
      } else if (const auto* prepend = std::get_if<text::PrependStep>(&step)) {
        const bool now = prepend->when == text::PrependStep::kAlways || first_piece;
        if (now && !piece.starts_with(prepend->prefix)) piece.insert(0, prepend->prefix);
        next.push_back(std::move(piece));
      } else if (const auto* replace = std::get_if<text::ReplaceStep>(&step)) {
        text::replace_all(piece, nullptr, {replace->pattern, replace->content});
        next.push_back(std::move(piece));
      } else {
        text::split_metaspace(piece, next);
      }
      first_piece = false;
    }
    pieces.swap(next);
  }
  return {};
}

Result<void> Tokenizer::Parts::encode_plain(std::string_view s, bool first,
                                            text::BpeScratch& scratch,
                                            std::vector<int32_t>& out) const {
  if (s.empty()) return {};
  if (only_pattern != text::KnownPattern::kNone) {
    const text::CharTable& table = text::char_table();
    for (size_t i = 0; i < s.size();) {
      const size_t end = text::next_piece(only_pattern, s, i, table);
      bpe->encode(s.substr(i, end - i), scratch, out);
      i = end;
    }
    return {};
  }
  if (pre_tokenizers.empty()) {
    if (!bpe->cut_before_metaspace()) {
      bpe->encode(s, scratch, out);
      return {};
    }
    // No merge crosses from another character into U+2581, so words can be done one by one.
    for (size_t begin = 0; begin < s.size();) {
      size_t end = begin;
      do {
        const size_t skip =
            s.substr(end).starts_with(text::kMetaspace) ? text::kMetaspace.size() : 1;
        end = std::min(s.find(text::kMetaspace, end + skip), s.size());
      } while (end < s.size() && s.substr(0, end).ends_with(text::kMetaspace));
      bpe->encode(s.substr(begin, end - begin), scratch, out);
      begin = end;
    }
    return {};
  }
  std::vector<std::string> pieces;
  TRY(pre_tokenize(s, first, pieces));
  for (const std::string& piece : pieces) {
    if (!piece.empty()) bpe->encode(piece, scratch, out);
  }
  return {};
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text,
                                               bool add_special_tokens) const {
  const TextSegment all{text, true};
  return encode_segments({&all, 1}, add_special_tokens);
}

Result<std::vector<int32_t>> Tokenizer::encode_segments(std::span<const TextSegment> segments,
                                                        bool add_special_tokens) const {
  size_t total = 0;
  bool any_untrusted = false;
  for (const TextSegment& s : segments) {
    total += s.text.size();
    any_untrusted |= !s.allow_special && !s.text.empty();
  }
  if (total > kMaxInputBytes) {
    return invalid_argument("the text has " + std::to_string(total) + " bytes; at most " +
                            std::to_string(kMaxInputBytes) + " are allowed");
  }
  // The mask exists only when both kinds are there.
  std::string joined, mask;
  std::string_view text = segments.empty() ? std::string_view() : segments[0].text;
  if (segments.size() != 1 || any_untrusted || !text::is_valid_utf8(text)) {
    joined.reserve(total);
    for (const TextSegment& s : segments) {
      const size_t before = joined.size();
      if (text::is_valid_utf8(s.text)) {
        joined.append(s.text);
      } else {
        joined.append(text::to_valid_utf8(s.text));
      }
      if (any_untrusted) mask.append(joined.size() - before, s.allow_special ? '1' : '0');
    }
    text = joined;
  }
  std::vector<int32_t> ids;
  // Room for the worst case: untouched memory costs nothing, copying a large result does.
  ids.reserve(text.size() + parts_->prefix.size() + parts_->suffix.size() + 8);
  if (add_special_tokens) ids.insert(ids.end(), parts_->prefix.begin(), parts_->prefix.end());
  text::BpeScratch scratch(text.size());
  std::vector<text::Stretch> raw, inner;
  parts_->raw_matcher.split(text, mask, raw);
  const bool must_normalize = !parts_->normalizers.empty();
  for (const text::Stretch& stretch : raw) {
    if (stretch.id >= 0) {
      ids.push_back(stretch.id);
      continue;
    }
    std::string normalized;
    std::string_view plain = text.substr(stretch.begin, stretch.end - stretch.begin);
    std::string plain_mask;
    const bool match_again = !parts_->normalized_matcher.empty();
    if (match_again && any_untrusted) plain_mask = mask.substr(stretch.begin, plain.size());
    if (must_normalize) {
      normalized = plain;
      text::normalize(parts_->normalizers, normalized, plain_mask.empty() ? nullptr : &plain_mask);
      plain = normalized;
    }
    inner.clear();
    parts_->normalized_matcher.split(plain, plain_mask, inner);
    for (const text::Stretch& piece : inner) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
      } else {
        const bool first = stretch.begin == 0 && piece.begin == 0;
        TRY(parts_->encode_plain(plain.substr(piece.begin, piece.end - piece.begin), first, scratch,
                                 ids));
      }
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  Detokenizer stream(*this, skip_special);
  std::string out;
  for (const int32_t id : ids) stream.push(id, out);
  stream.finish(out);
  return out;
}

std::optional<std::string> Tokenizer::id_to_token(int32_t id) const {
  if (!parts_->names.has(id)) return std::nullopt;
  return std::string(parts_->names.token(id));
}
std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const int32_t id = parts_->names.find(token);
  return id == text::kNoToken ? std::nullopt : std::optional(id);
}
int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(parts_->flags.size());
}
bool Tokenizer::is_special(int32_t id) const {
  return parts_->has_flag(id, Parts::kSpecial);
}
bool Tokenizer::is_added(int32_t id) const {
  return parts_->has_flag(id, Parts::kAdded);
}
bool Tokenizer::is_byte_token(int32_t id) const {
  return parts_->has_flag(id, Parts::kByte);
}
std::string_view Tokenizer::token_bytes(int32_t id) const {
  return parts_->bytes_of(id);
}
const DecodeRules& Tokenizer::decode_rules() const {
  return parts_->decode;
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return parts_->bos;
}
std::optional<int32_t> Tokenizer::eos_id() const {
  return parts_->eos;
}
std::optional<int32_t> Tokenizer::pad_id() const {
  return parts_->pad;
}
std::optional<int32_t> Tokenizer::unk_id() const {
  return parts_->unk;
}
const std::vector<int32_t>& Tokenizer::prefix_ids() const {
  return parts_->prefix;
}
const std::vector<int32_t>& Tokenizer::suffix_ids() const {
  return parts_->suffix;
}

}  // namespace weft
