#pragma once

#include <algorithm>
#include <cstdint>

#include "nn/step.h"

namespace weft {

/// The arrays of AskedRows::seqs on the host.
struct AskedSegments {
  int32_t* cu_q = nullptr;   ///< [S + 1]
  int32_t* start = nullptr;  ///< [S]: kv_start

  /// The segments of `all` (whose host arrays are set) from the block of `row` on, the first asked
  /// row; returns AskedRows::first_row. `prompts`: so many segments with `prompt_rows` rows come
  /// first; beyond them all rows are asked.
  int32_t set(const SeqMap& all, int prompts, int64_t prompt_rows, int64_t row) const {
    const int32_t* const cu = all.host_cu_q;
    auto first = static_cast<int32_t>(prompt_rows);
    std::copy_n(all.host_kv_start, all.num_segments, start);
    if (row < prompt_rows) {
      const int64_t s = std::upper_bound(cu, cu + prompts + 1, row) - cu - 1;
      const auto position = static_cast<int32_t>(start[s] + row - cu[s]);
      const int32_t block = position - position % HeadPlan::kBlock;
      first = cu[s] + std::max(0, block - start[s]);
      start[s] += first - cu[s];
    }
    for (int s = 0; s <= all.num_segments; ++s) cu_q[s] = std::max(0, cu[s] - first);
    return first;
  }
};

}  // namespace weft
