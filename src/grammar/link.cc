#include <algorithm>
#include <string>

#include "grammar/nfa.h"

namespace weft {

namespace {

/// All rules in one numbering, before anything is thrown away.
struct Linked {
  struct Call {
    int32_t rule, target;
  };
  struct State {
    bool accepting = false;
    int32_t rule = 0;
    const std::vector<Grammar::Edge>* edges = nullptr;
    const std::vector<RuleAutomaton::Call>* calls = nullptr;
    int32_t base = 0;  // of the rule's states
  };
  std::vector<State> states;
  std::vector<int32_t> start;  // of a rule; -1: not there
};

/// A state of the rule that `state` belongs to, in the common numbering.
size_t state_of(const Linked::State& state, int32_t target) {
  return static_cast<size_t>(state.base) + static_cast<size_t>(target);
}

/// States from which `calls_need` holds bottom-up: accepting, or an edge (if bytes count) to such a
/// state, or a call of a rule whose start is such a state and which goes on in such a state. With
/// `bytes`: productive states. Without: states that match the empty text.
std::vector<bool> completable(const Linked& all, bool bytes) {
  const size_t n = all.states.size();
  std::vector<bool> good(n, false);
  std::vector<std::vector<int32_t>> back(n);  // who may become good when this one does
  std::vector<int32_t> work;
  for (size_t i = 0; i < n; ++i) {
    const auto& state = all.states[i];
    const auto s = static_cast<int32_t>(i);
    if (state.accepting) {
      good[i] = true;
      work.push_back(s);
    }
    if (bytes) {
      for (const auto& e : *state.edges) back[state_of(state, e.target)].push_back(s);
    }
    for (const auto& c : *state.calls) {
      back[state_of(state, c.target)].push_back(s);
      back[static_cast<size_t>(all.start[static_cast<size_t>(c.rule)])].push_back(s);
    }
  }
  const auto is_good = [&](int32_t s) { return good[static_cast<size_t>(s)]; };
  // A state is looked at once for each of its edges: a counter of what to look at keeps it linear
  // in bytes; calls of a state are few.
  while (!work.empty()) {
    const int32_t done = work.back();
    work.pop_back();
    for (const int32_t s : back[static_cast<size_t>(done)]) {
      if (is_good(s)) continue;
      const auto& state = all.states[static_cast<size_t>(s)];
      bool now = false;
      if (bytes && all.states[static_cast<size_t>(done)].rule == state.rule) {
        const int32_t local = done - state.base;
        now = std::any_of(state.edges->begin(), state.edges->end(),
                          [&](const auto& e) { return e.target == local; });
      }
      for (const auto& c : *state.calls) {
        if (now) break;
        now = is_good(all.start[static_cast<size_t>(c.rule)]) && is_good(state.base + c.target);
      }
      if (now) {
        good[static_cast<size_t>(s)] = true;
        work.push_back(s);
      }
    }
  }
  return good;
}

/// A rule that may call itself before any byte; -1: none.
int32_t find_left_recursion(const Linked& all, const std::vector<bool>& live,
                            const std::vector<bool>& nullable) {
  const size_t num_rules = all.start.size();
  std::vector<std::vector<int32_t>> first_calls(num_rules);
  std::vector<bool> seen(all.states.size(), false);
  for (size_t r = 0; r < num_rules; ++r) {
    if (all.start[r] < 0) continue;
    std::vector<int32_t> work = {all.start[r]};
    seen[static_cast<size_t>(all.start[r])] = true;
    while (!work.empty()) {
      const auto& state = all.states[static_cast<size_t>(work.back())];
      work.pop_back();
      for (const auto& c : *state.calls) {
        const int32_t target = state.base + c.target;
        const int32_t callee = all.start[static_cast<size_t>(c.rule)];
        if (!live[static_cast<size_t>(target)] || !live[static_cast<size_t>(callee)]) continue;
        first_calls[r].push_back(c.rule);
        if (nullable[static_cast<size_t>(callee)] && !seen[static_cast<size_t>(target)]) {
          seen[static_cast<size_t>(target)] = true;
          work.push_back(target);
        }
      }
    }
  }
  std::vector<int> colour(num_rules, 0);  // 1: on the path, 2: done
  std::vector<std::pair<int32_t, size_t>> path;
  for (size_t r = 0; r < num_rules; ++r) {
    if (colour[r] != 0) continue;
    path.emplace_back(static_cast<int32_t>(r), 0);
    colour[r] = 1;
    while (!path.empty()) {
      auto& [rule, next] = path.back();
      const auto& calls = first_calls[static_cast<size_t>(rule)];
      if (next == calls.size()) {
        colour[static_cast<size_t>(rule)] = 2;
        path.pop_back();
        continue;
      }
      const int32_t callee = calls[next++];
      if (colour[static_cast<size_t>(callee)] == 1) return callee;
      if (colour[static_cast<size_t>(callee)] == 0) {
        colour[static_cast<size_t>(callee)] = 1;
        path.emplace_back(callee, 0);
      }
    }
  }
  return -1;
}

/// The height of every state, the lowest first: 0 where the rule may end; through an edge that of
/// its target; through a call what the called rule needs on top of a frame, and the target.
std::vector<int32_t> heights(const Grammar& grammar) {
  const auto n = static_cast<size_t>(grammar.num_states());
  constexpr int32_t kUnknown = -1;
  std::vector<int32_t> height(n, kUnknown);
  struct Back {
    int32_t from, call;  // call: its number, -1: an edge
  };
  std::vector<uint32_t> begin(n + 1, 0);
  const auto each = [&](const auto& visit) {  // (what it depends on, Back)
    for (size_t s = 0; s < n; ++s) {
      const auto from = static_cast<int32_t>(s);
      for (const auto& edge : grammar.edges_of(from)) visit(edge.target, Back{from, -1});
      for (uint32_t c = grammar.call_begin[s]; c < grammar.call_begin[s + 1]; ++c) {
        visit(grammar.calls[c].start, Back{from, static_cast<int32_t>(c)});
        visit(grammar.calls[c].target, Back{from, static_cast<int32_t>(c)});
      }
    }
  };
  each([&](int32_t on, Back) { ++begin[static_cast<size_t>(on) + 1]; });
  for (size_t s = 0; s < n; ++s) begin[s + 1] += begin[s];
  std::vector<Back> back(begin[n]);
  std::vector<uint32_t> next(begin.begin(), begin.end() - 1);
  each([&](int32_t on, Back one) { back[next[static_cast<size_t>(on)]++] = one; });
  std::vector<std::vector<int32_t>> found(1);  // by height
  for (size_t s = 0; s < n; ++s) {
    if (grammar.accepting[s] != 0) found[0].push_back(static_cast<int32_t>(s));
  }
  for (size_t h = 0; h < found.size(); ++h) {
    while (!found[h].empty()) {
      const auto done = static_cast<size_t>(found[h].back());
      found[h].pop_back();
      if (height[done] != kUnknown) continue;
      height[done] = static_cast<int32_t>(h);
      for (uint32_t b = begin[done]; b < begin[done + 1]; ++b) {
        const Back one = back[b];
        if (height[static_cast<size_t>(one.from)] != kUnknown) continue;
        size_t needs = h;
        if (one.call >= 0) {
          const Grammar::Call& call = grammar.calls[static_cast<size_t>(one.call)];
          const int32_t inside = height[static_cast<size_t>(call.start)];
          const int32_t behind = height[static_cast<size_t>(call.target)];
          if (inside == kUnknown || behind == kUnknown) continue;
          needs = static_cast<size_t>(std::max(inside + (call.tail ? 0 : 1), behind));
        }
        if (needs >= found.size()) found.resize(needs + 1);
        found[needs].push_back(one.from);
      }
    }
  }
  return height;
}

}  // namespace

Result<Grammar> link(const std::vector<RuleAutomaton>& rules, int32_t root,
                     const std::vector<std::string>& names) {
  Linked all;
  all.start.assign(rules.size(), -1);
  for (size_t r = 0; r < rules.size(); ++r) {
    if (rules[r].states.empty()) continue;
    const auto base = static_cast<int32_t>(all.states.size());
    all.start[r] = base;
    for (const auto& s : rules[r].states) {
      all.states.push_back({.accepting = s.accepting,
                            .rule = static_cast<int32_t>(r),
                            .edges = &s.edges,
                            .calls = &s.calls,
                            .base = base});
    }
  }
  const std::vector<bool> live = completable(all, true);
  const auto is_live = [&](int32_t s) { return live[static_cast<size_t>(s)]; };
  const int32_t start = all.start[static_cast<size_t>(root)];
  if (!is_live(start)) return invalid_argument("no text fits it");
  const std::vector<bool> nullable = completable(all, false);
  const int32_t left = find_left_recursion(all, live, nullable);
  if (left >= 0) {
    return invalid_argument(
        "rule '" + names[static_cast<size_t>(left)] +
        "' is left-recursive (it begins with itself): write it with a repetition");
  }
  // Number what is reached; live states only.
  std::vector<int32_t> number(all.states.size(), -1);
  std::vector<int32_t> order = {start};
  number[static_cast<size_t>(start)] = 0;
  const auto reach = [&](int32_t s) {
    if (number[static_cast<size_t>(s)] >= 0) return;
    number[static_cast<size_t>(s)] = static_cast<int32_t>(order.size());
    order.push_back(s);
  };
  const auto call_lives = [&](const Linked::State& state, const RuleAutomaton::Call& c) {
    return is_live(state.base + c.target) && is_live(all.start[static_cast<size_t>(c.rule)]);
  };
  for (size_t i = 0; i < order.size(); ++i) {
    const auto& state = all.states[static_cast<size_t>(order[i])];
    for (const auto& e : *state.edges) {
      if (is_live(state.base + e.target)) reach(state.base + e.target);
    }
    for (const auto& c : *state.calls) {
      if (!call_lives(state, c)) continue;
      reach(all.start[static_cast<size_t>(c.rule)]);
      reach(state.base + c.target);
    }
  }
  Grammar grammar;
  for (const int32_t s : order) {
    const auto& state = all.states[static_cast<size_t>(s)];
    grammar.accepting.push_back(state.accepting ? 1 : 0);
    grammar.nullable.push_back(nullable[static_cast<size_t>(s)] ? 1 : 0);
    grammar.edge_begin.push_back(static_cast<uint32_t>(grammar.edges.size()));
    grammar.call_begin.push_back(static_cast<uint32_t>(grammar.calls.size()));
    for (const auto& e : *state.edges) {
      const int32_t target = number[state_of(state, e.target)];
      if (is_live(state.base + e.target)) grammar.edges.push_back({e.low, e.high, target});
    }
    for (const auto& c : *state.calls) {
      if (!call_lives(state, c)) continue;
      grammar.calls.push_back(
          {.start = number[static_cast<size_t>(all.start[static_cast<size_t>(c.rule)])],
           .target = number[state_of(state, c.target)]});
    }
  }
  grammar.edge_begin.push_back(static_cast<uint32_t>(grammar.edges.size()));
  grammar.call_begin.push_back(static_cast<uint32_t>(grammar.calls.size()));
  for (auto& call : grammar.calls) {
    call.tail = grammar.accepts(call.target) && grammar.edges_of(call.target).empty() &&
                grammar.calls_of(call.target).empty();
  }
  grammar.height = heights(grammar);
  return grammar;
}

}  // namespace weft
