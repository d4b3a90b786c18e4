#include <array>
#include <deque>
#include <list>
#include <mutex>
#include <unordered_map>

#include "grammar/trie.h"

namespace weft {

namespace {

using Threads = Simulator::Threads;

// Threads stepped, and sixteen a stack made, for one state. No honest grammar comes near: a walk
// pays for a configuration and byte once.
constexpr int64_t kStateWork = 1'000'000;
constexpr int64_t kStackWork = 16;
constexpr size_t kMaxRest = 40'000;           // remainders of a state, else it is walked whole
constexpr size_t kMaxRestVisits = 2'000'000;  // trie nodes looked at for them

struct ThreadsHash {
  size_t operator()(const Threads& threads) const {
    uint64_t h = 0x9E3779B97F4A7C15u;
    for (const auto& t : threads) {
      h ^= static_cast<uint64_t>(static_cast<uint32_t>(t.state)) << 32 |
           static_cast<uint32_t>(t.stack);
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

  int32_t intern(const Threads& threads, int64_t& work) {
    const auto [it, added] = ids_.try_emplace(threads, static_cast<int32_t>(all_.size()));
    if (added) {
      all_.emplace_back();
      all_.back().threads = &it->first;
      all_.back().next.fill(kUnknown);
      const size_t stacks = simulator_.mark();
      simulator_.closure(threads, all_.back().closed, all_.back().ended);
      work -= static_cast<int64_t>(all_.back().closed.size()) +
              kStackWork * static_cast<int64_t>(simulator_.mark() - stacks);
    }
    return it->second;
  }
  int32_t step(int32_t id, uint8_t byte, int64_t& work) {
    const int32_t known = all_[static_cast<size_t>(id)].next[byte];
    if (known != kUnknown) return known;
    work -= static_cast<int64_t>(all_[static_cast<size_t>(id)].closed.size());
    simulator_.step(all_[static_cast<size_t>(id)].closed, byte, scratch_);
    const int32_t to = scratch_.empty() ? kDead : intern(scratch_, work);
    all_[static_cast<size_t>(id)].next[byte] = to;
    return to;
  }
  bool ended(int32_t id) const { return all_[static_cast<size_t>(id)].ended; }
  bool full() const { return all_.size() >= kMaxConfigurations; }
  /// Forgets all but the configurations of `path`, which get new numbers.
  void restart(std::vector<int32_t>& path, int64_t& work) {
    std::vector<Threads> kept;
    for (const int32_t id : path) kept.push_back(*all_[static_cast<size_t>(id)].threads);
    ids_.clear();
    all_.clear();
    for (size_t i = 0; i < path.size(); ++i) path[i] = intern(kept[i], work);
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
bool walk(const TokenTrie& trie, Simulator& simulator, const Threads& from, int64_t& work,
          const Visit& visit) {
  Memo memo(simulator);
  std::vector<int32_t> path = {memo.intern(from, work)};  // [depth]
  const bool ends_at_once = memo.ended(path[0]);
  for (size_t i = 0; i < trie.size() && work > 0;) {
    const auto& node = trie.nodes[i];
    path.resize(node.depth);
    const int32_t to = memo.step(path.back(), node.byte, work);
    if (to == Memo::kDead) {
      i = node.end;
      continue;
    }
    visit(i, memo.ended(to));
    path.push_back(to);
    if (memo.full()) memo.restart(path, work);
    ++i;
  }
  return ends_at_once;
}

void set_tokens(const TokenTrie& trie, size_t node, std::vector<uint32_t>& bits) {
  for (uint32_t t = trie.nodes[node].tokens; t < trie.nodes[node + 1].tokens; ++t) {
    const auto token = static_cast<uint32_t>(trie.tokens[t]);
    bits[token / 32] |= 1u << (token % 32);
  }
}

bool has(const std::vector<uint32_t>& bits, int32_t token) {
  const auto t = static_cast<uint32_t>(token);
  return ((bits[t / 32] >> (t % 32)) & 1) != 0;
}

}  // namespace

void mark_tokens(const TokenTrie& trie, Simulator& simulator, const Threads& from, int64_t& work,
                 std::vector<uint32_t>& bits) {
  const size_t mark = simulator.mark();
  walk(trie, simulator, from, work, [&](size_t node, bool) { set_tokens(trie, node, bits); });
  simulator.release(mark);
}

StateMask compute_state_mask(const Grammar& grammar, const GrammarVocab::Parts& vocab,
                             const TokenTrie& trie, int32_t state) {
  StateMask mask;
  Simulator simulator(grammar);
  std::vector<uint32_t> bits(vocab.words());
  std::vector<size_t> ends;  // nodes inside which the rule may end
  int64_t work = kStateWork;
  mask.ends =
      walk(trie, simulator, {{state, Simulator::kBottom}}, work, [&](size_t node, bool ended) {
        set_tokens(trie, node, bits);
        if (ended && trie.nodes[node].end > node + 1) ends.push_back(node);
      });
  std::vector<std::pair<std::string_view, int32_t>> rest;
  size_t visits = 0;
  for (const size_t end : ends) {
    const auto& node = trie.nodes[end];
    visits += node.end - end;
    if (visits > kMaxRestVisits) mask.whole = true;
    if (mask.whole) break;
    for (size_t below = end + 1; below < node.end; ++below) {
      const size_t length = trie.nodes[below].depth - node.depth;
      for (uint32_t t = trie.nodes[below].tokens; t < trie.nodes[below + 1].tokens; ++t) {
        const int32_t token = trie.tokens[t];
        const std::string_view bytes = vocab.bytes_of(token);
        if (!has(bits, token)) rest.emplace_back(bytes.substr(bytes.size() - length), token);
      }
    }
    if (rest.size() > kMaxRest) mask.whole = true;
  }
  if (mask.whole) return mask;
  mask.rest = TokenTrie::build(std::move(rest));
  size_t count = 0;
  for (const uint32_t word : bits) count += static_cast<size_t>(__builtin_popcount(word));
  if (count * 2 < bits.size()) {
    for (int32_t token = 0; token < vocab.size; ++token) {
      if (has(bits, token)) mask.few.push_back(token);
    }
  } else {
    mask.accepted = std::move(bits);
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
};

TokenGrammar::Parts::Parts(std::shared_ptr<const Grammar> g, std::shared_ptr<const GrammarVocab> v)
    : grammar(std::move(g)), vocab(std::move(v)), cache_(std::make_unique<Cache>()) {}
TokenGrammar::Parts::~Parts() = default;

std::shared_ptr<const StateMask> TokenGrammar::Parts::mask_of(int32_t state) {
  return look_up(0, vocab->parts().trie, state);
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
  auto mask =
      std::make_shared<StateMask>(compute_state_mask(*grammar, vocab->parts(), trie, state));
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
  return std::make_shared<const TokenGrammar>(
      std::make_unique<Parts>(std::move(grammar), std::move(vocab)));
}

}  // namespace weft
