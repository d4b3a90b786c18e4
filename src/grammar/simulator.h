#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "grammar/automaton.h"

namespace weft {

/// Runs a Grammar. A configuration has a thread for each state that the text so far may be in, with
/// the set of the stacks of return states it may be there with. A set is written by what may be on
/// top: for each return state the set of what may lie below; equal sets have one number. So a
/// configuration is never larger than the automaton, however many stacks are possible. Not
/// thread-safe.
class Simulator {
 public:
  static constexpr int32_t kBottom = 0;  ///< the set of the empty stack alone
  /// Calls inside calls, beyond which a mask leaves only what leads back.
  static constexpr int32_t kMaxDepth = 900;
  /// Threads stepped, and 64 a set made, since the last reset_work(); beyond it stacks are
  /// dropped. No honest grammar comes near.
  static constexpr int64_t kMaxWork = 200'000;
  static constexpr int64_t kSetWork = 64;

  struct Thread {
    int32_t state = 0;
    int32_t stacks = kBottom;
    friend auto operator<=>(const Thread&, const Thread&) = default;
  };
  using Threads = std::vector<Thread>;  ///< each state once
  struct Top {
    int32_t state = 0;  ///< where to go on
    int32_t below = kBottom;
    friend auto operator<=>(const Top&, const Top&) = default;
  };

  explicit Simulator(const Grammar& grammar);

  Threads start() const { return {{grammar_->start, kBottom}}; }
  /// Adds the callers of `threads` whose rules may end without a byte, and theirs. `ended`: a
  /// thread ended with the empty stack.
  void pop_closure(const Threads& threads, Threads& out, bool& ended);
  /// Adds what `threads` reach without a byte: finished and called rules.
  void closure(const Threads& threads, Threads& out, bool& ended);
  /// What the closure `from` becomes by a byte, sorted.
  void step(const Threads& from, uint8_t byte, Threads& out);
  /// All stacks of either set.
  int32_t unite(int32_t a, int32_t b);

  size_t num_tops(int32_t stacks) const { return set(stacks).count; }
  Top top(int32_t stacks, size_t i) const { return tops_[set(stacks).first + i]; }
  bool has_empty(int32_t stacks) const { return set(stacks).has_empty; }
  /// Frames of its highest stack.
  int32_t depth(int32_t stacks) const { return set(stacks).depth; }
  /// Frames that a thread has, or needs, to complete its text.
  int32_t reach(const Thread& thread) const {
    return depth(thread.stacks) + grammar_->height_of(thread.state);
  }
  /// closure() and step() leave out what reaches beyond `depth`, except the ways that go no deeper
  /// than where they begin: some way always stays.
  void bound_depth(int32_t depth) { bound_ = depth; }

  void reset_work() { work_ = 0; }
  void add_work(int64_t units) { work_ += units; }
  bool exhausted() const { return work_ > kMaxWork; }
  size_t num_sets() const { return sets_.size(); }
  /// Sets made since a mark can be forgotten again, the newest first.
  struct Mark {
    size_t sets, united, popped;
    uint64_t times_forgotten;
  };
  Mark mark() const {
    return {sets_.size(), united_log_.size(), popped_log_.size(), times_forgotten_};
  }
  void release(Mark mark);
  /// Forgets all sets but those of `roots`, which get new numbers.
  void compact(std::span<Threads* const> roots);
  const Grammar& grammar() const { return *grammar_; }

 private:
  struct Set {
    uint32_t first = 0, count = 0;  // in tops_, by state
    int32_t depth = 0;
    bool has_empty = false;
  };
  /// What becomes of a rule's callers when it ends: the threads where they go on, and those of
  /// their callers where they may end without a byte. `ended`: the empty stack is reached.
  struct Popped {
    bool known = false, ended = false;
    Threads threads;
  };
  const Popped& popped(int32_t stacks);
  void find_popped(int32_t stacks);
  void merge(Threads& threads);
  const Set& set(int32_t stacks) const { return sets_[static_cast<size_t>(stacks)]; }
  int32_t push(int32_t state, int32_t below);
  int32_t intern(std::span<const Top> tops, bool has_empty);
  uint64_t hash_of(std::span<const Top> tops, bool has_empty) const;
  size_t find_slot(std::span<const Top> tops, bool has_empty) const;
  void forget_united();
  const int32_t* united(int32_t a, int32_t b) const;
  bool unite_now(int32_t a, int32_t b);
  void begin(Threads& out);
  void add(Thread thread, Threads& out);
  void pop(Thread thread, Threads& out, bool& ended);
  void call(Thread thread, const Grammar::Call& call, Threads& out);

  const Grammar* grammar_;
  std::vector<Set> sets_;
  std::vector<Top> tops_;
  std::vector<int32_t> table_;  // open addressing: numbers of sets, -1: free
  std::unordered_map<uint64_t, int32_t> united_;
  std::vector<uint64_t> united_log_;  // keys of united_ as they came
  uint64_t times_forgotten_ = 0;      // all of united_
  std::vector<std::pair<int32_t, int32_t>> todo_;
  std::vector<Top> merged_;
  int64_t work_ = 0;
  int32_t bound_ = std::numeric_limits<int32_t>::max();
  std::deque<Popped> popped_;        // [sets], found when first asked for
  std::vector<int32_t> popped_log_;  // those that are known, as they came
  // Where the states of the configuration being built stand in it: open addressing, emptied by its
  // round. And those whose threads have changed, in turn.
  struct Slot {
    int32_t state = 0, index = 0;
    uint64_t round = 0;
  };
  std::vector<Slot> slots_ = std::vector<Slot>(64);
  uint64_t round_ = 0;
  std::vector<size_t> queue_;
  std::vector<bool> queued_;
};

}  // namespace weft
