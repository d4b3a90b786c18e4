#pragma once

// What decode segments of the gated delta rule may say on a GPU in the place of a slot
// (GdnArgs::read_slot, write_slot) where the slots have room for kept rows.
//
// A slot's kept rows lie behind its window, in the last rows of StateSlots::conv: each C values of
// bf16 (a row of qkv), then its HV a and HV b in f32. A segment that keeps leaves the state and the
// window before its rows in its slot, and the inputs of its rows there; its own state goes nowhere.
// A later segment that reads the slot with `count` kept rows goes through the first `count` of them
// before its own rows: the state that it begins with is the one behind them, bit for bit.
// docs/kernels/gated_delta.md

#include <cstdint>

namespace weft {

inline constexpr int kKeptCountShift = 24;
inline constexpr int32_t kMostStateSlots = 1 << kKeptCountShift;
inline constexpr int kMostKeptRows = 64;

/// A read slot >= 0 of which `count` kept rows come first.
constexpr int32_t read_with_kept(int32_t slot, int count) {
  return slot | count << kKeptCountShift;
}
/// A write slot that keeps.
constexpr int32_t keep_in(int32_t slot) {
  return -2 - slot;
}

/// Bytes of a kept row of `channels` values and `heads` value heads.
constexpr int64_t kept_row_bytes(int64_t channels, int64_t heads) {
  return channels * 2 + heads * 8;
}
/// Rows of StateSlots::conv that `kept` of them take.
constexpr int64_t kept_window_rows(int64_t channels, int64_t heads, int64_t kept) {
  return (kept * kept_row_bytes(channels, heads) + 4 * channels - 1) / (4 * channels);
}

}  // namespace weft
