#include "media/positions.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace weft {

PromptPositions prompt_positions(std::span<const TokenGrid> grids, int64_t prompt_len) {
  PromptPositions out;
  out.triples.reserve(static_cast<size_t>(prompt_len));
  int32_t next = 0;
  const auto add_text = [&](int64_t end) {
    while (static_cast<int64_t>(out.triples.size()) < end) {
      out.triples.push_back({next, next, next});
      ++next;
    }
  };
  for (const TokenGrid& grid : grids) {
    CHECK(grid.t > 0 && grid.h > 0 && grid.w > 0);
    CHECK(grid.offset(grid.t - 1) < std::numeric_limits<int32_t>::max() - (1 << 24));
    CHECK(grid.first >= static_cast<int64_t>(out.triples.size()));
    CHECK(grid.first + grid.tokens() <= prompt_len);
    add_text(grid.first);
    for (int t = 0; t < grid.t; ++t) {
      const auto at = static_cast<int32_t>(grid.offset(t));
      for (int h = 0; h < grid.h; ++h) {
        for (int w = 0; w < grid.w; ++w) out.triples.push_back({next + at, next + h, next + w});
      }
    }
    next += std::max({static_cast<int32_t>(grid.offset(grid.t - 1)) + 1, grid.h, grid.w});
  }
  add_text(prompt_len);
  out.rope_delta = static_cast<int32_t>(next - prompt_len);
  return out;
}

}  // namespace weft
