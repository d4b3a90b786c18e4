// Workshop of decode attention on a GPU: sequences of equal and of mixed lengths, verification
// rows, KV formats, and prompts behind a long prefix in each format. usage:
// attention_decode_gpu_bench [FILTER]   rows whose shape holds FILTER

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "base/philox.h"
#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ref/ref.h"

namespace weft::bench {
namespace {

constexpr int kBlock = 64;
constexpr int64_t kL2Bytes = int64_t{50} << 20;

struct Load {
  int q_heads, kv_heads, head_dim;
  std::vector<int64_t> keys;  // of each sequence
  int rows = 1;               // of each sequence
  std::string name;
  KvFormat format = KvFormat::kBf16;
  int64_t num_keys() const { return std::accumulate(keys.begin(), keys.end(), int64_t{0}); }
  /// Of codes and scales.
  double bytes() const {
    return static_cast<double>(cuda::kv_block_bytes({format, kv_heads, head_dim, kBlock})) /
           kBlock * static_cast<double>(num_keys());
  }
};

/// `sets` caches with blocks in random order, to rotate among.
class World {
 public:
  World(Gpu& gpu, const Load& load, int sets) : load_(load), sets_(sets) {
    int64_t blocks = 0;
    for (const int64_t keys : load.keys) {
      blocks += (keys + kBlock - 1) / kBlock;
      width_ = std::max(width_, (keys + kBlock - 1) / kBlock);
    }
    blocks *= sets;
    kv_.shape = {load.format, load.kv_heads, load.head_dim, kBlock};
    kv_.block_bytes = cuda::kv_block_bytes(kv_.shape);
    kv_.num_blocks = blocks;
    // Random bytes are valid codes of all formats, and two bf16 values in [-1, 1) a valid scale.
    pool_ = random_device_bf16(gpu, blocks * kv_.block_bytes / 2, 1);
    kv_.data = pool_.data();
    if (kv_has_static_scales(load.format)) {
      scales_ = random_device_bf16(gpu, int64_t{4} * load.kv_heads * load.head_dim, 4);
      kv_.k_scale = reinterpret_cast<const float*>(scales_.data());
      kv_.v_scale = kv_.k_scale + int64_t{load.kv_heads} * load.head_dim;
    }
    rows_ = static_cast<int64_t>(load.keys.size()) * load.rows;
    q_ = random_device_bf16(gpu, rows_ * sets * load.q_heads * load.head_dim, 2);
    out_ = random_device_bf16(gpu, rows_ * load.q_heads * load.head_dim, 3);
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      std::swap(ids[i], ids[i + philox4x32(5, i, 0)[0] % (ids.size() - i)]);
    }
    cu_q_host_.push_back(0);
    size_t next = 0;
    for (int set = 0; set < sets; ++set) {
      for (const int64_t keys : load.keys) {
        table_host_.resize(table_host_.size() + static_cast<size_t>(width_), -1);
        const auto row = table_host_.end() - width_;
        for (int64_t i = 0; i * kBlock < keys; ++i) row[i] = ids[next++];
        if (set > 0) continue;
        cu_q_host_.push_back(cu_q_host_.back() + load.rows);
        kv_start_host_.push_back(static_cast<int32_t>(keys - load.rows));
      }
    }
    cu_q_ = upload(cu_q_host_);
    kv_start_ = upload(kv_start_host_);
    table_ = upload(table_host_);
  }

  AttnArgs args(int call) const {
    const int64_t set = call % sets_, segments = static_cast<int64_t>(load_.keys.size());
    AttnArgs args;
    args.shape = {load_.q_heads, load_.kv_heads, load_.head_dim,
                  1 / std::sqrt(static_cast<float>(load_.head_dim))};
    const int64_t row_elements = int64_t{load_.q_heads} * load_.head_dim;
    args.q = {q_.data() + set * rows_ * row_elements * 2,
              DType::kBF16,
              {rows_, load_.q_heads, load_.head_dim}};
    args.out = {out_.data(), DType::kBF16, {rows_, load_.q_heads, load_.head_dim}};
    args.kv = kv_;
    args.seqs.cu_q = {cu_q_.data(), DType::kI32, {segments + 1}};
    args.seqs.kv_start = {kv_start_.data(), DType::kI32, {segments}};
    args.seqs.block_table = {
        table_.data() + set * segments * width_ * 4, DType::kI32, {segments, width_}};
    args.seqs.num_segments = static_cast<int>(segments);
    args.max_decode_len = load_.rows;
    return args;
  }

