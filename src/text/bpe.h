#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft::text {

constexpr int32_t kNoToken = -1;

/// Token strings and ids, both ways, in one block of memory.
class Vocab {
 public:
  /// Room for ids < `num_ids`; the strings follow by add().
  explicit Vocab(size_t num_ids = 0);
  /// False if the id or the string is already there.
  bool add(std::string_view token, int32_t id);
  int32_t find(std::string_view token) const;
  bool has(int32_t id) const;
  std::string_view token(int32_t id) const;  ///< "" for an id without a token
  size_t num_ids() const { return entries_.size(); }

 private:
  struct Entry {
    uint32_t offset = 0, length = 0;
    bool used = false;
  };
  void grow();
  std::string bytes_;
  std::vector<Entry> entries_;  // by id
  std::vector<int32_t> slots_;  // open addressing: id or kNoToken
  size_t num_used_ = 0;
};

struct Merge {
  int32_t left, right, result;
};

struct BpeOptions {
  bool byte_level = false;     ///< words are bytes; else characters
  bool byte_fallback = false;  ///< an unknown character becomes its <0xHH> tokens
  bool fuse_unk = false;       ///< neighbouring unknown characters become one unknown token
  bool ignore_merges = false;  ///< a word that is a token is that token
  int32_t unk_id = kNoToken;   ///< without it, unknown characters vanish (as in tokenizers)
};

/// Working memory of one encode call: a cache of short words and the arrays for long ones.
class BpeScratch;

/// Byte-pair encoding: merges the pair of lowest rank, leftmost first, until none is left.
class Bpe {
 public:
  /// `vocab`: encode-side strings (raw bytes for byte level). Merges in order of rank.
  /// Errors: two merges of the same pair.
  static Result<Bpe> make(Vocab vocab, std::vector<Merge> merges, BpeOptions options);

  /// Appends the ids of one pre-token (valid UTF-8 unless byte level). O(n log n) in its bytes.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const;

  /// Whether no token holds U+2581 after another character, so that words may be cut in front of
  /// it.
  bool cut_before_metaspace() const { return cut_before_metaspace_; }
  const Vocab& vocab() const { return vocab_; }

 private:
  friend class BpeScratch;
  Bpe() = default;
  void encode_uncached(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const;
  size_t next_cut(std::string_view word, size_t begin) const;
  void append_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
  void merge_short(std::vector<int32_t>& symbols, std::vector<int32_t>& out) const;
  void merge_long(BpeScratch& scratch, std::vector<int32_t>& out) const;
  uint32_t rank(int32_t left, int32_t right) const;

  struct PairSlot {
    uint64_t key = ~0ull;
    uint32_t rank = 0;
  };
  Vocab vocab_;
  std::vector<Merge> merges_;    // by rank
  std::vector<PairSlot> pairs_;  // open addressing
  BpeOptions options_;
  int32_t byte_ids_[256];  // byte level: the byte's token; byte fallback: <0xHH>
  bool cut_before_metaspace_ = false;
  std::vector<bool>
      joins_;  // byte level: by left byte << 8 | right byte, whether a token holds both
};

class BpeScratch {
 public:
  /// `text_bytes`: how much will be encoded with it (sizes the word cache).
  explicit BpeScratch(size_t text_bytes);
  ~BpeScratch();
  BpeScratch(const BpeScratch&) = delete;
  BpeScratch& operator=(const BpeScratch&) = delete;

 private:
  friend class Bpe;
  /// One line of the cache: a short word and its ids.
  struct CachedWord {
    static constexpr size_t kBytes = 22, kIds = 10;
    uint8_t length = 0, count = 0;
    char bytes[kBytes];
    int32_t ids[kIds];
  };
  static_assert(sizeof(CachedWord) == 64);
  struct Long;
  // What a call takes and gives back leaves a hole in the heap: few words need none of it, and
  // memory of a larger alignment is not asked for (glibc finds no freed piece for it).
  static constexpr size_t kFewWords = 64;
  alignas(64) std::array<CachedWord, kFewWords> few_;
  std::unique_ptr<std::byte[]> many_;
  CachedWord* cache_ = few_.data();
  size_t cache_mask_ = kFewWords - 1;
  std::vector<int32_t> symbols_;
  std::unique_ptr<Long> long_;
};

}  // namespace weft::text
