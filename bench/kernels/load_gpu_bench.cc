// Loading of weights from the page cache to a GPU: bytes over the time of WeightPlan::load(),
// beside plain copies from pinned memory. Share is of that rate. usage: load_gpu_bench [directory
// for the checkpoint, /dev/shm [GB, 6 [threads]]]

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/philox.h"
#include "bench/kernels/gpu.h"
#include "device/gpu.h"
#include "kernels/cuda/cuda_ops.h"
#include "nn/weights.h"

namespace weft::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Tensor {
  std::string name;
  int64_t rows, columns;
};

/// Layers of Qwen3-8B's widths and its embedding, about that many bytes.
std::vector<Tensor> tensors_of(int64_t bytes) {
  std::vector<Tensor> all = {{"embed", 151936, 4096}};
  int64_t sum = 151936 * 4096 * 2;
  for (int layer = 0; sum < bytes; ++layer) {
    const std::string name = "layers." + std::to_string(layer);
    for (const Tensor& t :
         {Tensor{".qkv", 6144, 4096}, Tensor{".o", 4096, 4096}, Tensor{".gate", 12288, 4096},
          Tensor{".up", 12288, 4096}, Tensor{".down", 4096, 12288}, Tensor{".norm", 1, 4096}}) {
      all.push_back({name + t.name, t.rows, t.columns});
      sum += t.rows * t.columns * 2;
    }
  }
  return all;
}

/// Word i of the data of the file: two bf16 values of about 0.02.
uint32_t word_at(int64_t i) {
  return 0x3C003C00u | (philox4x32(1, static_cast<uint64_t>(i % (1 << 20)), 0)[0] & 0x80FF80FFu);
}

void write_checkpoint(const std::string& dir, const std::vector<Tensor>& tensors,
                      ThreadPool& pool) {
  std::string header = "{";
  int64_t at = 0;
  for (const Tensor& t : tensors) {
    const int64_t bytes = t.rows * t.columns * 2;
    header += (at > 0 ? ", " : "") + ("\"" + t.name) + "\": {\"dtype\": \"BF16\", \"shape\": [" +
              std::to_string(t.rows) + ", " + std::to_string(t.columns) + "], \"data_offsets\": [" +
              std::to_string(at) + ", " + std::to_string(at + bytes) + "]}";
    at += bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const int fd = open((dir + "/model.safetensors").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  const uint64_t length = header.size();
  const auto put = [&](const void* data, size_t bytes, int64_t offset) {
    CHECK(pwrite(fd, data, bytes, offset) == static_cast<ssize_t>(bytes), "no space for the file");
  };
  put(&length, 8, 0);
  put(header.data(), header.size(), 8);
  std::vector<uint32_t> block(size_t{1} << 20);
  for (size_t i = 0; i < block.size(); ++i) block[i] = word_at(static_cast<int64_t>(i));
  const int64_t step = static_cast<int64_t>(block.size() * 4);
  pool.for_each((at + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      put(block.data(), static_cast<size_t>(std::min(step, at - i * step)),
          8 + static_cast<int64_t>(header.size()) + i * step);
    }
  });
  close(fd);
}

/// GB/s of copies of 64 MiB from pinned memory.
double copy_rate(Stream& stream) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  const Buffer from = Buffer::allocate(DeviceKind::kPinned, 2 * kBytes).value();
  const Buffer to = Buffer::allocate(DeviceKind::kCuda, 16 * kBytes).value();
  double best = 0;
  for (int sample = 0; sample < 3; ++sample) {
    const auto begin = Clock::now();
    for (int i = 0; i < 32; ++i) {
      copy_bytes(stream, to.data() + i % 16 * kBytes, from.data() + i % 2 * kBytes, kBytes);
    }
    synchronize(stream);
    best = std::max(best, 32.0 * kBytes / seconds_since(begin) * 1e-9);
  }
  return best;
}

/// GB/s of the reads alone, into pinned memory.
double read_rate(Stream& stream, const Checkpoint& checkpoint, const Tensor& tensor) {
  constexpr int64_t kPiece = int64_t{1} << 20;
  const Buffer to = Buffer::allocate(DeviceKind::kPinned, 64 * kPiece).value();
  const int64_t pieces = tensor.rows * tensor.columns * 2 / kPiece / 64 * 64;
  const auto begin = Clock::now();
  for (int64_t first = 0; first < pieces; first += 64) {
    stream.pool().for_each(64, 1, [&](int64_t at, int64_t) {
      const std::span<std::byte> dst(to.data() + at * kPiece, static_cast<size_t>(kPiece));
      CHECK(checkpoint.read_range(tensor.name, static_cast<uint64_t>((first + at) * kPiece), dst)
                .ok(),
            "read");
    });
  }
  return static_cast<double>(pieces * kPiece) / seconds_since(begin) * 1e-9;
}

