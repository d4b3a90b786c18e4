#include <algorithm>
#include <deque>

#include "base/check.h"
#include "grammar/trie.h"

namespace weft {

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

void GrammarMatcher::Parts::compute() {
  if (known) return;
  known = true;
  mask.assign(tokens.vocab->parts().words(), 0);
  may_end = false;
  // The threads, and those of the callers whose rules may go on without a byte of the called one.
  Simulator::Threads threads = now.threads;
  for (size_t t = 0; t < threads.size(); ++t) {
    const Simulator::Thread thread = threads[t];
    const std::shared_ptr<const StateMask> state = tokens.mask_of(thread.state);
    for (size_t i = 0; i < state->accepted.size(); ++i) mask[i] |= state->accepted[i];
    for (const int32_t token : state->few) {
      mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
    }
    if (thread.stack == Simulator::kBottom) {
      may_end = may_end || state->ends;
      continue;
    }
    const Simulator::Thread caller = {simulator.return_state(thread.stack),
                                      simulator.below(thread.stack)};
    const bool known_caller = std::find(threads.begin(), threads.end(), caller) != threads.end();
    if (state->ends && !known_caller) threads.push_back(caller);
    if (state->whole) {
      mark_tokens(tokens.vocab->parts().trie, simulator, {thread}, mask);
    } else if (state->rest.size() > 0) {
      mark_tokens(state->rest, simulator, {caller}, mask);
    }
  }
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
  const std::span<const uint32_t> bits = mask();
  return binds() && std::all_of(bits.begin(), bits.end(), [](uint32_t word) { return word == 0; });
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
