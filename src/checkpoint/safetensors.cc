#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

namespace weft {

int64_t TensorInfo::num_elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

SafetensorsFile::SafetensorsFile(ModelFile file, SafetensorsHeader header)
    : file_(std::move(file)), header_(std::move(header)), by_name_(header_.tensors.size()) {
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(), [&](uint32_t a, uint32_t b) {
    return header_.tensors[a].name < header_.tensors[b].name;
  });
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  return open(TRY(ModelFile::open(path)));
}

Result<SafetensorsFile> SafetensorsFile::open(ModelFile file) {
  std::array<std::byte, 8> prefix{};
  if (file.size() >= prefix.size()) TRY(file.read(0, prefix));
  const auto length = safetensors_header_length(prefix, file.size());
  if (!length.ok()) return with_context(length.error(), file.path());
  std::string json(static_cast<size_t>(*length), '\0');
  TRY(file.read(prefix.size(), std::as_writable_bytes(std::span(json))));
  auto header = parse_safetensors_header(json, file.size());
  if (!header.ok()) return with_context(header.error(), file.path());
  return SafetensorsFile(std::move(file), std::move(header).value());
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto it = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [&](uint32_t index, auto wanted) { return header_.tensors[index].name < wanted; });
  if (it == by_name_.end() || header_.tensors[*it].name != name) return nullptr;
  return &header_.tensors[*it];
}

Result<> SafetensorsFile::read(const TensorInfo& tensor, uint64_t offset,
                               std::span<std::byte> dst) const {
  CHECK(offset <= tensor.num_bytes() && dst.size() <= tensor.num_bytes() - offset,
        "read outside tensor " + tensor.name);
  const auto done = file_.read(tensor.begin + offset, dst);
  if (!done.ok()) return with_context(done.error(), "tensor " + in_quotes(tensor.name));
  return {};
}

Result<std::vector<std::byte>> SafetensorsFile::load(std::string_view name) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) return not_found(path() + ": has no tensor " + in_quotes(name));
  std::vector<std::byte> bytes(static_cast<size_t>(tensor->num_bytes()));
  TRY(read(*tensor, 0, bytes));
  return bytes;
}

}  // namespace weft
