// Decode GEMMs on a GPU: the shapes of Qwen3-8B and Qwen3-0.6B in every weight format, weights
// rotating among sets larger than L2, beside cuBLASLt (bf16) and the best cut that is free to
// choose its order of sums by the number of rows (`sweep`: the cost of exactness).
// usage: gemm_decode_gpu_bench [bf16|int8|int4|fp8|all [substring of a shape|all [sweep|all
// [rows]]]]

#include <cmath>
#include <cstdio>
#include <cstring>

#include "bench/kernels/cublaslt.h"
#include "bench/kernels/gpu.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::bench {
namespace {

struct Shape {
  const char* name;
  int64_t n, k;
  Epilogue epilogue = Epilogue::kStore;
  DType out = DType::kBF16;
};
constexpr Shape kShapes[] = {
    {"8b_qkv", 6144, 4096},
    {"8b_o", 4096, 4096, Epilogue::kAdd, DType::kF32},
    {"8b_gate_up", 24576, 4096, Epilogue::kSiluMul},
    {"8b_down", 4096, 12288, Epilogue::kAdd, DType::kF32},
    {"8b_head", 151936, 4096, Epilogue::kStore, DType::kF32},
    {"9b_qkvz", 12288, 4096},
    {"9b_qkv_gate", 10240, 4096},
    {"9b_ba", 64, 4096},
    {"9b_head", 248320, 4096, Epilogue::kStore, DType::kF32},
    {"0.6b_qkv", 4096, 1024},
    {"0.6b_o", 1024, 2048, Epilogue::kAdd, DType::kF32},
    {"0.6b_gate_up", 6144, 1024, Epilogue::kSiluMul},
    {"0.6b_down", 1024, 3072, Epilogue::kAdd, DType::kF32},
    {"0.6b_head", 151936, 1024, Epilogue::kStore, DType::kF32},
};
constexpr int64_t kMostRows = 256;
constexpr int kHeadCalls = 6;  ///< of a head in a graph

std::vector<float> download(const void* device, int64_t begin, int64_t count, DType dtype) {
  const int64_t size = dtype_size(dtype);
  std::vector<std::byte> raw(static_cast<size_t>(count * size));
  cuda::check(cudaMemcpy(raw.data(), static_cast<const std::byte*>(device) + begin * size,
                         raw.size(), cudaMemcpyDeviceToHost),
              "download");
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&out[i], raw.data() + 4 * i, 4);
    } else {
      bf16 value;
      std::memcpy(&value, raw.data() + 2 * i, 2);
      out[i] = bf16_to_float(value);
    }
  }
  return out;
}

class Bench {
 public:
  Bench(Gpu& gpu, WeightFormat format, const Shape& shape) : gpu_(gpu), s_(shape) {
    const WeightShape packed{format, s_.n, s_.k, 1};
    const int64_t bytes = cuda::weight_bytes(packed);
    sets_ = static_cast<int>(std::clamp<int64_t>((int64_t{240} << 20) / bytes, 2, 60));
    source_ = random_device_bf16(gpu, s_.n * s_.k, 1);
    for (int i = 0; i < sets_; ++i) {
      memory_.push_back(Buffer::allocate(DeviceKind::kCuda, bytes).value());
      Weight weight{.shape = packed, .data = memory_.back().data(), .expert_bytes = bytes};
      const std::vector<TensorView> pieces = {{source_.data(), DType::kBF16, {s_.n, s_.k}}};
      cuda::pack_weight(gpu.stream(), weight, 0, pieces);
      weights_.push_back(weight);
    }
    columns_ = s_.epilogue == Epilogue::kSiluMul ? s_.n / 2 : s_.n;
    x_ = random_device_bf16(gpu, kMostRows * s_.k, 2);
    out_ = Buffer::allocate(DeviceKind::kCuda, kMostRows * columns_ * dtype_size(s_.out)).value();
  }

  cuda::DecodeGemm product(int call, int64_t m) const {
    cuda::DecodeGemm gemm;
    gemm.x = TensorView(x_.data(), DType::kBF16, {m, s_.k});
    gemm.weight = &weights_[static_cast<size_t>(call % sets_)];
    gemm.out = TensorView(out_.data(), s_.out, {m, columns_});
    gemm.epilogue = s_.epilogue;
    return gemm;
  }

  /// A head's logits for drafts.
  void draft(int call, int64_t m) {
    const cuda::DecodeGemm gemm = product(call, m);
    LinearArgs args;
    args.x = gemm.x;
    args.weight = gemm.weight;
    args.out = gemm.out;
    cuda::draft_logits(gpu_.stream(), args);
  }

