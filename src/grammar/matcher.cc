#include <algorithm>
#include <deque>
#include <unordered_set>

#include "base/check.h"
#include "grammar/trie.h"

namespace weft {

namespace {

// Masks behind a state, up to which what the stacks decide is looked up too.
constexpr size_t kMaxMasksBehind = 256;
// Frames below the greatest depth from which on a mask is found by walking all tokens: those that
// call no deeper. The masks of states don't know how deep they are.
constexpr int32_t kNearTheEnd = 32;
// What a token may lead to: more than a mask allows, as those of states don't look at the depth.
constexpr int32_t kMostFrames = 2 * Simulator::kMaxDepth;
constexpr size_t kMinCompacted = 4096;  // sets of stacks

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
  void add_rest(const std::shared_ptr<const StateMask>& own, int32_t stacks);
  void forget_sets();
  void take_out_banned();
  bool advance(int32_t token, Point& next);

  OutputConstraint constraint;
  TokenGrammar::Parts& tokens;
  Simulator simulator;
  Point now;
  std::deque<Point> before;  // of the last tokens, the newest last
  int64_t num_accepted = 0;
  std::vector<int32_t> taken;  // all accepted tokens, where some sequences are banned
  bool known = false;          // mask and may_end are those of `now`
  bool may_end = false;
  std::vector<uint32_t> mask;
  size_t compact_at = kMinCompacted;  // sets of stacks
};

void GrammarMatcher::Parts::add(const StateMask& part) {
  for (size_t w = 0; w < part.accepted.size(); ++w) mask[w] |= part.accepted[w];
  for (const int32_t token : part.few) {
    mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
  }
}

/// Adds the tokens in which the rule of `own` ends and what is left fits what its callers go on
/// with: the masks of remainders are looked up, frame by frame, for all stacks at once.
void GrammarMatcher::Parts::add_rest(const std::shared_ptr<const StateMask>& own, int32_t stacks) {
  struct Left {
    std::shared_ptr<const StateMask> inner;  // its remainders ...
    int32_t stacks;                          // ... where these go on
  };
  struct Behind {
    const StateMask* inner;
    int32_t state;
    std::shared_ptr<const StateMask> mask;
  };
  std::vector<Left> left;
  std::unordered_set<uint64_t> seen;  // of left: the number of the mask, and the stacks
  std::vector<Behind> met;
  const auto push = [&](const std::shared_ptr<const StateMask>& inner, int32_t on) {
    if (inner->rest.size() == 0 || simulator.num_tops(on) == 0) return;
    const uint64_t key = inner->id << 32 | static_cast<uint32_t>(on);
    if (seen.insert(key).second) left.push_back({inner, on});
  };
  push(own, stacks);
  for (size_t next = 0; next < left.size() && !simulator.exhausted(); ++next) {
    const Left now_left = left[next];
    for (size_t i = 0; i < simulator.num_tops(now_left.stacks); ++i) {
      simulator.add_work(1);
      const Simulator::Top caller = simulator.top(now_left.stacks, i);
      auto behind_it = std::find_if(met.begin(), met.end(), [&](const Behind& other) {
        return other.inner == now_left.inner.get() && other.state == caller.state;
      });
      if (behind_it == met.end()) {
        std::shared_ptr<const StateMask> found;
        if (met.size() < kMaxMasksBehind) {
          found = tokens.mask_behind(*now_left.inner, caller.state);
        }
        if (found && found->whole) found.reset();
        if (found) add(*found);
        behind_it = met.insert(met.end(), {now_left.inner.get(), caller.state, std::move(found)});
      }
      const std::shared_ptr<const StateMask> behind = behind_it->mask;
      if (!behind) {
        mark_tokens(tokens.classes(), now_left.inner->rest, simulator,
                    {{caller.state, caller.below}}, mask);
        continue;
      }
      if (behind->ends) push(now_left.inner, caller.below);
      push(behind, caller.below);
    }
  }
}

/// A mask is a union over the threads, so what a state accepts by itself is looked up, and only
/// what is left of tokens behind its rule depends on the stacks.
void GrammarMatcher::Parts::compute() {
  if (known) return;
  known = true;
  const GrammarVocab::Parts& vocab = tokens.vocab->parts();
  if (tokens.any_text) {
    mask.assign(vocab.words(), ~uint32_t{0});
    if (vocab.size % 32 != 0) mask.back() = (uint32_t{1} << (vocab.size % 32)) - 1;
    may_end = true;
    take_out_banned();
    return;
  }
  mask.assign(vocab.words(), 0);
  const TokenClasses& classes = tokens.classes();
  // The threads, and those of the callers whose rules may go on without a byte of the called one.
  Simulator::Threads threads;
  simulator.reset_work();
  simulator.pop_closure(now.threads, threads, may_end);
  const bool near_the_end =
      std::any_of(threads.begin(), threads.end(), [&](const Simulator::Thread& thread) {
        return simulator.reach(thread) > Simulator::kMaxDepth - kNearTheEnd;
      });
  simulator.bound_depth(near_the_end ? Simulator::kMaxDepth : kMostFrames);
  if (near_the_end) mark_tokens(classes, classes.trie, simulator, now.threads, mask);
  Simulator::Threads walked;
  for (const Simulator::Thread thread : threads) {
    if (near_the_end) break;
    const std::shared_ptr<const StateMask> own = tokens.mask_of(thread.state);
    if (own->whole) {
      walked.push_back(thread);
      continue;
    }
    add(*own);
    if (own->rest.size() > 0) add_rest(own, thread.stacks);
  }
  if (!walked.empty()) mark_tokens(classes, classes.trie, simulator, walked, mask);
  if (!tokens.banned.empty()) take_out_banned();
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
  if (tokens.any_text) return true;
  const std::string_view bytes = tokens.vocab->parts().bytes_of(token);
  if (bytes.empty()) return false;
  simulator.reset_work();
  simulator.bound_depth(kMostFrames);
  Simulator::Threads closed;
  bool ended = false;
  for (const char byte : bytes) {
    simulator.closure(next.threads, closed, ended);
    simulator.step(closed, static_cast<uint8_t>(byte), next.threads);
    if (next.threads.empty()) return false;
  }
  return true;
}

/// Of each banned sequence that has come but for its last token, that token.
void GrammarMatcher::Parts::take_out_banned() {
  std::vector<uint32_t> left = mask;
  for (const std::vector<int32_t>& sequence : tokens.banned) {
    const size_t before_last = sequence.size() - 1;
    if (taken.size() < before_last ||
        !std::equal(sequence.begin(), sequence.end() - 1,
                    taken.end() - static_cast<ptrdiff_t>(before_last))) {
      continue;
    }
    const auto last = static_cast<size_t>(sequence.back());
    if (last / 32 < left.size()) left[last / 32] &= ~(uint32_t{1} << (last % 32));
  }
  const auto set = [](uint32_t word) { return word != 0; };
  if (may_end || std::any_of(left.begin(), left.end(), set)) mask = std::move(left);
}

/// Where many sets of stacks have been made, leaves those that some configuration still has.
void GrammarMatcher::Parts::forget_sets() {
  if (simulator.num_sets() < compact_at) return;
  std::vector<Simulator::Threads*> roots = {&now.threads};
  for (Point& point : before) roots.push_back(&point.threads);
  simulator.compact(roots);
  compact_at = std::max(kMinCompacted, 4 * simulator.num_sets());
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
  if (!parts_->tokens.banned.empty()) parts_->taken.push_back(token);
  parts_->forget_sets();
  return true;
}

void GrammarMatcher::rollback(int count) {
  CHECK(count >= 0 && static_cast<size_t>(count) <= parts_->before.size());
  for (int i = 0; i < count; ++i) {
    parts_->now = std::move(parts_->before.back());
    parts_->before.pop_back();
    --parts_->num_accepted;
    if (!parts_->taken.empty()) parts_->taken.pop_back();
  }
  parts_->known = false;
}

int64_t GrammarMatcher::num_accepted() const {
  return parts_->num_accepted;
}

}  // namespace weft
