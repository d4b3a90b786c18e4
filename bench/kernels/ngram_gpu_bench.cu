// The n-gram matcher on a GPU: 256 texts of 32k tokens, a step of all of them, warm (steps back to
// back; texts and tables are larger than the L2 cache) and behind 128 MB of writes; and the index
// of a prompt.

#include <algorithm>
#include <cstdio>
#include <random>

#include "bench/kernels/gpu.h"
#include "device/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::bench {
namespace {

constexpr int kTexts = 256, kSteps = 40, kTokens = 32768, kCapacity = 49152;
constexpr size_t kFlushed = size_t{128} << 20;

int32_t* ints(const Buffer& buffer) {
  return reinterpret_cast<int32_t*>(buffer.data());
}

class Bench {
 public:
  Bench(Gpu& gpu, int min_size, int max_size) : gpu_(gpu) {
    index_ = {.slots = kTexts,
              .capacity = kCapacity,
              .min_size = min_size,
              .max_size = max_size,
              .keys = GramKeys(1)};
    memory_ = take(index_.bytes());
    flushed_ = take(static_cast<int64_t>(kFlushed));
    index_.memory = memory_.data();
  }

  /// Prompts of `tokens`; most of them repeat what stood 1,700 tokens before, in part.
  void fill(int tokens) {
    std::mt19937 rng(3);
    text_.clear();
    std::vector<NgramText> jobs;
    for (int q = 0; q < kTexts; ++q) {
      jobs.push_back({q, 0, tokens, q * tokens, kCapacity});
      for (int i = 0; i < tokens; ++i) {
        const bool again = i > 2000 && rng() % 100 != 0;
        text_.push_back(again ? text_[text_.size() - 1700] : static_cast<int32_t>(rng() % 150000));
      }
    }
    tokens_ = upload(text_);
    jobs_ = upload(jobs);
    extend(0, kTexts, tokens);
  }

  void extend(int first, int count, int tokens) {
    cuda::extend_ngrams(gpu_.stream(),
                        {.index = index_,
                         .texts = reinterpret_cast<const NgramText*>(jobs_.data()) + first,
                         .num_texts = count,
                         .any_new = true,
                         .most_tokens = tokens,
                         .tokens = ints(tokens_)});
  }

  void steps(int num_new, int num_drafts) {
    const int tokens = kTokens;
    fill(tokens);
    std::vector<int32_t> slots, cu_q = {0}, counts, next;
    for (int q = 0; q < kTexts; ++q) {
      slots.push_back(q);
      cu_q.push_back((q + 1) * num_new);
      counts.push_back(num_new);
    }
    for (int k = 0; k < kSteps; ++k) {
      for (int q = 0; q < kTexts; ++q) {
        for (int j = 0; j < num_new; ++j) {
          next.push_back(text_[static_cast<size_t>(q * tokens + (k * 731 + q * 97 + j) % 9000)]);
        }
      }
    }
    const Buffer slots_d = upload(slots), cu_q_d = upload(cu_q), counts_d = upload(counts);
    const Buffer next_d = upload(next), drafts = take(kTexts * num_drafts * 4);
    const Buffer matched = take(kTexts * 4), lengths = take(kTexts * 4);
    const Buffer host =
        Buffer::allocate(DeviceKind::kPinned, kTexts * (num_drafts + 2) * 4).value();
    auto* const there = static_cast<int32_t*>(device_address(host.data()));
    const auto propose = [&](int i, int32_t* drafts_at, int32_t* matched_at, int32_t* lengths_at) {
      cuda::propose_ngrams(gpu_.stream(),
                           {.index = index_,
                            .slots = TensorView(slots_d.data(), DType::kI32, {kTexts}),
                            .cu_q = TensorView(cu_q_d.data(), DType::kI32, {kTexts + 1}),
                            .next_ids = TensorView(ints(next_d) + i * kTexts * num_new, DType::kI32,
                                                   {kTexts * num_new}),
                            .counts = TensorView(counts_d.data(), DType::kI32, {kTexts}),
                            .most_tokens = num_new,
                            .behind = {},
                            .behind_counts = {},
                            .drafts = TensorView(drafts_at, DType::kI32, {kTexts, num_drafts}),
                            .matched = TensorView(matched_at, DType::kI32, {kTexts}),
                            .lengths = TensorView(lengths_at, DType::kI32, {kTexts})});
    };
    const auto step = [&](int i) { propose(i, ints(drafts), ints(matched), ints(lengths)); };
    const auto step_to_host = [&](int i) { propose(i, there + 2 * kTexts, there, there + kTexts); };
    const auto flush = [&] {
      cuda::check(cudaMemsetAsync(flushed_.data(), 1, kFlushed, cuda::native(gpu_.stream())),
                  "flush");
    };
    Row row;
    row.shape = "S256 32768 sizes " + std::to_string(index_.min_size) + ".." +
                std::to_string(index_.max_size) + " new " + std::to_string(num_new) + " K" +
                std::to_string(num_drafts);
    row.dtype = "i32";
    row.kernel = "ngram propose";
    row.us = gpu_.time_us(step, kSteps, 5);
    print(gpu_, row);
    row.kernel = "ngram propose to the host's memory";
    row.us = gpu_.time_us(step_to_host, kSteps, 5);
    print(gpu_, row);
    const double flushes = gpu_.time_us([&](int) { flush(); }, kSteps, 5);
    row.kernel = "ngram propose behind a flush";
    row.us = gpu_.time_us([&](int i) { flush(), step(i); }, kSteps, 5) - flushes;
    print(gpu_, row);
    std::vector<int32_t> found(kTexts);
    cuda::check(cudaMemcpy(found.data(), matched.data(), kTexts * 4, cudaMemcpyDeviceToHost), "");
    std::printf("matches in the last step: %d\n",
                static_cast<int>(
                    std::count_if(found.begin(), found.end(), [](int32_t m) { return m > 0; })));
  }

  void prompts() {
    Row row;
    row.dtype = "i32";
    row.kernel = "ngram extend";
    for (const bool same : {false, true}) {
      fill(kTokens);
      if (same) {
        cuda::check(cudaMemset(tokens_.data(), 0, text_.size() * 4), "tokens");
      }
      row.shape = same ? "S1 32768 of one token" : "S1 32768";
      row.us = gpu_.time_us([&](int i) { extend(i, 1, kTokens); }, kSteps, 5);
      print(gpu_, row);
    }
  }

 private:
  static Buffer take(int64_t bytes) { return Buffer::allocate(DeviceKind::kCuda, bytes).value(); }

  Gpu& gpu_;
  NgramIndex index_;
  Buffer memory_, flushed_, tokens_, jobs_;
  std::vector<int32_t> text_;
};

}  // namespace
}  // namespace weft::bench

int main() {
  using namespace weft::bench;
  Gpu gpu(int64_t{16} << 20);
  Bench bench(gpu, 2, 5);
  for (const auto& [num_new, num_drafts] : {std::pair{1, 4}, {2, 5}, {4, 8}, {8, 8}, {16, 15}}) {
    bench.steps(num_new, num_drafts);
  }
  bench.prompts();
  Bench wide(gpu, 3, 8);
  wide.steps(8, 15);
}
