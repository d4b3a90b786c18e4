#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace weft {

/// A tensor to be written: `data` holds its elements, row-major, and is borrowed.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

/// Writes a safetensors file with the tensors in the given order. The file appears under `path`
/// whole or not at all (written beside it, flushed, renamed). Sizes that don't match the shape and
/// duplicate names are bugs; a full disk or a bad path is an error.
Result<> write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                           const std::map<std::string, std::string>& metadata = {});

}  // namespace weft