  /// The same rows as those of prompts.
  AttnArgs prompt_args(int call) const {
    AttnArgs args = this->args(call);
    args.num_prompt_segments = args.seqs.num_segments;
    args.prompt_rows = rows_;
    args.seqs.host_cu_q = cu_q_host_.data();
    args.seqs.host_kv_start = kv_start_host_.data();
    return args;
  }

  /// |out - oracle| / |oracle| of call 0.
  double error(Gpu& gpu) {
    AttnArgs device = args(0);
    cuda::attention_decode(gpu.stream(), device);
    const std::vector<float> got = host(device.out), pool = host_pool();
    std::vector<float> q = host(device.q), want(got.size());
    AttnArgs args = device;
    args.q.data = q.data();
    args.out.data = want.data();
    args.q.dtype = args.out.dtype = DType::kF32;
    args.kv.shape.format = KvFormat::kF32;
    args.kv.data = reinterpret_cast<std::byte*>(const_cast<float*>(pool.data()));
    args.kv.block_bytes = kv_.block_bytes * 2;
    args.seqs.cu_q.data = cu_q_host_.data();
    args.seqs.kv_start.data = kv_start_host_.data();
    args.seqs.block_table.data = table_host_.data();
    ThreadPool threads(1);
    Arena none;
    Stream stream(threads, none);
    ref::attention(stream, args);
    double error = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
      norm += double{want[i]} * want[i];
    }
    return std::sqrt(error / norm);
  }

 private:
  static std::vector<float> host(const TensorView& view) {
    cuda::check(cudaDeviceSynchronize(), "attention");
    std::vector<uint16_t> raw(static_cast<size_t>(view.size()));
    cuda::check(cudaMemcpy(raw.data(), view.data, raw.size() * 2, cudaMemcpyDeviceToHost), "host");
    std::vector<float> out(raw.size());
    for (size_t i = 0; i < raw.size(); ++i) {
      const uint32_t bits = uint32_t{raw[i]} << 16;
      std::memcpy(&out[i], &bits, 4);
    }
    return out;
  }
  /// The cache in the oracle's layout, [B][G][D] a plane.
  std::vector<float> host_pool() const {
    const int64_t heads = load_.kv_heads, dim = load_.head_dim;
    const std::vector<float> from =
        host({pool_.data(), DType::kBF16, {kv_.num_blocks * kv_.block_bytes / 2}});
    std::vector<float> to(from.size());
    for (int64_t plane = 0; plane < kv_.num_blocks * 2; ++plane) {
      for (int64_t row = 0; row < heads * kBlock; ++row) {
        std::copy_n(
            from.begin() + (plane * heads * kBlock + row) * dim, dim,
            to.begin() + (plane * heads * kBlock + row % kBlock * heads + row / kBlock) * dim);
      }
    }
    return to;
  }

  Load load_;
  int sets_;
  int64_t width_ = 0, rows_ = 0;
  PagedKv kv_;
  Buffer pool_, scales_, q_, out_, cu_q_, kv_start_, table_;
  std::vector<int32_t> cu_q_host_, kv_start_host_, table_host_;
};

void run(Gpu& gpu, const Load& load, const char* filter) {
  Row row;
  row.kernel = "attention_decode";
  row.dtype = load.format == KvFormat::kBf16 ? "bf16" : kv_format_name(load.format);
  row.shape = load.name + " " + std::to_string(load.q_heads) + "/" + std::to_string(load.kv_heads) +
              " D" + std::to_string(load.head_dim);
  if (load.format != KvFormat::kBf16) row.kernel += "_" + row.dtype;
  if (load.rows > 1) row.shape += " verify " + std::to_string(load.rows);
  if (filter && (row.kernel + " " + row.shape).find(filter) == std::string::npos) return;
  const int sets = static_cast<int>(std::max(2.0, 3 * kL2Bytes / load.bytes() + 1));
  World world(gpu, load, sets);
  row.us = gpu.time_us([&](int i) { cuda::attention_decode(gpu.stream(), world.args(i)); },
                       std::min(std::max(sets, 8), 80));
  row.gbps = load.bytes() / row.us * 1e-3;
  row.share = row.gbps / gpu.read_bandwidth();
  print(gpu, row);
}

