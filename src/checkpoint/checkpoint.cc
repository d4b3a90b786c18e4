#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "base/thread_pool.h"
#include "checkpoint/config_json.h"

namespace weft {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxShards = 10000;
constexpr uint64_t kPiece = uint64_t{8} << 20;  // bytes of one parallel read

constexpr ConfigJsonLimits kIndexLimits{.max_bytes = uint64_t{64} << 20,
                                        .max_depth = 8,
                                        .max_values = 8000000,
                                        .max_key_bytes = kMaxTensorName};

/// Tensor name -> shard file name, as the index says.
Result<std::map<std::string, std::string>> read_index(const ModelDirectory& dir) {
  const ConfigJson json = TRY(ConfigJson::load(dir, kIndexFile, kIndexLimits));
  const ConfigJson weight_map = TRY(json.object("weight_map"));
  std::map<std::string, std::string> out;
  for (const std::string& name : weight_map.names()) {
    const std::string shard = TRY(weight_map.string(name));
    if (!is_plain_file_name(shard) || !shard.ends_with(".safetensors")) {
      return invalid_argument(weight_map.field(in_quotes(name)) + " names the shard " +
                              in_quotes(shard) +
                              "; a shard must be a plain file name that ends in .safetensors");
    }
    out.emplace(name, shard);
  }
  if (out.empty()) return invalid_argument(json.field("weight_map") + " is empty");
  return out;
}

Error no_weights(const ModelDirectory& dir) {
  std::string hint;
  for (const char* other :
       {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.gguf"}) {
    if (!dir.has(other)) continue;
    hint = std::string("; it has ") + other +
           ", which weft does not read: convert the model to safetensors";
  }
  return not_found(dir.path() + ": has neither " + kSingleFile + " nor " + kIndexFile + hint);
}

Result<std::vector<SafetensorsFile>> open_shards(const ModelDirectory& dir,
                                                 const std::map<std::string, std::string>& index) {
  std::set<std::string> files;
  for (const auto& [tensor, file] : index) files.insert(file);
  if (files.size() > kMaxShards) {
    return exhausted(dir.path() + ": " + kIndexFile + " names " + std::to_string(files.size()) +
                     " shards; at most " + std::to_string(kMaxShards) + " are accepted");
  }
  std::vector<SafetensorsFile> shards;
  std::map<std::string_view, size_t> position;
  for (const std::string& file : files) {
    if (!dir.has(file)) {
      return not_found(dir.path() + ": the shard " + file + ", which " + kIndexFile +
                       " names, is missing");
    }
    position[file] = shards.size();
    shards.push_back(TRY(SafetensorsFile::open(TRY(dir.open_file(file)))));
  }
  for (const auto& [tensor, file] : index) {
    if (shards[position[file]].find(tensor)) continue;
    return data_loss(dir.path() + ": the shard " + file + " lacks the tensor " + in_quotes(tensor) +
                     ", which " + kIndexFile + " places there");
  }
  return shards;
}

}  // namespace

Checkpoint::Checkpoint(std::string dir, std::vector<SafetensorsFile> shards)
    : dir_(std::move(dir)), shards_(std::move(shards)) {}

Result<Checkpoint> Checkpoint::open(const std::string& dir) {
  const ModelDirectory directory = TRY(ModelDirectory::open(dir));
  std::vector<SafetensorsFile> shards;
  if (directory.has(kSingleFile)) {
    shards.push_back(TRY(SafetensorsFile::open(TRY(directory.open_file(kSingleFile)))));
  } else if (directory.has(kIndexFile)) {
    shards = TRY(open_shards(directory, TRY(read_index(directory))));
  } else {
    return no_weights(directory);
  }
  Checkpoint out(dir, std::move(shards));
  TRY(out.build_entries());
  return out;
}

Result<> Checkpoint::build_entries() {
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    const auto& tensors = shards_[shard].tensors();
    for (size_t i = 0; i < tensors.size(); ++i) {
      entries_.push_back({tensors[i].name, static_cast<uint32_t>(shard), static_cast<uint32_t>(i)});
      total_bytes_ += tensors[i].num_bytes();
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.name, a.shard) < std::tie(b.name, b.shard);
  });
  const auto twice =
      std::adjacent_find(entries_.begin(), entries_.end(),
                         [](const Entry& a, const Entry& b) { return a.name == b.name; });
  if (twice != entries_.end()) {
    return data_loss("tensor " + in_quotes(twice->name) + " is in two shards: " +
                     shards_[twice->shard].path() + " and " + shards_[(twice + 1)->shard].path());
  }
  return {};
}

