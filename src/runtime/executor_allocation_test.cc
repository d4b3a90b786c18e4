// Counts allocations of the whole process while steps run: a decode step may allocate its result
// vectors and nothing that grows with rows, vocabulary or context. Not built with sanitizers, which
// have an operator new of their own.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "runtime/executor_local.h"
#include "runtime/toy_model.h"

namespace {
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): what operator new can reach
std::atomic<int64_t> allocations{0};
}  // namespace

// g++ takes this pair for two halves of different ones.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, size_t) noexcept {
  std::free(p);
}

namespace weft {
namespace {

TEST(LocalExecutorAllocations, OnlyResults) {
  StepLimits limits;
  limits.max_rows = 64;
  limits.max_seqs = 4;
  limits.max_model_len = 256;
  limits.vocab_size = ToyModel::kVocab;
  limits.block_size = ToyModel::kBlockSize;
  limits.num_blocks = 64;
  limits.num_slots = 4;
  limits.recurrent = true;
  const ToyModel model;
  KvStore kv = KvStore::create(model.cache_specs(), ref_ops(), 64, 4).value();
  ThreadPool pool(2);
  Arena scratch;
  Stream stream(pool, scratch);
  const auto executor = LocalExecutor::create(model, kv, stream, ref_ops(), limits).value();

  StepPlan plan;
  std::vector<std::vector<BlockId>> blocks(4);
  for (int i = 0; i < 4; ++i) {
    auto request = std::make_shared<Request>();
    request->id = SeqId{i};
    request->prompt = {i, 2, 3};
    request->sampling.max_tokens = 200;
    request->sampling.frequency_penalty = 0.5f;
    request->sampling.top_p = 0.9f;
    for (int b = 0; b < 16; ++b) blocks[static_cast<size_t>(i)].push_back({16 * i + b});
    plan.admitted.push_back(request);
    plan.slices.push_back({SeqId{i},
                           0,
                           request->prompt,
                           Arithmetic::kPrompt,
                           true,
                           blocks[static_cast<size_t>(i)],
                           {},
                           {i}});
  }
  const auto requests = plan.admitted;
  executor->launch(plan);
  executor->collect();
  plan.admitted.clear();
  const int32_t device[] = {kDeviceToken};
  constexpr int kSteps = 150;
  int64_t before = 0;
  for (int step = 0; step < kSteps; ++step) {
    if (step == 10) before = allocations.load();  // after vectors have found their size
    for (Slice& slice : plan.slices) {
      slice.first = 3 + step;
      slice.tokens = device;
      slice.arithmetic = Arithmetic::kDecode;
      slice.state_read = slice.state_write;
    }
    executor->launch(plan);
    executor->collect();
  }
  const double per_step =
      static_cast<double>(allocations.load() - before) / static_cast<double>(kSteps - 10);
  // The vector of rows, and one of tokens a row; the result queue takes a node now and then.
  EXPECT_LE(per_step, 1 + 4 + 0.5);
}

}  // namespace
}  // namespace weft