/// Attention of `load.rows` rows of prompts behind their prefix.
void run_prompt(Gpu& gpu, const Load& load, const char* filter) {
  Row row;
  row.kernel = "attention_prefill_prefix";
  row.dtype = load.format == KvFormat::kBf16 ? "bf16" : kv_format_name(load.format);
  row.shape = std::to_string(load.rows) + " rows of " + std::to_string(load.keys[0]) + " keys, " +
              std::to_string(load.q_heads) + "/" + std::to_string(load.kv_heads) + " D" +
              std::to_string(load.head_dim);
  if (filter && (row.kernel + " " + row.shape).find(filter) == std::string::npos) return;
  World world(gpu, load, 2);
  const auto call = [&](int i) {
    const AttnArgs args = world.prompt_args(i);
    (load.format == KvFormat::kBf16 ? cuda::attention_prompt : cuda::attention_prompt_gathered)(
        gpu.stream(), args);
  };
  row.us = gpu.time_us(call, 8);
  print(gpu, row);
}

void check_against_oracle(Gpu& gpu) {
  for (const Load& load : {Load{8, 2, 128, {1500, 700}, 1, "", KvFormat::kBf16},
                           Load{4, 4, 64, {3000, 1}, 1, "", KvFormat::kBf16},
                           Load{8, 1, 256, {3000, 77}, 4, "", KvFormat::kBf16}}) {
    const double error = World(gpu, load, 1).error(gpu);
    std::printf("# %d/%d heads of %d against the oracle: %.2e\n", load.q_heads, load.kv_heads,
                load.head_dim, error);
    if (!(error < 5e-3)) std::exit(1);
  }
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft::bench;
  Gpu gpu;
  check_against_oracle(gpu);
  const char* filter = argc > 1 ? argv[1] : nullptr;
  const auto same = [](int batch, int64_t keys) {
    return std::vector<int64_t>(static_cast<size_t>(batch), keys);
  };
  const auto one = [&](int q, int kv, int dim, int batch, int64_t keys, int rows = 1,
                       weft::KvFormat format = weft::KvFormat::kBf16) {
    run(gpu,
        {q, kv, dim, same(batch, keys), rows, std::to_string(batch) + "x" + std::to_string(keys),
         format},
        filter);
  };
  using weft::KvFormat;
  const auto behind_prefix = [&](int q, int kv, int dim, int rows) {
    for (const KvFormat format : {KvFormat::kBf16, KvFormat::kInt8Dynamic, KvFormat::kFp8Block,
                                  KvFormat::kInt8, KvFormat::kFp8, KvFormat::kInt4}) {
      run_prompt(gpu, {q, kv, dim, {32768 + rows}, rows, "", format}, filter);
    }
  };
  for (const int rows : {64, 512, 768, 1024, 2048}) behind_prefix(32, 8, 128, rows);
  behind_prefix(16, 2, 256, 512);
  behind_prefix(32, 8, 64, 512);
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kInt8, KvFormat::kFp8,
                                KvFormat::kFp8Block, KvFormat::kInt4}) {
    one(32, 8, 128, 64, 4096, 1, format);
    one(32, 8, 128, 8, 32768, 1, format);
    one(32, 8, 128, 1, 32768, 1, format);
    one(32, 8, 128, 64, 1024, 1, format);
    one(32, 8, 128, 1, 1024, 1, format);
    one(32, 8, 64, 64, 4096, 1, format);
    one(16, 2, 256, 64, 4096, 1, format);
    one(32, 8, 128, 16, 4096, 4, format);
  }
  for (const int64_t keys : {1024, 4096, 8192, 16384, 32768, 35000, 131072})
    one(32, 8, 128, 1, keys);
  for (const int batch : {2, 4, 8, 16, 32, 64}) one(32, 8, 128, batch, 1024);
  for (const int64_t keys : {100, 1024, 4096}) one(16, 8, 128, 1, keys);
  for (const int batch : {8, 64}) one(16, 8, 128, batch, 1024);
  one(32, 8, 128, 64, 4096);
  one(32, 8, 128, 8, 32768);
  one(32, 8, 128, 256, 1024);
  std::vector<int64_t> mixed;
  for (int i = 0; i < 64; ++i) mixed.push_back(17 + i * i * 2);
  run(gpu, {32, 8, 128, mixed, 1, "64 mixed", weft::KvFormat::kBf16}, filter);
  one(16, 2, 256, 1, 32768);
  one(16, 2, 256, 64, 4096);
  one(32, 8, 64, 64, 4096);
  for (const int rows : {2, 4, 8, 16}) one(32, 8, 128, 16, 4096, rows);
  one(32, 8, 128, 1, 32768, 4);
}
