#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/bench_serve.h"
#include "base/result.h"
#include "text/template.h"
#include "text/tokenizer.h"

namespace weft {

constexpr size_t kMaxFileBytes = size_t{4} << 30;  ///< of a data set

struct BenchPrompt {
  std::string text;
  int64_t prompt_len = 0;  ///< in tokens; in words where there is no tokenizer
  int64_t output_len = 0;
};

/// The prompts of a benchmark, in the order in which they are sent. `tokenizer` and
/// `chat_template` may be null; without a tokenizer random prompts are made of words.
/// Errors name the flag or the line of the file.
Result<std::vector<BenchPrompt>> make_bench_prompts(const BenchServeOptions& options,
                                                    const Tokenizer* tokenizer,
                                                    const ChatTemplate* chat_template);

/// Seconds after the start at which each of `n` requests is due: gamma intervals of shape
/// `burstiness`, scaled so that the last is due at n / rate; all 0 for an infinite rate. With a
/// ramp the rate goes from ramp_up_start_rps to ramp_up_end_rps and nothing is scaled.
std::vector<double> arrival_times(const BenchServeOptions& options, size_t n);

}  // namespace weft