const Checkpoint::Entry* Checkpoint::find_entry(std::string_view name) const {
  const auto it =
      std::lower_bound(entries_.begin(), entries_.end(), name,
                       [](const Entry& entry, std::string_view n) { return entry.name < n; });
  return it != entries_.end() && it->name == name ? &*it : nullptr;
}

const TensorInfo& Checkpoint::info(const Entry& entry) const {
  return shards_[entry.shard].tensors()[entry.tensor];
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const Entry* entry = find_entry(name);
  return entry ? &info(*entry) : nullptr;
}

std::vector<std::string_view> Checkpoint::names() const {
  std::vector<std::string_view> out;
  out.reserve(entries_.size());
  for (const Entry& entry : entries_) out.push_back(entry.name);
  return out;
}

Result<> Checkpoint::read_range(std::string_view name, uint64_t offset,
                                std::span<std::byte> dst) const {
  const Entry* entry = find_entry(name);
  if (!entry) return not_found(dir_ + ": has no tensor " + in_quotes(name));
  return shards_[entry->shard].read(info(*entry), offset, dst);
}

Result<> Checkpoint::read(std::string_view name, std::span<std::byte> dst) const {
  const TensorInfo* tensor = find(name);
  CHECK(!tensor || tensor->num_bytes() == dst.size(), "buffer and tensor differ in size");
  return read_range(name, 0, dst);
}

Result<std::vector<std::byte>> Checkpoint::load(std::string_view name) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) return not_found(dir_ + ": has no tensor " + in_quotes(name));
  std::vector<std::byte> bytes(static_cast<size_t>(tensor->num_bytes()));
  TRY(read(name, bytes));
  return bytes;
}

Result<> Checkpoint::read_all(std::span<const ReadRequest> requests, ThreadPool& pool,
                              const std::function<void(uint64_t)>& progress) const {
  struct Piece {
    const Entry* entry;
    uint64_t offset;
    std::span<std::byte> dst;
  };
  std::vector<Piece> pieces;
  for (const ReadRequest& request : requests) {
    const Entry* entry = find_entry(request.name);
    if (!entry) return not_found(dir_ + ": has no tensor " + in_quotes(request.name));
    CHECK(info(*entry).num_bytes() == request.dst.size(), "buffer and tensor differ in size");
    for (uint64_t offset = 0; offset < request.dst.size(); offset += kPiece) {
      const uint64_t size = std::min<uint64_t>(kPiece, request.dst.size() - offset);
      pieces.push_back({entry, offset, request.dst.subspan(offset, size)});
    }
  }
  // File order: the disk and the kernel's read-ahead see ascending offsets.
  std::sort(pieces.begin(), pieces.end(), [&](const Piece& a, const Piece& b) {
    return std::pair(a.entry->shard, info(*a.entry).begin + a.offset) <
           std::pair(b.entry->shard, info(*b.entry).begin + b.offset);
  });

  std::mutex mutex;
  std::optional<Error> first_error;
  std::atomic<bool> stop{false};
  uint64_t bytes_done = 0;
  pool.for_each(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && !stop.load(std::memory_order_relaxed); ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      auto done = shards_[piece.entry->shard].read(info(*piece.entry), piece.offset, piece.dst);
      const std::lock_guard lock(mutex);
      if (!done.ok()) {
        if (!first_error) first_error = std::move(done).error();
        stop = true;
        return;
      }
      bytes_done += piece.dst.size();
      if (progress) progress(bytes_done);
    }
  });
  if (first_error) return *first_error;
  return {};
}

}  // namespace weft
