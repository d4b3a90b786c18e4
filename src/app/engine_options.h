#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "sched/speculation.h"

namespace weft {

/// What the user asked of the engine; the same for run, bench, eval and serve. Names are vLLM's.
struct EngineOptions {
  std::string model;                  ///< a directory or ORG/NAME[@revision]
  std::string dtype = "auto";         ///< auto | bfloat16 | float32
  std::string quantization = "none";  ///< none | int8 | int4 | fp8
  std::string state_dtype = "auto";   ///< auto | float32 | bfloat16: of recurrent states
  /// auto | bfloat16 | fp8 | fp8_block | int8 | int8_dynamic | int4
  std::string kv_cache_dtype = "auto";
  std::string kv_scales;                 ///< a file of `weft calibrate`, or empty
  std::string load_format = "auto";      ///< auto | safetensors | dummy
  std::string max_model_len = "auto";    ///< tokens, "32k", or auto: the largest that fits
  std::string kv_cache_memory = "auto";  ///< bytes, "2G", or auto
  double swap_space = 0;                 ///< GiB of the host
  int max_num_seqs = 64;
  int max_num_batched_tokens = 0;  ///< 0: batched_tokens() chooses
  bool prefix_caching = true;
  bool reuse_generated = false;            ///< --prefix-cache=reuse-generated
  std::string prefill_attention = "auto";  ///< auto | dense | xattn[:...], see parse_prefill()
  std::string prefill_policy = "exact";    ///< exact | sticky[:tokens=N]
  int max_image_tokens = 4096;             ///< of one image; larger ones are reduced; 0: no images
  int64_t min_image_pixels = 0;            ///< of one image; 0: as the model's files say
  int64_t max_image_pixels = 0;            ///< likewise
  int max_images = 16;                     ///< of one request
  int max_videos = 4;                      ///< of one request; 0: no videos
  int max_video_frames = 768;              ///< of one video
  int max_video_tokens = 16384;            ///< of one video; larger frames are reduced
  int threads = 0;                         ///< 0: all usable CPUs
  std::string cpu_isa = "auto";            ///< auto | avx2 | avx512 | avx512_bf16 | amx
  std::string device = "auto";             ///< auto | cpu | cuda
  double gpu_memory_utilization = 0.9;     ///< of the GPU's memory
  bool enforce_eager = false;              ///< no CUDA graphs
  uint64_t seed = 0;                       ///< of dummy weights and of requests without a seed
  SpeculationConfig speculation;           ///< --speculative-config
  bool load_mtp = false;                   ///< the MTP module also where nobody drafts with it
};

/// The token budget of a step: what was asked, or 2048 on a CPU and 8448 on a GPU, which has the
/// memory and needs many rows for its full speed. 8448 = 64 x 132: with 66 tiles of 128 rows (or 33
/// of 256) the tiles of products 512 columns wide and wider fill all rounds of 132 multiprocessors.
int batched_tokens(const EngineOptions& options, bool gpu);

/// The tokens of a step of one sequence alone, where heads see few keys and nothing was asked: its
/// steps then take no longer than those of dense attention behind a long prompt, and twice to four
/// times the rows save time. The memory plan may not have room for so many.
inline constexpr int kLoneBatchedTokens = 32768;

/// "4096", "32k" (1024), "1M"; or with `bytes` also "2G". Error names `flag`.
Result<int64_t> parse_size(const std::string& flag, const std::string& text);

}  // namespace weft
