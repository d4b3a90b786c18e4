#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/result.h"
#include "grammar/automaton.h"

namespace weft {

/// The automaton of one rule while it is built. State 0 is the first one; `calls` name rules by
/// number instead of by state.
struct RuleAutomaton {
  struct Call {
    int32_t rule = 0;
    int32_t target = 0;
    friend bool operator==(const Call&, const Call&) = default;
  };
  struct State {
    bool accepting = false;
    std::vector<Grammar::Edge> edges;
    std::vector<Call> calls;
    std::vector<int32_t> epsilons;  // empty once determinised
  };
  std::vector<State> states;
};

/// What compiling may still cost. A unit is some tens of nanoseconds.
struct CompileBudget {
  int64_t work = 12'000'000;
  int64_t states = 0;  ///< of all rules together
};

/// Without epsilons, deterministic where that stays small (else as it is), minimal where that is
/// cheap. Errors: kExhausted.
Result<RuleAutomaton> determinise(const RuleAutomaton& nfa, CompileBudget& budget);

/// Puts the rules together: dead and unreachable states go. Errors: kInvalidArgument for left
/// recursion (`names` of the rules) and for a grammar without any text.
Result<Grammar> link(const std::vector<RuleAutomaton>& rules, int32_t root,
                     const std::vector<std::string>& names);

/// The UTF-8 encodings of the code points of closed, sorted, disjoint ranges without surrogates:
/// each item is a sequence of byte ranges of 1 to 4 bytes.
using ByteRanges = std::vector<std::pair<uint8_t, uint8_t>>;
std::vector<ByteRanges> utf8_ranges(const std::vector<std::pair<char32_t, char32_t>>& ranges);

}  // namespace weft
