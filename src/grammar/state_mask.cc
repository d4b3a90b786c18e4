#include <array>
#include <deque>
#include <list>
#include <mutex>
#include <unordered_map>

#include "grammar/banned.h"
#include "grammar/trie.h"
#include "grammar/trie_merger.h"

namespace weft {

namespace {

using Threads = Simulator::Threads;

// Of the remainders of a state, else it is walked whole: nodes of their trie, and nodes looked at.
constexpr size_t kMaxRestNodes = 100'000;
constexpr size_t kMaxRestVisits = 500'000;

struct ThreadsHash {
  size_t operator()(const Threads& threads) const {
    uint64_t h = 0x9E3779B97F4A7C15u;
    for (const auto& t : threads) {
      h ^= static_cast<uint64_t>(static_cast<uint32_t>(t.state)) << 32 |
           static_cast<uint32_t>(t.stacks);
      h *= 0xBF58476D1CE4E5B9u;
      h ^= h >> 31;
    }
    return static_cast<size_t>(h);
  }
};

/// Configurations met in a walk with their transitions, so that a walk over a large trie costs a
/// table look-up a node. Forgets everything when it is full.
class Memo {
 public:
  static constexpr int32_t kDead = -1;
  static constexpr size_t kMaxConfigurations = 2048;

  explicit Memo(Simulator& simulator) : simulator_(simulator) {}

  int32_t intern(const Threads& threads) {
    const auto [it, added] = ids_.try_emplace(threads, static_cast<int32_t>(all_.size()));
    if (added) {
      all_.emplace_back();
      all_.back().threads = &it->first;
      all_.back().next.fill(kUnknown);
      simulator_.closure(threads, all_.back().closed, all_.back().ended);
    }
    return it->second;
  }
  int32_t step(int32_t id, uint8_t byte) {
    const int32_t known = all_[static_cast<size_t>(id)].next[byte];
    if (known != kUnknown) return known;
    simulator_.step(all_[static_cast<size_t>(id)].closed, byte, scratch_);
    const int32_t to = scratch_.empty() ? kDead : intern(scratch_);
    all_[static_cast<size_t>(id)].next[byte] = to;
    return to;
  }
  bool ended(int32_t id) const { return all_[static_cast<size_t>(id)].ended; }
  bool full() const { return all_.size() >= kMaxConfigurations; }
  /// Forgets all but the configurations of `path`, which get new numbers.
  void restart(std::vector<int32_t>& path) {
    std::vector<Threads> kept;
    for (const int32_t id : path) kept.push_back(*all_[static_cast<size_t>(id)].threads);
    ids_.clear();
    all_.clear();
    for (size_t i = 0; i < path.size(); ++i) path[i] = intern(kept[i]);
  }

