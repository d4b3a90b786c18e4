#include "cache/swap_pool.h"

#include <numeric>

#include "base/check.h"

namespace weft {
namespace {

/// n - 1 .. 0: taken from the back, the smallest first.
std::vector<int32_t> all_of(int n) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  std::iota(out.rbegin(), out.rend(), 0);
  return out;
}

}  // namespace

SwapPool::SwapPool(int num_blocks, int num_slots)
    : num_blocks_(num_blocks),
      num_slots_(num_slots),
      free_blocks_(all_of(num_blocks)),
      free_slots_(all_of(num_slots)) {}

bool SwapPool::take(int64_t blocks, bool slot, SwapHold& hold) {
  CHECK(hold.empty() && blocks >= 0);
  if (blocks > free_blocks() || (slot && free_slots_.empty())) return false;
  for (int64_t i = 0; i < blocks; ++i) {
    hold.blocks.push_back(free_blocks_.back());
    free_blocks_.pop_back();
  }
  if (slot) {
    hold.slot = free_slots_.back();
    free_slots_.pop_back();
  }
  return true;
}

void SwapPool::give_back(SwapHold& hold) {
  free_blocks_.insert(free_blocks_.end(), hold.blocks.begin(), hold.blocks.end());
  if (hold.slot >= 0) free_slots_.push_back(hold.slot);
  hold.blocks.clear();
  hold.slot = -1;
  CHECK(free_blocks() <= num_blocks_ && free_slots() <= num_slots_, "swap space freed twice");
}

}  // namespace weft
