#pragma once

#include <chrono>
#include <cstdint>

namespace weft {

/// One applied step. With overlap a step is launched while the one before runs: `start` is when
/// this one had the device to itself.
struct StepRecord {
  using Clock = std::chrono::steady_clock;
  uint64_t step = 0;
  Clock::time_point start, end;
  int sequences = 0;
  int prompt_rows = 0;   ///< tokens in prompt arithmetic
  int decode_rows = 0;   ///< tokens in decode arithmetic
  int image_tokens = 0;  ///< that go through the vision tower before
  int running = 0, waiting = 0;
  int preempted = 0;
  double device_idle_us = 0, device_us = 0;  ///< as in StepResult
  int device_graphs = 0;
  int rows() const { return prompt_rows + decode_rows; }
  double seconds() const { return std::chrono::duration<double>(end - start).count(); }
};

}  // namespace weft
