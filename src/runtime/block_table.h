#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/ids.h"
#include "device/gpu.h"

namespace weft {

/// The block tables of a step on the host: rows as wide as the longest context may need, so that
/// they lie where a graph looks for them, of which only the columns in use are written and go up.
/// Kernels read a row as far as its sequence has keys.
struct BlockTable {
  int32_t* data = nullptr;  ///< [rows, width]
  int64_t width = 0;
  int64_t used = 0;  ///< columns

  /// -1 behind the blocks.
  void set(int64_t row, std::span<const BlockId> blocks) {
    used = std::max(used, std::ssize(blocks));
    int32_t* const to = data + row * width;
    for (size_t i = 0; i < blocks.size(); ++i) to[i] = blocks[i].value;
    std::fill(to + blocks.size(), to + used, -1);
  }
};

/// Enqueues the way up of `rows` rows of tables and of what lies before them from `from` on;
/// `device` is where `from` goes.
inline void upload_with(Stream& stream, const BlockTable& table, int64_t rows, std::byte* device,
                        const std::byte* from) {
  constexpr int64_t kSmall = 16 << 10;
  const int64_t before = reinterpret_cast<const std::byte*>(table.data) - from;
  const int64_t pitch = table.width * 4, bytes = rows * pitch;
  if (bytes <= kSmall || table.used == table.width) {
    return copy_bytes(stream, device, from, before + bytes);
  }
  copy_bytes(stream, device, from, before);
  copy_rows(stream, device + before, table.data,
            {.rows = rows, .bytes = table.used * 4, .pitch = pitch});
}

}  // namespace weft
