#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "checkpoint/safetensors.h"

namespace weft {
namespace {

using Json = nlohmann::json;

constexpr DType kDTypes[] = {DType::kF32,     DType::kBF16,    DType::kF16, DType::kF64,
                             DType::kFP8E4M3, DType::kFP8E5M2, DType::kI64, DType::kI32,
                             DType::kI16,     DType::kI8,      DType::kU8,  DType::kBool};

std::optional<DType> dtype_of(std::string_view name) {
  for (const DType dtype : kDTypes) {
    if (dtype_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

std::string known_dtypes() {
  std::string out;
  for (const DType dtype : kDTypes) {
    if (!out.empty()) out += ", ";
    out += dtype_name(dtype);
  }
  return out;
}

/// Reads the header as a stream of events: nothing deeper or longer than the format allows is ever
/// built in memory, and duplicate keys show.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  SafetensorsHeader header;
  std::string problem;

  bool null() override { return misplaced("null"); }
  bool boolean(bool) override { return misplaced("a boolean"); }
  bool binary(binary_t&) override { return misplaced("a binary value"); }
  bool number_float(number_float_t, const string_t& text) override {
    if (place_ == Place::kShape || place_ == Place::kOffsets) {
      return fail(subject() + " must hold integers, got " + text.substr(0, 40));
    }
    return misplaced("a number");
  }
  bool number_integer(number_integer_t value) override {
    if (value >= 0) return number_unsigned(static_cast<number_unsigned_t>(value));
    if (place_ == Place::kShape || place_ == Place::kOffsets) {
      return fail(subject() + " must not be negative, got " + std::to_string(value));
    }
    return misplaced("a number");
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return fail(subject() + ": the extent " + std::to_string(value) + " is too large");
      }
      if (tensor_.shape.size() == kMaxTensorDims) {
        return fail(subject() + " has more than " + std::to_string(kMaxTensorDims) + " extents");
      }
      tensor_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (num_offsets_ == 2) return fail(subject() + " must hold two numbers, got more");
      (num_offsets_ == 0 ? tensor_.begin : tensor_.end) = value;
      ++num_offsets_;
      return true;
    }
    return misplaced("a number");
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      header.metadata[key_] = value;
      return true;
    }
    if (place_ == Place::kTensor && key_ == "dtype") {
      const auto dtype = dtype_of(value);
      if (!dtype) {
        return fail(subject() + " is " + in_quotes(value) + "; weft knows " + known_dtypes());
      }
      tensor_.dtype = *dtype;
      return true;
    }
    return misplaced("a string");
  }

  bool start_object(size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
      return true;
    }
    if (place_ != Place::kRoot) return misplaced("an object");
    fields_.clear();
    if (tensor_.name == "__metadata__") {
      place_ = Place::kMetadata;
      return true;
    }
    place_ = Place::kTensor;
    num_offsets_ = 0;
    return true;
  }

  bool key(string_t& name) override {
    if (name.size() > kMaxTensorName) {
      return fail("has a name of " + std::to_string(name.size()) + " bytes; at most " +
                  std::to_string(kMaxTensorName) + " are accepted");
    }
    if (place_ == Place::kRoot) return start_tensor(name);
    if (!fields_.insert(name).second) {
      return fail("tensor " + in_quotes(tensor_.name) + ": has " + in_quotes(name) + " twice");
    }
    key_ = name;
    if (place_ == Place::kMetadata) return true;
    if (name == "dtype" || name == "shape" || name == "data_offsets") return true;
    return fail("tensor " + in_quotes(tensor_.name) + ": has the unknown field " + in_quotes(name) +
                "; allowed are dtype, shape and data_offsets");
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(field)) {
          return fail("tensor " + in_quotes(tensor_.name) + ": has no " + field);
        }
      }
      header.tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == Place::kRoot ? Place::kStart : Place::kRoot;
    tensor_ = TensorInfo();
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::kTensor && key_ == "shape") {
      place_ = Place::kShape;
      return true;
    }
    if (place_ == Place::kTensor && key_ == "data_offsets") {
      place_ = Place::kOffsets;
      return true;
    }
    return misplaced("an array");
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && num_offsets_ != 2) {
      return fail(subject() + " must hold two numbers, got " + std::to_string(num_offsets_));
    }
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return fail("the header is not valid JSON at byte " + std::to_string(position));
  }

 private:
  enum class Place { kStart, kRoot, kTensor, kShape, kOffsets, kMetadata };

  bool fail(std::string text) {
    if (problem.empty()) problem = std::move(text);
    return false;
  }

  std::string subject() const { return "tensor " + in_quotes(tensor_.name) + ": " + key_; }

  bool misplaced(const char* what) {
    switch (place_) {
      case Place::kStart: return fail(std::string("the header must be an object, got ") + what);
      case Place::kRoot:
        return fail("the entry of " + in_quotes(tensor_.name) + " must be an object, got " + what);
      case Place::kMetadata:
        return fail("__metadata__." + in_quotes(key_) + " must be a string, got " + what);
      default: return fail(subject() + " can't hold " + what);
    }
  }

  bool start_tensor(const std::string& name) {
    if (!names_.insert(name).second) return fail("has the tensor " + in_quotes(name) + " twice");
    if (names_.size() > kMaxTensors) {
      return fail("has more than " + std::to_string(kMaxTensors) + " tensors");
    }
    const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
    if (name.empty() || std::any_of(name.begin(), name.end(), control)) {
      return fail("the tensor name " + in_quotes(name) + " is empty or has control characters");
    }
    tensor_.name = name;
    return true;
  }

  Place place_ = Place::kStart;
  TensorInfo tensor_;
  int num_offsets_ = 0;
  std::string key_;
  std::unordered_set<std::string> names_;   // of tensors, to find duplicates
  std::unordered_set<std::string> fields_;  // of the object being read
};

