// DEPS: weft_checkpoint
// The safetensors header parser on arbitrary bytes: the input is a whole file. It must be refused
// with a message, or every tensor's range lies in the file, in order, and agrees with its shape.
#include <cstdint>
#include <span>
#include <string_view>

#include "base/check.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto length = weft::safetensors_header_length(bytes, size);
  if (!length.ok()) {
    CHECK(!length.error().message.empty());
    return 0;
  }
  const std::string_view json(reinterpret_cast<const char*>(data) + 8,
                              static_cast<size_t>(*length));
  const auto header = weft::parse_safetensors_header(json, size);
  if (!header.ok()) {
    CHECK(!header.error().message.empty());
    return 0;
  }
  uint64_t covered = 8 + *length;
  for (const weft::TensorInfo& tensor : header->tensors) {
    CHECK(tensor.begin == covered && tensor.end >= tensor.begin);
    const auto element = static_cast<int64_t>(weft::dtype_size(tensor.dtype));
    CHECK(static_cast<uint64_t>(tensor.num_elements() * element) == tensor.num_bytes());
    covered = tensor.end;
  }
  CHECK(covered == size);
  return 0;
}
