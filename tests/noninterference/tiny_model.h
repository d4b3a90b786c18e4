#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/gpu.h"
#include "models/model.h"
#include "models/prefill.h"

namespace weft {

/// One build of one tiny checkpoint: everything that the promise of docs/architecture.md holds
/// fixed.
struct Variant {
  std::string family;  ///< a folder below oracle_dir()/models
  const OpTable* ops = nullptr;
  WeightFormat format = WeightFormat::kBf16;
  KvFormat kv_format = KvFormat::kBf16;
  int block_size = 64;
  PrefillOptions prefill;   ///< what heads of prompts see
  uint64_t heads_seed = 0;  ///< of a table as xattn:heads=FILE has it, of random kinds; 0: none
};

std::string describe(const Variant& variant);

/// Folders whose architectures the noninterference test covers, as far as they are there: two of
/// the three with routers are not packed.
std::vector<std::string> tiny_families();
/// A family without a folder: two layers of Qwen3-8B's widths with dummy weights, for a GPU.
inline constexpr std::string_view kWideFamily = "wide";
/// Those with a multi-token prediction module.
inline constexpr std::string_view kMtpFamily = "qwen3_5_mtp", kErnieMtpFamily = "ernie4_5_mtp";

/// The CUDA ops, or the reference ops and the CPU ops of every instruction set that this machine
/// has.
std::vector<const OpTable*> all_op_tables(bool cuda);

/// Threads that a tiny model plans memory for.
inline constexpr int kTinyThreads = 2;

/// Image tokens of one step: no image of the test is larger.
inline constexpr int kTinyImageTokens = 48;

/// Positions that a tiny model's rope table covers; no request of the test is longer.
inline constexpr int64_t kTinyModelLen = 768;

Result<std::unique_ptr<Model>> load_tiny(const Variant& variant);

/// A thread pool or a GPU's stream, with scratch memory.
class TinyStream {
 public:
  TinyStream(DeviceKind device, int64_t scratch_bytes, int num_threads);
  Stream& get() { return *stream_; }

 private:
  ThreadPool pool_;
  Arena scratch_;
  std::optional<GpuStream> gpu_;
  std::optional<Stream> stream_;
};

}  // namespace weft
