#pragma once

#include <cstdint>
#include <vector>

namespace weft {

/// What a displaced sequence holds of the swap space: one entry a KV block, and where its recurrent
/// state lies.
struct SwapHold {
  std::vector<int32_t> blocks;
  int32_t slot = -1;  ///< -1: none
  bool empty() const { return blocks.empty() && slot < 0; }
};

/// Bookkeeping of the swap space: memory of the host for the KV blocks and states of displaced
/// sequences. An entry is free or held once.
class SwapPool {
 public:
  SwapPool(int num_blocks, int num_slots);

  int num_blocks() const { return num_blocks_; }
  int num_slots() const { return num_slots_; }
  int free_blocks() const { return static_cast<int>(free_blocks_.size()); }
  int free_slots() const { return static_cast<int>(free_slots_.size()); }

  /// Gives `blocks` entries, and with `slot` one for a state, to `hold`, which is empty. False,
  /// and nothing, if there are not enough.
  bool take(int64_t blocks, bool slot, SwapHold& hold);
  /// Frees what `hold` has, which is empty then.
  void give_back(SwapHold& hold);

 private:
  const int num_blocks_, num_slots_;
  std::vector<int32_t> free_blocks_, free_slots_;
};

}  // namespace weft
