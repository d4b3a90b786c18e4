#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/validate.h"
#include "app/engine_options.h"

namespace weft {

inline constexpr int kExitOk = 0;
inline constexpr int kExitRuntime = 1;
inline constexpr int kExitUsage = 2;

struct RunOptions {
  EngineOptions engine;
  SamplingRequest sampling;
  std::string prompt;  ///< -p; empty: chat
  bool has_prompt = false;
  std::string system;
  std::vector<std::string> images;
  std::vector<std::string> video;  ///< frames of one video, or an animation
  double video_fps = 0;            ///< 0: the usual
  bool enable_thinking = false;
  bool verbose = false;
};

struct BenchOptions {
  EngineOptions engine;
  bool throughput = false;  ///< else latency
  std::vector<int64_t> prompt_lens = {512};
  std::vector<int64_t> gen_lens = {128};
  std::vector<int64_t> depths = {0};
  int64_t repetitions = 5;
  int64_t num_prompts = 64;
  int64_t input_len = 512;
  int64_t output_len = 128;
  int64_t max_concurrency = 0;  ///< 0: max_num_seqs
  bool json = false;
};

struct BenchKernelsOptions {
  std::string only;             ///< part of a workshop's name
  std::string device = "auto";  ///< auto, cpu, cuda
  std::string directory;        ///< of the workshops; empty: beside this binary
};

struct EvalOptions {
  EngineOptions engine;
  std::string directory;
  std::vector<std::string> tasks;
  int64_t limit = 0;  ///< items a task; 0: all
  bool golden_only = false;
  bool kl = false;  ///< only the divergence from a bf16 cache
};

struct CalibrateOptions {
  EngineOptions engine;
  std::string data;  ///< file of texts
  std::string out = "kv-scales.safetensors";
  int64_t limit = 256;  ///< texts
};

struct InfoOptions {
  EngineOptions engine;
  bool json = false;
};

struct InspectOptions {
  EngineOptions engine;
  std::string prompt_file;
  std::string output = "attention.html";
};

struct PullOptions {
  std::string model;
};

int run_command(const RunOptions& options);
int bench_command(const BenchOptions& options);
int bench_kernels_command(const BenchKernelsOptions& options);
int eval_command(const EvalOptions& options);
int calibrate_command(const CalibrateOptions& options);
int info_command(const InfoOptions& options);
int inspect_command(const InspectOptions& options);
int pull_command(const PullOptions& options);
int doctor_command(bool refusals);

/// Prints "weft: error: MESSAGE" on standard error and returns the exit code of the error's kind.
int report_error(const Error& error);

/// The candidate nearest to `word` by edit distance, or "" when none is near.
std::string nearest_name(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace weft
