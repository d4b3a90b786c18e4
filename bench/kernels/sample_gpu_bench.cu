// sample on a GPU: rows of logits of a large vocabulary (Qwen3's), by what a request asks. Share is
// of reading the logits once from memory. One row is what a single user's step pays.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "base/philox.h"
#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::bench {
namespace {

constexpr int64_t kVocabulary = 151936;
constexpr int64_t kRows = 192;  // 117 MB: more than the L2 cache

/// About normal, of deviation 3: the tail of a model's logits, with no row's greatest far above it
/// (harder for top-p than a model's usual row).
std::vector<float> random_logits() {
  std::vector<float> out(kRows * kVocabulary);
  for (size_t i = 0; i < out.size(); ++i) {
    const auto bits = philox4x32(9, i, 0);
    float sum = -2;
    for (const uint32_t b : bits) sum += uniform01(b);
    out[i] = sum * 3 * 1.7320508f;
  }
  return out;
}

struct Asked {
  const char* name;
  SampleSpec spec;
};

/// The least logit that the filters of `spec` keep.
float least_kept(const float* logits, const SampleSpec& spec) {
  std::vector<float> x(logits, logits + kVocabulary);
  std::sort(x.begin(), x.end(), std::greater<>());
  size_t kept = spec.temperature == 0 ? 1 : x.size();
  if (spec.top_k > 0) kept = std::min<size_t>(kept, static_cast<size_t>(spec.top_k));
  std::vector<double> weights;
  for (size_t i = 0; i < kept; ++i) {
    weights.push_back(std::exp((double{x[i]} - x[0]) / std::max(spec.temperature, 1e-6f)));
  }
  const double enough = spec.top_p * std::accumulate(weights.begin(), weights.end(), 0.0) * 1.00001;
  double sum = 0;
  size_t i = 0;
  while (i < kept && (i == 0 || sum < enough) && weights[i] >= spec.min_p) sum += weights[i++];
  return x[i - 1];
}

class Bench {
 public:
  explicit Bench(Gpu& gpu) : gpu_(gpu), host_(random_logits()), logits_(upload(host_)) {
    const auto take = [](int64_t bytes) {
      return Buffer::allocate(DeviceKind::kCuda, bytes).value();
    };
    results_ = take(64 * static_cast<int64_t>(sizeof(SampleResult)));
    tokens_ = take(64 * 4);
    top_ids_ = take(64 * kMaxTopLogprobs * 4);
    top_logprobs_ = take(64 * kMaxTopLogprobs * 4);
    counts_ = take(64 * kVocabulary * 4);
    masks_ = upload(std::vector<uint32_t>((kVocabulary + 31) / 32, 0xf7f7f7f7u));
    for (int32_t slot = 0; slot < 64; ++slot) {
      cuda::reset_counts(gpu.stream(),
                         {.counts = view(counts_, DType::kI32, 64, kVocabulary), .slot = slot});
    }
  }

  void run(const Asked& asked, int64_t rows) {
    std::vector<SampleSpec> specs;
    for (int64_t i = 0; i < rows; ++i) {
      SampleSpec spec = asked.spec;
      spec.slot = static_cast<int32_t>(i);
      if (spec.counts_slot >= 0) spec.counts_slot = spec.slot;
      spec.seed = static_cast<uint64_t>(i);
      specs.push_back(spec);
    }
    const bool only_greedy = is_plainly_greedy(specs[0]);
    const Buffer device_specs = upload(specs);
    const auto call = [&](int64_t first) {
      SampleArgs args;
      args.logits = view(logits_, DType::kF32, kRows, kVocabulary).rows(first, first + rows);
      args.specs = reinterpret_cast<const SampleSpec*>(device_specs.data());
      args.masks = view(masks_, DType::kI32, 1, (kVocabulary + 31) / 32);
      args.counts = view(counts_, DType::kI32, 64, kVocabulary);
      args.last_token = TensorView(tokens_.data(), DType::kI32, {64});
      args.results = reinterpret_cast<SampleResult*>(results_.data());
      args.top_ids = view(top_ids_, DType::kI32, 64, kMaxTopLogprobs);
      args.top_logprobs = view(top_logprobs_, DType::kF32, 64, kMaxTopLogprobs);
      args.only_greedy = only_greedy;
      cuda::sample(gpu_.stream(), args);
    };
    call(0);
    check(asked.spec, rows);
    const auto sets = static_cast<int>(kRows / rows);
    Row row;
    row.kernel = "sample ";
    row.kernel += asked.name;
    char shape[64];
    std::snprintf(shape, sizeof shape, "R%d V%d", static_cast<int>(rows),
                  static_cast<int>(kVocabulary));
    row.shape = shape;
    row.dtype = "f32";
    row.us = gpu_.time_us([&](int i) { call(i % sets * rows); }, std::max(sets, 18));
    row.gbps = static_cast<double>(rows * kVocabulary * 4) / row.us * 1e-3;
    row.share = row.gbps / gpu_.read_bandwidth();
    print(gpu_, row);
  }

 private:
  static TensorView view(const Buffer& buffer, DType dtype, int64_t rows, int64_t width) {
    return TensorView(buffer.data(), dtype, {rows, width});
  }

  /// The tokens of the first rows lie among those that the filters keep.
  void check(const SampleSpec& spec, int64_t rows) {
    std::vector<SampleResult> results(static_cast<size_t>(rows));
    cuda::check(cudaDeviceSynchronize(), "sample");
    cuda::check(cudaMemcpy(results.data(), results_.data(), results.size() * sizeof(SampleResult),
                           cudaMemcpyDeviceToHost),
                "results");
    for (size_t i = 0; i < results.size() && i < 4; ++i) {
      const float* logits = host_.data() + i * kVocabulary;
      const int32_t token = results[i].token;
      CHECK(token >= 0 && token < kVocabulary, "no token");
      if (spec.mask_row >= 0 || spec.counts_slot >= 0) continue;
      CHECK(logits[token] >= least_kept(logits, spec) - 1e-4f, "a token that is filtered out");
    }
  }

  Gpu& gpu_;
  std::vector<float> host_;
  Buffer logits_, results_, tokens_, top_ids_, top_logprobs_, counts_, masks_;
};

}  // namespace
}  // namespace weft::bench

int main() {
  using namespace weft::bench;
  Gpu gpu(int64_t{16} << 20);
  Bench bench(gpu);
  const Asked all[] = {
      {"greedy", {.temperature = 0}},
      {"greedy mask", {.mask_row = 0, .temperature = 0}},
      {"temperature", {}},
      {"top_k 50", {.top_k = 50}},
      {"top_p 0.9", {.top_p = 0.9f}},
      {"top_p 0.95", {.temperature = 0.7f, .top_p = 0.95f}},
      {"top_k 20 top_p 0.95", {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f}},
      {"min_p 0.05", {.min_p = 0.05f}},
      {"greedy penalties", {.counts_slot = 0, .temperature = 0, .frequency_penalty = 0.5f}},
      {"greedy logprobs 5", {.num_top = 5, .temperature = 0}},
      {"top_p 0.95 logprobs 5", {.num_top = 5, .temperature = 0.7f, .top_p = 0.95f}},
  };
  for (const int64_t rows : {1, 64}) {
    for (const Asked& asked : all) bench.run(asked, rows);
  }
}
