#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "grammar/trie.h"

namespace weft {
namespace {

constexpr size_t kMaxCacheBytes = size_t{64} << 20;
constexpr size_t kMaxRest = 40'000;  // tokens left over in one state; beyond it all are walked
constexpr size_t kFew = 64;

void set_bit(std::vector<uint32_t>& bits, int32_t token) {
  bits[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
}
bool has_bit(const std::vector<uint32_t>& bits, int32_t token) {
  return ((bits[static_cast<size_t>(token) / 32] >> (token % 32)) & 1) != 0;
}

/// Walks the trie beside the automaton: `visit(index, ended)` for every node that is reached alive.
/// Stacks made on the way are forgotten. True: `from` ends without a byte.
template <class Visit>
bool walk(const TokenTrie& trie, Simulator& simulator, const Simulator::Threads& from,
          const Visit& visit) {
  const size_t mark = simulator.mark();
  std::vector<Simulator::Threads> closures(1);
  std::vector<size_t> marks(1);  // stacks made up to a depth
  bool ended = false;
  simulator.closure(from, closures[0], ended);
  const bool ends_at_once = ended;
  marks[0] = simulator.mark();
  Simulator::Threads next;
  for (size_t i = 0; i < trie.size();) {
    const TokenTrie::Node& node = trie.nodes[i];
    const size_t depth = node.depth;
    simulator.release(marks[depth - 1]);
    simulator.step(closures[depth - 1], node.byte, next);
    if (next.empty()) {
      i = node.end;
      continue;
    }
    if (closures.size() <= depth) {
      closures.resize(depth + 1);
      marks.resize(depth + 1);
    }
    simulator.closure(next, closures[depth], ended);
    marks[depth] = simulator.mark();
    visit(i, ended);
    ++i;
  }
  simulator.release(mark);
  return ends_at_once;
}

}  // namespace

StateMask compute_state_mask(const Grammar& grammar, const GrammarVocab::Parts& vocab,
                             int32_t state) {
  StateMask mask;
  mask.accepted.resize(vocab.words());
  Simulator simulator(grammar);
  std::vector<std::pair<std::string_view, int32_t>> rest;
  const TokenTrie& trie = vocab.trie;
  size_t num_accepted = 0;
  const auto tokens_of = [&](size_t begin, size_t end, const auto& use) {
    for (uint32_t t = trie.nodes[begin].tokens; t < trie.nodes[end].tokens; ++t) {
      use(trie.tokens[t]);
    }
  };
  const auto visit = [&](size_t i, bool ended) {
    tokens_of(i, i + 1, [&](int32_t token) {
      set_bit(mask.accepted, token);
      ++num_accepted;
    });
    if (!ended || mask.whole) return;
    // The rule may end here: what follows in these tokens is for whoever called it.
    const size_t depth = trie.nodes[i].depth;
    tokens_of(i + 1, trie.nodes[i].end, [&](int32_t token) {
      rest.emplace_back(vocab.bytes_of(token).substr(depth), token);
    });
    mask.whole = rest.size() > kMaxRest;
  };
  mask.ends = walk(trie, simulator, {{state, Simulator::kBottom}}, visit);
  if (!mask.whole) {
    std::erase_if(rest, [&](const auto& item) { return has_bit(mask.accepted, item.second); });
    mask.rest = TokenTrie::build(std::move(rest));
  }
  if (num_accepted <= kFew) {
    for (int32_t token = 0; token < vocab.size; ++token) {
      if (has_bit(mask.accepted, token)) mask.few.push_back(token);
    }
    mask.accepted.clear();
  }
  return mask;
}

void mark_tokens(const TokenTrie& trie, Simulator& simulator, const Simulator::Threads& from,
                 std::vector<uint32_t>& bits) {
  walk(trie, simulator, from, [&](size_t i, bool) {
    for (uint32_t t = trie.nodes[i].tokens; t < trie.nodes[i + 1].tokens; ++t) {
      set_bit(bits, trie.tokens[t]);
    }
  });
}

struct TokenGrammar::Parts::Impl {
  std::mutex mutex;  // guards the rest
  std::unordered_map<int32_t, std::shared_ptr<const StateMask>> masks;
  size_t bytes = 0;
};

TokenGrammar::Parts::Parts(std::shared_ptr<const Grammar> g, std::shared_ptr<const GrammarVocab> v)
    : grammar(std::move(g)), vocab(std::move(v)), impl(std::make_unique<Impl>()) {}
TokenGrammar::Parts::~Parts() = default;

std::shared_ptr<const StateMask> TokenGrammar::Parts::mask_of(int32_t state) {
  {
    const std::lock_guard lock(impl->mutex);
    if (const auto it = impl->masks.find(state); it != impl->masks.end()) return it->second;
  }
  auto mask =
      std::make_shared<const StateMask>(compute_state_mask(*grammar, vocab->parts(), state));
  const std::lock_guard lock(impl->mutex);
  if (impl->bytes + mask->bytes() > kMaxCacheBytes) {
    impl->masks.clear();
    impl->bytes = 0;
  }
  if (impl->masks.emplace(state, mask).second) impl->bytes += mask->bytes();
  return mask;
}

std::shared_ptr<const TokenGrammar> TokenGrammar::make(std::shared_ptr<const Grammar> grammar,
                                                       std::shared_ptr<const GrammarVocab> vocab) {
  return std::make_shared<const TokenGrammar>(
      std::make_unique<Parts>(std::move(grammar), std::move(vocab)));
}

TokenGrammar::TokenGrammar(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
TokenGrammar::~TokenGrammar() = default;

}  // namespace weft
