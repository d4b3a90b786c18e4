// The workshop of paged attention: checks the backend against the oracle, then times a layer of a
// model's attention and prints JSON lines: us a layer, GFLOP/s or GB/s of K and V, and the share of
// the ceiling measured in this run (the bf16 peak for prefill, the read bandwidth for decode).
// usage: attention_bench [--isa avx2|avx512|avx512_bf16|amx] [--threads N] [--samples N]
//                        [--heads H] [--kv-heads G] [--dim D] [--context N] [--sequences S]
//                        [--cache bfloat16|int8_dynamic|fp8_block|int8|fp8|int4]

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

struct Options : CpuFlags {
  AttnShape shape{16, 8, 128};
  int context = 4096;
  int sequences = 1;
  KvFormat format = KvFormat::kBf16;
};

/// A call over `sequences` sequences of `context` keys, `rows` query rows at the end of each.
class Call {
 public:
  Call(const OpTable& ops, Stream& stream, const Options& options, int context, int rows)
      : ops_(ops), shape_(options.shape), sequences_(options.sequences), rows_(rows) {
    constexpr int kBlock = 64;
    const int blocks = (context + kBlock - 1) / kBlock;
    kv_.shape = {options.format, shape_.kv_heads, shape_.head_dim, kBlock};
    scales_.assign(static_cast<size_t>(shape_.kv_heads * shape_.head_dim),
                   options.format == KvFormat::kInt8 ? 1.0f / 127 : 1.0f / 448);
    kv_.k_scale = kv_.v_scale = scales_.data();
    kv_.block_bytes = ops.kv_block_bytes(kv_.shape);
    kv_.num_blocks = int64_t{blocks} * sequences_;
    memory_ = Buffer::allocate(DeviceKind::kCpu, kv_.block_bytes * kv_.num_blocks).value();
    kv_.data = memory_.data();
    for (int s = 0; s < sequences_; ++s) {
      cu_.push_back(s * rows);
      start_.push_back(context - rows);
      for (int b = 0; b < blocks; ++b) table_.push_back(s * blocks + b);
    }
    cu_.push_back(sequences_ * rows);
    const int64_t q_size = int64_t{sequences_} * rows * shape_.q_heads * shape_.head_dim;
    for (int64_t i = 0; i < q_size; ++i) q_.push_back(noise(1, i));
    out_.resize(q_.size());
    fill(stream, context);
  }

  void run(Stream& stream) {
    const SeqMap seqs{{cu_.data(), DType::kI32, {sequences_ + 1}},
                      {start_.data(), DType::kI32, {sequences_}},
                      {table_.data(), DType::kI32, {sequences_, kv_.num_blocks / sequences_}},
                      sequences_};
    const int64_t t = int64_t{sequences_} * rows_;
    ops_.attention(stream, {shape_,
                            {q_.data(), DType::kF32, {t, shape_.q_heads, shape_.head_dim}},
                            {out_.data(), DType::kF32, {t, shape_.q_heads, shape_.head_dim}},
                            kv_,
                            seqs});
  }
  const std::vector<float>& out() const { return out_; }
  int64_t kv_bytes() const { return memory_.bytes(); }

 private:
  static float noise(uint64_t seed, int64_t i) {
    return 2 * uniform01(philox4x32(seed, static_cast<uint64_t>(i), 0)[0]) - 1;
  }

  void fill(Stream& stream, int context) {
    const int64_t heads = shape_.kv_heads, d = shape_.head_dim;
    std::vector<float> k(static_cast<size_t>(context * heads * d)), v(k.size());
    std::vector<float> q(static_cast<size_t>(context * d));
    for (size_t i = 0; i < k.size(); ++i) {
      k[i] = noise(2, static_cast<int64_t>(i));
      v[i] = noise(3, static_cast<int64_t>(i));
    }
    std::vector<int32_t> positions(static_cast<size_t>(context));
    std::vector<int64_t> slots(static_cast<size_t>(context));
    for (int s = 0; s < sequences_; ++s) {
      for (int64_t i = 0; i < context; ++i) {
        slots[static_cast<size_t>(i)] = s * (kv_.num_blocks / sequences_) * 64 + i;
      }
      QkvPrepareArgs args;
      args.q = {q.data(), DType::kF32, {context, 1, d}};
      args.k = {k.data(), DType::kF32, {context, heads, d}};
      args.v = {v.data(), DType::kF32, {context, heads, d}};
      args.positions.index = {positions.data(), DType::kI32, {context}};
      args.kv_slot = {slots.data(), DType::kI64, {context}};
      args.kv = kv_;
      ops_.qkv_prepare(stream, args);
    }
  }

  const OpTable& ops_;
  AttnShape shape_;
  int sequences_, rows_;
  PagedKv kv_;
  Buffer memory_;
  std::vector<int32_t> cu_, start_, table_;
  std::vector<float> q_, out_, scales_;
};

