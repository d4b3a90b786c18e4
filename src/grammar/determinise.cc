#include <algorithm>
#include <string>
#include <unordered_map>

#include "grammar/nfa.h"

namespace weft {

namespace {

using States = std::vector<int32_t>;  // sorted

struct StatesHash {
  size_t operator()(const States& states) const {
    uint64_t h = 0x9E3779B97F4A7C15u;
    for (const int32_t s : states) {
      h = (h ^ static_cast<uint32_t>(s)) * 0xBF58476D1CE4E5B9u;
      h ^= h >> 29;
    }
    return static_cast<size_t>(h);
  }
};

Error too_many_states() {
  return exhausted("the automaton would need too many states or too long to build");
}

/// Epsilon closures with marks that need no clearing.
class Closure {
 public:
  explicit Closure(const RuleAutomaton& nfa) : nfa_(nfa), mark_(nfa.states.size(), 0) {}

  /// Adds what `states` reaches without a byte and sorts; only states that matter stay (with edges,
  /// calls or accepting). `work` pays for it.
  void close(States& states, int64_t& work) {
    ++round_;
    stack_.clear();
    for (const int32_t s : states) push(s);
    states.clear();
    while (!stack_.empty()) {
      const int32_t s = stack_.back();
      stack_.pop_back();
      const auto& state = nfa_.states[static_cast<size_t>(s)];
      work -= 1 + static_cast<int64_t>(state.epsilons.size());
      if (state.accepting || !state.edges.empty() || !state.calls.empty()) states.push_back(s);
      for (const int32_t t : state.epsilons) push(t);
    }
    std::sort(states.begin(), states.end());
  }

 private:
  void push(int32_t s) {
    if (mark_[static_cast<size_t>(s)] == round_) return;
    mark_[static_cast<size_t>(s)] = round_;
    stack_.push_back(s);
  }
  const RuleAutomaton& nfa_;
  std::vector<uint32_t> mark_;
  uint32_t round_ = 0;
  States stack_;
};

/// The subset construction, calls taken as letters. False when it costs more than `work` or makes
/// more than `max_states`.
bool subsets(const RuleAutomaton& nfa, RuleAutomaton& dfa, int64_t& work, size_t max_states) {
  Closure closure(nfa);
  std::unordered_map<States, int32_t, StatesHash> ids;
  std::vector<const States*> sets;
  const auto id_of = [&](States states) {
    const auto [it, added] = ids.try_emplace(std::move(states), static_cast<int32_t>(sets.size()));
    if (added) {
      sets.push_back(&it->first);
      dfa.states.emplace_back();
    }
    work -= static_cast<int64_t>(it->first.size());
    return it->second;
  };
  States first = {0};
  closure.close(first, work);
  id_of(std::move(first));
  struct Cut {
    int at;  // a byte, or one past it
    int32_t target;
    bool opens;
  };
  std::vector<Cut> cuts;
  std::vector<int32_t> open;
  std::vector<RuleAutomaton::Call> calls;
  for (size_t i = 0; i < sets.size(); ++i) {
    if (work < 0 || sets.size() > max_states) return false;
    cuts.clear();
    calls.clear();
    open.clear();
    for (const int32_t s : *sets[i]) {
      const auto& state = nfa.states[static_cast<size_t>(s)];
      if (state.accepting) dfa.states[i].accepting = true;
      for (const auto& edge : state.edges) {
        cuts.push_back({edge.low, edge.target, true});
        cuts.push_back({edge.high + 1, edge.target, false});
      }
      calls.insert(calls.end(), state.calls.begin(), state.calls.end());
    }
    work -= static_cast<int64_t>(cuts.size() + calls.size());
    std::sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.at < b.at; });
    std::vector<Grammar::Edge> edges;
    for (size_t c = 0; c < cuts.size();) {
      const int at = cuts[c].at;
      for (; c < cuts.size() && cuts[c].at == at; ++c) {
        if (cuts[c].opens) {
          open.push_back(cuts[c].target);
        } else {
          open.erase(std::find(open.begin(), open.end(), cuts[c].target));
        }
        work -= 1 + static_cast<int64_t>(open.size()) / 16;
      }
      if (open.empty()) continue;
      States targets = open;
      closure.close(targets, work);
      const int32_t id = id_of(std::move(targets));
      const auto low = static_cast<uint8_t>(at), high = static_cast<uint8_t>(cuts[c].at - 1);
      if (!edges.empty() && edges.back().target == id && edges.back().high + 1 == low) {
        edges.back().high = high;
      } else {
        edges.push_back({low, high, id});
      }
      if (work < 0) return false;
    }
    dfa.states[i].edges = std::move(edges);
    std::sort(calls.begin(), calls.end(),
              [](const auto& a, const auto& b) { return a.rule < b.rule; });
    for (size_t c = 0; c < calls.size();) {
      const int32_t rule = calls[c].rule;
      States targets;
      for (; c < calls.size() && calls[c].rule == rule; ++c) targets.push_back(calls[c].target);
      closure.close(targets, work);
      const int32_t id = id_of(std::move(targets));
      dfa.states[i].calls.push_back({rule, id});
    }
  }
  return work >= 0;
}