/// Whether 64 rows of a loaded bf16 tensor, whose data begin at byte `begin`, are those of the
/// file.
bool is_loaded(const std::byte* device, const Tensor& t, int64_t begin, Stream& stream) {
  std::vector<uint32_t> row(static_cast<size_t>(t.columns / 2));
  for (int64_t i = 0; i < 64; ++i) {
    const int64_t at = (t.rows - 1) * i / 63 * t.columns * 2;
    copy_bytes(stream, row.data(), device + at, t.columns * 2);
    synchronize(stream);
    for (size_t j = 0; j < row.size(); ++j) {
      if (row[j] != word_at((begin + at) / 4 + static_cast<int64_t>(j))) return false;
    }
  }
  return true;
}

struct Place {
  const Gpu& gpu;
  Stream& stream;
  double rate;  // GB/s of copies from pinned memory
};

void run(const Place& place, const Checkpoint& checkpoint, const std::vector<Tensor>& tensors,
         WeightFormat format) {
  const auto& [gpu, stream, rate] = place;
  WeightPlan plan(cuda_ops(), &checkpoint);
  std::vector<Weight> weights(tensors.size());
  std::vector<TensorView> views(tensors.size());
  double bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    const TensorPart part{.name = t.name, .shape = {t.rows, t.columns}};
    bytes += static_cast<double>(t.rows * t.columns * 2);
    if (t.rows == 1) {
      plan.vector(views[i], VectorRole::kNorm, {part}, {t.columns});
    } else if (t.name == "embed") {
      plan.table(views[i], part);
    } else {
      plan.matrix(weights[i], format, {part});
    }
  }
  int64_t last = 0;
  const auto begin = Clock::now();
  const auto memory = plan.load(stream, false, [&](int64_t done, int64_t) { last = done; });
  const double seconds = seconds_since(begin);
  CHECK(memory.ok() && last == static_cast<int64_t>(bytes), "loading failed");
  int64_t at = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto* data = tensors[i].name == "embed" ? static_cast<const std::byte*>(views[i].data)
                       : format == WeightFormat::kBf16 ? weights[i].data
                                                       : nullptr;
    if (data != nullptr && !is_loaded(data, tensors[i], at, stream)) {
      std::printf("WRONG: %s\n", tensors[i].name.c_str());
      return;
    }
    at += tensors[i].rows * tensors[i].columns * 2;
  }
  const double gbps = bytes / seconds * 1e-9;
  char shape[32];
  std::snprintf(shape, sizeof shape, "%.1f GB", bytes * 1e-9);
  Row row;
  row.kernel = "load";
  row.shape = shape;
  row.dtype = std::string(weight_format_name(format));
  row.us = seconds * 1e6;
  row.gbps = gbps;
  row.share = gbps / rate;
  row.peer = "pinned copies";
  row.peer_us = bytes / rate * 1e-3;
  print(gpu, row);
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft;
  using namespace weft::bench;
  const std::string dir = std::string(argc > 1 ? argv[1] : "/dev/shm") + "/weft_load_bench";
  const double gigabytes = argc > 2 ? std::atof(argv[2]) : 6;
  const auto threads =
      argc > 3 ? std::atoi(argv[3]) : static_cast<int>(std::thread::hardware_concurrency());
  std::filesystem::create_directory(dir);
  ThreadPool pool(threads);
  Arena scratch;
  const GpuStream native = GpuStream::create().value();
  Stream stream(pool, scratch, native.native());
  const Gpu gpu(1 << 20);  // its name
  const double rate = copy_rate(stream);
  std::printf("copies from pinned memory: %.1f GB/s, %d threads\n", rate, threads);
  const std::vector<Tensor> tensors = tensors_of(static_cast<int64_t>(gigabytes * 1e9));
  write_checkpoint(dir, tensors, pool);
  {
    const Checkpoint checkpoint = Checkpoint::open(dir).value();
    std::printf("reads alone: %.1f GB/s\n", read_rate(stream, checkpoint, tensors[0]));
    for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kBf16, WeightFormat::kInt8,
                                      WeightFormat::kInt4, WeightFormat::kFp8Block}) {
      run({gpu, stream, rate}, checkpoint, tensors, format);
    }
  }
  std::filesystem::remove_all(dir);
}
