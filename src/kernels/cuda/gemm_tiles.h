#pragma once

// Which tile comes when: shared by the GEMM kernels of prompt arithmetic. Included by .cu files.

#include <cuda_runtime.h>

#include <cstdint>

namespace weft::cuda {

inline constexpr int kTileRows = 128;
inline constexpr int kMaxExperts = 512;

/// The work of one launch, cut into units: one tile, or a cluster's tiles below each other.
struct TileSpace {
  int rows = 0;  ///< of the dense problem
  int column_tiles = 0;
  int row_group = 8;  ///< units of rows that sweep the columns together (L2)
  int experts = 1;
  const int32_t* offsets = nullptr;  ///< grouped: rows of expert e begin at offsets[e]
};

struct Tile {
  int row = 0;      ///< first row
  int row_end = 0;  ///< end of the rows that this tile may write
  int column_tile = 0;
  int expert = 0;
};

/// `first_unit` is shared memory of experts + 1 ints. All threads of the block call; they meet in
/// __syncthreads after it.
template <int UnitRows>
__device__ __forceinline__ void count_units(const TileSpace& space, int* first_unit) {
  // One warp: prefix sums of the experts' units, 32 experts at a time.
  if (space.offsets == nullptr || threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  int total = 0;
  for (int base = 0; base < space.experts; base += 32) {
    const int e = base + lane;
    int units = 0;
    if (e < space.experts) {
      units = (space.offsets[e + 1] - space.offsets[e] + UnitRows - 1) / UnitRows;
    }
    int sum = units;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += below;
    }
    if (e < space.experts) first_unit[e] = total + sum - units;
    total += __shfl_sync(0xffffffffu, sum, 31);
  }
  if (lane == 0) first_unit[space.experts] = total;
}

template <int UnitRows>
__device__ __forceinline__ int num_units(const TileSpace& space, const int* first_unit) {
  const int row_units =
      space.offsets != nullptr ? first_unit[space.experts] : (space.rows + UnitRows - 1) / UnitRows;
  return row_units * space.column_tiles;
}

/// The tile of unit `unit` that begins `row_in_unit` rows into it.
template <int UnitRows>
__device__ __forceinline__ Tile tile_of(const TileSpace& space, const int* first_unit, int unit,
                                        int row_in_unit) {
  Tile tile;
  int first = 0, rows = (space.rows + UnitRows - 1) / UnitRows, row = 0;
  tile.row_end = space.rows;
  if (space.offsets != nullptr) {
    int low = 0, high = space.experts;  // the last expert that begins at or before the unit
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first_unit[middle] * space.column_tiles <= unit) {
        low = middle;
      } else {
        high = middle;
      }
    }
    first = first_unit[low];
    rows = first_unit[low + 1] - first;
    tile.expert = low;
    row = space.offsets[low];
    tile.row_end = space.offsets[low + 1];
  }
  const int inside = unit - first * space.column_tiles;
  const int group = inside / (space.row_group * space.column_tiles);
  const int in_group = inside - group * space.row_group * space.column_tiles;
  const int size = min(space.row_group, rows - group * space.row_group);
  tile.column_tile = in_group / size;
  tile.row = row + (group * space.row_group + in_group % size) * UnitRows + row_in_unit;
  return tile;
}

}  // namespace weft::cuda
