#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/split.h"
#include "text/tokenizer.h"

namespace weft {
namespace text {

struct NfcNormalizer {};
struct PrependNormalizer {
  std::string prefix;
};
struct ReplaceNormalizer {
  std::string pattern, content;
};
using Normalizer = std::variant<NfcNormalizer, PrependNormalizer, ReplaceNormalizer>;

/// Normalizes in place; `mask` as in normalize_nfc.
void normalize(const std::vector<Normalizer>& steps, std::string& text, std::string* mask);

enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  KnownPattern known = KnownPattern::kNone;
  std::optional<Regex> regex;  ///< else `literal`
  std::string literal;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
};
/// ByteLevel's add_prefix_space, or Metaspace: "always" prepends to every stretch, "first" to the
/// first one of the text only.
struct PrependStep {
  enum When { kAlways, kFirst } when = kAlways;
  std::string prefix;
};
struct ReplaceStep {
  std::string pattern, content;
};
/// Metaspace split: every U+2581 starts a word.
struct MetaspaceSplitStep {};
/// GPT-2's byte alphabet: every byte is spelled as one printable character.
class ByteAlphabet {
 public:
  ByteAlphabet();
  /// The bytes that a byte-level token spells; nothing if it leaves the alphabet.
  std::optional<std::string> spelled(std::string_view token) const;

 private:
  std::vector<int16_t> byte_of_;  // by code point, -1: none
};

/// What the loader hands over to make the tables of decoding and of added tokens.
struct TokenTables {
  std::vector<AddedToken> added;
  std::vector<Normalizer> replaces;  ///< Replace steps of the decoder
  bool byte_level = false;
  bool byte_tokens = false;  ///< <0xHH> stands for a byte
};

using PreTokenizer = std::variant<SplitStep, PrependStep, ReplaceStep, MetaspaceSplitStep>;

}  // namespace text

struct Tokenizer::Parts {
  std::vector<text::Normalizer> normalizers;
  std::vector<text::PreTokenizer> pre_tokenizers;
  text::KnownPattern only_pattern =
      text::KnownPattern::kNone;  ///< set if that is the whole pre-tokenizer
  std::optional<text::Bpe> bpe;

  text::Vocab names;  ///< every token as the file spells it, added ones too
  /// What each id stands for in text: bytes[starts[id], starts[id + 1]).
  std::string bytes;
  std::vector<uint32_t> starts;
  enum Flags : uint8_t {
    kSpecial = 1,
    kAdded = 2,
    kByte = 4,      ///< <0xHH> of a byte-fallback vocabulary
    kWhole = 8,     ///< its bytes are whole characters
    kPresent = 16,  ///< there is a token with this id
  };
  std::vector<uint8_t> flags;                  ///< by id
  text::AddedTokenMatcher raw_matcher;         ///< tokens matched before normalization
  text::AddedTokenMatcher normalized_matcher;  ///< tokens matched after it

  DecodeRules decode;
  std::vector<int32_t> prefix, suffix;
  std::optional<int32_t> bos, eos, pad, unk;

  /// Fills bytes, starts, flags and the matchers from `names`.
  Result<void> build(const text::TokenTables& tables);
  bool has_flag(int32_t id, uint8_t flag) const {
    return id >= 0 && static_cast<size_t>(id) < flags.size() &&
           (flags[static_cast<size_t>(id)] & flag);
  }
  std::string_view bytes_of(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= flags.size()) return {};
    const auto i = static_cast<size_t>(id);
    return {bytes.data() + starts[i], starts[i + 1] - starts[i]};
  }
  /// Appends the ids of text that holds no added token. `first`: it is the start of the text.
  Result<void> encode_plain(std::string_view s, bool first, text::BpeScratch& scratch,
                            std::vector<int32_t>& out) const;
  Result<void> pre_tokenize(std::string_view s, bool first, std::vector<std::string>& pieces) const;
};

}  // namespace weft