/// shape x dtype in bytes; false when it does not fit 64 bits.
bool byte_size(const TensorInfo& tensor, uint64_t& out) {
  out = static_cast<uint64_t>(dtype_size(tensor.dtype));
  // The largest product is checked without the zeros, so that [2^62, 2^62, 0] is refused too:
  // later code multiplies extents in any order.
  for (const int64_t extent : tensor.shape) {
    if (extent == 0) continue;
    if (__builtin_mul_overflow(out, static_cast<uint64_t>(extent), &out)) return false;
    if (out > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
  }
  if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) out = 0;
  return true;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

std::string range_text(const TensorInfo& tensor) {
  return "[" + std::to_string(tensor.begin) + ", " + std::to_string(tensor.end) + "]";
}

Result<> check_extent(const TensorInfo& tensor, uint64_t data_size) {
  const std::string where = "tensor " + in_quotes(tensor.name) + ": ";
  if (tensor.begin > tensor.end) {
    return data_loss(where + "data_offsets " + range_text(tensor) + " are reversed");
  }
  if (tensor.end > data_size) {
    return data_loss(where + "data_offsets " + range_text(tensor) + " end past the file's " +
                     std::to_string(data_size) + " data bytes (truncated?)");
  }
  uint64_t bytes = 0;
  if (!byte_size(tensor, bytes)) {
    return data_loss(where + "shape " + shape_text(tensor.shape) + " is too large for 64 bits");
  }
  if (bytes != tensor.num_bytes()) {
    return data_loss(where + "shape " + shape_text(tensor.shape) + " of " +
                     std::string(dtype_name(tensor.dtype)) + " needs " + std::to_string(bytes) +
                     " bytes, but data_offsets " + range_text(tensor) + " hold " +
                     std::to_string(tensor.num_bytes()));
  }
  return {};
}

/// Sorts the tensors by range and checks that the ranges are disjoint and cover the data section.
Result<> check_ranges(std::vector<TensorInfo>& tensors, uint64_t data_size) {
  for (const TensorInfo& tensor : tensors) TRY(check_extent(tensor, data_size));
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin < covered) {
      return data_loss("tensor " + in_quotes(tensor.name) + ": data_offsets " + range_text(tensor) +
                       " overlap the tensor before it, which ends at " + std::to_string(covered));
    }
    if (tensor.begin > covered) {
      return data_loss("tensor " + in_quotes(tensor.name) + ": data_offsets " + range_text(tensor) +
                       " leave a hole after byte " + std::to_string(covered));
    }
    covered = tensor.end;
  }
  if (covered != data_size) {
    return data_loss("the tensors cover " + std::to_string(covered) + " of the file's " +
                     std::to_string(data_size) + " data bytes");
  }
  return {};
}

}  // namespace

Result<uint64_t> safetensors_header_length(std::span<const std::byte> prefix, uint64_t file_size) {
  if (prefix.size() < 8 || file_size < 8) {
    return data_loss("is not a safetensors file: it has " + std::to_string(file_size) +
                     " bytes, fewer than 8");
  }
  static_assert(std::endian::native == std::endian::little, "safetensors are little endian");
  uint64_t length = 0;
  std::memcpy(&length, prefix.data(), sizeof(length));
  if (length > file_size - 8) {
    return data_loss("is truncated or not a safetensors file: its header claims " +
                     std::to_string(length) + " bytes, the file has " +
                     std::to_string(file_size - 8) + " after the first 8");
  }
  if (length > kMaxSafetensorsHeader) {
    return data_loss("the header claims " + std::to_string(length) + " bytes; at most " +
                     std::to_string(kMaxSafetensorsHeader) + " are accepted");
  }
  return length;
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t file_size) {
  CHECK(json.size() <= kMaxSafetensorsHeader && file_size >= 8 + json.size());
  if (!json.starts_with('{')) return data_loss("the header does not begin with '{'");
  HeaderReader reader;
  if (!Json::sax_parse(json.begin(), json.end(), &reader)) return data_loss(reader.problem);
  SafetensorsHeader header = std::move(reader.header);
  const uint64_t data_begin = 8 + json.size();
  TRY(check_ranges(header.tensors, file_size - data_begin));
  for (TensorInfo& tensor : header.tensors) {
    tensor.begin += data_begin;
    tensor.end += data_begin;
  }
  return header;
}

}  // namespace weft
