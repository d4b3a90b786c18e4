// The workshop of the gated delta rule: checks chunks and steps against the oracle, then prints
// JSON lines. Prompts: the time of one layer's operator beside linear layers of equal FLOPs (f32
// and bf16 weights, [tokens, 2048] times a matrix as wide as that takes), all in turns. Decode, for
// several numbers of sequences: GB/s of state read and written against what this machine reads and
// writes in place; and a whole layer with its bf16 weights (hidden 2048), in the same bytes, and
// against the time that they need: weights at the rate of reads alone, states at that of updates.
// usage: gdn_bench [--isa avx2|avx512|avx512_bf16|amx] [--threads N] [--samples N]
//                  [--key-heads HK] [--value-heads HV] [--dim K] [--tokens T] [--sequences S]
//                  [--parts check,prompt,decode,layer]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/philox.h"
#include "bench/kernels/ceilings.h"
#include "bench/kernels/flags.h"
#include "kernels/op_table.h"

namespace weft::bench {
namespace {

constexpr int64_t kHidden = 2048;

struct Options : CpuFlags {
  GdnShape shape{16, 32, 128, 128, 4};
  int tokens = 4096;
  int sequences = 1;  // of a prompt
  std::string parts = "check,prompt,decode,layer";
  bool wants(const char* part) const { return parts.find(part) != std::string::npos; }
};

void fill(float* x, int64_t n, uint64_t seed) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = i < 65536 ? 2 * uniform01(philox4x32(seed, static_cast<uint64_t>(i), 0)[0]) - 1
                     : x[i - 65521];
  }
}

struct Memory {
  Buffer buffer;
  float* floats() { return reinterpret_cast<float*>(buffer.data()); }
};
Memory memory(int64_t bytes) {
  return {Buffer::allocate(DeviceKind::kCpu, std::max<int64_t>(bytes, 64)).value()};
}

/// One layer's inputs, outputs and states. Rows of the input lie as the layer's projection leaves
/// them: q, k, v, z.
class Layer {
 public:
  Layer(const GdnShape& shape, int segments, int rows)
      : shape_(shape), segments_(segments), rows_(rows) {
    const int64_t t = tokens();
    qkvz_ = memory(t * width() * 4);
    ba_ = memory(t * 2 * shape.value_heads * 4);
    out_ = memory(t * values() * 4);
    vectors_ =
        memory((channels() * shape.conv_width + 2 * shape.value_heads + shape.value_dim) * 4);
    fill(qkvz_.floats(), t * width(), 1);
    fill(ba_.floats(), t * 2 * shape.value_heads, 2);
    fill(vectors_.floats(), vectors_.buffer.bytes() / 4, 3);
    const int64_t window = int64_t{segments} * (shape.conv_width - 1) * channels();
    state_ = memory((window + segments * state_floats()) * 4);
    std::memset(state_.buffer.data(), 0, static_cast<size_t>(state_.buffer.bytes()));
    for (int s = 0; s < segments; ++s) {
      cu_.push_back(s * rows);
      slot_.push_back(s);
    }
    cu_.push_back(segments * rows);
  }

