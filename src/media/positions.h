#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace weft {

/// Image tokens of a prompt: t x h x w of them, row by row of each frame, one after the other from
/// `first` on. h and w are in tokens (patches after merging).
struct TokenGrid {
  int64_t first = 0;
  int t = 1, h = 0, w = 0;
  float seconds = 1, per_second = 1;  ///< of a frame, and positions of a second
  /// Position of a frame behind the first, in transformers' arithmetic (a float tensor, cut off).
  int64_t offset(int frame) const {
    return static_cast<int64_t>(static_cast<float>(frame) * seconds * per_second);
  }
  int64_t tokens() const { return int64_t{t} * h * w; }
};

struct PromptPositions {
  std::vector<std::array<int32_t, 3>> triples;  ///< (t, h, w) of every prompt token
  int32_t rope_delta = 0;                       ///< max of all of them + 1 - tokens of the prompt
};

/// Multimodal rope's positions of a whole prompt (transformers' get_rope_index; Qwen2-VL, arXiv
/// 2409.12191). Text goes on by one on all axes; a grid begins at the next position p: frame i is
/// t = p + offset(i), its rows h = p .., its columns w = p ..; what follows begins behind the
/// largest of them (the rule that Qwen2.5-VL was trained with, and vLLM's; transformers from 5.3 on
/// looks at h and w alone). `grids` are in order, apart and within the prompt; their offsets stay
/// below 2^31 - 2^24.
PromptPositions prompt_positions(std::span<const TokenGrid> grids, int64_t prompt_len);

}  // namespace weft
