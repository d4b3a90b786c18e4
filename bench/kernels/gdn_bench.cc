// The workshop of the gated delta rule: checks chunks and steps against the oracle, then times a
// layer and prints JSON lines: us a layer, GFLOP/s for prompts, GB/s of state for decode, and the
// share of the ceiling measured in this run (fp32 multiply-add peak, read bandwidth).
// usage: gdn_bench [--isa avx2|avx512|avx512_bf16|amx] [--threads N] [--samples N]
//                  [--key-heads HK] [--value-heads HV] [--dim K] [--tokens T] [--sequences S]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/philox.h"
#include "bench/kernels/ceilings.h"
#include "kernels/op_table.h"

namespace weft::bench {
namespace {

struct Options {
  CpuIsa isa = CpuIsa::kAvx2;
  int threads = 1, samples = 10;
  GdnShape shape{16, 16, 128, 128, 4};
  int tokens = 512;
  int sequences = 1;
};

class Layer {
 public:
  Layer(const GdnShape& shape, int segments, int rows)
      : shape_(shape), segments_(segments), rows_(rows) {
    const int64_t t = int64_t{segments} * rows, c = channels();
    fill(qkv_, t * c, 1);
    fill(a_, t * shape.value_heads, 2);
    fill(b_, t * shape.value_heads, 3);
    fill(conv_, c * shape.conv_width, 4);
    fill(a_log_, shape.value_heads, 5);
    fill(dt_bias_, shape.value_heads, 6);
    out_.resize(static_cast<size_t>(t * shape.value_heads * shape.value_dim));
    const int64_t window = int64_t{segments} * (shape.conv_width - 1) * c;
    state_ = Buffer::allocate(DeviceKind::kCpu, (window + segments * state_floats()) * 4).value();
    std::memset(state_.data(), 0, static_cast<size_t>(state_.bytes()));
    for (int s = 0; s < segments; ++s) {
      cu_.push_back(s * rows);
      slot_.push_back(s);
    }
    cu_.push_back(segments * rows);
  }

  void run(const OpTable& ops, Stream& stream, bool prompt) {
    const int64_t t = int64_t{segments_} * rows_, c = channels(), hv = shape_.value_heads;
    auto* window = reinterpret_cast<float*>(state_.data());
    auto* recurrent = window + int64_t{segments_} * (shape_.conv_width - 1) * c;
    GdnArgs args;
    args.shape = shape_;
    args.qkv = {qkv_.data(), DType::kF32, {t, c}};
    args.a = {a_.data(), DType::kF32, {t, hv}};
    args.b = {b_.data(), DType::kF32, {t, hv}};
    args.conv = {conv_.data(), DType::kF32, {c, shape_.conv_width}};
    args.a_log = {a_log_.data(), DType::kF32, {hv}};
    args.dt_bias = {dt_bias_.data(), DType::kF32, {hv}};
    args.state.conv = {window, DType::kF32, {segments_, shape_.conv_width - 1, c}};
    args.state.recurrent = {
        recurrent, DType::kF32, {segments_, hv, shape_.value_dim, shape_.key_dim}};
    args.cu_q = {cu_.data(), DType::kI32, {segments_ + 1}};
    args.read_slot = {slot_.data(), DType::kI32, {segments_}};
    args.write_slot = args.read_slot;
    args.num_segments = segments_;
    args.num_prompt_segments = prompt ? segments_ : 0;
    args.out = {out_.data(), DType::kF32, {t, hv, shape_.value_dim}};
    ops.gdn(stream, args);
  }
  const std::vector<float>& out() const { return out_; }
  int64_t state_floats() const {
    return int64_t{shape_.value_heads} * shape_.value_dim * shape_.key_dim;
  }
  /// Multiply-adds of the chunked form, C = 64, triangular products counted as half.
  double flops() const {
    const double k = shape_.key_dim, v = shape_.value_dim, c = 64;
    return 2.0 * segments_ * rows_ *
           (shape_.value_heads * (3 * k * v + c * v) + shape_.key_heads * c * k);
  }

 private:
  int64_t channels() const {
    return 2 * int64_t{shape_.key_heads} * shape_.key_dim +
           int64_t{shape_.value_heads} * shape_.value_dim;
  }
  static void fill(std::vector<float>& x, int64_t n, uint64_t seed) {
    x.resize(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); ++i) x[i] = 2 * uniform01(philox4x32(seed, i, 0)[0]) - 1;
  }

