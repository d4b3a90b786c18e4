#include "kernels/cpu/choose_blocks.h"

#include <algorithm>
#include <numeric>

namespace weft {

ChosenBlocks choose_blocks(const BlockChoice& choice) {
  const int64_t b = choice.row;
  const float* s = choice.scores;
  std::fill_n(choice.words, choice.num_words, 0);
  ChosenBlocks out;
  double mass = 0;
  const auto choose = [&](int64_t c) {
    choice.words[c / 32] |= static_cast<int32_t>(1u << (c % 32));
    ++out.count;
    mass += double{s[c]};
  };
  const double total = std::accumulate(s, s + b + 1, 0.0);
  const auto finish = [&] {
    out.mass = total > 0 ? static_cast<float>(mass / total) : 1.0f;
    return out;
  };
  if (choice.threshold >= 1) {
    for (int64_t c = 0; c <= b; ++c) choose(c);
    return finish();
  }
  choose(b);
  if (!choice.quirk && b > 0) choose(0);
  const double wanted = double{choice.threshold} * total;
  const int64_t first = choice.quirk ? 0 : 1;
  int32_t* const begin = choice.order;
  int32_t* const end = begin + std::max<int64_t>(0, b - first);
  std::iota(begin, end, static_cast<int32_t>(first));
  const auto before = [s](int32_t x, int32_t y) { return s[x] != s[y] ? s[x] > s[y] : x < y; };
  // Few are chosen: a heap gives the best ones without sorting the rest.
  std::make_heap(begin, end, [&](int32_t x, int32_t y) { return before(y, x); });
  double late = choice.quirk ? -1 : mass;
  for (int32_t* last = end; last != begin && late < wanted; --last) {
    std::pop_heap(begin, last, [&](int32_t x, int32_t y) { return before(y, x); });
    const double weighed = mass;
    choose(last[-1]);
    late = choice.quirk ? weighed : mass;
  }
  if ((choice.words[0] & 1) == 0) choose(0);
  return finish();
}

}  // namespace weft
