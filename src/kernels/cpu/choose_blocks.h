#pragma once

#include <cstdint>

namespace weft {

/// The blocks that a row of blocks sees (SelectArgs). Compiled once, not per instruction set: it
/// sorts with the standard library.
struct BlockChoice {
  const float* scores;  ///< s[b, 0 .. b]
  int64_t row;          ///< b
  float threshold;
  bool quirk;      ///< SelectArgs::quirk_blocks
  int32_t* order;  ///< [b + 1] memory to work in
  int32_t* words;  ///< [num_words] result: bit c % 32 of word c / 32
  int64_t num_words;
};

struct ChosenBlocks {
  int32_t count = 0;
  float mass = 0;  ///< the share of the scores that was chosen
};

ChosenBlocks choose_blocks(const BlockChoice& choice);

}  // namespace weft