  /// Bytes that must be moved: the weight, x and out (twice where it is added to) once.
  double moved(int64_t m) const {
    const int64_t out = m * columns_ * dtype_size(s_.out) * (s_.epilogue == Epilogue::kAdd ? 2 : 1);
    return static_cast<double>(cuda::weight_bytes(weights_[0].shape) + m * s_.k * 2 + out);
  }

  bool right(int64_t m, double tolerance) {
    cuda::DecodeGemm gemm = product(0, m);
    cuda::check(cudaDeviceSynchronize(), "packing");
    cuda::check(cudaMemset(out_.data(), 0, static_cast<size_t>(out_.bytes())), "clear");
    cuda::check(cudaDeviceSynchronize(), "clear");
    cuda::decode_gemm(gpu_.stream(), gemm, cuda::decode_cut(gemm.weight->shape, gemm.epilogue, m));
    cuda::check(cudaStreamSynchronize(cuda::native(gpu_.stream())), "gemm");
    double error = 0, norm = 0;
    for (const int64_t row : {int64_t{0}, m - 1}) {
      const std::vector<float> x = download(x_.data(), row * s_.k, s_.k, DType::kBF16);
      const std::vector<float> got = download(out_.data(), row * columns_, columns_, s_.out);
      const auto dot = [&](int64_t n) {
        const std::vector<float> w = download(source_.data(), n * s_.k, s_.k, DType::kBF16);
        double sum = 0;
        for (size_t k = 0; k < w.size(); ++k) sum += double{x[k]} * double{w[k]};
        return sum;
      };
      for (int64_t n = row % 5; n < columns_; n += columns_ / 40) {
        double expected = dot(n);
        if (s_.epilogue == Epilogue::kSiluMul) {
          expected = expected / (1 + std::exp(-expected)) * dot(n + columns_);
        }
        const double off = double{got[static_cast<size_t>(n)]} - expected;
        error += off * off;
        norm += expected * expected;
      }
    }
    const bool good = std::sqrt(error / norm) < tolerance;
    if (!good) std::printf("WRONG: %s %ld: %g\n", s_.name, m, std::sqrt(error / norm));
    return good;
  }

  double time(int64_t m, const cuda::DecodeCut& cut) {
    return gpu_.time_us([&](int call) { cuda::decode_gemm(gpu_.stream(), product(call, m), cut); },
                        s_.n > 100000 ? kHeadCalls : std::max(20, sets_), fast_ ? 5 : 15);
  }

  void row(CublasLt* cublas, int64_t m) {
    const WeightShape& shape = weights_[0].shape;
    Row row;
    row.kernel = s_.epilogue == Epilogue::kSiluMul ? "gemm_decode_silu_mul" : "gemm_decode";
    row.shape = std::string(s_.name) + " " + std::to_string(m) + "x" + std::to_string(s_.n) + "x" +
                std::to_string(s_.k);
    row.dtype = weight_format_name(shape.format);
    const cuda::DecodeCut cut = cuda::decode_cut(shape, s_.epilogue, m);
    time(m, cut);  // clocks, and descriptors in caches
    row.us = time(m, cut);
    if (shape.format == WeightFormat::kBf16 && cublas != nullptr && cublas->found()) {
      const Buffer wide = Buffer::allocate(DeviceKind::kCuda, m * s_.n * 2).value();
      row.peer = "cuBLASLt";
      row.peer_us =
          cublas->time_us(gpu_,
                          {m, s_.n, s_.k, [&](int) { return x_.data(); },
                           [&](int i) { return weights_[static_cast<size_t>(i % sets_)].data; },
                           [&](int) { return wide.data(); }},
                          std::max(20, sets_));
    }
    const auto print_row = [&] {
      row.gbps = moved(m) / row.us * 1e-3;
      row.share = row.gbps / gpu_.read_bandwidth();
      print(gpu_, row);
    };
    print_row();
    if (s_.out != DType::kF32 || s_.epilogue != Epilogue::kStore) return;
    row.kernel = "draft_logits";
    row.peer.clear();
    row.us = gpu_.time_us([&](int call) { draft(call, m); }, kHeadCalls);
    print_row();
  }

