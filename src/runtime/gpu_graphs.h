#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <optional>

#include "device/gpu.h"

namespace weft {

/// Pieces of work that come again with the same shapes, as graphs. A piece runs as it is the first
/// time, which loads its kernels; when it comes again it is captured, and from then on replayed.
class GpuGraphs {
 public:
  /// Everything that the launches depend on: shapes, and which memory they use.
  using Key = std::array<int64_t, 6>;

  explicit GpuGraphs(bool on) : on_(on) {}

  /// Enqueues what `body` enqueues. True: as a graph.
  template <class Body>
  bool run(Stream& stream, const Key& key, Body&& body) {
    auto it = graphs_.find(key);
    if (it == graphs_.end()) {
      if (on_ && graphs_.size() < kMostGraphs) {
        graphs_.try_emplace(key);
        ++num_new_;
      }
      body();
      return false;
    }
    if (!it->second) {
      it->second.emplace(GpuGraph::capture(stream, body));
      ++num_new_;
    }
    it->second->launch(stream);
    return true;
  }

  /// Runs so far of pieces that were not replayed, but will be.
  int64_t num_new() const { return num_new_; }

 private:
  // A graph takes some hundred kilobytes.
  static constexpr size_t kMostGraphs = 1024;

  bool on_;
  int64_t num_new_ = 0;
  std::map<Key, std::optional<GpuGraph>> graphs_;
};

/// Rows that a step of `rows` rows is padded to, so that few shapes come.
inline int64_t padded_rows(int64_t rows, int64_t most) {
  const int64_t step = rows <= 8 ? 1 : rows <= 32 ? 4 : rows <= 128 ? 8 : 16;
  const int64_t padded = (rows + step - 1) / step * step;
  return padded < most ? padded : most;
}

/// The same for steps with drafts, whose segments, rows and longest segments vary apart from each
/// other: every shape costs a capture, and a few more rows or segments without rows next to
/// nothing.
inline int64_t padded_segments(int64_t segments, int64_t most) {
  return std::min(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(segments))), most);
}
inline int64_t padded_draft_rows(int64_t rows, int64_t segments, int64_t most) {
  if (segments <= 2) return padded_rows(rows, most);
  const int64_t step = rows <= 16 ? 4 : rows <= 64 ? 8 : rows <= 256 ? 16 : 32;
  return std::clamp((rows + step - 1) / step * step, segments, most);
}

}  // namespace weft