  void run(const OpTable& ops, Stream& stream, bool prompt, bool with_norm = false) {
    const int64_t t = tokens(), c = channels(), hv = shape_.value_heads;
    float* vectors = vectors_.floats();
    float* window = state_.floats();
    float* recurrent = window + int64_t{segments_} * (shape_.conv_width - 1) * c;
    const TensorView ba{ba_.floats(), DType::kF32, {t, 2 * hv}};
    const TensorView qkvz{qkvz_.floats(), DType::kF32, {t, width()}};
    GdnArgs args;
    args.shape = shape_;
    args.qkv = qkvz.columns(0, c);
    args.b = ba.columns(0, hv);
    args.a = ba.columns(hv, 2 * hv);
    args.conv = {vectors, DType::kF32, {c, shape_.conv_width}};
    args.a_log = {vectors + c * shape_.conv_width, DType::kF32, {hv}};
    args.dt_bias = {vectors + c * shape_.conv_width + hv, DType::kF32, {hv}};
    args.state.conv = {window, DType::kF32, {segments_, shape_.conv_width - 1, c}};
    args.state.recurrent = {
        recurrent, DType::kF32, {segments_, hv, shape_.value_dim, shape_.key_dim}};
    args.cu_q = {cu_.data(), DType::kI32, {segments_ + 1}};
    args.read_slot = {slot_.data(), DType::kI32, {segments_}};
    args.write_slot = args.read_slot;
    args.num_segments = segments_;
    args.num_prompt_segments = prompt ? segments_ : 0;
    args.out = {out_.floats(), DType::kF32, {t, hv, shape_.value_dim}};
    if (with_norm) {
      args.norm.z = qkvz.columns(c, width()).split_last(hv, shape_.value_dim);
      args.norm.weight = {
          vectors + c * shape_.conv_width + 2 * hv, DType::kF32, {shape_.value_dim}};
    }
    ops.gdn(stream, args);
  }
  float* qkvz() { return qkvz_.floats(); }
  float* ba() { return ba_.floats(); }
  float* out() { return out_.floats(); }
  int64_t out_floats() const { return tokens() * values(); }
  int64_t tokens() const { return int64_t{segments_} * rows_; }
  int64_t values() const { return int64_t{shape_.value_heads} * shape_.value_dim; }
  int64_t channels() const { return 2 * int64_t{shape_.key_heads} * shape_.key_dim + values(); }
  int64_t width() const { return channels() + values(); }
  int64_t state_floats() const { return values() * shape_.key_dim; }
  /// Of the chunked form, C = 64: k S, q S, k^T u; triangles (k k^T, q k^T, T y, P u) in full or as
  /// the halves that they are.
  double flops(bool halves) const {
    const double k = shape_.key_dim, v = shape_.value_dim, c = halves ? 32 : 64;
    return 2.0 * static_cast<double>(tokens()) *
           (shape_.value_heads * (3 * k * v + 2 * c * v) + shape_.key_heads * 2 * c * k);
  }

 private:
  GdnShape shape_;
  int segments_, rows_;
  Memory qkvz_, ba_, out_, vectors_, state_;
  std::vector<int32_t> cu_, slot_;
};

/// A linear layer of noise.
class Matrix {
 public:
  Matrix(const OpTable& ops, Stream& stream, WeightFormat format, int64_t n, int64_t k)
      : ops_(ops) {
    weight_.shape = {format, n, k, 1};
    weight_.expert_bytes = ops.weight_bytes(weight_.shape);
    memory_ = memory(weight_.expert_bytes);
    weight_.data = memory_.buffer.data();
    Memory dense = memory(n * k * 4);
    fill(dense.floats(), n * k, 7);
    const TensorView views[] = {{dense.floats(), DType::kF32, {n, k}}};
    ops.pack_weight(stream, weight_, 0, views);
  }
  void run(Stream& stream, float* x, float* out, int64_t rows, bool prompt) {
    LinearArgs args{.x = TensorView(x, DType::kF32, {rows, weight_.shape.k}), .weight = &weight_};
    args.out = TensorView(out, DType::kF32, {rows, weight_.shape.n});
    args.prompt_rows = prompt ? rows : 0;
    ops_.linear(stream, args);
  }
  int64_t bytes() const { return weight_.expert_bytes; }

 private:
  const OpTable& ops_;
  Weight weight_;
  Memory memory_;
};

