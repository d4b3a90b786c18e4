// Attention of prompts over the paged cache, D = 64, 128, 256: sampled rows against sums in double,
// then medians. PyTorch's peers on the same shapes: bench/gpu/attention_peers.py.
//   attention_prefill_gpu_bench [--quick]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::bench {
namespace {

constexpr double kPeakTflops = 989;  // H100 SXM, bf16, datasheet

struct Shape {
  int dim = 128, q_heads = 32, kv_heads = 8;
  int tokens = 8192;  ///< rows of a segment
  int start = 0;      ///< cached keys before them
  int segments = 1;
  /// A HeadPlan: 'f' all full, 's' all streaming (1 + 16 blocks), 'b' lists of random blocks.
  char plan = 0;
  double density = 0.1;  ///< share of the blocks in lists
};

constexpr int kBlock = HeadPlan::kBlock;

/// The blocks of row block `b` of a head in a random list.
std::vector<int> list_of(const Shape& s, int head, int b) {
  std::mt19937 random(static_cast<unsigned>(b * 64 + head));
  std::vector<int> blocks;
  for (int c = 0; c <= b; ++c) {
    if (c == 0 || c == b || random() < s.density * 4294967296.0) blocks.push_back(c);
  }
  return blocks;
}

std::string name_of(const Shape& s) {
  char name[96];
  int at =
      std::snprintf(name, sizeof name, "D%d H%d/%d T%d", s.dim, s.q_heads, s.kv_heads, s.tokens);
  if (s.start > 0) at += std::snprintf(name + at, sizeof name - at, " at %d", s.start);
  if (s.segments > 1) at += std::snprintf(name + at, sizeof name - at, " x%d", s.segments);
  if (s.plan == 'f') std::snprintf(name + at, sizeof name - at, " plan full");
  if (s.plan == 's') std::snprintf(name + at, sizeof name - at, " plan 1+16 blocks");
  if (s.plan == 'b') std::snprintf(name + at, sizeof name - at, " plan lists %g", s.density);
  return name;
}

/// 4 D a head and (row, key) pair that the row sees.
double flops(const Shape& s) {
  double pairs = static_cast<double>(s.tokens) * s.start + s.tokens * (s.tokens + 1.0) / 2;
  if (s.plan == 's' || s.plan == 'b') {  // whole blocks, from position 0
    pairs = 0;
    for (int b = 0; b < s.tokens / kBlock; ++b) {
      double blocks = std::min(b + 1, 17);
      if (s.plan == 'b') {
        blocks = 0;
        for (int h = 0; h < s.q_heads; ++h) blocks += static_cast<double>(list_of(s, h, b).size());
        blocks /= s.q_heads;
      }
      pairs += (blocks - 0.5) * kBlock * kBlock;
    }
  }
  return 4.0 * s.dim * s.q_heads * pairs * s.segments;
}

/// Inputs on the device in random blocks.
class Input {
 public:
  Input(Gpu& gpu, const Shape& s, uint64_t seed) : s_(s) {
    constexpr int kBlock = 64;
    const int64_t rows = int64_t{s.tokens} * s.segments, width = int64_t{s.q_heads} * s.dim;
    const int blocks = (s.start + s.tokens + kBlock - 1) / kBlock;
    const int64_t num_blocks = int64_t{blocks} * s.segments;
    const KvShape kv{KvFormat::kBf16, s.kv_heads, s.dim, kBlock};
    const int64_t block_bytes = cuda::kv_block_bytes(kv);
    q_ = random_device_bf16(gpu, rows * width, seed);
    out_ = random_device_bf16(gpu, rows * width, seed + 1);
    cache_ = random_device_bf16(gpu, num_blocks * block_bytes / 2, seed + 2);
    std::vector<int32_t> table(static_cast<size_t>(num_blocks));
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    std::shuffle(table.begin(), table.end(), std::mt19937(static_cast<unsigned>(seed)));
    for (int i = 0; i <= s.segments; ++i) cu_q_.push_back(i * s.tokens);
    starts_.assign(static_cast<size_t>(s.segments), s.start);
    table_ = upload(table);
    host_table_ = table;
    args.shape = {s.q_heads, s.kv_heads, s.dim, 1.0f / std::sqrt(static_cast<float>(s.dim))};
    args.q = TensorView(q_.data(), DType::kBF16, {rows, s.q_heads, s.dim});
    args.out = TensorView(out_.data(), DType::kBF16, {rows, s.q_heads, s.dim});
    args.kv = {kv, cache_.data(), block_bytes, num_blocks};
    args.seqs.block_table = TensorView(table_.data(), DType::kI32, {s.segments, blocks});
    device_cu_q_ = upload(cu_q_);
    device_starts_ = upload(starts_);
    args.seqs.cu_q = TensorView(device_cu_q_.data(), DType::kI32, {s.segments + 1});
    args.seqs.kv_start = TensorView(device_starts_.data(), DType::kI32, {s.segments});
    args.seqs.num_segments = args.num_prompt_segments = s.segments;
    args.seqs.host_cu_q = cu_q_.data();
    args.seqs.host_kv_start = starts_.data();
    args.prompt_rows = rows;
    if (s.plan != 0) make_plan();
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  /// Relative L2 error of sampled rows of the first segment; the call has finished.
  double error() const;

  AttnArgs args;

 private:
  void make_plan();

  Shape s_;
  HeadPlan plan_;
  Buffer q_, out_, cache_, table_, device_cu_q_, device_starts_, kinds_, blocks_, counts_;
  std::vector<int32_t> cu_q_, starts_, host_table_;
};

void Input::make_plan() {
  const int heads = s_.q_heads, rows = (s_.tokens + kBlock - 1) / kBlock, words = rows / 32 + 1;
  const HeadKind kind = s_.plan == 'f'   ? HeadKind::kFull
                        : s_.plan == 's' ? HeadKind::kStreaming
                                         : HeadKind::kBlocks;
  std::vector<int32_t> kinds(static_cast<size_t>(heads), static_cast<int32_t>(kind));
  std::vector<int32_t> blocks(static_cast<size_t>(heads * rows * words)), counts;
  for (int h = 0; h < heads && s_.plan == 'b'; ++h) {
    for (int b = 0; b < rows; ++b) {
      const std::vector<int> list = list_of(s_, h, b);
      counts.push_back(static_cast<int32_t>(list.size()));
      for (const int c : list) {
        blocks[static_cast<size_t>((h * rows + b) * words + c / 32)] |=
            static_cast<int32_t>(1u << (c % 32));
      }
    }
  }
  counts.resize(static_cast<size_t>(heads * rows));
  kinds_ = upload(kinds);
  blocks_ = upload(blocks);
  counts_ = upload(counts);
  plan_.kinds = TensorView(kinds_.data(), DType::kI32, {1, heads});
  plan_.blocks = TensorView(blocks_.data(), DType::kI32, {1, heads, rows, words});
  plan_.counts = TensorView(counts_.data(), DType::kI32, {1, heads, rows});
  plan_.long_lists = s_.density > 0.75;
  args.heads = &plan_;
}

double Input::error() const {
  const auto dim = static_cast<size_t>(s_.dim);
  const KvShape& kv = args.kv.shape;
  std::vector<float> k(static_cast<size_t>(s_.start + s_.tokens + kv.block_size) * dim), v(k);
  std::vector<float> block_k(static_cast<size_t>(kv.block_size * kv.heads) * dim), block_v(block_k);
  double error = 0, norm = 0;
  for (const int head : {0, s_.q_heads - 1}) {
    const int64_t g = head / (s_.q_heads / s_.kv_heads);
    for (int b = 0; b * kv.block_size < s_.start + s_.tokens; ++b) {
      TensorView view_k(block_k.data(), DType::kF32, {kv.block_size, kv.heads, s_.dim});
      TensorView view_v(block_v.data(), DType::kF32, {kv.block_size, kv.heads, s_.dim});
      cuda::kv_read_block(args.kv, host_table_[static_cast<size_t>(b)], view_k, view_v);
      for (int i = 0; i < kv.block_size; ++i) {
        const auto to = static_cast<size_t>(b * kv.block_size + i) * dim;
        std::memcpy(&k[to], view_k.row<float>(i) + g * s_.dim, dim * 4);
        std::memcpy(&v[to], view_v.row<float>(i) + g * s_.dim, dim * 4);
      }
    }
    for (const int row :
         {0, 1, 63, 64, 127, 128, s_.tokens / 2 + 3, s_.tokens - 65, s_.tokens - 1}) {
      if (row < 0 || row >= s_.tokens) continue;
      std::vector<bf16> q(dim), out(dim);
      const auto fetch = [&](const TensorView& from, std::vector<bf16>& to) {
        cuda::check(cudaMemcpy(to.data(), from.row<bf16>(row) + head * from.stride[1], dim * 2,
                               cudaMemcpyDeviceToHost),
                    "rows");
      };
      fetch(args.q, q);
      fetch(args.out, out);
      const auto keys = static_cast<size_t>(s_.start + row + 1);
      std::vector<double> weight(keys), sum(dim);
      double top = -INFINITY, total = 0;
      for (size_t p = 0; p < keys; ++p) {
        for (size_t d = 0; d < dim; ++d) weight[p] += double{bf16_to_float(q[d])} * k[p * dim + d];
        weight[p] *= args.shape.scale;
        top = std::max(top, weight[p]);
      }
      for (size_t p = 0; p < keys; ++p) {
        weight[p] = std::exp(weight[p] - top);
        total += weight[p];
        for (size_t d = 0; d < dim; ++d) sum[d] += weight[p] * v[p * dim + d];
      }
      for (size_t d = 0; d < dim; ++d) {
        const double want = sum[d] / total, got = bf16_to_float(out[d]);
        error += (got - want) * (got - want);
        norm += want * want;
      }
    }
  }
  return std::sqrt(error / norm);
}

using PromptOp = void (*)(Stream&, const AttnArgs&);

/// False if the numbers are wrong.
bool measure(Gpu& gpu, const Shape& shape, PromptOp op, const char* kernel, bool check) {
  const Input a(gpu, shape, 11), b(gpu, shape, 23);
  const int calls = flops(shape) > 4e12 ? 2 : flops(shape) > 4e11 ? 6 : 20;
  const double us = gpu.time_us([&](int i) { op(gpu.stream(), (i % 2 ? b : a).args); }, calls, 5);
  if (check) {
    const double error = a.error();
    if (!(error < 1e-2)) {
      std::fprintf(stderr, "%s: relative error %g\n", name_of(shape).c_str(), error);
      return false;
    }
  }
  Row row;
  row.kernel = kernel;
  row.shape = name_of(shape);
  row.dtype = "bf16";
  row.us = us;
  row.tflops = flops(shape) / us * 1e-6;
  row.share = row.tflops / kPeakTflops;
  print(gpu, row);
  return true;
}

int run(bool quick) {
  Gpu gpu;
  std::vector<Shape> shapes = {{.tokens = 8192},
                               {.tokens = 32768},
                               {.dim = 256, .q_heads = 16, .kv_heads = 2, .tokens = 16384}};
  if (!quick) {
    shapes.insert(shapes.end(), {{.tokens = 2048},
                                 {.tokens = 512, .segments = 16},
                                 {.tokens = 2048, .start = 30720},
                                 {.tokens = 512, .segments = 64},
                                 {.tokens = 128, .segments = 256},
                                 {.tokens = 64, .start = 8128, .segments = 16},
                                 {.tokens = 8192, .plan = 'f'},
                                 {.tokens = 16384},
                                 {.tokens = 16384, .plan = 'b', .density = 0.3},
                                 {.tokens = 16384, .plan = 'b', .density = 0.92},
                                 {.tokens = 16384, .plan = 's'},
                                 {.tokens = 65536},
                                 {.tokens = 65536, .plan = 'b', .density = 0.1},
                                 {.tokens = 65536, .plan = 'b', .density = 0.92},
                                 {.tokens = 65536, .plan = 's'},
                                 {.dim = 256, .q_heads = 16, .kv_heads = 2, .tokens = 4096},
                                 {.dim = 64, .q_heads = 32, .kv_heads = 8, .tokens = 16384}});
  }
  bool good = true;
  for (const Shape& shape : shapes) {
    const bool check = shape.plan == 0 && (shape.tokens <= 8192 || shape.dim != 128);
    good = measure(gpu, shape, cuda::attention_prompt, "attention_prefill", check) && good;
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  return weft::bench::run(argc > 1 && std::strcmp(argv[1], "--quick") == 0);
}
