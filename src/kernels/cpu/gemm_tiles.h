#pragma once

// AMX tile configuration. Include isa.h first.

#include "kernels/cpu/isa.h"

#if WEFT_AMX

namespace weft::WEFT_ISA_NS {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

WEFT_INLINE void load_tile_config(const TileConfig& config) {
  // The intrinsic tells the compiler of 8 bytes only: keep the others.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace weft::WEFT_ISA_NS

#endif