  /// The best cuts, with any order of sums; `fixed` marks those with the order that is used.
  void sweep(int64_t m) {
    fast_ = true;
    const WeightShape& shape = weights_[0].shape;
    const cuda::DecodeCut used = cuda::decode_cut(shape, s_.epilogue, m);
    const bool tiled = shape.format == WeightFormat::kInt8 || shape.format == WeightFormat::kInt4;
    struct Try {
      double us;
      cuda::DecodeCut cut;
    };
    std::vector<Try> tries;
    const int64_t columns = shape.format == WeightFormat::kBf16 ? 64 : 128;
    const int64_t steps = cuda::ceil_div(s_.k, columns);
    const int64_t piece = shape.format == WeightFormat::kInt8   ? 2 * cuda::kInt8TileBytes
                          : shape.format == WeightFormat::kInt4 ? 2 * cuda::kInt4TileBytes
                                                                : 8192;
    for (int units = 1; units <= 2; ++units) {
      if (tiled && s_.epilogue == Epilogue::kSiluMul && units % 2 == 1) continue;
      for (int turns = 1; turns <= 4; turns *= 2) {
        if (units * turns > 2 && (!tiled || units * turns > 4)) continue;
        for (int split = 1; split <= 8; split *= 2) {
          if (split != used.split && shape.format != WeightFormat::kBf16) continue;
          if (steps / split < 2 || s_.n / 64 / units * split > 4000) continue;
          for (const int64_t budget : {56, 72, 110, 200}) {
            const bool exact = split == used.split && turns == used.turns;
            if (!exact && (budget == 56 || budget == 110)) continue;
            const int64_t bytes =
                (used.row_tile * columns * 2 + piece * units + 1023) / 1024 * 1024;
            const int64_t stages = std::min(steps / split, budget * 1024 / bytes) / turns * turns;
            if (stages < 2 * turns) continue;
            if (stages * bytes < used.row_tile * turns * (units * 64 + 4) * 4) continue;
            for (const int64_t ahead : {0, 8}) {
              if (!exact && ahead > 0) continue;
              cuda::DecodeCut cut = used;
              cut.units = units;
              cut.turns = turns;
              cut.split = split;
              cut.stages = static_cast<int>(stages);
              const int64_t blocks = std::max<int64_t>(1, s_.n / 64 / units * split);
              cut.ahead = static_cast<int>((ahead << 20) / blocks / (piece * units));
              cut.ahead = static_cast<int>(std::min<int64_t>(cut.ahead, steps / split - stages));
              if (cuda::decode_shared_bytes(shape.format, cut) > 227 * 1024) continue;
              bool seen = false;
              for (const Try& t : tries) {
                seen = seen || std::memcmp(&t.cut, &cut, sizeof cut) == 0;
              }
              if (!seen) tries.push_back({time(m, cut), cut});
            }
          }
        }
      }
    }
    std::sort(tries.begin(), tries.end(), [](const Try& a, const Try& b) { return a.us < b.us; });
    const double bytes = moved(m);
    const auto show = [&](double us, const cuda::DecodeCut& c) {
      std::printf(" [u%dx%d s%d st%d+%d %.2f %.0f%%]", c.units, c.turns, c.split, c.stages, c.ahead,
                  us, 100 * bytes / us * 1e-3 / gpu_.read_bandwidth());
    };
    std::printf("sweep %s %s m=%ld used", s_.name,
                std::string(weight_format_name(shape.format)).c_str(), m);
    show(time(m, used), used);
    std::printf(":");
    int shown = 0, same = 0;
    for (const Try& t : tries) {
      const bool fixed = t.cut.split == used.split && t.cut.turns == used.turns;
      if (shown >= 4 && (!fixed || same >= 3)) continue;
      ++shown;
      same += fixed;
      show(t.us, t.cut);
    }
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  Gpu& gpu_;
  const Shape s_;
  int sets_ = 0;
  bool fast_ = false;  ///< fewer samples
  int64_t columns_ = 0;
  Buffer source_, x_, out_;
  std::vector<Buffer> memory_;
  std::vector<Weight> weights_;
};

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft;
  using namespace weft::bench;
  const std::string format = argc > 1 ? argv[1] : "all", shape = argc > 2 ? argv[2] : "all";
  const bool sweep = argc > 3 && std::strcmp(argv[3], "sweep") == 0;
  const bool alone = argc > 3 && std::strcmp(argv[3], "alone") == 0;
  Gpu gpu;
  CublasLt cublas;
  std::printf("read bandwidth %.0f GB/s\n", gpu.read_bandwidth());
  const struct {
    const char* name;
    WeightFormat format;
    double tolerance;
  } formats[] = {{"bf16", WeightFormat::kBf16, 3e-3},
                 {"int8", WeightFormat::kInt8, 0.02},
                 {"int4", WeightFormat::kInt4, 0.2},
                 {"fp8", WeightFormat::kFp8Block, 0.06}};
  for (const auto& f : formats) {
    if (format != "all" && format != f.name) continue;
    for (const Shape& s : kShapes) {
      if (shape != "all" && std::string(s.name).find(shape) == std::string::npos) continue;
      Bench bench(gpu, f.format, s);
      for (const int64_t m : {1, 8, 32, 64, 256}) {
        if (argc > 4 && std::atoll(argv[4]) != m) continue;
        if (!bench.right(m, f.tolerance)) continue;
        if (sweep) {
          bench.sweep(m);
        } else {
          bench.row(alone ? nullptr : &cublas, m);
        }
      }
    }
  }
}
