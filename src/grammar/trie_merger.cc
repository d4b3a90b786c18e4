#include "grammar/trie_merger.h"

#include <algorithm>
#include <map>

#include "base/random_key.h"

namespace weft {

namespace {

constexpr size_t kManyChildren = 96;  // from here on counted, not compared

/// The last steps of splitmix64.
uint64_t scatter(uint64_t h) {
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
  return h ^ (h >> 31);
}

bool has(const std::vector<uint32_t>& bits, int32_t token) {
  const auto t = static_cast<uint32_t>(token);
  return ((bits[t / 32] >> (t % 32)) & 1) != 0;
}

}  // namespace

/// Two bytes are one class where the edges over them are the same. The edges of a byte are summed
/// as random numbers under a key that no author of a grammar knows.
ByteClasses byte_classes(const Grammar& grammar) {
  const uint64_t key = random_key();
  std::array<uint64_t, 257> change{};  // of the sum, from a byte to the next
  for (int32_t state = 0; state < grammar.num_states(); ++state) {
    for (const Grammar::Edge& edge : grammar.edges_of(state)) {
      const uint64_t way = static_cast<uint64_t>(static_cast<uint32_t>(state)) << 32 |
                           static_cast<uint32_t>(edge.target);
      const uint64_t number = scatter(scatter(way + key) ^ key);
      change[edge.low] += number;
      change[size_t{edge.high} + 1] -= number;
    }
  }
  std::array<int32_t, 257> covered{};
  for (const Grammar::Edge& edge : grammar.edges) {
    ++covered[edge.low];
    --covered[size_t{edge.high} + 1];
  }
  ByteClasses classes;
  std::map<uint64_t, int16_t> first;  // by sum
  uint64_t sum = 0;
  int32_t edges = 0;
  for (int16_t byte = 0; byte < 256; ++byte) {
    sum += change[static_cast<size_t>(byte)];
    edges += covered[static_cast<size_t>(byte)];
    classes[static_cast<size_t>(byte)] =
        edges == 0 ? int16_t{-1} : first.try_emplace(sum, byte).first->second;
  }
  return classes;
}

TrieMerger::TrieMerger(const TokenTrie& from, const std::vector<uint32_t>& accepted, Limits limits)
    : from_(from), limits_(limits) {
  for (int16_t byte = 0; byte < 256; ++byte) classes_[static_cast<size_t>(byte)] = byte;
  num_left_.reserve(from.tokens.size() + 1);
  num_left_.push_back(0);
  for (const int32_t token : from.tokens) {
    num_left_.push_back(num_left_.back() + (has(accepted, token) ? 0 : 1));
  }
}

/// The siblings in [begin, end), those with tokens left.
void TrieMerger::collect(size_t begin, size_t end) {
  for (size_t c = begin; c < end; c = from_.nodes[c].end) {
    ++visits_;
    const int16_t byte = classes_[from_.nodes[c].byte];
    if (byte >= 0 && any_left(c, from_.nodes[c].end)) {
      group_.push_back({static_cast<uint32_t>(c), static_cast<uint8_t>(byte)});
    }
  }
}

void TrieMerger::sort_from(size_t begin) {
  const auto first = group_.begin() + static_cast<ptrdiff_t>(begin);
  const auto less = [](const Child& a, const Child& b) { return a.byte < b.byte; };
  if (std::is_sorted(first, group_.end(), less)) return;
  if (group_.size() - begin < kManyChildren) {
    std::sort(first, group_.end(), less);
    return;
  }
  std::array<uint32_t, 257> place{};
  for (auto it = first; it != group_.end(); ++it) ++place[size_t{it->byte} + 1];
  for (size_t b = 0; b < 256; ++b) place[b + 1] += place[b];
  sorted_.assign(first, group_.end());
  for (const Child& child : sorted_) group_[begin + place[child.byte]++] = child;
}

/// Nodes of this depth for group_[begin, ...), which it takes away: one for each byte. No deeper
/// than a token is long.
void TrieMerger::add_group(size_t begin, uint16_t depth) {
  sort_from(begin);
  const size_t last = group_.size();
  for (size_t c = begin; c < last && fits();) {
    size_t behind = c;
    while (behind < last && group_[behind].byte == group_[c].byte) ++behind;
    const size_t node = out_.nodes.size();
    const size_t tokens = out_.tokens.size();
    out_.nodes.push_back({.end = 0,
                          .tokens = static_cast<uint32_t>(tokens),
                          .depth = depth,
                          .byte = group_[c].byte});
    for (size_t g = c; g < behind; ++g) {
      const size_t from = group_[g].node;
      for (uint32_t t = from_.nodes[from].tokens; t < from_.nodes[from + 1].tokens; ++t) {
        if (num_left_[t] < num_left_[t + 1]) out_.tokens.push_back(from_.tokens[t]);
      }
    }
    const auto first = out_.tokens.begin() + static_cast<ptrdiff_t>(tokens);
    std::sort(first, out_.tokens.end());
    out_.tokens.erase(std::unique(first, out_.tokens.end()), out_.tokens.end());
    for (size_t g = c; g < behind; ++g) {
      const size_t parent = group_[g].node;
      collect(parent + 1, from_.nodes[parent].end);
    }
    add_group(last, static_cast<uint16_t>(depth + 1));
    out_.nodes[node].end = static_cast<uint32_t>(out_.nodes.size());
    c = behind;
  }
  group_.resize(begin);
}

void TrieMerger::close() {
  out_.nodes.push_back({.end = 0, .tokens = static_cast<uint32_t>(out_.tokens.size())});
  out_.nodes.shrink_to_fit();
  out_.tokens.shrink_to_fit();
}

bool TrieMerger::merge_below(const std::vector<size_t>& ends) {
  for (const size_t node : ends) collect(node + 1, from_.nodes[node].end);
  add_group(0, 1);
  if (!fits()) return false;
  close();
  return true;
}

void TrieMerger::merge_classes(const ByteClasses& classes) {
  classes_ = classes;
  collect(0, from_.size());
  add_group(0, 1);
  close();
}

TokenClasses classify(const TokenTrie& vocab, const Grammar& grammar) {
  int32_t last = -1;  // token
  for (const int32_t token : vocab.tokens) last = std::max(last, token);
  TrieMerger merger(vocab, std::vector<uint32_t>(static_cast<size_t>(last) / 32 + 1), {});
  merger.merge_classes(byte_classes(grammar));
  TokenClasses out;
  out.trie = merger.take();
  out.tokens = std::move(out.trie.tokens);
  out.trie.tokens.clear();
  for (size_t node = 0; node < out.trie.size(); ++node) {
    const uint32_t first = out.trie.nodes[node].tokens, end = out.trie.nodes[node + 1].tokens;
    out.trie.nodes[node].tokens = static_cast<uint32_t>(out.begin.size());
    if (first < end) {
      out.trie.tokens.push_back(static_cast<int32_t>(out.begin.size()));
      out.begin.push_back(first);
    }
  }
  if (!out.trie.nodes.empty()) {
    out.trie.nodes.back().tokens = static_cast<uint32_t>(out.begin.size());
  }
  out.begin.push_back(static_cast<uint32_t>(out.tokens.size()));
  return out;
}

}  // namespace weft
