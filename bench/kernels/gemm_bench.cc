// The workshop of the CPU's linear layers: checks a shape against a double loop, then times the
// matrices of a Qwen3-0.6B-shaped model (28 layers and the head, every layer with its own memory)
// and prints JSON lines: us, GB/s of weights, GFLOP/s and the share of the ceilings of this run.
// usage: gemm_bench [--isa avx2|avx512|avx512_bf16|amx] [--threads N] [--format F] [--rows M]
//                   [--samples N] [--layers N]

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/kernels/ceilings.h"
#include "bench/kernels/flags.h"
#include "kernels/op_table.h"

namespace weft::bench {
namespace {

struct Options : CpuFlags {
  int layers = 28;
  std::vector<WeightFormat> formats = {WeightFormat::kBf16, WeightFormat::kInt8,
                                       WeightFormat::kInt4};
  std::vector<int64_t> rows = {1, 16, 512};
};

struct Shape {
  const char* name;
  int64_t n, k;
  Epilogue epilogue;
};
constexpr Shape kLayer[] = {{"qkv", 4096, 1024, Epilogue::kStore},
                            {"o", 1024, 2048, Epilogue::kAdd},
                            {"gate_up", 6144, 1024, Epilogue::kSiluMul},
                            {"down", 1024, 3072, Epilogue::kAdd}};
constexpr Shape kHead = {"head", 151936, 1024, Epilogue::kStore};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        ops_(cpu_ops(options.isa)),
        pool_(options.threads),
        arena_(Buffer::allocate(DeviceKind::kCpu, int64_t{1} << 30).value()),
        stream_(pool_, arena_) {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    noise_.resize(size_t{1} << 20);
    for (float& v : noise_) v = normal(engine);
  }

  bool run() {
    for (WeightFormat format : options_.formats) {
      if (!check(format)) return false;
    }
    peak_ = bf16_peak(pool_, options_.isa, options_.samples * 3);
    for (WeightFormat format : options_.formats) {
      load(format);
      for (int64_t rows : options_.rows) time_rows(format, rows);
    }
    return true;
  }

 private:
  /// Weights of one matrix out of the noise.
  void pack(const Weight& weight, int64_t offset) {
    std::vector<TensorView> pieces;
    const int64_t k = weight.shape.k, most = static_cast<int64_t>(noise_.size()) / k - 1;
    for (int64_t n = 0; n < weight.shape.n; n += most) {
      const int64_t rows = std::min(most, weight.shape.n - n);
      pieces.emplace_back(noise_.data() + (offset + n * 7) % k, DType::kF32,
                          std::initializer_list<int64_t>{rows, k});
    }
    ops_.pack_weight(stream_, weight, 0, pieces);
  }