bool check(const Options& options, Stream& stream, bool prompt) {
  const GdnShape small{2, 2 * options.shape.value_heads / options.shape.key_heads,
                       options.shape.key_dim, options.shape.value_dim, options.shape.conv_width};
  Layer ours(small, 1, 150), oracle(small, 1, 150);
  ours.run(cpu_ops(options.isa), stream, prompt);
  oracle.run(ref_ops(), stream, prompt);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < ours.out_floats(); ++i) {
    difference += std::pow(static_cast<double>(ours.out()[i]) - oracle.out()[i], 2);
    norm += std::pow(static_cast<double>(oracle.out()[i]), 2);
  }
  const double error = std::sqrt(difference / norm);
  std::printf("{\"check\": \"gdn\", \"prompt\": %d, \"relative_l2\": %.2e}\n", prompt, error);
  return error < 1e-5;
}

void time_prompt(const Options& options, Stream& stream) {
  const OpTable& ops = cpu_ops(options.isa);
  Layer layer(options.shape, options.sequences, options.tokens);
  const int64_t t = layer.tokens();
  const double flops = layer.flops(false);
  const int64_t n = static_cast<int64_t>(flops / 2 / static_cast<double>(t * kHidden));
  Matrix half(ops, stream, WeightFormat::kBf16, n, kHidden);
  Matrix full(ops, stream, WeightFormat::kF32, n, kHidden);
  Memory x = memory(t * kHidden * 4), y = memory(t * n * 4);
  fill(x.floats(), t * kHidden, 8);
  double best[4] = {1e30, 1e30, 1e30, 1e30};
  for (int i = 0; i < options.samples; ++i) {
    const auto timed = [&](int which, auto&& body) {
      const double begin = now();
      body();
      best[which] = std::min(best[which], now() - begin);
    };
    timed(0, [&] { layer.run(ops, stream, true); });
    timed(1, [&] { half.run(stream, x.floats(), y.floats(), t, true); });
    if (i % 3 == 0) timed(2, [&] { full.run(stream, x.floats(), y.floats(), t, true); });
    timed(3, [&] { layer.run(ops, stream, true, true); });
  }
  std::printf(
      "{\"op\": \"gdn\", \"mode\": \"prompt\", \"sequences\": %d, \"tokens\": %d, \"us\": %.0f, "
      "\"us_with_norm\": %.0f, \"gflops\": %.0f, \"gflops_triangles_halved\": %.0f, "
      "\"gemm_bf16_us\": %.0f, \"gemm_f32_us\": %.0f, \"over_gemm_bf16\": %.2f, "
      "\"over_gemm_f32\": %.2f}\n",
      options.sequences, options.tokens, best[0] * 1e6, best[3] * 1e6, flops / best[0] * 1e-9,
      layer.flops(true) / best[0] * 1e-9, best[1] * 1e6, best[2] * 1e6, best[0] / best[1],
      best[0] / best[2]);
}

/// Linear layers of one decoder layer around the operator.
struct Projections {
  Matrix qkvz, ba, out;
};

