// Workshop of the gated delta rule on a GPU: prompts and decode steps.
// usage: gdn_gpu_bench [FILTER]   rows whose "kernel shape" holds FILTER

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/philox.h"
#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/gdn_slots.h"
#include "kernels/ref/ref.h"

namespace weft::bench {
namespace {

std::vector<float> uniform(int64_t count, uint64_t seed, float low, float high) {
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = low + (high - low) * uniform01(philox4x32(seed, i, 0)[0]);
  }
  return out;
}

struct Load {
  int sequences, tokens;
  bool prompt;
  /// Kept rows that come first (gdn_slots.h), and rows that are kept where there are several; -1:
  /// the slots have no room for them.
  int kept = -1;
  int64_t rows() const { return int64_t{sequences} * tokens; }
};

/// `sets` sets of inputs and slots, to rotate among.
class World {
 public:
  World(Gpu& gpu, const GdnShape& shape, const Load& load, int sets, DType state = DType::kF32)
      : shape_(shape), load_(load), sets_(sets), state_(state) {
    const int64_t rows = load.rows() * sets, slots = int64_t{load.sequences} * sets;
    const int64_t c = channels(), heads = shape.value_heads;
    qkv_ = random_device_bf16(gpu, rows * c, 1);
    a_ = upload(uniform(rows * heads, 2, -3, 3));
    b_ = upload(uniform(rows * heads, 3, -3, 3));
    conv_ = upload(uniform(c * 4, 4, -1, 1));
    a_log_ = upload(uniform(heads, 5, -5, 0));
    bias_ = upload(uniform(heads, 6, -1, 1));
    if (load.kept >= 0)
      window_rows_ += kept_window_rows(c, heads, std::max(load.kept, load.tokens));
    windows_ = upload(uniform(slots * window_rows_ * c, 7, -1, 1));
    states_ = Buffer::allocate(DeviceKind::kCuda, slots * state_floats() * 4).value();
    const Buffer one = upload(uniform(state_floats(), 8, -0.3f, 0.3f));
    for (int64_t i = 0; i < slots; ++i) {
      cuda::check(cudaMemcpy(states_.data() + i * one.bytes(), one.data(),
                             static_cast<size_t>(one.bytes()), cudaMemcpyDeviceToDevice),
                  "states");
    }
    out_ = Buffer::allocate(DeviceKind::kCuda, load.rows() * heads * shape.value_dim * 2).value();
    z_ = random_device_bf16(gpu, rows * heads * shape.value_dim, 9);
    weight_ = upload(uniform(shape.value_dim, 10, 0, 1));
    std::vector<int32_t> reads, writes, chains;
    for (int i = 0; i <= load.sequences; ++i) {
      cu_q_host_.push_back(i * load.tokens);
      chains.push_back(i);
    }
    for (int i = 0; i < slots; ++i) {
      reads.push_back(load.kept > 0 ? read_with_kept(i, load.kept) : i);
      writes.push_back(load.kept >= 0 && load.tokens > 1 ? keep_in(i) : i);
    }
    cu_q_ = upload(cu_q_host_);
    chains_ = upload(chains);
    reads_ = upload(reads);
    writes_ = upload(writes);
  }

  int64_t channels() const {
    return 2 * int64_t{shape_.key_heads} * shape_.key_dim +
           int64_t{shape_.value_heads} * shape_.value_dim;
  }
  int64_t state_floats() const {
    return int64_t{shape_.value_heads} * shape_.value_dim * shape_.key_dim;
  }

