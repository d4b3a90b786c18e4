#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/simulator.h"

namespace weft {

/// Longer tokens are no part of a constrained text.
constexpr size_t kMaxTokenBytes = 1024;

/// Byte strings with tokens at their ends, as a trie laid out in preorder.
struct TokenTrie {
  struct Node {
    uint32_t end = 0;     ///< first node after the subtree
    uint32_t tokens = 0;  ///< first token that ends here; they go on to the next node's
    uint16_t depth = 0;   ///< bytes up to and with this one, from 1
    uint8_t byte = 0;
  };
  std::vector<Node> nodes;  ///< with one past the last, the end of the token list
  std::vector<int32_t> tokens;

  size_t size() const { return nodes.empty() ? 0 : nodes.size() - 1; }
  size_t bytes() const { return nodes.size() * sizeof(Node) + tokens.size() * sizeof(int32_t); }
  /// Of (bytes, token), in any order; strings have 1 to kMaxTokenBytes bytes.
  static TokenTrie build(std::vector<std::pair<std::string_view, int32_t>> items);
};

struct GrammarVocab::Parts {
  int32_t size = 0;
  std::vector<char> bytes;
  std::vector<uint32_t> begin;  ///< [size + 1]
  TokenTrie trie;

  std::string_view bytes_of(int32_t token) const {
    const auto t = static_cast<size_t>(token);
    return {bytes.data() + begin[t], begin[t + 1] - begin[t]};
  }
  size_t words() const { return (static_cast<size_t>(size) + 31) / 32; }
};

/// A vocabulary as one grammar sees it: bytes that it tells apart nowhere are one, and tokens that
/// are the same then are one class. Tokens with bytes that it never takes are left out.
struct TokenClasses {
  TokenTrie trie;               ///< of classes; so are the remainders of its tokens
  std::vector<uint32_t> begin;  ///< [classes + 1]
  std::vector<int32_t> tokens;  ///< of the classes in turn

  size_t size() const { return begin.size() - 1; }
  std::span<const int32_t> tokens_of(int32_t one) const {
    const auto c = static_cast<size_t>(one);
    return std::span(tokens).subspan(begin[c], begin[c + 1] - begin[c]);
  }
  size_t bytes() const { return trie.bytes() + begin.size() * 4 + tokens.size() * 4; }
};
TokenClasses classify(const TokenTrie& vocab, const Grammar& grammar);

/// Which tokens, or remainders of tokens, can follow in a state as far as its own rule (and what it
/// calls) goes.
struct StateMask {
  uint64_t id = 0;                 ///< of a cached one, never used again
  std::vector<uint32_t> accepted;  ///< bits by token; empty: `few` holds them
  std::vector<int32_t> few;        ///< accepted tokens where they are few
  /// Of the other classes of tokens, what is left of them where the rule may end inside: such a
  /// token fits if one of its remainders fits what follows the rule.
  TokenTrie rest;
  bool ends = false;   ///< the rule may end here, before any byte
  bool whole = false;  ///< too much would be left: walk all with the real stacks

  size_t bytes() const {
    return sizeof(*this) + accepted.size() * 4 + few.size() * 4 + rest.bytes();
  }
};

/// Of the classes or remainders in `trie`; `words`: 32-bit ones of a mask.
StateMask compute_state_mask(const Grammar& grammar, const TokenClasses& classes,
                             const TokenTrie& trie, int32_t state, size_t words);

/// Sets the bits of the tokens of the classes of `trie` that fit `from`, as far as
/// Simulator::kMaxWork goes: what is not reached stays unset. Sets of stacks made on the way are
/// forgotten again.
void mark_tokens(const TokenClasses& classes, const TokenTrie& trie, Simulator& simulator,
                 const Simulator::Threads& from, std::vector<uint32_t>& bits);

/// The masks of the states, the least recently used forgotten where they and the classes take more
/// than kMaxBytes. Any thread.
struct TokenGrammar::Parts {
  static constexpr size_t kMaxBytes = size_t{24} << 20;

  Parts(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const GrammarVocab> vocab);
  /// The same masks, and what is banned besides.
  Parts(const Parts& base, std::vector<std::vector<int32_t>> banned);
  ~Parts();
  /// Built when first asked for.
  const TokenClasses& classes();
  /// Computes it (outside of the lock) if it is not there.
  std::shared_ptr<const StateMask> mask_of(int32_t state);
  /// The same of the remainders that a state's mask has left, in the state where its rule returns.
  std::shared_ptr<const StateMask> mask_behind(const StateMask& inner, int32_t return_state);

  const std::shared_ptr<const Grammar> grammar;
  const std::shared_ptr<const GrammarVocab> vocab;
  const std::vector<std::vector<int32_t>> banned;  ///< sequences of tokens
  bool any_text = false;                           ///< the grammar doesn't count, only `banned`

 private:
  struct Cache;
  std::shared_ptr<const StateMask> look_up(uint64_t inner, const TokenTrie& trie, int32_t state);
  std::shared_ptr<Cache> cache_;
};

}  // namespace weft
