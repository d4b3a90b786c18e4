#include "tests/golden/ernie_mtp.h"

#include <stdlib.h>

#include <filesystem>
#include <map>
#include <random>
#include <system_error>

#include "base/check.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_writer.h"
#include "tests/support/oracle.h"

namespace weft::testing {
namespace {

/// Removed at the end of the process.
struct Folder {
  std::string path = std::filesystem::temp_directory_path() / "weft_XXXXXX";
  Folder() { CHECK(mkdtemp(path.data()) != nullptr, "no temporary directory"); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

std::vector<std::byte> noise(int64_t count, float middle, float spread) {
  std::mt19937 rng(static_cast<uint32_t>(count));
  std::uniform_real_distribution<float> draw(middle - spread, middle + spread);
  std::vector<bf16> values(static_cast<size_t>(count));
  for (bf16& value : values) value = float_to_bf16(draw(rng));
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

void write(const std::string& from, const std::string& to) {
  std::filesystem::create_directory(to);
  for (const char* name : {"config.json", "generation_config.json"}) {
    std::filesystem::copy_file(from + "/" + name, to + "/" + name);
  }
  const auto file = SafetensorsFile::open(from + "/model.safetensors").value();
  std::vector<TensorToWrite> tensors;
  std::vector<std::vector<std::byte>> data;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape,
                       std::vector<std::byte> bytes) {
    data.push_back(std::move(bytes));
    tensors.push_back({name, DType::kBF16, shape, data.back()});
  };
  const std::string first = "model.layers.0.";
  for (const TensorInfo& info : file.tensors()) {
    add(std::string(info.name), info.shape, file.load(info.name).value());
    if (!info.name.starts_with(first)) continue;
    add("model.mtp_block.0." + std::string(info.name.substr(first.size())), info.shape,
        file.load(info.name).value());
  }
  const int64_t hidden = file.find("model.norm.weight")->shape[0];
  add("model.mtp_emb_norm.0.weight", {hidden}, noise(hidden, 1, 0.5f));
  add("model.mtp_hidden_norm.0.weight", {hidden}, noise(hidden, 1.5f, 0.5f));
  add("model.mtp_linear_proj.0.weight", {hidden, 2 * hidden}, noise(2 * hidden * hidden, 0, 0.2f));
  write_safetensors(to + "/model.safetensors", tensors).value();
}

}  // namespace

const std::string& ernie_mtp_dir(const std::string& name) {
  static const Folder parent;
  static std::map<std::string, std::string> made;
  std::string& path = made[name];
  if (path.empty()) {
    path = parent.path + "/" + name;
    write(oracle_dir() + "/models/" + name, path);
  }
  return path;
}

}  // namespace weft::testing
