#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace weft {

/// A pushdown automaton over bytes: one epsilon-free automaton a rule, with edges over byte ranges
/// and edges that call a rule. Every state is reachable and can be completed, so a configuration
/// that is not empty always leads to a text. Immutable.
class Grammar {
 public:
  struct Edge {
    uint8_t low = 0, high = 0;  ///< closed
    int32_t target = 0;
  };
  struct Call {
    int32_t start = 0;   ///< first state of the called rule
    int32_t target = 0;  ///< where to go on after it
    bool tail = false;   ///< nothing follows `target`: the call needs no frame
  };

  int32_t num_states() const { return static_cast<int32_t>(accepting.size()); }
  std::span<const Edge> edges_of(int32_t state) const {
    const auto s = static_cast<size_t>(state);
    return {edges.data() + edge_begin[s], edges.data() + edge_begin[s + 1]};
  }
  std::span<const Call> calls_of(int32_t state) const {
    const auto s = static_cast<size_t>(state);
    return {calls.data() + call_begin[s], calls.data() + call_begin[s + 1]};
  }
  bool accepts(int32_t state) const { return accepting[static_cast<size_t>(state)] != 0; }
  /// Whether the rule of `state` may end there without a byte, also by calls.
  bool may_be_empty(int32_t state) const { return nullable[static_cast<size_t>(state)] != 0; }
  /// Frames that the rule of `state` needs at least to come to its end from there.
  int32_t height_of(int32_t state) const { return height[static_cast<size_t>(state)]; }

  int32_t start = 0;
  std::vector<uint8_t> accepting;                ///< [states]
  std::vector<uint8_t> nullable;                 ///< [states]
  std::vector<int32_t> height;                   ///< [states]
  std::vector<uint32_t> edge_begin, call_begin;  ///< [states + 1]
  std::vector<Edge> edges;                       ///< of a state by `low`
  std::vector<Call> calls;
};

}  // namespace weft