/// As many layers as make 1 GiB, so that nothing is found in the CPU's caches.
void time_decode(const Options& options, Stream& stream, ThreadPool& pool, bool whole_layer) {
  const OpTable& ops = cpu_ops(options.isa);
  const int64_t most = int64_t{1} << 30;
  Memory ceiling = memory(most / 2);
  std::memset(ceiling.buffer.data(), 1, static_cast<size_t>(most / 2));
  Memory x = memory(64 * kHidden * 4);
  fill(x.floats(), 64 * kHidden, 8);
  for (const int sequences : {1, 4, 16, 64}) {
    std::vector<Layer> layers;
    std::vector<Projections> weights;
    int64_t total = 0, bytes = 0, weight_bytes = 0;
    for (; total < most; total += bytes) {
      Layer& layer = layers.emplace_back(options.shape, sequences, 1);
      bytes = 2 * sequences * layer.state_floats() * 4;
      if (!whole_layer) continue;
      const int64_t hv = options.shape.value_heads;
      weights.push_back({Matrix(ops, stream, WeightFormat::kBf16, layer.width(), kHidden),
                         Matrix(ops, stream, WeightFormat::kBf16, 2 * hv, kHidden),
                         Matrix(ops, stream, WeightFormat::kBf16, kHidden, layer.values())});
      const Projections& p = weights.back();
      weight_bytes = p.qkvz.bytes() + p.ba.bytes() + p.out.bytes();
      bytes += weight_bytes;
    }
    const size_t at_once = static_cast<size_t>(std::max(1, 16 / sequences));
    double best = 1e30, best_op = 1e30, update = 0, read = 0;
    for (int i = 0; i < options.samples; ++i) {
      update = std::max(update, update_bandwidth(pool, ceiling.buffer.data(), most / 2, 1));
      if (whole_layer) {
        read = std::max(read, read_bandwidth(pool, ceiling.buffer.data(), most / 2, 1));
      }
      for (size_t first = 0; first < layers.size(); first += at_once) {  // short samples
        const size_t last = std::min(first + at_once, layers.size());
        const double begin = now();
        double op = 0;
        for (size_t k = first; k < last; ++k) {
          if (whole_layer) {
            weights[k].qkvz.run(stream, x.floats(), layers[k].qkvz(), sequences, false);
            weights[k].ba.run(stream, x.floats(), layers[k].ba(), sequences, false);
          }
          const double op_begin = now();
          layers[k].run(ops, stream, false, whole_layer);
          op += now() - op_begin;
          if (whole_layer) {
            weights[k].out.run(stream, layers[k].out(), x.floats(), sequences, false);
          }
        }
        best = std::min(best, (now() - begin) / static_cast<double>(last - first));
        best_op = std::min(best_op, op / static_cast<double>(last - first));
      }
      if (whole_layer) fill(x.floats(), 64 * kHidden, 8);
    }
    const double rate = static_cast<double>(bytes) / best * 1e-9;
    std::printf(
        "{\"op\": \"%s\", \"mode\": \"decode\", \"sequences\": %d, \"us\": %.1f, "
        "\"op_us\": %.1f, \"gb_s\": %.1f, \"update_gb_s\": %.1f, \"share\": %.3f",
        whole_layer ? "gdn layer" : "gdn", sequences, best * 1e6, best_op * 1e6, rate, update,
        rate / update);
    if (whole_layer) {
      const double bound = static_cast<double>(weight_bytes) / read +
                           static_cast<double>(bytes - weight_bytes) / update;
      std::printf(", \"read_gb_s\": %.1f, \"bound_us\": %.1f, \"share_of_bound\": %.3f", read,
                  bound * 1e-3, bound * 1e-9 / best);
    }
    std::printf("}\n");
  }
}

bool parse(std::vector<std::string> arguments, Options& o) {
  int dim = o.shape.key_dim;
  const auto parts = [&o](const std::string& flag, const std::string& value) {
    o.parts = value;
    return flag == "--parts";
  };
  const bool good = read_flags(std::move(arguments), o,
                               {{"--key-heads", &o.shape.key_heads},
                                {"--value-heads", &o.shape.value_heads},
                                {"--dim", &dim},
                                {"--tokens", &o.tokens},
                                {"--sequences", &o.sequences}},
                               parts);
  o.shape.key_dim = o.shape.value_dim = dim;
  return good;
}

int run(std::vector<std::string> arguments) {
  Options options;
  if (!parse(std::move(arguments), options)) return 2;
  ThreadPool pool(options.threads);
  Arena arena(Buffer::allocate(DeviceKind::kCpu, int64_t{128} << 20).value());
  Stream stream(pool, arena);
  if (options.wants("check") && (!check(options, stream, true) || !check(options, stream, false))) {
    return 1;
  }
  if (options.wants("prompt")) time_prompt(options, stream);
  if (options.wants("decode")) time_decode(options, stream, pool, false);
  if (options.wants("layer")) time_decode(options, stream, pool, true);
  return 0;
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  return weft::bench::run({argv + 1, argv + argc});
}
