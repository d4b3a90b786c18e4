// A decode step's layers on a GPU as the engine launches them, in one graph: what a layer takes,
// and what the step gains where one of its ops is left out (so overlap between ops counts).
// usage: decode_step_gpu_bench [8b|0.6b|all [sequences [tokens [total]]]]

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::bench {
namespace {

constexpr int kBlock = 64;

struct Shape {
  const char* name;
  int64_t hidden, inner, vocab;
  int q_heads, kv_heads, head_dim, layers;
  int64_t qkv() const { return int64_t{q_heads + 2 * kv_heads} * head_dim; }
};
constexpr Shape kShapes[] = {{"0.6b", 1024, 3072, 151936, 16, 8, 128, 28},
                             {"8b", 4096, 12288, 151936, 32, 8, 128, 36}};

enum Part { kQkv, kAttention, kOut, kGateUp, kDown, kHead, kNothing };
constexpr const char* kNames[] = {
    "norm + qkv", "qkv_prepare + attention", "o", "norm + gate_up", "down", "norm + head"};

/// Weights of all layers, caches of some to rotate among; all sequences have `tokens` keys.
class Step {
 public:
  Step(Gpu& gpu, const Shape& shape, int64_t rows, int64_t tokens)
      : gpu_(gpu), s_(shape), rows_(rows) {
    const int64_t layer_values =
        s_.hidden * (s_.qkv() + 3 * s_.inner) + s_.hidden * s_.q_heads * s_.head_dim;
    memory_ = random_device_bf16(gpu, s_.layers * layer_values + s_.vocab * s_.hidden, 9);
    for (int i = 0; i < s_.layers; ++i) {
      qkv_.push_back(weight(s_.qkv(), s_.hidden));
      out_.push_back(weight(s_.hidden, int64_t{s_.q_heads} * s_.head_dim));
      gate_up_.push_back(weight(2 * s_.inner, s_.hidden));
      down_.push_back(weight(s_.hidden, s_.inner));
    }
    head_ = weight(s_.vocab, s_.hidden);
    kv_.shape = {KvFormat::kBf16, s_.kv_heads, s_.head_dim, kBlock};
    kv_.block_bytes = cuda::kv_block_bytes(kv_.shape);
    const int64_t width = (tokens + kBlock - 1) / kBlock;
    kv_.num_blocks = rows * width;
    const int64_t cache_bytes = kv_.num_blocks * kv_.block_bytes;
    caches_ = static_cast<int>(std::max<int64_t>(2, (int64_t{120} << 20) / cache_bytes));
    pool_ = random_device_bf16(gpu, caches_ * cache_bytes / 2, 1);
    std::vector<int32_t> table, cu_q, start, index;
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < rows; ++i) {
      cu_q.push_back(static_cast<int32_t>(i));
      start.push_back(static_cast<int32_t>(tokens - 1));
      index.push_back(static_cast<int32_t>(tokens - 1));
      for (int64_t b = 0; b < width; ++b) table.push_back(static_cast<int32_t>(b * rows + i));
      slots.push_back(int64_t{table.back()} * kBlock + (tokens - 1) % kBlock);
    }
    cu_q.push_back(static_cast<int32_t>(rows));
    cu_q_ = upload(cu_q);
    start_ = upload(start);
    index_ = upload(index);
    slots_ = upload(slots);
    table_ = upload(table);
    width_ = width;
    std::vector<float> rope(static_cast<size_t>(tokens * s_.head_dim), 0.7f);
    rope_ = upload(rope);
    axis_ = upload(std::vector<uint8_t>(static_cast<size_t>(s_.head_dim / 2), 0));
    norm_ = upload(std::vector<float>(static_cast<size_t>(s_.hidden), 1.0f));
    residual_ = upload(std::vector<float>(static_cast<size_t>(rows * s_.hidden), 0.5f));
    const auto take = [&](int64_t n) { return random_device_bf16(gpu, rows * n, 3); };
    normed_ = take(s_.hidden);
    mixed_ = take(s_.qkv());
    attended_ = take(int64_t{s_.q_heads} * s_.head_dim);
    act_ = take(s_.inner);
    logits_ = Buffer::allocate(DeviceKind::kCuda, rows * s_.vocab * 4).value();
  }

  /// Microseconds of a step without one of its parts.
  double time(Part without) {
    return gpu_.time_us([&](int) { forward(without); }, 1, 31);
  }
  double bytes() const {
    const double layer =
        2.0 * (s_.hidden * (s_.qkv() + 3 * s_.inner) + s_.hidden * s_.q_heads * s_.head_dim) +
        static_cast<double>(kv_.num_blocks * kv_.block_bytes);
    return s_.layers * layer + 2.0 * static_cast<double>(s_.vocab * s_.hidden);
  }

 private:
  Weight weight(int64_t n, int64_t k) {
    Weight w{.shape = {WeightFormat::kBf16, n, k, 1}};
    w.expert_bytes = cuda::weight_bytes(w.shape);
    w.data = memory_.data() + used_;
    used_ += w.expert_bytes;
    return w;
  }
  TensorView view(const Buffer& b, DType dtype, int64_t n) const {
    return {b.data(), dtype, {rows_, n}};
  }
  void product(const Weight& w, TensorView x, TensorView out, Epilogue epilogue, bool norm) const {
    LinearArgs args;
    args.x = x;
    args.weight = &w;
    args.out = out;
    args.epilogue = epilogue;
    if (norm) {
      args.norm = {.x = view(residual_, DType::kF32, s_.hidden),
                   .residual = {},
                   .weight = {norm_.data(), DType::kF32, {s_.hidden}},
                   .out = x,
                   .eps = 1e-6f};
    }
    cuda_ops()->linear(gpu_.stream(), args);
  }

  void forward(Part without) const {
    const TensorView residual = view(residual_, DType::kF32, s_.hidden),
                     normed = view(normed_, DType::kBF16, s_.hidden),
                     mixed = view(mixed_, DType::kBF16, s_.qkv()),
                     attended = view(attended_, DType::kBF16, int64_t{s_.q_heads} * s_.head_dim),
                     act = view(act_, DType::kBF16, s_.inner);
    const int64_t q_width = int64_t{s_.q_heads} * s_.head_dim,
                  kv_width = int64_t{s_.kv_heads} * s_.head_dim;
    const TensorView q = mixed.columns(0, q_width).split_last(s_.q_heads, s_.head_dim);
    const OpTable& ops = *cuda_ops();
    Stream& stream = gpu_.stream();
    for (int layer = 0; layer < s_.layers; ++layer) {
      const auto set = static_cast<size_t>(layer);
      PagedKv kv = kv_;
      kv.data = pool_.data() + layer % caches_ * kv_.num_blocks * kv_.block_bytes;
      if (without != kQkv) product(qkv_[set], normed, mixed, Epilogue::kStore, true);
      if (without != kAttention) {
        QkvPrepareArgs prepare;
        prepare.q = q;
        prepare.k = mixed.columns(q_width, q_width + kv_width).split_last(s_.kv_heads, s_.head_dim);
        prepare.v =
            mixed.columns(q_width + kv_width, s_.qkv()).split_last(s_.kv_heads, s_.head_dim);
        prepare.q_norm = prepare.k_norm = {norm_.data(), DType::kF32, {s_.head_dim}};
        prepare.rope.cos_sin = {
            rope_.data(), DType::kF32, {rope_.bytes() / 4 / s_.head_dim, s_.head_dim / 2, 2}};
        prepare.rope.axis = {axis_.data(), DType::kU8, {s_.head_dim / 2}};
        prepare.rope.rotary_dim = s_.head_dim;
        prepare.positions.index = {index_.data(), DType::kI32, {rows_}};
        prepare.kv_slot = {slots_.data(), DType::kI64, {rows_}};
        prepare.kv = kv;
        AttnArgs args;
        args.shape = {s_.q_heads, s_.kv_heads, s_.head_dim,
                      1 / std::sqrt(static_cast<float>(s_.head_dim))};
        args.q = q;
        args.out = attended.split_last(s_.q_heads, s_.head_dim);
        args.kv = kv;
        args.seqs.cu_q = {cu_q_.data(), DType::kI32, {rows_ + 1}};
        args.seqs.kv_start = {start_.data(), DType::kI32, {rows_}};
        args.seqs.block_table = {table_.data(), DType::kI32, {rows_, width_}};
        args.seqs.num_segments = static_cast<int>(rows_);
        if (!prepare_attention(ops, stream, prepare, args)) ops.attention(stream, args);
      }
      if (without != kOut) product(out_[set], attended, residual, Epilogue::kAdd, false);
      if (without != kGateUp) product(gate_up_[set], normed, act, Epilogue::kSiluMul, true);
      if (without != kDown) product(down_[set], act, residual, Epilogue::kAdd, false);
    }
    if (without != kHead) {
      product(head_, normed, view(logits_, DType::kF32, s_.vocab), Epilogue::kStore, true);
    }
  }

  Gpu& gpu_;
  const Shape s_;
  const int64_t rows_;
  int caches_ = 0;
  int64_t width_ = 0, used_ = 0;
  Buffer memory_;  ///< all weights in the order of their use
  std::vector<Weight> qkv_, out_, gate_up_, down_;
  Weight head_;
  PagedKv kv_;
  Buffer pool_, cu_q_, start_, index_, slots_, table_, rope_, axis_, norm_, residual_, normed_,
      mixed_, attended_, act_, logits_;
};

void measure(Gpu& gpu, const Shape& shape, int64_t rows, int64_t tokens, bool parts) {
  Step step(gpu, shape, rows, tokens);
  step.time(kNothing);  // clocks
  Row row;
  row.kernel = "decode_step_layers";
  row.shape = std::string(shape.name) + " " + std::to_string(rows) + " x " + std::to_string(tokens);
  row.dtype = "bf16";
  row.us = step.time(kNothing);
  row.gbps = step.bytes() / row.us * 1e-3;
  row.share = row.gbps / gpu.read_bandwidth();
  print(gpu, row);
  if (!parts) return;
  std::printf("  us a layer:");
  for (int part = 0; part < kHead; ++part) {
    std::printf(" %s %.2f,", kNames[part],
                (row.us - step.time(static_cast<Part>(part))) / shape.layers);
  }
  std::printf(" %s %.1f\n", kNames[kHead], row.us - step.time(kHead));
  std::fflush(stdout);
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft::bench;
  const std::string name = argc > 1 ? argv[1] : "all";
  Gpu gpu;
  for (const Shape& shape : kShapes) {
    if (name != "all" && name != shape.name) continue;
    for (const int64_t rows : {1, 8, 64}) {
      if (argc > 2 && std::atoll(argv[2]) != rows) continue;
      measure(gpu, shape, rows, argc > 3 ? std::atoll(argv[3]) : 1024, argc <= 4);
    }
  }
}