  GdnArgs args(int call, bool norm = false) {
    const int64_t rows = load_.rows(), c = channels(), heads = shape_.value_heads,
                  set = call % sets_;
    const int64_t slots = int64_t{load_.sequences} * sets_;
    GdnArgs args;
    args.shape = shape_;
    args.qkv = {qkv_.data() + set * rows * c * 2, DType::kBF16, {rows, c}};
    args.a = {a_.data() + set * rows * heads * 4, DType::kF32, {rows, heads}};
    args.b = {b_.data() + set * rows * heads * 4, DType::kF32, {rows, heads}};
    args.conv = {conv_.data(), DType::kF32, {c, 4}};
    args.a_log = {a_log_.data(), DType::kF32, {heads}};
    args.dt_bias = {bias_.data(), DType::kF32, {heads}};
    args.state = {{windows_.data(), DType::kF32, {slots, window_rows_, c}},
                  {states_.data(), state_, {slots, heads, shape_.value_dim, shape_.key_dim}}};
    args.cu_q = {cu_q_.data(), DType::kI32, {load_.sequences + 1}};
    const int64_t first = set * load_.sequences * 4;
    args.read_slot = {reads_.data() + first, DType::kI32, {load_.sequences}};
    args.write_slot = {writes_.data() + first, DType::kI32, {load_.sequences}};
    args.num_segments = args.num_chains = load_.sequences;
    args.num_prompt_segments = args.num_prompt_chains = load_.prompt ? load_.sequences : 0;
    args.chains = {chains_.data(), DType::kI32, {load_.sequences + 1}};
    args.host_cu_q = load_.prompt ? cu_q_host_.data() : nullptr;
    args.out = {out_.data(), DType::kBF16, {rows, heads, shape_.value_dim}};
    if (norm) {
      const int64_t bytes = rows * heads * shape_.value_dim * 2;
      args.norm.z = {z_.data() + set * bytes, DType::kBF16, {rows, heads, shape_.value_dim}};
      args.norm.weight = {weight_.data(), DType::kF32, {shape_.value_dim}};
    }
    return args;
  }

  std::vector<float> out() const {
    std::vector<uint16_t> raw(static_cast<size_t>(out_.bytes() / 2));
    cuda::check(cudaMemcpy(raw.data(), out_.data(), raw.size() * 2, cudaMemcpyDeviceToHost), "out");
    std::vector<float> values(raw.size());
    for (size_t i = 0; i < raw.size(); ++i) {
      const uint32_t bits = uint32_t{raw[i]} << 16;
      std::memcpy(&values[i], &bits, 4);
    }
    return values;
  }

 private:
  GdnShape shape_;
  Load load_;
  int sets_;
  DType state_;
  int64_t window_rows_ = 3;
  Buffer qkv_, a_, b_, conv_, a_log_, bias_, windows_, states_, out_, z_, weight_, cu_q_, chains_,
      reads_, writes_;
  std::vector<int32_t> cu_q_host_;
};

/// The oracle's outputs for call 0 of a world, from copies of its inputs.
std::vector<float> oracle(const GdnArgs& device, int64_t rows, int sequences) {
  const auto host = [](const TensorView& v, std::vector<float>& into) {
    into.resize(static_cast<size_t>(v.size()));
    if (v.dtype == DType::kF32) {
      cuda::check(cudaMemcpy(into.data(), v.data, into.size() * 4, cudaMemcpyDeviceToHost), "host");
    } else {
      std::vector<uint16_t> raw(into.size());
      cuda::check(cudaMemcpy(raw.data(), v.data, raw.size() * 2, cudaMemcpyDeviceToHost), "host");
      for (size_t i = 0; i < raw.size(); ++i) {
        const uint32_t bits = uint32_t{raw[i]} << 16;
        std::memcpy(&into[i], &bits, 4);
      }
    }
    TensorView view = v;
    view.data = into.data();
    view.dtype = DType::kF32;
    return view;
  };
  std::vector<float> memory[9], out(static_cast<size_t>(device.out.size()));
  GdnArgs args = device;
  args.qkv = host(device.qkv, memory[0]);
  args.a = host(device.a, memory[1]);
  args.b = host(device.b, memory[2]);
  args.conv = host(device.conv, memory[3]);
  args.a_log = host(device.a_log, memory[4]);
  args.dt_bias = host(device.dt_bias, memory[5]);
  args.state.conv = host(device.state.conv, memory[6]);
  args.state.recurrent = host(device.state.recurrent, memory[7]);
  std::vector<int32_t> cu_q, slots;
  for (int i = 0; i <= sequences; ++i) cu_q.push_back(static_cast<int32_t>(rows / sequences) * i);
  for (int i = 0; i < sequences; ++i) slots.push_back(i);
  args.cu_q = {cu_q.data(), DType::kI32, {sequences + 1}};
  args.read_slot = args.write_slot = {slots.data(), DType::kI32, {sequences}};
  args.out = {out.data(), DType::kF32, {rows, args.shape.value_heads, args.shape.value_dim}};
  ThreadPool pool(1);
  Arena none;
  Stream stream(pool, none);
  ref::gdn(stream, args);
  return out;
}

void check_against_oracle(Gpu& gpu) {
  for (const bool prompt : {true, false}) {
    const Load load{2, prompt ? 200 : 3, prompt};
    World world(gpu, {1, 2, 128, 128, 4}, load, 1);
    const GdnArgs args = world.args(0);
    const std::vector<float> want = oracle(args, load.rows(), load.sequences);
    cuda::gdn(gpu.stream(), args);
    cuda::check(cudaDeviceSynchronize(), "gdn");
    const std::vector<float> got = world.out();
    double error = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
      norm += double{want[i]} * want[i];
    }
    const double relative = std::sqrt(error / norm);
    std::printf("# %s against the oracle: %.2e\n", prompt ? "prompt" : "decode", relative);
    if (!(relative < 3e-3)) std::exit(1);
  }
}

