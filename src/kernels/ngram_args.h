#pragma once

// Texts on a GPU and an index of each of what followed its n-grams: the matcher of
// sched/ngram_matcher.h there, with the same proposals. S segments of a step, T rows, K drafts.

#include <cstdint>

#include "base/gram_hash.h"
#include "tensor/view.h"

namespace weft {

inline constexpr int kMaxNgram = 64;      ///< the longest n-gram, and the longest match counted
inline constexpr int kMaxNgramTail = 32;  ///< new tokens of a step, and as many of another source
/// A text and a tail are 2^25 tokens.
inline constexpr int64_t kMaxNgramText = (int64_t{1} << 25) - kMaxNgramTail;

/// Memory for the texts of `slots` sequences.
struct NgramIndex {
  void* memory = nullptr;  ///< bytes(), of the device, aligned to 32; what it holds does not matter
  int64_t slots = 0;
  int64_t capacity = 0;  ///< tokens of a text at most
  int min_size = 1, max_size = 1;
  /// Of the hash, random: a text made for it would cost a walk through its whole table. The same
  /// from first to last; no proposal depends on them.
  GramKeys keys;

  /// Per slot: a head, the text, and 12 bytes a token and size for the ends of its n-grams.
  static constexpr int64_t kHeadBytes = 288;
  static constexpr int64_t buckets(int64_t tokens) { return tokens * 3 / 8 + 1; }
  int64_t text_bytes() const { return (capacity * 4 + 31) / 32 * 32; }
  int64_t slot_bytes() const {
    return text_bytes() + (max_size - min_size + 1) * buckets(capacity) * 32;
  }
  int64_t bytes() const { return slots * (kHeadBytes + slot_bytes()); }
};

/// Tokens that come to a text.
struct NgramText {
  int32_t slot = 0;
  int32_t known = 0;  ///< tokens that it has; 0: a new one
  int32_t count = 0;
  int32_t first = 0;  ///< of ExtendNgramsArgs::tokens
  int32_t limit = 0;  ///< tokens it may grow to, at most the capacity; the same from first to last
};

/// Puts tokens that the host knows behind texts: a prompt, or what a step did not append itself.
struct ExtendNgramsArgs {
  NgramIndex index;
  const NgramText* texts = nullptr;  ///< [num_texts] device memory; each slot once
  int num_texts = 0;
  bool any_new = false;             ///< one of them is
  int64_t most_tokens = 0;          ///< the greatest count
  const int32_t* tokens = nullptr;  ///< device memory
};

/// Appends the tokens of a step, and proposes what follows them.
struct ProposeNgramsArgs {
  NgramIndex index;
  TensorView slots;     ///< [S] i32, each once; -1: none
  TensorView cu_q;      ///< [S + 1] i32: the first row of each segment
  TensorView next_ids;  ///< [T] i32: the token behind each row
  TensorView counts;    ///< [S] i32: rows of a segment whose tokens count, to kMaxNgramTail. Tokens
                        ///< behind a text's limit are left out
  int most_tokens = 1;  ///< about the greatest count
  /// Tokens of another source that stand behind those: matched as if they were text, but not kept.
  TensorView behind;         ///< [S, at most kMaxNgramTail] i32, or undefined
  TensorView behind_counts;  ///< [S] i32
  /// By slot; those of slots that no segment has are left alone. May be host memory.
  TensorView drafts;   ///< out [slots, K] i32; left alone without a match
  TensorView matched;  ///< out [slots] i32: NgramDraft::matched
  TensorView lengths;  ///< out [slots] i32: tokens of the text by now
};

}  // namespace weft
