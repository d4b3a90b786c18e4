#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "grammar/automaton.h"
#include "grammar/trie.h"

namespace weft {

/// For each byte the one that stands for it: the least of those that the grammar tells apart from
/// it nowhere; -1 where no text has it.
using ByteClasses = std::array<int16_t, 256>;
ByteClasses byte_classes(const Grammar& grammar);

/// Subtrees of a trie laid over each other, as a trie of its own.
class TrieMerger {
 public:
  struct Limits {
    size_t nodes = std::numeric_limits<size_t>::max();   ///< of the result
    size_t visits = std::numeric_limits<size_t>::max();  ///< nodes looked at
  };
  /// `accepted`: bits by token, of those to be left out.
  TrieMerger(const TokenTrie& from, const std::vector<uint32_t>& accepted, Limits limits);

  /// Whether a token is left below the node.
  bool any_below(size_t node) const { return any_left(node + 1, from_.nodes[node].end); }
  /// What lies below the nodes `ends`. False: too much.
  bool merge_below(const std::vector<size_t>& ends);
  /// The whole trie with `classes` for its bytes.
  void merge_classes(const ByteClasses& classes);
  TokenTrie take() { return out_.nodes.size() < 2 ? TokenTrie() : std::move(out_); }

 private:
  struct Child {
    uint32_t node;
    uint8_t byte;
  };
  bool fits() const { return visits_ <= limits_.visits && out_.nodes.size() <= limits_.nodes; }
  bool any_left(size_t node, size_t end) const {
    return num_left_[from_.nodes[node].tokens] < num_left_[from_.nodes[end].tokens];
  }
  void collect(size_t begin, size_t end);
  void sort_from(size_t begin);
  void add_group(size_t begin, uint16_t depth);
  void close();

  const TokenTrie& from_;
  const Limits limits_;
  ByteClasses classes_;
  std::vector<uint32_t> num_left_;  // of the tokens before
  std::vector<Child> group_, sorted_;
  size_t visits_ = 0;
  TokenTrie out_;
};

}  // namespace weft