bool check(Stream& stream, Options options) {
  options.sequences = 1;
  Call ours(cpu_ops(options.isa), stream, options, 333, 70);
  Call oracle(ref_ops(), stream, options, 333, 70);
  ours.run(stream);
  oracle.run(stream);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < ours.out().size(); ++i) {
    difference += std::pow(static_cast<double>(ours.out()[i]) - oracle.out()[i], 2);
    norm += std::pow(static_cast<double>(oracle.out()[i]), 2);
  }
  const double error = std::sqrt(difference / norm);
  std::printf("{\"check\": \"attention\", \"relative_l2\": %.2e}\n", error);
  return error < 6e-3;
}

void time_prefill(Stream& stream, const Options& options, int tokens, double peak) {
  Options one = options;
  one.sequences = 1;
  Call call(cpu_ops(options.isa), stream, one, tokens, tokens);
  double best = 1e30;
  for (int i = 0; i < options.samples; ++i) {
    const double begin = now();
    call.run(stream);
    best = std::min(best, now() - begin);
  }
  const double flops =
      4.0 * options.shape.q_heads * options.shape.head_dim * (0.5 * tokens * (tokens + 1.0));
  std::printf(
      "{\"op\": \"attention\", \"mode\": \"prefill\", \"cache\": \"%s\", \"tokens\": %d, "
      "\"us\": %.1f, \"gflops\": %.0f, \"share_of_peak\": %.3f}\n",
      std::string(kv_format_name(options.format)).c_str(), tokens, best * 1e6, flops / best * 1e-9,
      flops / best * 1e-9 / peak);
}

/// A layer after the other, as in a step, so that no layer's cache is found in the CPU's.
void time_decode(Stream& stream, const Options& options, ThreadPool& pool) {
  std::vector<Call> layers;
  int64_t bytes = 0;
  while (bytes < int64_t{768} << 20 && layers.size() < 28) {
    layers.emplace_back(cpu_ops(options.isa), stream, options, options.context, 1);
    bytes += layers.back().kv_bytes();
  }
  const Buffer memory = Buffer::allocate(DeviceKind::kCpu, int64_t{512} << 20).value();
  std::memset(memory.data(), 1, static_cast<size_t>(memory.bytes()));
  double best = 1e30, read = 0;
  for (int i = 0; i < options.samples; ++i) {
    read = std::max(read, read_bandwidth(pool, memory.data(), memory.bytes(), 1));
    for (size_t first = 0; first < layers.size(); first += 4) {  // short samples
      const size_t last = std::min(first + 4, layers.size());
      const double begin = now();
      for (size_t k = first; k < last; ++k) layers[k].run(stream);
      best = std::min(best, (now() - begin) / static_cast<double>(last - first));
    }
  }
  const double rate = static_cast<double>(layers[0].kv_bytes()) / best * 1e-9;
  std::printf(
      "{\"op\": \"attention\", \"mode\": \"decode\", \"cache\": \"%s\", \"sequences\": %d, "
      "\"context\": %d, \"us_layer\": %.1f, \"gb_s\": %.1f, \"read_gb_s\": %.1f, "
      "\"share_of_read\": %.3f}\n",
      std::string(kv_format_name(options.format)).c_str(), options.sequences, options.context,
      best * 1e6, rate, read, rate / read);
}

bool parse(std::vector<std::string> arguments, Options& o) {
  const auto format = [&o](const std::string& flag, const std::string& value) {
    for (const KvFormat f :
         {KvFormat::kF32, KvFormat::kBf16, KvFormat::kInt8Dynamic, KvFormat::kFp8Block,
          KvFormat::kInt8, KvFormat::kFp8, KvFormat::kInt4}) {
      if (flag != "--cache" || kv_format_name(f) != value) continue;
      o.format = f;
      return true;
    }
    return false;
  };
  const bool good = read_flags(std::move(arguments), o,
                               {{"--heads", &o.shape.q_heads},
                                {"--kv-heads", &o.shape.kv_heads},
                                {"--dim", &o.shape.head_dim},
                                {"--context", &o.context},
                                {"--sequences", &o.sequences}},
                               format);
  o.shape.scale = 1 / std::sqrt(static_cast<float>(o.shape.head_dim));
  return good;
}

int run(std::vector<std::string> arguments) {
  Options options;
  if (!parse(std::move(arguments), options)) return 2;
  ThreadPool pool(options.threads);
  Arena arena(Buffer::allocate(DeviceKind::kCpu, int64_t{64} << 20).value());
  Stream stream(pool, arena);
  if (!check(stream, options)) return 1;
  const double peak = bf16_peak(pool, options.isa, 3 * options.samples);
  for (const int tokens : {512, 2048}) time_prefill(stream, options, tokens, peak);
  time_decode(stream, options, pool);
  return 0;
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  return weft::bench::run({argv + 1, argv + argc});
}
