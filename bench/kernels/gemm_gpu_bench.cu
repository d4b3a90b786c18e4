// Prompt GEMMs on a GPU beside cuBLASLt: squares, and the shapes of Qwen3-8B.
// usage: gemm_gpu_bench [substring of a shape [bf16 | fp8 | int]]

#include <cuda_fp8.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "bench/kernels/cublaslt.h"
#include "bench/kernels/packed.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm.h"

namespace weft::bench {
namespace {

constexpr double kPeak = 989.4;  // TFLOP/s of bf16, H100 SXM at 1830 MHz

std::vector<float> rows_of(const void* device, int64_t row, int64_t columns) {
  std::vector<uint16_t> raw(static_cast<size_t>(columns));
  cuda::check(cudaMemcpy(raw.data(), static_cast<const uint16_t*>(device) + row * columns,
                         raw.size() * 2, cudaMemcpyDeviceToHost),
              "download");
  std::vector<float> out(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) {
    const uint32_t bits = uint32_t{raw[i]} << 16;
    std::memcpy(&out[i], &bits, 4);
  }
  return out;
}

std::vector<float> floats_of(const void* device, int64_t row, int64_t columns) {
  std::vector<float> out(static_cast<size_t>(columns));
  cuda::check(cudaMemcpy(out.data(), static_cast<const float*>(device) + row * columns,
                         out.size() * 4, cudaMemcpyDeviceToHost),
              "download");
  return out;
}

struct Shape {
  int64_t m, n, k;
  bool silu_mul = false;
  bool add = false;  ///< to f32 rows, as the residual is
};

void run(Gpu& gpu, CublasLt& cublas, const Shape& s) {
  const int64_t bytes = (s.m * s.k + s.n * s.k + s.m * s.n) * 2;
  const int sets = static_cast<int>(std::min<int64_t>(8, 1 + (int64_t{120} << 20) / bytes));
  std::vector<Buffer> x, w, out;
  for (int i = 0; i < sets; ++i) {
    x.push_back(random_device_bf16(gpu, s.m * s.k, 3 * static_cast<uint64_t>(i) + 1));
    w.push_back(random_device_bf16(gpu, s.n * s.k, 3 * static_cast<uint64_t>(i) + 2));
    out.push_back(Buffer::allocate(DeviceKind::kCuda, s.m * s.n * (s.add ? 4 : 2)).value());
    cuda::check(cudaMemset(out.back().data(), 0, static_cast<size_t>(out.back().bytes())), "zeros");
  }
  const int64_t columns = s.silu_mul ? s.n / 2 : s.n;
  const auto ours = [&](int call) {
    const auto i = static_cast<size_t>(call % sets);
    Weight weight;
    weight.shape = {WeightFormat::kBf16, s.n, s.k, 1};
    weight.data = w[i].data();
    LinearArgs args;
    args.x = TensorView(x[i].data(), DType::kBF16, {s.m, s.k});
    args.weight = &weight;
    args.out = TensorView(out[i].data(), s.add ? DType::kF32 : DType::kBF16, {s.m, columns});
    args.epilogue = s.silu_mul ? Epilogue::kSiluMul : s.add ? Epilogue::kAdd : Epilogue::kStore;
    cuda::linear_prompt(gpu.stream(), args);
  };
  ours(0);
  cuda::check(cudaStreamSynchronize(cuda::native(gpu.stream())), "gemm");
  double error = 0, norm = 0;
  for (const int64_t row : {int64_t{0}, s.m / 2 + 1, s.m - 1}) {
    if (row >= s.m) continue;
    const std::vector<float> xr = rows_of(x[0].data(), row, s.k);
    const std::vector<float> got =
        s.add ? floats_of(out[0].data(), row, columns) : rows_of(out[0].data(), row, columns);
    for (int64_t n = row % 5; n < columns; n += 97) {
      const auto dot = [&](int64_t at) {
        const std::vector<float> wr = rows_of(w[0].data(), at, s.k);
        double sum = 0;
        for (size_t k = 0; k < wr.size(); ++k) sum += double{xr[k]} * wr[k];
        return sum;
      };
      double expected = dot(n);
      if (s.silu_mul) expected = expected / (1 + std::exp(-expected)) * dot(n + columns);
      error += (got[static_cast<size_t>(n)] - expected) * (got[static_cast<size_t>(n)] - expected);
      norm += expected * expected;
    }
  }
  if (!(std::sqrt(error / norm) < 3e-3)) {
    std::printf("WRONG: %ld x %ld x %ld: relative error %g\n", s.m, s.n, s.k,
                std::sqrt(error / norm));
    return;
  }
  const double flops = 2.0 * static_cast<double>(s.m * s.n) * static_cast<double>(s.k);
  const int calls = static_cast<int>(std::max(4.0, std::min(40.0, 4e12 / flops)));
  Row row;
  row.kernel = s.silu_mul ? "gemm_silu_mul" : s.add ? "gemm_add" : "gemm";
  row.shape = std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
  row.dtype = "bf16";
  row.us = gpu.time_us(ours, calls);
  if (cublas.found()) {
    row.peer = "cuBLASLt";
    row.peer_us = cublas.time_us(
        gpu,
        {s.m, s.n, s.k, [&](int i) { return x[static_cast<size_t>(i % sets)].data(); },
         [&](int i) { return w[static_cast<size_t>(i % sets)].data(); },
         [&](int i) { return out[static_cast<size_t>(i % sets)].data(); }},
        calls);
    row.us = std::min(row.us, gpu.time_us(ours, calls));  // before and after the peer
  }
  row.tflops = flops / row.us * 1e-6;
  row.share = row.tflops / kPeak;
  print(gpu, row);
}

/// Relative error of elements of three rows against sums of the quantised values.
double fp8_error(const cuda::QuantizedRows& x, const cuda::QuantizedRows& w, const float* scales,
                 const void* out, const Shape& s) {
  const int64_t blocks = (s.k + 127) / 128, columns = s.silu_mul ? s.n / 2 : s.n;
  const auto bytes_of = [&](const void* device, int64_t bytes) {
    std::vector<uint8_t> host(static_cast<size_t>(bytes));
    cuda::check(cudaMemcpy(host.data(), device, host.size(), cudaMemcpyDeviceToHost), "download");
    return host;
  };
  const auto float_of = [&](const float* device) {
    float value = 0;
    cuda::check(cudaMemcpy(&value, device, 4, cudaMemcpyDeviceToHost), "download");
    return value;
  };
  const auto value_of = [](uint8_t code) {
    __nv_fp8_e4m3 v;
    v.__x = code;
    return static_cast<double>(static_cast<float>(v));
  };
  double error = 0, norm = 0;
  for (const int64_t row : {int64_t{0}, s.m / 2 + 1, s.m - 1}) {
    if (row >= s.m) continue;
    const std::vector<uint8_t> xr = bytes_of(x.codes + row * x.stride, s.k);
    const std::vector<float> got =
        s.add ? floats_of(out, row, columns) : rows_of(out, row, columns);
    std::vector<float> x_scales;
    for (int64_t b = 0; b < blocks; ++b) {
      x_scales.push_back(float_of(x.scales + b * x.scale_stride + row));
    }
    const auto dot = [&](int64_t n) {
      const std::vector<uint8_t> wr = bytes_of(w.codes + n * w.stride, s.k);
      double sum = 0;
      for (int64_t b = 0; b < blocks; ++b) {
        double part = 0;
        for (int64_t k = b * 128; k < std::min(s.k, b * 128 + 128); ++k) {
          part += value_of(xr[static_cast<size_t>(k)]) * value_of(wr[static_cast<size_t>(k)]);
        }
        sum += part * double{x_scales[static_cast<size_t>(b)]} *
               double{float_of(scales + n / 16 * blocks + b)};
      }
      return sum;
    };
    for (int64_t n = row % 5; n < columns; n += columns / 17 + 1) {
      double expected = dot(n);
      if (s.silu_mul) expected = expected / (1 + std::exp(-expected)) * dot(n + columns);
      const double difference = double{got[static_cast<size_t>(n)]} - expected;
      error += difference * difference;
      norm += expected * expected;
    }
  }
  return std::sqrt(error / norm);
}

/// The fp8 product, with its quantisation of x and without, beside the bf16 product.
void run_fp8(Gpu& gpu, const Shape& s) {
  const int sets = static_cast<int>(
      std::min<int64_t>(8, 1 + (int64_t{120} << 20) / (s.m * s.k * 2 + s.n * s.k + s.m * s.n * 2)));
  const int64_t columns = s.silu_mul ? s.n / 2 : s.n;
  const int64_t blocks = (s.k + 127) / 128, groups = (s.n + 15) / 16;
  ArenaScope scope(gpu.stream().scratch());
  std::vector<Buffer> x, wide, out;
  std::vector<cuda::QuantizedRows> w, quantized;
  std::vector<float> scales(static_cast<size_t>(groups * blocks));
  for (size_t i = 0; i < scales.size(); ++i) {  // one for each 128 rows and columns
    const size_t b = static_cast<size_t>(blocks);
    scales[i] = 1e-3f * static_cast<float>(1 + (i / b / 8 * 31 + i % b * 17) % 29);
  }
  const Buffer device_scales = upload(scales);
  const auto* b_scales = reinterpret_cast<const float*>(device_scales.data());
  for (int i = 0; i < sets; ++i) {
    x.push_back(random_device_bf16(gpu, s.m * s.k, 3 * static_cast<uint64_t>(i) + 1));
    wide.push_back(random_device_bf16(gpu, s.n * s.k, 3 * static_cast<uint64_t>(i) + 2));
    out.push_back(Buffer::allocate(DeviceKind::kCuda, s.m * s.n * (s.add ? 4 : 2)).value());
    cuda::check(cudaMemset(out.back().data(), 0, static_cast<size_t>(out.back().bytes())), "zeros");
    w.push_back(cuda::quantize_rows(gpu.stream(), {wide.back().data(), DType::kBF16, {s.n, s.k}}));
    quantized.push_back(
        cuda::quantize_rows(gpu.stream(), {x.back().data(), DType::kBF16, {s.m, s.k}}));
  }
  const auto gemm_of = [&](size_t i) {
    cuda::Gemm gemm;
    gemm.a = TensorView(x[i].data(), DType::kBF16, {s.m, s.k});
    gemm.n = s.n;
    gemm.out = TensorView(out[i].data(), s.add ? DType::kF32 : DType::kBF16, {s.m, columns});
    gemm.epilogue = s.silu_mul ? Epilogue::kSiluMul : s.add ? Epilogue::kAdd : Epilogue::kStore;
    return gemm;
  };
  const auto product = [&](size_t i, const cuda::QuantizedRows& rows) {
    cuda::Gemm gemm = gemm_of(i);
    gemm.b = reinterpret_cast<const std::byte*>(w[i].codes);
    gemm.b_row_bytes = w[i].stride;
    cuda::gemm_fp8(gpu.stream(), gemm, rows, {b_scales, static_cast<int>(groups), blocks, 0});
  };
  const auto fp8 = [&](int call) {
    const auto i = static_cast<size_t>(call % sets);
    ArenaScope inner(gpu.stream().scratch());
    product(i, cuda::quantize_rows(gpu.stream(), gemm_of(i).a));
  };
  const auto alone = [&](int call) {
    const auto i = static_cast<size_t>(call % sets);
    product(i, quantized[i]);
  };
  const auto bf16 = [&](int call) {
    const auto i = static_cast<size_t>(call % sets);
    cuda::Gemm gemm = gemm_of(i);
    gemm.b = wide[i].data();
    gemm.b_row_bytes = s.k * 2;
    cuda::gemm_bf16(gpu.stream(), gemm);
  };
  fp8(0);
  cuda::check(cudaStreamSynchronize(cuda::native(gpu.stream())), "gemm");
  const double error = fp8_error(quantized[0], w[0], b_scales, out[0].data(), s);
  if (!(error < 3e-3)) {
    std::printf("WRONG: fp8 %ld x %ld x %ld: relative error %g\n", s.m, s.n, s.k, error);
    return;
  }
  const double flops = 2.0 * static_cast<double>(s.m * s.n) * static_cast<double>(s.k);
  const int calls = static_cast<int>(std::max(4.0, std::min(40.0, 4e12 / flops)));
  Row row;
  row.shape = std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
  row.dtype = "fp8";
  row.peer = "weft bf16";
  double whole = gpu.time_us(fp8, calls), without = gpu.time_us(alone, calls);
  row.peer_us = gpu.time_us(bf16, calls);
  whole = std::min(whole, gpu.time_us(fp8, calls));
  without = std::min(without, gpu.time_us(alone, calls));
  for (const bool with_quantisation : {true, false}) {
    row.kernel =
        std::string(with_quantisation ? "gemm_fp8" : "gemm_fp8_product") + (s.silu_mul ? "_silu_mul"
                                                                            : s.add    ? "_add"
                                                                                       : "");
    row.us = with_quantisation ? whole : without;
    row.tflops = flops / row.us * 1e-6;
    row.share = row.tflops / (2 * kPeak);
    print(gpu, row);
  }
}

/// linear_prompt with int8 or int4 weights beside the bf16 product; checked against linear_decode.
void run_quantized(Gpu& gpu, WeightFormat format, const Shape& s) {
  const int64_t columns = s.silu_mul ? s.n / 2 : s.n, checked = std::min<int64_t>(s.m, 8);
  const Buffer x = random_device_bf16(gpu, s.m * s.k, 1);
  const Buffer wide = random_device_bf16(gpu, s.n * s.k, 2);
  const Buffer out = Buffer::allocate(DeviceKind::kCuda, s.m * columns * 4).value();
  const Buffer other = Buffer::allocate(DeviceKind::kCuda, checked * columns * 4).value();
  Weight weight, bf16_weight;
  weight.shape = {format, s.n, s.k, 1};
  const Buffer memory = pack_random(gpu, weight);
  bf16_weight.shape = {WeightFormat::kBf16, s.n, s.k, 1};
  bf16_weight.data = wide.data();
  LinearArgs args;
  args.x = TensorView(x.data(), DType::kBF16, {s.m, s.k});
  args.weight = &weight;
  args.out = TensorView(out.data(), DType::kF32, {s.m, columns});
  args.epilogue = s.silu_mul ? Epilogue::kSiluMul : Epilogue::kStore;
  cuda::linear_prompt(gpu.stream(), args);
  LinearArgs some = args;
  some.x = args.x.rows(0, checked);
  some.out = TensorView(other.data(), DType::kF32, {checked, columns});
  cuda::linear_decode(gpu.stream(), some);
  cuda::check(cudaStreamSynchronize(cuda::native(gpu.stream())), "linear");
  Row row;
  row.kernel = s.silu_mul ? "gemm_silu_mul" : "gemm";
  row.shape = std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
  row.dtype = weight_format_name(format);
  const double error = relative_difference(out.data(), other.data(), checked * columns);
  if (!(error < 5e-3)) {
    std::printf("WRONG: %s %s: relative error %g\n", row.dtype.c_str(), row.shape.c_str(), error);
    return;
  }
  args.out = TensorView(out.data(), DType::kBF16, {s.m, columns});
  const double flops = 2.0 * static_cast<double>(s.m * s.n) * static_cast<double>(s.k);
  const int calls = static_cast<int>(std::max(4.0, std::min(20.0, 4e12 / flops)));
  row.us = gpu.time_us([&](int) { cuda::linear_prompt(gpu.stream(), args); }, calls);
  args.weight = &bf16_weight;
  row.peer = "weft bf16";
  row.peer_us = gpu.time_us([&](int) { cuda::linear_prompt(gpu.stream(), args); }, calls);
  row.tflops = flops / row.us * 1e-6;
  row.share = row.tflops / kPeak;
  print(gpu, row);
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft::bench;
  Gpu gpu;
  CublasLt cublas;
  const bool bf16 = argc < 3 || std::strcmp(argv[2], "bf16") == 0;
  const bool fp8 = argc < 3 || std::strcmp(argv[2], "fp8") == 0;
  std::vector<Shape> shapes = {{4096, 4096, 4096}, {8192, 8192, 8192}};
  for (const int64_t m : {16, 64, 128, 256, 512, 2048, 8192}) {
    shapes.push_back({m, 6144, 4096});
    shapes.push_back({m, 4096, 4096});
    shapes.push_back({m, 24576, 4096, true});
    shapes.push_back({m, 4096, 12288});
  }
  // Qwen3-4B, a step of a long prompt.
  shapes.push_back({8192, 6144, 2560});
  shapes.push_back({8192, 2560, 4096, false, true});
  shapes.push_back({8192, 19456, 2560, true});
  shapes.push_back({8192, 2560, 9728, false, true});
  for (const Shape& s : shapes) {
    const std::string name =
        std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
    if (argc > 1 && name.find(argv[1]) == std::string::npos) continue;
    if (bf16) run(gpu, cublas, s);
    if (fp8) run_fp8(gpu, s);
    if (argc < 3 || std::strcmp(argv[2], "int") == 0) {
      run_quantized(gpu, weft::WeightFormat::kInt8, s);
      run_quantized(gpu, weft::WeightFormat::kInt4, s);
    }
  }
}