  GdnShape shape_;
  int segments_, rows_;
  std::vector<float> qkv_, a_, b_, conv_, a_log_, dt_bias_, out_;
  Buffer state_;
  std::vector<int32_t> cu_, slot_;
};

bool check(const Options& options, Stream& stream, bool prompt) {
  const GdnShape small{2, 2 * options.shape.value_heads / options.shape.key_heads,
                       options.shape.key_dim, options.shape.value_dim, options.shape.conv_width};
  Layer ours(small, 1, 150), oracle(small, 1, 150);
  ours.run(cpu_ops(options.isa), stream, prompt);
  oracle.run(ref_ops(), stream, prompt);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < ours.out().size(); ++i) {
    difference += std::pow(static_cast<double>(ours.out()[i]) - oracle.out()[i], 2);
    norm += std::pow(static_cast<double>(oracle.out()[i]), 2);
  }
  const double error = std::sqrt(difference / norm);
  std::printf("{\"check\": \"gdn\", \"prompt\": %d, \"relative_l2\": %.2e}\n", prompt, error);
  return error < 1e-5;
}

void time_prompt(const Options& options, Stream& stream, double peak) {
  Layer layer(options.shape, options.sequences, options.tokens);
  double best = 1e30;
  for (int i = 0; i < options.samples; ++i) {
    const double begin = now();
    layer.run(cpu_ops(options.isa), stream, true);
    best = std::min(best, now() - begin);
  }
  const double rate = layer.flops() / best * 1e-9;
  std::printf(
      "{\"op\": \"gdn\", \"mode\": \"prompt\", \"sequences\": %d, \"tokens\": %d, \"us\": %.1f, "
      "\"gflops\": %.0f, \"share_of_fp32_peak\": %.3f}\n",
      options.sequences, options.tokens, best * 1e6, rate, rate / peak);
}

/// As many layers as a step of a large model has, so that no state is found in the CPU's caches.
void time_decode(const Options& options, Stream& stream, ThreadPool& pool) {
  std::vector<Layer> layers;
  const int64_t state = options.sequences * int64_t{4} * options.shape.value_heads *
                        options.shape.value_dim * options.shape.key_dim;
  while (static_cast<int64_t>(layers.size()) * state < int64_t{512} << 20) {
    layers.emplace_back(options.shape, options.sequences, 1);
  }
  const Buffer memory = Buffer::allocate(DeviceKind::kCpu, int64_t{512} << 20).value();
  std::memset(memory.data(), 1, static_cast<size_t>(memory.bytes()));
  double best = 1e30, read = 0;
  for (int i = 0; i < options.samples; ++i) {
    read = std::max(read, read_bandwidth(pool, memory.data(), memory.bytes(), 1));
    for (size_t first = 0; first < layers.size(); first += 16) {  // short samples
      const size_t last = std::min(first + 16, layers.size());
      const double begin = now();
      for (size_t k = first; k < last; ++k) layers[k].run(cpu_ops(options.isa), stream, false);
      best = std::min(best, (now() - begin) / static_cast<double>(last - first));
    }
  }
  const double rate = 2.0 * static_cast<double>(state) / best * 1e-9;  // read and written
  std::printf(
      "{\"op\": \"gdn\", \"mode\": \"decode\", \"sequences\": %d, \"us_layer\": %.1f, "
      "\"gb_s\": %.1f, \"read_gb_s\": %.1f, \"share_of_read\": %.3f}\n",
      options.sequences, best * 1e6, rate, read, rate / read);
}

bool parse(int argc, char** argv, Options& o) {
  const CpuInfo info = cpu_info();
  o.isa = info.isa;
  o.threads = info.num_cpus;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    const int number = std::atoi(argv[i + 1]);
    if (flag == "--isa") {
      for (int k = 0; k <= static_cast<int>(info.isa); ++k) {
        if (cpu_isa_name(static_cast<CpuIsa>(k)) == value) o.isa = static_cast<CpuIsa>(k);
      }
    } else if (flag == "--threads") {
      o.threads = number;
    } else if (flag == "--samples") {
      o.samples = number;
    } else if (flag == "--key-heads") {
      o.shape.key_heads = number;
    } else if (flag == "--value-heads") {
      o.shape.value_heads = number;
    } else if (flag == "--dim") {
      o.shape.key_dim = o.shape.value_dim = number;
    } else if (flag == "--tokens") {
      o.tokens = number;
    } else if (flag == "--sequences") {
      o.sequences = number;
    } else {
      return false;
    }
  }
  return argc % 2 == 1;
}

int run(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr, "unknown flag; see the head of bench/kernels/gdn_bench.cc\n");
    return 2;
  }
  ThreadPool pool(options.threads);
  Arena arena(Buffer::allocate(DeviceKind::kCpu, int64_t{64} << 20).value());
  Stream stream(pool, arena);
  if (!check(options, stream, true) || !check(options, stream, false)) return 1;
  const CpuIsa fp32 = options.isa == CpuIsa::kAvx2 ? CpuIsa::kAvx2 : CpuIsa::kAvx512;
  time_prompt(options, stream, bf16_peak(pool, fp32, 3 * options.samples));
  time_decode(options, stream, pool);
  return 0;
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  return weft::bench::run(argc, argv);
}
