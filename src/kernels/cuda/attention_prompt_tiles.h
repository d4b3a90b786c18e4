#pragma once

namespace weft::cuda {

/// Rows of a tile of attention over prompts in launches without a plan of heads, for tests: 64, 128
/// or 192 in all that this thread launches; 0: as a launch ends soonest. No bit depends on it.
int& prompt_tile_rows();

}  // namespace weft::cuda