 private:
  static constexpr int32_t kUnknown = -2;
  struct Configuration {
    const Threads* threads = nullptr;  // the key in ids_
    Threads closed;
    bool ended = false;
    std::array<int32_t, 256> next;
  };
  Simulator& simulator_;
  std::unordered_map<Threads, int32_t, ThreadsHash> ids_;
  std::deque<Configuration> all_;
  Threads scratch_;
};

/// visit(node, ended): the bytes down to the node fit; `ended`: the bottom rule may end there.
/// True: it may end before any byte.
template <class Visit>
bool walk(const TokenTrie& trie, Simulator& simulator, const Threads& from, const Visit& visit) {
  Memo memo(simulator);
  std::vector<int32_t> path = {memo.intern(from)};  // [depth]
  const bool ends_at_once = memo.ended(path[0]);
  for (size_t i = 0; i < trie.size() && !simulator.exhausted();) {
    const auto& node = trie.nodes[i];
    path.resize(node.depth);
    const int32_t to = memo.step(path.back(), node.byte);
    if (to == Memo::kDead) {
      i = node.end;
      continue;
    }
    visit(i, memo.ended(to));
    path.push_back(to);
    if (memo.full()) memo.restart(path);
    ++i;
  }
  return ends_at_once;
}

void set_bit(std::vector<uint32_t>& bits, int32_t i) {
  bits[static_cast<uint32_t>(i) / 32] |= 1u << (static_cast<uint32_t>(i) % 32);
}

/// What ends at a node of a trie.
std::span<const int32_t> ending_at(const TokenTrie& trie, size_t node) {
  const uint32_t first = trie.nodes[node].tokens;
  return std::span(trie.tokens).subspan(first, trie.nodes[node + 1].tokens - first);
}

}  // namespace

void mark_tokens(const TokenClasses& classes, const TokenTrie& trie, Simulator& simulator,
                 const Threads& from, std::vector<uint32_t>& bits) {
  const Simulator::Mark mark = simulator.mark();
  walk(trie, simulator, from, [&](size_t node, bool) {
    for (const int32_t one : ending_at(trie, node)) {
      for (const int32_t token : classes.tokens_of(one)) set_bit(bits, token);
    }
  });
  simulator.release(mark);
}

StateMask compute_state_mask(const Grammar& grammar, const TokenClasses& classes,
                             const TokenTrie& trie, int32_t state, size_t words) {
  StateMask mask;
  Simulator simulator(grammar);
  std::vector<uint32_t> bits((classes.size() + 31) / 32);  // by class
  std::vector<size_t> ends;                                // nodes inside which the rule may end
  mask.ends = walk(trie, simulator, {{state, Simulator::kBottom}}, [&](size_t node, bool ended) {
    for (const int32_t one : ending_at(trie, node)) set_bit(bits, one);
    if (ended && trie.nodes[node].end > node + 1) ends.push_back(node);
  });
  if (!ends.empty()) {
    TrieMerger rest(trie, bits, {.nodes = kMaxRestNodes, .visits = kMaxRestVisits});
    std::erase_if(ends, [&](size_t node) { return !rest.any_below(node); });
    mask.whole = !rest.merge_below(ends);
    if (mask.whole) return mask;
    mask.rest = rest.take();
  }
  const auto each = [&](const auto& visit) {  // accepted class
    for (size_t w = 0; w < bits.size(); ++w) {
      for (uint32_t left = bits[w]; left != 0; left &= left - 1) {
        visit(classes.tokens_of(static_cast<int32_t>(w * 32) + __builtin_ctz(left)));
      }
    }
  };
  size_t count = 0;
  each([&](std::span<const int32_t> tokens) { count += tokens.size(); });
  if (count * 2 < words) {
    each([&](std::span<const int32_t> tokens) {
      mask.few.insert(mask.few.end(), tokens.begin(), tokens.end());
    });
  } else {
    mask.accepted.resize(words);
    each([&](std::span<const int32_t> tokens) {
      for (const int32_t token : tokens) set_bit(mask.accepted, token);
    });
  }
  return mask;
}

struct TokenGrammar::Parts::Cache {
  struct Key {
    uint64_t inner;  // id of the mask whose remainders these are; 0: whole tokens
    int32_t state;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const {
      return static_cast<size_t>((key.inner << 32 ^ static_cast<uint32_t>(key.state)) *
                                 0x9E3779B97F4A7C15u);
    }
  };
  struct Item {
    Key key;
    std::shared_ptr<const StateMask> mask;
  };
  std::mutex mutex;
  std::list<Item> recent;  // the most recently used first
  std::unordered_map<Key, std::list<Item>::iterator, KeyHash> items;
  size_t bytes = 0;
  uint64_t last_id = 0;
  std::once_flag classified;
  TokenClasses classes;
};

TokenGrammar::Parts::Parts(std::shared_ptr<const Grammar> g, std::shared_ptr<const GrammarVocab> v)
    : grammar(std::move(g)), vocab(std::move(v)), cache_(std::make_shared<Cache>()) {}
TokenGrammar::Parts::Parts(const Parts& base, std::vector<std::vector<int32_t>> sequences)
    : grammar(base.grammar),
      vocab(base.vocab),
      banned(std::move(sequences)),
      any_text(base.any_text),
      cache_(base.cache_) {}
TokenGrammar::Parts::~Parts() = default;

std::shared_ptr<const StateMask> TokenGrammar::Parts::mask_of(int32_t state) {
  return look_up(0, classes().trie, state);
}

const TokenClasses& TokenGrammar::Parts::classes() {
  std::call_once(cache_->classified, [this] {
    cache_->classes = classify(vocab->parts().trie, *grammar);
    const std::lock_guard lock(cache_->mutex);
    cache_->bytes += cache_->classes.bytes();
  });
  return cache_->classes;
}

std::shared_ptr<const StateMask> TokenGrammar::Parts::mask_behind(const StateMask& inner,
                                                                  int32_t return_state) {
  return look_up(inner.id, inner.rest, return_state);
}

std::shared_ptr<const StateMask> TokenGrammar::Parts::look_up(uint64_t inner, const TokenTrie& trie,
                                                              int32_t state) {
  const Cache::Key key{inner, state};
  {
    const std::lock_guard lock(cache_->mutex);
    if (const auto it = cache_->items.find(key); it != cache_->items.end()) {
      cache_->recent.splice(cache_->recent.begin(), cache_->recent, it->second);
      return it->second->mask;
    }
  }
  auto mask = std::make_shared<StateMask>(
      compute_state_mask(*grammar, classes(), trie, state, vocab->parts().words()));
  const std::lock_guard lock(cache_->mutex);
  if (const auto it = cache_->items.find(key); it != cache_->items.end()) {
    return it->second->mask;  // another thread was faster
  }
  mask->id = ++cache_->last_id;
  cache_->recent.push_front({key, mask});
  cache_->items.emplace(key, cache_->recent.begin());
  cache_->bytes += mask->bytes();
  while (cache_->bytes > kMaxBytes && cache_->recent.size() > 1) {
    cache_->bytes -= cache_->recent.back().mask->bytes();
    cache_->items.erase(cache_->recent.back().key);
    cache_->recent.pop_back();
  }
  return mask;
}

TokenGrammar::TokenGrammar(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
TokenGrammar::~TokenGrammar() = default;

std::shared_ptr<const TokenGrammar> TokenGrammar::make(std::shared_ptr<const Grammar> grammar,
                                                       std::shared_ptr<const GrammarVocab> vocab) {
  auto parts = std::make_unique<Parts>(std::move(grammar), std::move(vocab));
  parts->classes();  // here, where nobody waits for a step
  return std::make_shared<const TokenGrammar>(std::move(parts));
}

std::shared_ptr<const TokenGrammar> without_sequences(
    const std::shared_ptr<const TokenGrammar>& base, std::shared_ptr<const GrammarVocab> vocab,
    std::vector<std::vector<int32_t>> banned) {
  if (base) {
    return std::make_shared<const TokenGrammar>(
        std::make_unique<TokenGrammar::Parts>(base->parts(), std::move(banned)));
  }
  auto empty = std::make_shared<Grammar>();  // one state, for the matcher to stand in
  empty->accepting = {1};
  empty->nullable = {1};
  empty->height = {0};
  empty->edge_begin = empty->call_begin = {0, 0};
  TokenGrammar::Parts any(std::move(empty), std::move(vocab));
  any.any_text = true;
  return std::make_shared<const TokenGrammar>(
      std::make_unique<TokenGrammar::Parts>(any, std::move(banned)));
}

}  // namespace weft
