#include "media/positions.h"

#include <algorithm>

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
    CHECK(grid.first >= static_cast<int64_t>(out.triples.size()));
    CHECK(grid.first + grid.tokens() <= prompt_len);
    add_text(grid.first);
    for (int t = 0; t < grid.t; ++t) {
      for (int h = 0; h < grid.h; ++h) {
        for (int w = 0; w < grid.w; ++w) out.triples.push_back({next + t, next + h, next + w});
      }
    }
    next += std::max({grid.t, grid.h, grid.w});
  }
  add_text(prompt_len);
  out.rope_delta = static_cast<int32_t>(next - prompt_len);
  return out;
}

}  // namespace weft
