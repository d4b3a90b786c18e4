#pragma once

// Host side of TMA: a tensor in global memory as a CUtensorMap, which a kernel takes by value as a
// `const __grid_constant__ CUtensorMap`. The driver's encoder is found at run time, so that nothing
// links against libcuda. Included by .cu files alone.

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "base/check.h"
#include "kernels/cuda/common/launch.h"

namespace weft::cuda {

enum class MapType { kBF16, kE4M3, kF32 };  // kE4M3: any 1-byte type
enum class MapSwizzle { kNone, k32, k64, k128 };

/// Dimensions innermost first. The base is aligned to 16 bytes, strides are multiples of 16 bytes
/// (stride_bytes[i] is that of dimension i + 1), a box has at most 256 elements a dimension, and
/// its inner row at most the swizzle's bytes. Loads outside the tensor give zeros, stores there do
/// nothing.
struct MapShape {
  MapType type = MapType::kBF16;
  int rank = 2;
  uint64_t dims[5] = {};
  uint64_t stride_bytes[4] = {};
  uint32_t box[5] = {};
  MapSwizzle swizzle = MapSwizzle::k128;
};

inline CUtensorMap encode_map(const void* base, const MapShape& shape) {
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    CHECK(entry != nullptr && found == cudaDriverEntryPointSuccess, "driver without TMA maps");
    return reinterpret_cast<CUresult (*)(
        CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
        const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
        CUtensorMapL2promotion, CUtensorMapFloatOOBfill)>(entry);
  }();
  constexpr CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                            CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                            CU_TENSOR_MAP_DATA_TYPE_FLOAT32};
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B,
                                              CU_TENSOR_MAP_SWIZZLE_128B};
  cuuint64_t dims[5];
  cuuint64_t strides[4];
  cuuint32_t steps[5];
  for (int i = 0; i < shape.rank; ++i) {
    dims[i] = shape.dims[i];
    steps[i] = 1;
    if (i > 0) {
      strides[i - 1] = shape.stride_bytes[i - 1];
    }
  }
  CUtensorMap map;
  const CUresult result =
      encode(&map, kTypes[static_cast<int>(shape.type)], static_cast<cuuint32_t>(shape.rank),
             const_cast<void*>(base), dims, strides, shape.box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[static_cast<int>(shape.swizzle)],
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS,
        "TMA map: encode failed with " + std::to_string(static_cast<int>(result)));
  return map;
}

/// A matrix of `rows` x `columns` with rows `row_bytes` apart, in boxes of box_rows x box_columns.
struct MatrixMap {
  MapType type = MapType::kBF16;
  int64_t rows = 0, columns = 0, row_bytes = 0;
  uint32_t box_rows = 0, box_columns = 0;
  MapSwizzle swizzle = MapSwizzle::k128;
};
inline CUtensorMap encode_map(const void* base, const MatrixMap& m) {
  MapShape shape;
  shape.type = m.type;
  shape.dims[0] = static_cast<uint64_t>(m.columns);
  shape.dims[1] = static_cast<uint64_t>(m.rows);
  shape.stride_bytes[0] = static_cast<uint64_t>(m.row_bytes);
  shape.box[0] = m.box_columns;
  shape.box[1] = m.box_rows;
  shape.swizzle = m.swizzle;
  return encode_map(base, shape);
}

}  // namespace weft::cuda
