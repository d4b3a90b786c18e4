#include "grammar/simulator.h"

#include <algorithm>

namespace weft {

int32_t Simulator::push(int32_t state, int32_t below) {
  const auto it = numbers_.find(key(state, below));
  if (it != numbers_.end()) return it->second;
  const int32_t depth = below == kBottom ? 1 : frames_[static_cast<size_t>(below)].depth + 1;
  if (depth > kMaxDepth) return kBottom - 1;
  const auto number = static_cast<int32_t>(frames_.size());
  frames_.push_back({state, below, depth});
  numbers_.emplace(key(state, below), number);
  return number;
}

void Simulator::release(size_t mark) {
  while (frames_.size() > mark) {
    numbers_.erase(key(frames_.back().state, frames_.back().below));
    frames_.pop_back();
  }
}

bool Simulator::add(Thread thread, Threads& out) {
  if (out.size() >= kMaxThreads) return false;
  uint64_t h = key(thread.state, thread.stack) * 0x9E3779B97F4A7C15u;
  for (size_t i = static_cast<size_t>(h >> 40);; ++i) {
    Slot& slot = slots_[i % slots_.size()];
    if (slot.round != round_) {
      slot = {thread, round_};
      out.push_back(thread);
      return true;
    }
    if (slot.thread == thread) return false;
  }
}

void Simulator::pop_closure(const Threads& threads, const std::function<bool(int32_t)>& ends,
                            Threads& out, bool& ended) {
  out.clear();
  ended = false;
  ++round_;
  for (const Thread thread : threads) add(thread, out);
  for (size_t i = 0; i < out.size(); ++i) {
    const Thread thread = out[i];
    if (!ends(thread.state)) continue;
    if (thread.stack == kBottom) {
      ended = true;
    } else {
      add({return_state(thread.stack), below(thread.stack)}, out);
    }
  }
}

void Simulator::closure(const Threads& threads, Threads& out, bool& ended) {
  out.clear();
  ended = false;
  ++round_;
  for (const Thread thread : threads) add(thread, out);
  for (size_t i = 0; i < out.size(); ++i) {
    const Thread thread = out[i];
    if (grammar_->accepts(thread.state)) {
      if (thread.stack == kBottom) {
        ended = true;
      } else {
        add({return_state(thread.stack), below(thread.stack)}, out);
      }
    }
    for (const auto& call : grammar_->calls_of(thread.state)) {
      const int32_t stack = call.tail ? thread.stack : push(call.target, thread.stack);
      if (stack >= kBottom) add({call.start, stack}, out);
    }
  }
}

void Simulator::step(const Threads& from, uint8_t byte, Threads& out) const {
  out.clear();
  for (const Thread thread : from) {
    for (const auto& edge : grammar_->edges_of(thread.state)) {
      if (edge.low > byte) break;
      if (edge.high >= byte) out.push_back({edge.target, thread.stack});
    }
  }
  if (out.size() > 1) {
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
  }
}

}  // namespace weft
