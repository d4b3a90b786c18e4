#include "text/added_tokens.h"

#include "text/unicode.h"

namespace weft::text {
namespace {

bool word_before(std::string_view s, size_t i) {
  return i > 0 && (char_table()(decode_before(s.data(), s.data() + i).code) & kWord);
}
bool word_at(std::string_view s, size_t i) {
  return i < s.size() && (char_table()(decode_valid(s.data() + i).code) & kWord);
}

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token, std::string_view pattern) {
  uint32_t node = 0;
  for (const char c : pattern) {
    const uint64_t key = uint64_t{node} << 8 | static_cast<unsigned char>(c);
    const auto [it, added] = edges_.try_emplace(key, static_cast<uint32_t>(token_at_.size()));
    if (added) token_at_.push_back(-1);
    node = it->second;
  }
  if (node == 0 || token_at_[node] >= 0) return;  // empty, or normalized to one that is there
  token_at_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back({token.id, token.single_word, token.lstrip, token.rstrip});
  first_byte_[static_cast<unsigned char>(pattern[0])] = true;
}

const AddedTokenMatcher::Flags* AddedTokenMatcher::longest_at(std::string_view s, size_t begin,
                                                              size_t limit, size_t* end) const {
  const Flags* best = nullptr;
  uint32_t node = 0;
  for (size_t i = begin; i < limit; ++i) {
    const auto it = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(s[i]));
    if (it == edges_.end()) break;
    node = it->second;
    if (token_at_[node] >= 0) {
      best = &tokens_[static_cast<size_t>(token_at_[node])];
      *end = i + 1;
    }
  }
  return best;
}

void AddedTokenMatcher::split(std::string_view s, std::string_view mask,
                              std::vector<Stretch>& out) const {
  if (s.empty()) return;
  size_t done = 0;  // s[0, done) is in `out`
  size_t i = 0;
  size_t limit = mask.empty() ? s.size() : 0;  // end of the trusted run that holds i
  while (!tokens_.empty()) {
    if (i >= limit) {
      if (mask.empty() || i >= s.size()) break;
      const size_t run = mask.find('1', i);
      if (run == std::string_view::npos) break;
      i = run;
      limit = std::min(mask.find('0', i), s.size());
    }
    while (i < limit && !first_byte_[static_cast<unsigned char>(s[i])]) ++i;
    if (i >= limit) continue;
    size_t end = 0;
    const Flags* token = longest_at(s, i, limit, &end);
    if (!token) {
      ++i;
      continue;
    }
    size_t begin = i;
    i = end;
    if (token->single_word && (word_before(s, begin) || word_at(s, end))) continue;
    const CharTable& table = char_table();
    while (token->lstrip && begin > done) {
      const Decoded d = decode_before(s.data(), s.data() + begin);
      if (!(table(d.code) & kSpace)) break;
      begin -= static_cast<size_t>(d.length);
    }
    while (token->rstrip && end < s.size()) {
      const Decoded d = decode_valid(s.data() + end);
      if (!(table(d.code) & kSpace)) break;
      end += static_cast<size_t>(d.length);
    }
    if (begin < done) begin = done;  // a token inside whitespace that the previous one swallowed
    if (end < begin) end = begin;
    if (done < begin) out.push_back({done, begin, -1});
    out.push_back({begin, end, token->id});
    done = end;
  }
  if (done < s.size()) out.push_back({done, s.size(), -1});
}

}  // namespace weft::text