std::string heads(const GdnShape& s) {
  return std::to_string(s.key_heads) + "/" + std::to_string(s.value_heads);
}

bool wanted(const char* filter, const Row& row) {
  return filter == nullptr || (row.kernel + " " + row.shape).find(filter) != std::string::npos;
}

void bench_prompt(Gpu& gpu, const GdnShape& shape, int sequences, int tokens, const char* filter) {
  Row row{.kernel = "gated_delta_prefill",
          .shape = heads(shape) + " " + std::to_string(tokens) + "x" + std::to_string(sequences),
          .dtype = "bf16"};
  if (!wanted(filter, row)) return;
  const Load load{sequences, tokens, true};
  World world(gpu, shape, load, 2);
  row.us = gpu.time_us([&](int i) { cuda::gdn(gpu.stream(), world.args(i)); }, 4, 9);
  const double bytes =
      static_cast<double>(load.rows()) * (static_cast<double>(world.channels()) * 2 +
                                          shape.value_heads * (shape.value_dim * 2.0 + 8)) +
      8.0 * sequences * static_cast<double>(world.state_floats());
  row.gbps = bytes / row.us * 1e-3;
  row.tflops = static_cast<double>(load.rows()) * shape.value_heads * 2 * 128 * (3 * 128 + 128) /
               row.us * 1e-6;
  row.share = row.gbps / gpu.read_bandwidth();
  print(gpu, row);
}

struct Step {
  int batch, tokens;
  bool norm = false;
  DType state = DType::kF32;
  int kept = -1;  // Load::kept
};

void bench_decode(Gpu& gpu, const GdnShape& shape, const Step& step, const char* filter) {
  const auto [batch, tokens, norm, state, kept] = step;
  Row row{.kernel = "gated_delta_decode",
          .shape = heads(shape) + " B" + std::to_string(batch) +
                   (tokens > 1 ? " verify " + std::to_string(tokens) : "") +
                   (kept >= 0 ? " behind " + std::to_string(kept) + " kept" : "") +
                   (norm ? " norm" : ""),
          .dtype = state == DType::kF32 ? "f32 state" : "bf16 state"};
  if (!wanted(filter, row)) return;
  const int64_t dtype_bytes = state == DType::kF32 ? 4 : 2;
  const int64_t set_bytes =
      int64_t{batch} * shape.value_heads * shape.value_dim * shape.key_dim * dtype_bytes;
  const int sets = static_cast<int>(std::max<int64_t>(2, (int64_t{200} << 20) / set_bytes + 1));
  World world(gpu, shape, {batch, tokens, false, kept}, sets, state);
  row.us = gpu.time_us([&](int i) { cuda::gdn(gpu.stream(), world.args(i, step.norm)); },
                       std::max(20, sets));
  const double bytes =
      2.0 * static_cast<double>(set_bytes) +
      static_cast<double>(batch) * static_cast<double>(world.channels()) * (24.0 + 2 * tokens) +
      batch * tokens * shape.value_heads * (shape.value_dim * 2.0 + 8);
  row.gbps = bytes / row.us * 1e-3;
  row.share = row.gbps / gpu.read_bandwidth();
  print(gpu, row);
}

