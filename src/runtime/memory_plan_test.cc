#include "runtime/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/executor_gpu.h"

namespace weft {
namespace {

using testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kGiB = int64_t{1} << 30;

/// Like Qwen3-0.6B in bf16.
ModelMemory attention_model() {
  ModelMemory m;
  m.weight_bytes = 1200 * kMiB;
  m.cache.per_block = 64 * 112 * 1024;
  m.max_positions = 40960;
  m.bytes_per_position = 512;
  m.vocab_size = 151936;
  m.hidden_size = 1024;
  m.arena_bytes = [](int64_t rows) { return rows * 40000; };
  return m;
}

ModelMemory hybrid_model() {
  ModelMemory m = attention_model();
  m.cache.per_block = 64 * 24 * 1024;
  m.cache.per_slot = 20 * kMiB;
  return m;
}

void expect_sound(const MemoryPlan& plan, const ModelMemory& model, const MemoryOptions& options) {
  EXPECT_LE(plan.total_bytes(), plan.limit_bytes);
  EXPECT_GE(plan.num_blocks * model.block_size, plan.max_model_len);
  EXPECT_EQ(plan.block_bytes, plan.num_blocks * model.cache.per_block);
  EXPECT_EQ(plan.slot_bytes, plan.num_slots * model.cache.per_slot);
  EXPECT_EQ(plan.limits.num_blocks, plan.num_blocks);
  EXPECT_EQ(plan.limits.num_slots, plan.num_slots);
  EXPECT_EQ(plan.limits.max_model_len, plan.max_model_len);
  EXPECT_EQ(plan.num_slots > 0, model.recurrent());
  if (options.kv_cache_bytes > 0) {
    EXPECT_LE(plan.block_bytes + plan.slot_bytes, options.kv_cache_bytes);
  }
}

TEST(MemoryPlan, AutoTakesTheModelsLengthWhereItFits) {
  const MemoryPlan plan = plan_memory(attention_model(), {}, 16 * kGiB).value();
  expect_sound(plan, attention_model(), {});
  EXPECT_EQ(plan.max_model_len, 40960);
  // One sequence needs 4.4 GiB, more than auto would take otherwise.
  EXPECT_EQ(plan.num_blocks, 640);
}

TEST(MemoryPlan, AutoTakesTheLargestLengthThatFits) {
  for (const bool hybrid : {false, true}) {
    const ModelMemory model = hybrid ? hybrid_model() : attention_model();
    for (int64_t available = 1600 * kMiB; available < 6 * kGiB; available += 300 * kMiB) {
      const auto plan = plan_memory(model, {}, available);
      if (!plan.ok()) {
        EXPECT_LT(available, 2 * kGiB);
        continue;
      }
      expect_sound(*plan, model, {});
      if (plan->max_model_len == model.max_positions) continue;
      MemoryOptions options;
      options.max_model_len = plan->max_model_len;
      EXPECT_TRUE(plan_memory(model, options, available).ok());
      options.max_model_len = plan->max_model_len + 64;
      const auto more = plan_memory(model, options, available);
      ASSERT_FALSE(more.ok()) << "a larger length fits";
      EXPECT_EQ(more.error().kind, ErrorKind::kExhausted);
      EXPECT_THAT(more.error().message,
                  HasSubstr("--max-model-len that fits is " + std::to_string(plan->max_model_len)));
    }
  }
}

TEST(MemoryPlan, ShortSequencesGetRoomForManyButNotAllMemory) {
  MemoryOptions options;
  options.max_model_len = 1000;
  MemoryPlan plan = plan_memory(attention_model(), options, 64 * kGiB).value();
  expect_sound(plan, attention_model(), options);
  EXPECT_LE(plan.block_bytes, 4 * kGiB);
  EXPECT_GT(plan.block_bytes, 4 * kGiB - 8 * kMiB);
  options.max_num_seqs = 4;
  plan = plan_memory(attention_model(), options, 64 * kGiB).value();
  EXPECT_EQ(plan.num_blocks, 4 * 16);  // no more than can be used
}

TEST(MemoryPlan, CacheSizeOfTheUserIsKept) {
  for (const bool hybrid : {false, true}) {
    const ModelMemory model = hybrid ? hybrid_model() : attention_model();
    MemoryOptions options;
    options.kv_cache_bytes = 700 * kMiB;
    const MemoryPlan plan = plan_memory(model, options, 16 * kGiB).value();
    expect_sound(plan, model, options);
    const int64_t used = plan.block_bytes + plan.slot_bytes;
    EXPECT_GT(used, 700 * kMiB - model.cache.per_block - model.cache.per_slot);
    options.max_model_len = 40960;
    const auto too_long = plan_memory(model, options, 16 * kGiB);
    ASSERT_FALSE(too_long.ok());
    EXPECT_THAT(too_long.error().message, HasSubstr("--kv-cache-memory is 700.0 MiB"));
    EXPECT_THAT(too_long.error().message, HasSubstr("the largest --max-model-len that fits is"));
  }
}

TEST(MemoryPlan, RecurrentModelsShareBetweenSlotsAndBlocks) {
  MemoryOptions options;
  options.max_model_len = 8192;
  const ModelMemory model = hybrid_model();
  const MemoryPlan plan = plan_memory(model, options, 16 * kGiB).value();
  expect_sound(plan, model, options);
  EXPECT_GT(plan.num_slots, 64);
  EXPECT_LE(plan.num_slots, 2 * 64 + 64);
  EXPECT_GT(plan.num_blocks, 2 * 128);
  // Scarce memory still gives the three slots without which nothing runs.
  const MemoryPlan small =
      plan_memory(model, {}, static_cast<int64_t>(1.85 * static_cast<double>(kGiB))).value();
  EXPECT_GE(small.num_slots, 3);
  EXPECT_LT(small.num_slots, 8);
}

TEST(MemoryPlan, TheSwapSpaceOfAGpuIsTheHosts) {
  const ModelMemory model = hybrid_model();
  MemoryOptions options{.max_model_len = 4096, .max_num_seqs = 4, .max_num_batched_tokens = 512};
  options.device = DeviceKind::kCuda;
  const MemoryPlan without = plan_memory(model, options, 16 * kGiB).value();
  options.swap_bytes = 100 * kMiB;
  const MemoryPlan with = plan_memory(model, options, 16 * kGiB).value();
  EXPECT_EQ(with.num_swap_slots, 2);  // half of it, states of 20 MiB
  EXPECT_EQ(with.num_swap_blocks, 60 * kMiB / model.cache.per_block);
  EXPECT_EQ(with.host_swap_bytes,
            2 * model.cache.per_slot + with.num_swap_blocks * model.cache.per_block);
  EXPECT_EQ(with.num_blocks, without.num_blocks);
  EXPECT_EQ(with.total_bytes(), without.total_bytes());
  EXPECT_THAT(with.table(), HasSubstr("pinned memory of the host"));
  options.device = DeviceKind::kCpu;
  const MemoryPlan cpu = plan_memory(model, options, 16 * kGiB).value();
  EXPECT_EQ(cpu.host_swap_bytes, 0);
  EXPECT_EQ(cpu.swap_bytes, with.host_swap_bytes);
}

/// A GPU needs no spare states for drafts: every slot keeps rows.
TEST(MemoryPlan, DraftsOfAGpuTakeNoStates) {
  const ModelMemory model = hybrid_model();
  MemoryOptions options{.max_model_len = 4096, .max_num_seqs = 64, .max_num_batched_tokens = 512};
  options.device = DeviceKind::kCuda;
  options.speculation.method = SpeculationMethod::kNgram;
  options.speculation.num_speculative_tokens = 3;
  const MemoryPlan plan = plan_memory(model, options, 16 * kGiB).value();
  expect_sound(plan, model, options);
  EXPECT_EQ(plan.limits.max_draft_rows, 192);
  EXPECT_EQ(plan.limits.kept_rows, 4);
  EXPECT_EQ(plan.limits.all_slots(), plan.num_slots);
  options.device = DeviceKind::kCpu;
  const MemoryPlan cpu = plan_memory(model, options, 16 * kGiB).value();
  EXPECT_EQ(cpu.limits.kept_rows, 0);
  EXPECT_EQ(cpu.limits.all_slots(), cpu.num_slots + cpu.limits.max_draft_seqs());
}

TEST(MemoryPlan, ErrorsNameFlagAndValues) {
  MemoryOptions options;
  options.max_model_len = 50000;
  EXPECT_THAT(plan_memory(attention_model(), options, 64 * kGiB).error().message,
              HasSubstr("--max-model-len is 50000: this model takes 1 to 40960"));
  options = {};
  options.max_num_seqs = 0;
  EXPECT_THAT(plan_memory(attention_model(), options, 64 * kGiB).error().message,
              HasSubstr("--max-num-seqs"));
  options.max_num_seqs = 100;
  options.max_num_batched_tokens = 162;
  EXPECT_THAT(plan_memory(attention_model(), options, 64 * kGiB).error().message,
              HasSubstr("--max-num-batched-tokens is 162: it must be at least 163"));
  options.max_num_batched_tokens = 163;
  EXPECT_TRUE(plan_memory(attention_model(), options, 64 * kGiB).ok());
  const auto tiny = plan_memory(attention_model(), {}, 1 * kGiB);
  ASSERT_FALSE(tiny.ok());
  EXPECT_THAT(tiny.error().message, HasSubstr("1200.0 MiB of weights"));
  EXPECT_THAT(tiny.error().message, HasSubstr("--quantization"));
}

TEST(MemoryPlan, TableShowsWhereTheBytesGo) {
  MemoryOptions options;
  options.max_model_len = 8192;
  const std::string table = plan_memory(hybrid_model(), options, 16 * kGiB).value().table();
  for (const char* row : {"weights", "KV blocks", "state slots", "activations", "logits", "total"})
    EXPECT_THAT(table, HasSubstr(row));
  EXPECT_THAT(table, HasSubstr("1200.0 MiB"));
}

TEST(GpuLimits, SequencesAndReplayedPiecesFitTheKernels) {
  StepLimits limits;
  limits.max_rows = 8192;
  limits.max_seqs = 895;
  EXPECT_TRUE(GpuExecutor::check_limits(limits).ok());
  limits.max_seqs = 896;
  EXPECT_THAT(GpuExecutor::check_limits(limits).error().message,
              HasSubstr("at most 895 on a GPU with --max-num-batched-tokens 8192"));
}

}  // namespace
}  // namespace weft