  bool check(WeightFormat format) {
    const int64_t n = 100, k = 1000, m = 20;
    Weight weight{.shape = {format, n, k, 1}};
    weight.expert_bytes = ops_.weight_bytes(weight.shape);
    const Buffer buffer = Buffer::allocate(DeviceKind::kCpu, weight.expert_bytes).value();
    weight.data = buffer.data();
    pack(weight, 3);
    std::vector<float> dense(static_cast<size_t>(n * k)), out(static_cast<size_t>(m * n));
    ops_.unpack_weight(weight, 0, TensorView(dense.data(), DType::kF32, {n, k}));
    double worst = 0;
    for (int64_t prompt : {int64_t{0}, m}) {
      LinearArgs args{.x = TensorView(noise_.data(), DType::kF32, {m, k}), .weight = &weight};
      args.out = TensorView(out.data(), DType::kF32, {m, n});
      args.prompt_rows = prompt;
      ops_.linear(stream_, args);
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t o = 0; o < n; ++o) {
          double sum = 0;
          for (int64_t i = 0; i < k; ++i)
            sum += double{noise_[static_cast<size_t>(r * k + i)]} *
                   double{dense[static_cast<size_t>(o * k + i)]};
          worst = std::max(worst, std::fabs(sum - double{out[static_cast<size_t>(r * n + o)]}));
        }
      }
    }
    const double relative = worst / std::sqrt(static_cast<double>(k));
    std::printf("{\"check\": \"linear\", \"format\": \"%s\", \"isa\": \"%s\", \"error\": %.2e}\n",
                weight_format_name(format).data(), cpu_isa_name(options_.isa).data(), relative);
    return relative < 0.03;
  }

  void load(WeightFormat format) {
    weights_.clear();
    int64_t bytes = 0;
    for (int layer = 0; layer < options_.layers; ++layer) {
      for (const Shape& shape : kLayer)
        weights_.push_back({.shape = {format, shape.n, shape.k, 1}});
    }
    weights_.push_back({.shape = {format, kHead.n, kHead.k, 1}});
    for (Weight& weight : weights_) bytes += ops_.weight_bytes(weight.shape);
    memory_ = Buffer();
    memory_ = Buffer::allocate(DeviceKind::kCpu, bytes).value();
    std::byte* at = memory_.data();
    for (size_t i = 0; i < weights_.size(); ++i) {
      weights_[i].expert_bytes = ops_.weight_bytes(weights_[i].shape);
      weights_[i].data = at;
      at += weights_[i].expert_bytes;
      pack(weights_[i], static_cast<int64_t>(i) * 5);
    }
  }

  void linear(const Weight& weight, const Shape& shape, int64_t rows, int64_t prompt) {
    const int64_t n = shape.epilogue == Epilogue::kSiluMul ? shape.n / 2 : shape.n;
    LinearArgs args{.x = TensorView(x_.data(), DType::kF32, {rows, shape.k}), .weight = &weight};
    args.out = TensorView(out_.data(), DType::kF32, {rows, n});
    args.epilogue = shape.epilogue;
    args.prompt_rows = prompt;
    ops_.linear(stream_, args);
  }

  void time_rows(WeightFormat format, int64_t rows) {
    // Prefill: many rows of prompt arithmetic through the layers, one through the head.
    const int64_t prompt = rows > 64 ? rows : 0, head_rows = prompt > 0 ? 1 : rows;
    x_.assign(static_cast<size_t>(rows * 3072), 0.0f);
    for (size_t i = 0; i < x_.size(); ++i) x_[i] = noise_[i % noise_.size()];
    out_.assign(static_cast<size_t>(std::max(rows * 6144, head_rows * kHead.n)), 0.0f);
    double best[5] = {1e9, 1e9, 1e9, 1e9, 1e9}, whole = 1e9, bandwidth = 0;
    for (int sample = 0; sample < options_.samples; ++sample) {
      bandwidth = std::max(bandwidth, read_bandwidth(pool_, memory_.data(), memory_.bytes(), 1));
      const double start = now();
      double sums[5] = {};
      for (size_t i = 0; i < weights_.size(); ++i) {
        const bool head = i + 1 == weights_.size();
        const double begin = now();
        linear(weights_[i], head ? kHead : kLayer[i % 4], head ? head_rows : rows,
               head ? 0 : prompt);
        sums[head ? 4 : i % 4] += now() - begin;
      }
      whole = std::min(whole, now() - start);
      for (int i = 0; i < 5; ++i) best[i] = std::min(best[i], sums[i]);
    }
    int64_t all_bytes = 0;
    double all_flops = 0;
    for (int i = 0; i < 5; ++i) {
      const Shape& shape = i < 4 ? kLayer[i] : kHead;
      const int count = i < 4 ? options_.layers : 1;
      const int64_t bytes = ops_.weight_bytes({format, shape.n, shape.k, 1});
      const double flops =
          2.0 * static_cast<double>(shape.n * shape.k * (i < 4 ? rows : head_rows));
      all_bytes += bytes * count;
      all_flops += flops * count;
      print(shape.name, {format, rows, bytes, flops}, best[i] / count, bandwidth);
    }
    print("all", {format, rows, all_bytes, all_flops}, whole, bandwidth);
  }

  struct Work {
    WeightFormat format;
    int64_t rows, bytes;
    double flops;
  };

  void print(const char* name, const Work& work, double seconds, double bandwidth) {
    const double gbs = static_cast<double>(work.bytes) / seconds / 1e9;
    const double gflops = work.flops / seconds / 1e9;
    const int64_t rows = work.rows;
    std::printf(
        "{\"op\": \"linear\", \"name\": \"%s\", \"isa\": \"%s\", \"format\": \"%s\", \"threads\": "
        "%d, "
        "\"rows\": %lld, \"us\": %.1f, \"gb_s\": %.2f, \"of_read\": %.3f, \"gflop_s\": %.0f, "
        "\"of_peak\": %.3f, \"rows_s\": %.1f}\n",
        name, cpu_isa_name(options_.isa).data(), weight_format_name(work.format).data(),
        options_.threads, static_cast<long long>(rows), seconds * 1e6, gbs, gbs / bandwidth, gflops,
        gflops / peak_, static_cast<double>(rows) / seconds);
    std::fflush(stdout);
  }

  Options options_;
  const OpTable& ops_;
  ThreadPool pool_;
  Arena arena_;
  Stream stream_;
  std::vector<float> noise_, x_, out_;
  std::vector<Weight> weights_;
  Buffer memory_;
  double peak_ = 0;
};

bool parse(std::vector<std::string> arguments, Options& o) {
  const auto format = [&o](const std::string& flag, const std::string& value) {
    for (const WeightFormat f :
         {WeightFormat::kF32, WeightFormat::kBf16, WeightFormat::kInt8, WeightFormat::kInt4}) {
      if (flag != "--format" || weight_format_name(f) != value) continue;
      o.formats = {f};
      return true;
    }
    return false;
  };
  int rows = 0;
  const bool good =
      read_flags(std::move(arguments), o, {{"--layers", &o.layers}, {"--rows", &rows}}, format);
  if (rows > 0) o.rows = {rows};
  return good;
}

int run(std::vector<std::string> arguments) {
  Options options;
  if (!parse(std::move(arguments), options)) return 2;
  return Bench(options).run() ? 0 : 1;
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  return weft::bench::run({argv + 1, argv + argc});
}