/// The same automaton without epsilons, as nondeterministic as before. False: too much.
bool without_epsilons(const RuleAutomaton& nfa, RuleAutomaton& out, int64_t& work) {
  Closure closure(nfa);
  out.states.resize(nfa.states.size());
  for (size_t i = 0; i < nfa.states.size(); ++i) {
    States states = {static_cast<int32_t>(i)};
    closure.close(states, work);
    auto& to = out.states[i];
    for (const int32_t s : states) {
      const auto& from = nfa.states[static_cast<size_t>(s)];
      to.accepting = to.accepting || from.accepting;
      to.edges.insert(to.edges.end(), from.edges.begin(), from.edges.end());
      to.calls.insert(to.calls.end(), from.calls.begin(), from.calls.end());
      work -= static_cast<int64_t>(from.edges.size() + from.calls.size());
    }
    std::sort(to.edges.begin(), to.edges.end(), [](const auto& a, const auto& b) {
      return std::tie(a.low, a.high, a.target) < std::tie(b.low, b.high, b.target);
    });
    if (work < 0) return false;
  }
  return true;
}

/// Moore's partition refinement; gives up (and keeps the automaton) when it gets expensive.
void minimise(RuleAutomaton& dfa, int64_t work) {
  const size_t n = dfa.states.size();
  std::vector<int32_t> block(n, 0), next(n);
  size_t num_blocks = 0;
  for (;;) {
    std::unordered_map<States, int32_t, StatesHash> ids;
    for (size_t i = 0; i < n; ++i) {
      const auto& state = dfa.states[i];
      States key = {block[i], state.accepting ? 1 : 0};
      for (size_t e = 0; e < state.edges.size(); ++e) {
        const auto& edge = state.edges[e];
        const int32_t to = block[static_cast<size_t>(edge.target)];
        const bool joins = e > 0 && key.back() == to && state.edges[e - 1].high + 1 == edge.low;
        if (joins) {
          key[key.size() - 2] = edge.high;
        } else {
          key.insert(key.end(), {edge.low, edge.high, to});
        }
      }
      key.push_back(-1);
      for (const auto& call : state.calls) {
        key.insert(key.end(), {call.rule, block[static_cast<size_t>(call.target)]});
      }
      work -= static_cast<int64_t>(key.size());
      next[i] = ids.try_emplace(std::move(key), static_cast<int32_t>(ids.size())).first->second;
    }
    if (work < 0) return;
    block.swap(next);
    if (ids.size() == num_blocks) break;
    num_blocks = ids.size();
  }
  if (num_blocks == n) return;
  // Blocks are numbered by their first state, so state 0 stays the first.
  RuleAutomaton out;
  out.states.resize(num_blocks);
  std::vector<bool> done(num_blocks, false);
  for (size_t i = 0; i < n; ++i) {
    const auto b = static_cast<size_t>(block[i]);
    if (done[b]) continue;
    done[b] = true;
    out.states[b] = std::move(dfa.states[i]);
    auto& edges = out.states[b].edges;
    size_t kept = 0;
    for (size_t e = 0; e < edges.size(); ++e) {
      edges[e].target = block[static_cast<size_t>(edges[e].target)];
      if (kept > 0 && edges[kept - 1].target == edges[e].target &&
          edges[kept - 1].high + 1 == edges[e].low) {
        edges[kept - 1].high = edges[e].high;
      } else {
        edges[kept++] = edges[e];
      }
    }
    edges.resize(kept);
    for (auto& call : out.states[b].calls) call.target = block[static_cast<size_t>(call.target)];
  }
  dfa = std::move(out);
}

}  // namespace

Result<RuleAutomaton> determinise(const RuleAutomaton& nfa, CompileBudget& budget) {
  RuleAutomaton out;
  // A rule may take half of what is left, so that there is something for the way back.
  int64_t work = budget.work / 2;
  const size_t max_states =
      std::min(static_cast<size_t>(budget.states), 4 * nfa.states.size() + 2000);
  const bool deterministic = subsets(nfa, out, work, max_states);
  budget.work -= budget.work / 2 - std::max<int64_t>(work, 0);
  if (deterministic) {
    minimise(out, std::min<int64_t>(budget.work / 4, 2'000'000));
  } else {
    constexpr size_t kMaxNondeterministic = 3000;  // a configuration may hold them all
    out = {};
    if (nfa.states.size() > kMaxNondeterministic || !without_epsilons(nfa, out, budget.work)) {
      return too_many_states();
    }
  }
  budget.states -= static_cast<int64_t>(out.states.size());
  if (budget.states < 0 || budget.work < 0) return too_many_states();
  return out;
}

}  // namespace weft
