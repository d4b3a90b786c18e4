#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "kv/store.h"
#include "runtime/step_upload.h"
#include "sched/speculation.h"

namespace weft {

/// What the user asked for. Names in messages are those of the flags.
struct MemoryOptions {
  int64_t max_model_len = 0;  ///< tokens of a sequence; 0: auto, the largest that fits
  int64_t max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;
  int64_t kv_cache_bytes = 0;            ///< all caches; 0: auto
  double memory_fraction = 0.92;         ///< of the available bytes that may be used
  DeviceKind device = DeviceKind::kCpu;  ///< a GPU's memory is all given to the caches
  int num_threads = 1;
  SpeculationConfig speculation;
  int64_t swap_bytes = 0;  ///< host memory for what preempted sequences have computed
};

/// Rows that each state slot keeps under speculation (StepLimits::kept_rows).
int64_t kept_rows(const SpeculationConfig& speculation, DeviceKind device);

/// What a model will take, known from its config before anything is loaded.
struct ModelMemory {
  int64_t weight_bytes = 0;
  CacheBytes cache;  ///< with kept_rows()
  int block_size = 64;
  int64_t max_positions = 0;       ///< longest sequence the model was made for
  int64_t bytes_per_position = 0;  ///< rope table
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  std::function<int64_t(int64_t rows)> arena_bytes;  ///< Model::arena_bytes: arena, scratch
  int64_t image_bytes = 0;                           ///< VisionEncoder::bytes
  int64_t image_tokens = 0, image_pages = 0;         ///< see StepLimits
  bool multimodal = false;                           ///< rope with (t, h, w) positions
  int chunk = kChunk;                                ///< prompts are cut at multiples of it
  int64_t plan_tokens = 0;                           ///< as in SchedulerConfig
  int64_t sparse_from = 0;                           ///< likewise

  bool paged() const { return cache.per_block > 0; }
  bool recurrent() const { return cache.per_slot > 0; }
};

/// Where every byte goes, decided before loading.
struct MemoryPlan {
  int64_t max_model_len = 0;
  int64_t num_blocks = 0;
  int64_t num_slots = 0;
  int64_t num_swap_blocks = 0, num_swap_slots = 0;
  int64_t available_bytes = 0;
  int64_t limit_bytes = 0;  ///< what may be used of them
  int64_t weight_bytes = 0;
  int64_t block_bytes = 0;      ///< all blocks
  int64_t slot_bytes = 0;       ///< all state slots, spare ones and kept rows too
  int64_t arena_bytes = 0;      ///< temporaries of a step and of one op
  int64_t image_bytes = 0;      ///< the vision tower at work, features of images
  int64_t logit_bytes = 0;      ///< logits, sampling, step buffers
  int64_t swap_bytes = 0;       ///< swap space in the same memory as the caches
  int64_t rest_bytes = 0;       ///< program, tokenizer, tables
  int64_t host_swap_bytes = 0;  ///< swap space of a GPU, in the host's memory: no part of the total
  StepLimits limits;

  int64_t total_bytes() const {
    return weight_bytes + block_bytes + slot_bytes + arena_bytes + image_bytes + logit_bytes +
           swap_bytes + rest_bytes;
  }
  /// The budget as lines of "  name   1,234.5 MiB   what it buys".
  std::string table() const;
};

/// The blocks hold one sequence of max_model_len tokens at least, and otherwise as much as
/// max_num_seqs such sequences, 4 GiB or the memory at hand allow; recurrent models get two slots a
/// running sequence and some for checkpoints, from at most half of what is left. The swap space
/// gives recurrent states at most half of itself. An Error names the flag, what is missing and the
/// largest max-model-len that fits.
Result<MemoryPlan> plan_memory(const ModelMemory& model, const MemoryOptions& options,
                               int64_t available_bytes);

}  // namespace weft
