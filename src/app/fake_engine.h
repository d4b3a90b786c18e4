#pragma once

#include <memory>

#include "app/engine_options.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace weft {

/// How the fake device behaves (`--device fake`: tests of the server without a model's cost).
struct FakeEngineOptions {
  double tokens_per_second = 0;  ///< of each sequence; 0: as fast as it goes
  int64_t hang_after = -1;       ///< steps after which the device answers nothing more; -1: never
  int64_t max_model_len = 32768;
};

inline constexpr int kFakeBlocks = 1 << 16;  ///< KV blocks of 64 tokens
/// Recurrent-state slots: two for each that runs, and room for checkpoints.
inline int fake_slots(const EngineOptions& engine) {
  return 2 * engine.max_num_seqs + 64;
}

/// A scheduler over a symbolic device whose tokens are hashes. A prompt that contains
/// "<<<TEXT>>>" is answered with TEXT and the end of the message instead.
/// `tokenizer` and `eos_id` (-1: none) are the model's that the server shows.
Result<std::unique_ptr<Engine>> make_fake_engine(const EngineOptions& engine,
                                                 const FakeEngineOptions& fake,
                                                 const EngineConfig& config,
                                                 const Tokenizer& tokenizer, int32_t eos_id);

}  // namespace weft
