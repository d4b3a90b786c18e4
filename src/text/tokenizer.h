#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft {

/// A part of a prompt. Added and special tokens are recognised only inside trusted parts
/// (allow_special); a token whose text spans two neighbouring trusted parts counts as inside.
struct TextSegment {
  std::string_view text;
  bool allow_special = false;
};

/// What decoding makes of a token sequence: shared by decode(), the streaming detokenizer and
/// whoever needs to know the bytes of a token.
struct DecodeRules {
  /// kByteLevel: tokens are bytes; broken UTF-8 becomes U+FFFD at the end.
  /// kByteFallback: tokens are text, except <0xHH>; a run of those is text if it is valid UTF-8,
  /// and one U+FFFD for each byte otherwise.
  enum Kind { kByteLevel, kByteFallback } kind = kByteLevel;
  char32_t strip = 0;      ///< character removed from the start of the whole text, 0: none
  size_t strip_start = 0;  ///< at most so many of them
};

/// A Hugging Face tokenizer: BPE, byte level or SentencePiece style. Immutable after loading and
/// safe to use from any number of threads.
///
/// Ids equal those of the `tokenizers` library (0.23) for what is supported:
///   normalizer      null, NFC, Prepend, Replace (String), Sequence
///   pre_tokenizer   null, Split (Regex or String, all behaviours), ByteLevel, Metaspace, Sequence
///   model           BPE: byte_fallback, fuse_unk, ignore_merges, unk_token
///   post_processor  null, ByteLevel, TemplateProcessing, Sequence
///   decoder         ByteLevel; Sequence of Replace, ByteFallback, Fuse, Strip (in that order, each
///                   optional but Fuse before Strip)
/// Anything else is refused by name.
class Tokenizer {
 public:
  static constexpr size_t kMaxInputBytes = size_t{256} << 20;

  /// Reads tokenizer.json and, if there, tokenizer_config.json and special_tokens_map.json of a
  /// model directory.
  /// Errors: kNotFound, kInvalidArgument and kUnsupported with the file and the field.
  static Result<Tokenizer> load(const std::filesystem::path& dir);
  /// The same from the texts of the files; the last two may be empty.
  static Result<Tokenizer> from_json(std::string_view tokenizer_json,
                                     std::string_view tokenizer_config_json,
                                     std::string_view special_tokens_map_json = {});
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of `text`, all of it trusted. `add_special_tokens`: what the post-processor puts around a
  /// prompt (BOS, mostly). Invalid UTF-8 is read as U+FFFD.
  /// Errors: kInvalidArgument over kMaxInputBytes; kExhausted when a foreign split pattern
  /// backtracks without end on this text.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens) const;

  /// Ids of the joined text, where only trusted parts may contain added or special tokens. Words
  /// are cut exactly as in the joined text with those tokens in place.
  Result<std::vector<int32_t>> encode_segments(std::span<const TextSegment> segments,
                                               bool add_special_tokens) const;

  /// Text of `ids`; ids without a token vanish, as in `tokenizers`. `skip_special`: leave out the
  /// tokens marked special. Always valid UTF-8.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  /// The token string as tokenizer.json spells it, or nothing.
  std::optional<std::string> id_to_token(int32_t id) const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  /// Largest id + 1, added tokens included: rows that the embedding must have at least.
  int32_t vocab_size() const;
  bool is_special(int32_t id) const;
  bool is_added(int32_t id) const;
  /// The bytes that the token stands for in running text; may be part of a character. Empty for an
  /// id without a token. Points into the tokenizer.
  std::string_view token_bytes(int32_t id) const;
  /// Whether the token is one <0xHH> byte of a byte-fallback vocabulary.
  bool is_byte_token(int32_t id) const;
  const DecodeRules& decode_rules() const;

  /// From tokenizer_config.json, or from special_tokens_map.json where that has no word of it;
  /// nothing where it is absent, null or not a token.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  std::optional<int32_t> unk_id() const;
  /// Ids that encode(add_special_tokens) puts before and after the text.
  const std::vector<int32_t>& prefix_ids() const;
  const std::vector<int32_t>& suffix_ids() const;

 private:
  friend class TokenizerLoader;
  friend class Detokenizer;
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

}  // namespace weft
