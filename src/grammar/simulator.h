#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "grammar/automaton.h"

namespace weft {

/// Runs a Grammar. A thread of the automaton is a state and a stack of return states; a
/// configuration is the set of threads after some bytes, sorted. Stacks are hash-consed: two equal
/// stacks have one number, so sets stay sets. Not thread-safe.
class Simulator {
 public:
  static constexpr int32_t kBottom = -1;       ///< the empty stack
  static constexpr int kMaxDepth = 900;        ///< calls inside calls; deeper texts are refused
  static constexpr size_t kMaxThreads = 1024;  ///< of a configuration; the rest is dropped

  struct Thread {
    int32_t state = 0;
    int32_t stack = kBottom;
    friend auto operator<=>(const Thread&, const Thread&) = default;
  };
  using Threads = std::vector<Thread>;

  explicit Simulator(const Grammar& grammar) : grammar_(&grammar) {}

  Threads start() const { return {{grammar_->start, kBottom}}; }
  /// Adds the callers of `threads` whose rules may end without a byte, and theirs; `ends` says it
  /// of a state. `ended`: a thread ended with the empty stack.
  void pop_closure(const Threads& threads, const std::function<bool(int32_t)>& ends, Threads& out,
                   bool& ended);
  /// Adds what `threads` reach without a byte: finished and called rules.
  void closure(const Threads& threads, Threads& out, bool& ended);
  /// What the closure `from` becomes by a byte, sorted.
  void step(const Threads& from, uint8_t byte, Threads& out) const;

  int32_t return_state(int32_t stack) const { return frames_[static_cast<size_t>(stack)].state; }
  int32_t below(int32_t stack) const { return frames_[static_cast<size_t>(stack)].below; }

  /// Stacks made since a mark can be forgotten again, the newest first.
  size_t mark() const { return frames_.size(); }
  void release(size_t mark);
  const Grammar& grammar() const { return *grammar_; }

 private:
  struct Frame {
    int32_t state, below;
    int32_t depth;
  };
  static uint64_t key(int32_t state, int32_t below) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(state)) << 32) |
           static_cast<uint32_t>(below);
  }
  int32_t push(int32_t state, int32_t below);  // kBottom - 1: too deep
  bool add(Thread thread, Threads& out);

  const Grammar* grammar_;
  std::vector<Frame> frames_;
  std::unordered_map<uint64_t, int32_t> numbers_;
  // The members of the set being built: open addressing, emptied by its round.
  struct Slot {
    Thread thread;
    uint64_t round = 0;
  };
  std::vector<Slot> slots_ = std::vector<Slot>(2 * kMaxThreads);
  uint64_t round_ = 0;
};

}  // namespace weft