void bench_norm(Gpu& gpu, int64_t rows, int64_t heads, const char* filter) {
  Row row{.kernel = "norm_gated",
          .shape = std::to_string(rows) + "x" + std::to_string(heads) + "x128",
          .dtype = "bf16"};
  if (!wanted(filter, row)) return;
  const int64_t count = rows * heads * 128;
  const int sets = static_cast<int>(std::max<int64_t>(2, (int64_t{150} << 20) / (count * 6) + 1));
  const Buffer x = random_device_bf16(gpu, count * sets, 1),
               z = random_device_bf16(gpu, count * sets, 2);
  const Buffer out = random_device_bf16(gpu, count * sets, 3),
               weight = upload(uniform(128, 4, 0, 1));
  row.us = gpu.time_us(
      [&](int i) {
        const auto view = [&](const Buffer& b) {
          return TensorView(b.data() + i % sets * count * 2, DType::kBF16, {rows, heads, 128});
        };
        cuda::gated_norm(gpu.stream(), {.x = view(x),
                                        .z = view(z),
                                        .weight = {weight.data(), DType::kF32, {128}},
                                        .out = view(out)});
      },
      std::max(20, sets));
  row.gbps = static_cast<double>(count) * 6 / row.us * 1e-3;
  row.share = row.gbps / gpu.read_bandwidth();
  print(gpu, row);
}

void bench_all(const char* filter) {
  Gpu gpu(int64_t{2} << 30);
  check_against_oracle(gpu);
  std::printf("# read bandwidth %.0f GB/s\n", gpu.read_bandwidth());
  const auto shape = [](int hk, int hv) { return GdnShape{hk, hv, 128, 128, 4}; };
  struct Prompt {
    int hk, hv, sequences, tokens;
  };
  for (const Prompt& p : {Prompt{16, 32, 1, 2048},
                          {16, 32, 1, 4096},
                          {16, 32, 1, 8192},
                          {16, 32, 1, 16384},
                          {16, 32, 1, 32768},
                          {16, 32, 2, 4096},
                          {16, 32, 4, 2048},
                          {16, 32, 8, 1024},
                          {16, 32, 8, 4096},
                          {16, 48, 1, 8192},
                          {16, 48, 4, 2048},
                          {16, 64, 1, 8192},
                          {16, 64, 8, 1024},
                          {4, 16, 1, 8192},
                          {2, 8, 1, 8192},
                          {16, 16, 1, 8192}}) {
    bench_prompt(gpu, shape(p.hk, p.hv), p.sequences, p.tokens, filter);
  }
  for (const int batch : {1, 4, 8, 16, 32, 64, 128, 256}) {
    bench_decode(gpu, shape(16, 32), {batch, 1}, filter);
  }
  for (const int hv : {16, 48, 64}) bench_decode(gpu, shape(16, hv), {64, 1}, filter);
  for (const int batch : {1, 64}) bench_decode(gpu, shape(2, 8), {batch, 1}, filter);
  for (const int batch : {1, 16, 64}) bench_decode(gpu, shape(16, 32), {batch, 4}, filter);
  for (const int batch : {1, 32, 64}) bench_decode(gpu, shape(16, 32), {batch, 1, true}, filter);
  for (const int batch : {1, 16, 64}) bench_decode(gpu, shape(16, 32), {batch, 4, true}, filter);
  bench_decode(gpu, shape(16, 32), {64, 16, true}, filter);
  for (const int batch : {1, 4, 8, 16, 64}) {
    for (const int kept : {1, 2, 4}) {
      bench_decode(gpu, shape(16, 32), {batch, 4, true, DType::kF32, kept}, filter);
    }
  }
  for (const int batch : {1, 32, 64, 256}) {
    bench_decode(gpu, shape(16, 32), {batch, 1, true, DType::kBF16}, filter);
  }
  for (const int64_t rows : {1, 64, 8192}) bench_norm(gpu, rows, 32, filter);
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  weft::bench::bench_all(argc > 1 ? argv[1] : nullptr);
  return 0;
}
