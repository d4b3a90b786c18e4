#include "grammar/simulator.h"

#include <algorithm>

namespace weft {

namespace {

constexpr size_t kMaxUnited = size_t{1} << 16;  ///< remembered unions

uint64_t mix(uint64_t h) {
  h *= 0x9E3779B97F4A7C15u;
  return h ^ (h >> 29);
}

uint64_t pair_key(int32_t a, int32_t b) {
  if (a > b) std::swap(a, b);
  return (static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32) | static_cast<uint32_t>(b);
}

}  // namespace

Simulator::Simulator(const Grammar& grammar) : grammar_(&grammar), table_(64, -1) {
  intern({}, true);
}

uint64_t Simulator::hash_of(std::span<const Top> tops, bool has_empty) const {
  uint64_t h = has_empty ? 1 : 2;
  for (const Top& top : tops) {
    h = mix(h ^ (static_cast<uint64_t>(static_cast<uint32_t>(top.state)) << 32 |
                 static_cast<uint32_t>(top.below)));
  }
  return mix(h);
}

/// Where the set is in the table, or the free place for it.
size_t Simulator::find_slot(std::span<const Top> tops, bool has_empty) const {
  for (size_t i = hash_of(tops, has_empty) >> 20;; ++i) {
    const int32_t number = table_[i % table_.size()];
    if (number < 0) return i % table_.size();
    const Set& other = set(number);
    if (other.has_empty == has_empty && other.count == tops.size() &&
        std::equal(tops.begin(), tops.end(), tops_.begin() + other.first)) {
      return i % table_.size();
    }
  }
}

int32_t Simulator::intern(std::span<const Top> tops, bool has_empty) {
  if (2 * sets_.size() >= table_.size()) {
    table_.assign(2 * table_.size(), -1);
    // In their order, so that the newest can be taken out again without a gap before another.
    for (size_t i = 0; i < sets_.size(); ++i) {
      const std::span<const Top> known(tops_.data() + sets_[i].first, sets_[i].count);
      table_[find_slot(known, sets_[i].has_empty)] = static_cast<int32_t>(i);
    }
  }
  int32_t& number = table_[find_slot(tops, has_empty)];
  if (number >= 0) return number;
  number = static_cast<int32_t>(sets_.size());
  Set made{.first = static_cast<uint32_t>(tops_.size()),
           .count = static_cast<uint32_t>(tops.size()),
           .depth = 0,
           .has_empty = has_empty};
  for (const Top& top : tops) made.depth = std::max(made.depth, depth(top.below) + 1);
  tops_.insert(tops_.end(), tops.begin(), tops.end());
  sets_.push_back(made);
  popped_.emplace_back();
  work_ += kSetWork;
  return number;
}

int32_t Simulator::push(int32_t state, int32_t below) {
  const Top top{state, below};
  return intern({&top, 1}, false);
}

const int32_t* Simulator::united(int32_t a, int32_t b) const {
  const auto it = united_.find(pair_key(a, b));
  return it == united_.end() ? nullptr : &it->second;
}

/// Unites two sets whose parts are united already; else puts those on the list and says false.
bool Simulator::unite_now(int32_t a, int32_t b) {
  const size_t listed = todo_.size();
  merged_.clear();
  size_t i = 0, j = 0;
  while (i < num_tops(a) || j < num_tops(b)) {
    if (j == num_tops(b) || (i < num_tops(a) && top(a, i).state < top(b, j).state)) {
      merged_.push_back(top(a, i++));
      continue;
    }
    if (i == num_tops(a) || top(b, j).state < top(a, i).state) {
      merged_.push_back(top(b, j++));
      continue;
    }
    const Top x = top(a, i++), y = top(b, j++);
    merged_.push_back(x);
    if (x.below == y.below) continue;
    if (const int32_t* below = united(x.below, y.below)) {
      merged_.back().below = *below;
    } else {
      todo_.emplace_back(x.below, y.below);
    }
  }
  if (todo_.size() > listed) return false;
  const int32_t made = intern(merged_, has_empty(a) || has_empty(b));
  united_.emplace(pair_key(a, b), made);
  united_log_.push_back(pair_key(a, b));
  return true;
}

int32_t Simulator::unite(int32_t a, int32_t b) {
  if (a == b) return a;
  if (const int32_t* known = united(a, b)) return *known;
  if (united_.size() > kMaxUnited) forget_united();
  todo_.assign(1, {a, b});
  while (!todo_.empty()) {
    work_ += kSetWork;
    if (exhausted()) return a;
    const auto [x, y] = todo_.back();
    if (united(x, y) != nullptr || unite_now(x, y)) todo_.pop_back();
  }
  return *united(a, b);
}

void Simulator::forget_united() {
  united_.clear();
  united_log_.clear();
  ++times_forgotten_;
}

void Simulator::release(Mark mark) {
  if (mark.times_forgotten != times_forgotten_) forget_united();  // the log began anew since
  while (united_log_.size() > mark.united) {
    united_.erase(united_log_.back());
    united_log_.pop_back();
  }
  while (popped_log_.size() > mark.popped) {
    popped_[static_cast<size_t>(popped_log_.back())] = {};
    popped_log_.pop_back();
  }
  while (sets_.size() > mark.sets) {
    const Set& last = sets_.back();
    const std::span<const Top> tops(tops_.data() + last.first, last.count);
    table_[find_slot(tops, last.has_empty)] = -1;
    tops_.resize(last.first);
    popped_.pop_back();
    sets_.pop_back();
  }
}

void Simulator::compact(std::span<Threads* const> roots) {
  std::vector<bool> kept(sets_.size(), false);
  kept[kBottom] = true;
  for (const Threads* threads : roots) {
    for (const Thread& thread : *threads) kept[static_cast<size_t>(thread.stacks)] = true;
  }
  for (size_t i = sets_.size(); i-- > 0;) {  // what lies below was made before
    if (!kept[i]) continue;
    for (size_t k = 0; k < sets_[i].count; ++k) {
      kept[static_cast<size_t>(tops_[sets_[i].first + k].below)] = true;
    }
  }
  const std::vector<Set> sets = std::move(sets_);
  const std::vector<Top> tops = std::move(tops_);
  sets_.clear();
  tops_.clear();
  forget_united();
  popped_.clear();
  popped_log_.clear();
  table_.assign(64, -1);
  std::vector<int32_t> number(sets.size(), kBottom);
  std::vector<Top> renamed;
  for (size_t i = 0; i < sets.size(); ++i) {
    if (!kept[i]) continue;
    renamed.clear();
    for (size_t k = 0; k < sets[i].count; ++k) {
      const Top& top = tops[sets[i].first + k];
      renamed.push_back({top.state, number[static_cast<size_t>(top.below)]});
    }
    number[i] = intern(renamed, sets[i].has_empty);
  }
  for (Threads* threads : roots) {
    for (Thread& thread : *threads) thread.stacks = number[static_cast<size_t>(thread.stacks)];
  }
}

void Simulator::begin(Threads& out) {
  out.clear();
  queue_.clear();
  queued_.clear();
  ++round_;
}

void Simulator::add(Thread thread, Threads& out) {
  if (2 * out.size() >= slots_.size()) {
    slots_.assign(2 * slots_.size(), {});
    for (size_t k = 0; k < out.size(); ++k) {
      size_t i = mix(static_cast<uint32_t>(out[k].state)) >> 20;
      while (slots_[i % slots_.size()].round == round_) ++i;
      slots_[i % slots_.size()] = {out[k].state, static_cast<int32_t>(k), round_};
    }
  }
  for (size_t i = mix(static_cast<uint32_t>(thread.state)) >> 20;; ++i) {
    Slot& slot = slots_[i % slots_.size()];
    if (slot.round != round_) {
      slot = {thread.state, static_cast<int32_t>(out.size()), round_};
      queue_.push_back(out.size());
      queued_.push_back(true);
      out.push_back(thread);
      return;
    }
    if (slot.state != thread.state) continue;
    const auto index = static_cast<size_t>(slot.index);
    const int32_t all = unite(out[index].stacks, thread.stacks);
    if (all == out[index].stacks) return;
    out[index].stacks = all;
    if (!queued_[index]) queue_.push_back(index);
    queued_[index] = true;
    return;
  }
}

/// popped(stacks), all that lies below being known.
void Simulator::find_popped(int32_t stacks) {
  Threads all;
  bool ended = has_empty(stacks);
  for (size_t i = 0; i < num_tops(stacks); ++i) {
    const Top caller = top(stacks, i);
    all.push_back({caller.state, caller.below});
    if (!grammar_->may_be_empty(caller.state)) continue;
    const Popped& further = popped_[static_cast<size_t>(caller.below)];
    all.insert(all.end(), further.threads.begin(), further.threads.end());
    ended = ended || further.ended;
  }
  merge(all);
  Popped& out = popped_[static_cast<size_t>(stacks)];
  out = {.known = true, .ended = ended, .threads = std::move(all)};
  popped_log_.push_back(stacks);
  work_ += kSetWork;
}

const Simulator::Popped& Simulator::popped(int32_t stacks) {
  std::vector<int32_t> todo = {stacks};
  while (!todo.empty()) {
    const int32_t now = todo.back();
    const size_t listed = todo.size();
    for (size_t i = 0; i < num_tops(now); ++i) {
      const Top caller = top(now, i);
      if (grammar_->may_be_empty(caller.state) &&
          !popped_[static_cast<size_t>(caller.below)].known) {
        todo.push_back(caller.below);
      }
    }
    if (todo.size() > listed) continue;
    if (!popped_[static_cast<size_t>(now)].known) find_popped(now);
    todo.pop_back();
  }
  return popped_[static_cast<size_t>(stacks)];
}

/// Its rule has ended.
void Simulator::pop(Thread thread, Threads& out, bool& ended) {
  const Popped& callers = popped(thread.stacks);  // stays where it is
  ended = ended || callers.ended;
  for (const Thread caller : callers.threads) add(caller, out);
}

void Simulator::call(Thread thread, const Grammar::Call& call, Threads& out) {
  const int32_t frames = depth(thread.stacks);
  const int32_t inside = frames + (call.tail ? 0 : 1) + grammar_->height_of(call.start);
  const int32_t most = std::max(inside, frames + grammar_->height_of(call.target));
  if (most > bound_ && most > reach(thread)) return;
  add({call.start, call.tail ? thread.stacks : push(call.target, thread.stacks)}, out);
}

void Simulator::pop_closure(const Threads& threads, Threads& out, bool& ended) {
  ended = false;
  begin(out);
  for (const Thread thread : threads) {
    add(thread, out);
    if (grammar_->may_be_empty(thread.state)) pop(thread, out, ended);
  }
}

void Simulator::closure(const Threads& threads, Threads& out, bool& ended) {
  ended = false;
  begin(out);
  for (const Thread thread : threads) add(thread, out);
  for (size_t i = 0; i < queue_.size(); ++i, ++work_) {
    queued_[queue_[i]] = false;
    const Thread thread = out[queue_[i]];
    if (grammar_->accepts(thread.state)) pop(thread, out, ended);
    for (const auto& c : grammar_->calls_of(thread.state)) call(thread, c, out);
  }
}

/// Each state once.
void Simulator::merge(Threads& threads) {
  if (threads.size() < 2) return;
  std::sort(threads.begin(), threads.end());
  size_t last = 0;
  for (size_t i = 1; i < threads.size(); ++i) {
    if (threads[i].state == threads[last].state) {
      threads[last].stacks = unite(threads[last].stacks, threads[i].stacks);
    } else {
      threads[++last] = threads[i];
    }
  }
  threads.resize(last + 1);
}

void Simulator::step(const Threads& from, uint8_t byte, Threads& out) {
  out.clear();
  work_ += static_cast<int64_t>(from.size());
  for (const Thread thread : from) {
    for (const auto& edge : grammar_->edges_of(thread.state)) {
      if (edge.low > byte) break;
      if (edge.high < byte) continue;
      const Thread next{edge.target, thread.stacks};
      if (reach(next) > bound_ && reach(next) > reach(thread)) continue;
      out.push_back(next);
    }
  }
  merge(out);
}

}  // namespace weft
