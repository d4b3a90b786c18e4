#include <algorithm>
#include <deque>

#include "base/check.h"
#include "grammar/trie.h"

namespace weft {

namespace {

constexpr int64_t kMaskWork = 4'000'000;  // of one mask, for what the stacks decide
// Stacks of one state, and masks behind it, up to which what the stacks decide is looked up too.
constexpr size_t kMaxStacks = 8;
constexpr size_t kMaxMasksBehind = 64;

}  // namespace

struct GrammarMatcher::Parts {
  enum class Phase : uint8_t { kMayOpen, kThinking, kBound };
  struct Point {
    Phase phase = Phase::kBound;
    Simulator::Threads threads;
  };

  explicit Parts(const OutputConstraint& c)
      : constraint(c), tokens(c.grammar->parts()), simulator(*tokens.grammar) {
    now.threads = simulator.start();
    if (c.begins_after >= 0) now.phase = c.opened_by >= 0 ? Phase::kMayOpen : Phase::kThinking;
  }

  void compute();
  void add(const StateMask& part);
  void add_rest(const std::shared_ptr<const StateMask>& own, const Simulator::Threads& threads,
                int64_t& work);
  bool advance(int32_t token, Point& next);

  OutputConstraint constraint;
  TokenGrammar::Parts& tokens;
  Simulator simulator;
  Point now;
  std::deque<Point> before;  // of the last tokens, the newest last
  int64_t num_accepted = 0;
  bool known = false;  // mask and may_end are those of `now`
  bool may_end = false;
  std::vector<uint32_t> mask;
};

void GrammarMatcher::Parts::add(const StateMask& part) {
  for (size_t w = 0; w < part.accepted.size(); ++w) mask[w] |= part.accepted[w];
  for (const int32_t token : part.few) {
    mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
  }
}

/// Adds the tokens in which the rule of `own` ends and what is left fits what its callers go on
/// with, `threads` being all that are in its state. Of a few stacks the masks of remainders are
/// looked up, frame by frame; else the remainders are walked.
void GrammarMatcher::Parts::add_rest(const std::shared_ptr<const StateMask>& own,
                                     const Simulator::Threads& threads, int64_t& work) {
  const auto caller = [&](int32_t stack) -> Simulator::Thread {
    return {simulator.return_state(stack), simulator.below(stack)};
  };
  if (threads.size() > kMaxStacks) {
    Simulator::Threads callers;
    for (const auto& thread : threads) {
      if (thread.stack != Simulator::kBottom) callers.push_back(caller(thread.stack));
    }
    mark_tokens(own->rest, simulator, callers, work, mask);
    return;
  }
  struct Left {
    std::shared_ptr<const StateMask> inner;  // its remainders ...
    int32_t stack;                           // ... where this one's top frame goes on
  };
  std::vector<Left> left;
  const auto push = [&](const std::shared_ptr<const StateMask>& inner, int32_t stack) {
    if (inner->rest.size() == 0 || stack == Simulator::kBottom) return;
    const bool known = std::any_of(left.begin(), left.end(), [&](const Left& other) {
      return other.inner == inner && other.stack == stack;
    });
    if (!known) left.push_back({inner, stack});
  };
  for (const auto& thread : threads) push(own, thread.stack);
  for (size_t i = 0; i < left.size(); ++i) {
    const auto [inner, stack] = left[i];
    const Simulator::Thread next = caller(stack);
    std::shared_ptr<const StateMask> behind;
    if (i < kMaxMasksBehind) behind = tokens.mask_behind(*inner, next.state);
    if (!behind || behind->whole) {
      mark_tokens(inner->rest, simulator, {next}, work, mask);
      continue;
    }
    add(*behind);
    if (behind->ends) push(inner, next.stack);
    push(behind, next.stack);
  }
}

/// A mask is a union over the threads, so what a state accepts by itself is looked up, and only
/// what is left of tokens behind its rule depends on the stacks.
void GrammarMatcher::Parts::compute() {
  if (known) return;
  known = true;
  const GrammarVocab::Parts& vocab = tokens.vocab->parts();
  mask.assign(vocab.words(), 0);
  // The threads, and those of the callers whose rules may go on without a byte of the called one.
  Simulator::Threads threads;
  simulator.pop_closure(
      now.threads, [&](int32_t state) { return tokens.mask_of(state)->ends; }, threads, may_end);
  std::sort(threads.begin(), threads.end());
  int64_t work = kMaskWork;
  Simulator::Threads walked, same;
  for (size_t i = 0; i < threads.size();) {
    const int32_t state = threads[i].state;
    const size_t begin = i;
    while (i < threads.size() && threads[i].state == state) ++i;
    const std::shared_ptr<const StateMask> own = tokens.mask_of(state);
    if (own->whole) {
      for (size_t t = begin; t < i; ++t) walked.push_back(threads[t]);
      continue;
    }
    add(*own);
    if (own->rest.size() == 0) continue;
    same.assign(threads.begin() + static_cast<ptrdiff_t>(begin),
                threads.begin() + static_cast<ptrdiff_t>(i));
    add_rest(own, same, work);
  }
  if (!walked.empty()) mark_tokens(vocab.trie, simulator, walked, work, mask);
  if (now.phase == Phase::kMayOpen) {
    const int32_t token = constraint.opened_by;
    mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
  }
}

bool GrammarMatcher::Parts::advance(int32_t token, Point& next) {
  next = now;
  if (now.phase == Phase::kThinking) {
    if (token == constraint.begins_after) next.phase = Phase::kBound;
    return true;
  }
  if (now.phase == Phase::kMayOpen && token == constraint.opened_by) {
    next.phase = Phase::kThinking;
    return true;
  }
  next.phase = Phase::kBound;
  if (token < 0 || token >= tokens.vocab->size()) return false;
  const std::string_view bytes = tokens.vocab->parts().bytes_of(token);
  if (bytes.empty()) return false;
  Simulator::Threads closed;
  bool ended = false;
  for (const char byte : bytes) {
    simulator.closure(next.threads, closed, ended);
    simulator.step(closed, static_cast<uint8_t>(byte), next.threads);
    if (next.threads.empty()) return false;
  }
  return true;
}

GrammarMatcher::GrammarMatcher(const OutputConstraint& constraint)
    : parts_(std::make_unique<Parts>(constraint)) {}
GrammarMatcher::~GrammarMatcher() = default;
GrammarMatcher::GrammarMatcher(GrammarMatcher&&) noexcept = default;
GrammarMatcher& GrammarMatcher::operator=(GrammarMatcher&&) noexcept = default;

bool GrammarMatcher::binds() const {
  return parts_->now.phase != Parts::Phase::kThinking;
}

std::span<const uint32_t> GrammarMatcher::mask() {
  if (!binds()) return {};
  parts_->compute();
  return parts_->mask;
}

bool GrammarMatcher::may_end() const {
  if (!binds()) return false;
  parts_->compute();
  return parts_->may_end;
}

bool GrammarMatcher::exhausted() {
  if (!may_end()) return false;
  const std::span<const uint32_t> bits = mask();
  return std::all_of(bits.begin(), bits.end(), [](uint32_t word) { return word == 0; });
}

bool GrammarMatcher::accept(int32_t token) {
  Parts::Point next;
  if (!parts_->advance(token, next)) return false;
  parts_->before.push_back(std::move(parts_->now));
  if (parts_->before.size() > kMaxRollback) parts_->before.pop_front();
  parts_->now = std::move(next);
  parts_->known = false;
  ++parts_->num_accepted;
  return true;
}

void GrammarMatcher::rollback(int count) {
  CHECK(count >= 0 && static_cast<size_t>(count) <= parts_->before.size());
  for (int i = 0; i < count; ++i) {
    parts_->now = std::move(parts_->before.back());
    parts_->before.pop_back();
    --parts_->num_accepted;
  }
  parts_->known = false;
}

int64_t GrammarMatcher::num_accepted() const {
  return parts_->num_accepted;
}

}  // namespace weft
