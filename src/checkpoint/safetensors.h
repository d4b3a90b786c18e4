#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/model_file.h"
#include "tensor/dtype.h"

namespace weft {

/// What a safetensors header says of one tensor. `begin` and `end` are byte offsets in the file.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  ///< row-major; empty for a scalar; an extent may be 0
  uint64_t begin = 0;
  uint64_t end = 0;

  uint64_t num_bytes() const { return end - begin; }
  int64_t num_elements() const;
};

/// A checked header: tensors in file order (their byte ranges are disjoint, ascending and cover the
/// data section exactly; shape x dtype equals the range) and the `__metadata__` strings.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

constexpr uint64_t kMaxSafetensorsHeader = uint64_t{64} << 20;  ///< bytes of JSON
constexpr size_t kMaxTensorDims = 8;
constexpr size_t kMaxTensorName = 1024;  ///< bytes
constexpr size_t kMaxTensors = 262144;   ///< in one file

/// Length of the JSON header of a file that begins with the 8 bytes `prefix` and has `file_size`
/// bytes; an error when it can't fit, checked before anything is allocated.
Result<uint64_t> safetensors_header_length(std::span<const std::byte> prefix, uint64_t file_size);

/// Parses and checks the JSON header `json` of a file of `file_size` bytes.
/// Format: https://github.com/huggingface/safetensors#format. Refused, beyond what the format
/// refuses: names over kMaxTensorName or with control characters, more than kMaxTensorDims extents,
/// dtypes that weft does not know (named in the message).
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t file_size);

/// An open safetensors file. Reads are thread-safe.
class SafetensorsFile {
 public:
  /// Opens `path` and checks its header. Errors name the file and the tensor.
  static Result<SafetensorsFile> open(const std::string& path);
  static Result<SafetensorsFile> open(ModelFile file);

  const std::string& path() const { return file_.path(); }
  uint64_t file_size() const { return file_.size(); }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  /// The tensor of that name, or nullptr.
  const TensorInfo* find(std::string_view name) const;

  /// Copies bytes [offset, offset + dst.size()) of `tensor` (one of this file's). A range outside
  /// the tensor is a bug; a file that was truncated or changed since it was opened is kDataLoss.
  Result<> read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> dst) const;

  /// The whole tensor `name`; kNotFound when there is none.
  Result<std::vector<std::byte>> load(std::string_view name) const;

 private:
  SafetensorsFile(ModelFile file, SafetensorsHeader header);

  ModelFile file_;
  SafetensorsHeader header_;
  std::vector<uint32_t> by_name_;  // indices into header_.tensors, sorted by name
};

}  // namespace weft
