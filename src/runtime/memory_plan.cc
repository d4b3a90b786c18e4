#include "runtime/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/align.h"
#include "runtime/executor_gpu.h"
#include "runtime/executor_local.h"

namespace weft {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
/// The program itself, tokenizer, queues, allocator slack.
constexpr int64_t kProgramBytes = 96 * kMiB;
constexpr int64_t kGpuProgramBytes = 768 * kMiB;  // kernels, graphs, the driver's own
/// Caches chosen by auto grow no further than this unless one sequence needs it: touching them
/// takes time at every start.
constexpr int64_t kAutoCacheBytes = 4096 * kMiB;
/// One that runs, one to go on in after a checkpoint, one checkpoint.
constexpr int64_t kLeastSlots = 3;
constexpr int64_t kCheckpointSlots = 64;
/// Drafts of a step on the CPU: where that many rows are computed anyway, more cost what they win.
constexpr int64_t kMaxDraftRows = 32;
/// On a GPU, where a row more costs little.
constexpr int64_t kMaxDraftRowsGpu = 256;
constexpr int64_t kSpareStateBytes = 1024 * kMiB;  ///< of the recurrent states behind drafts

std::string mib(int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / kMiB);
}

class Planner {
 public:
  Planner(const ModelMemory& model, const MemoryOptions& options, int64_t available)
      : model_(model), options_(options), available_(available) {
    limit_ = static_cast<int64_t>(static_cast<double>(available) * options.memory_fraction);
  }

  Result<MemoryPlan> run() {
    TRY(check_options());
    int64_t length = options_.max_model_len;
    if (length == 0) {
      length = largest_length();
      if (length == 0) return too_small("the model", kChunk);
    } else if (!fits(length)) {
      return too_small(fmt::format("--max-model-len {}", length), length);
    }
    return plan(length);
  }

 private:
  Result<void> check_options() const {
    if (options_.max_num_seqs < 1) {
      return invalid_argument(
          fmt::format("--max-num-seqs is {}: it must be at least 1", options_.max_num_seqs));
    }
    // What the scheduler needs so that a prompt advances while all others decode.
    const int64_t least_rows = options_.max_num_seqs + model_.chunk - 1;
    if (options_.max_num_batched_tokens < least_rows) {
      return invalid_argument(fmt::format(
          "--max-num-batched-tokens is {}: it must be at least {} (--max-num-seqs + {})",
          options_.max_num_batched_tokens, least_rows, model_.chunk - 1));
    }
    if (options_.max_model_len < 0 || options_.max_model_len > model_.max_positions) {
      return invalid_argument(
          fmt::format("--max-model-len is {}: this model takes 1 to {} tokens, or auto",
                      options_.max_model_len, model_.max_positions));
    }
    if (options_.kv_cache_bytes < 0) {
      return invalid_argument("--kv-cache-memory must be a positive number of bytes, or auto");
    }
    return {};
  }

  bool on_gpu() const { return options_.device == DeviceKind::kCuda; }
  bool takes_all() const { return options_.kv_cache_bytes > 0 || on_gpu(); }
  int64_t blocks_of(int64_t length) const {
    return model_.paged() ? divide_up(length, model_.block_size) : 0;
  }
  int64_t least_slots() const { return model_.recurrent() ? kLeastSlots : 0; }
  int64_t cache_of(int64_t blocks, int64_t slots) const {
    return blocks * model_.cache.per_block + slots * model_.cache.per_slot;
  }
  int64_t least_cache(int64_t length) const { return cache_of(blocks_of(length), least_slots()); }
  int64_t useful_slots() const {
    return model_.recurrent() ? 2 * options_.max_num_seqs + kCheckpointSlots : 0;
  }

  /// Blocks are 0 here: the step buffers are bounded by the length alone.
  StepLimits limits(int64_t length) const {
    StepLimits out;
    out.max_rows = options_.max_num_batched_tokens;
    out.max_seqs = options_.max_num_seqs;
    out.max_model_len = length;
    out.vocab_size = model_.vocab_size;
    out.block_size = model_.block_size;
    out.num_blocks = blocks_of(length) * options_.max_num_seqs;
    out.paged = model_.paged();
    out.recurrent = model_.recurrent();
    out.multimodal = model_.multimodal;
    out.image_tokens = model_.image_tokens;
    out.image_pages = model_.image_pages;
    out.sparse_from = model_.sparse_from;
    const int64_t window = std::min(model_.plan_tokens, length);
    if (window > out.max_rows - out.max_seqs) out.layered_rows = window;
    out.max_draft_rows = draft_rows();
    out.kept_rows = model_.recurrent() ? kept_rows(options_.speculation, options_.device) : 0;
    return out;
  }

  /// Drafts of one step: everybody's, up to where a step has no more to win by them. On the CPU a
  /// recurrent state for each sequence that has some is kept meanwhile.
  int64_t draft_rows() const {
    if (!options_.speculation.on()) return 0;
    const int64_t most = options_.speculation.num_speculative_tokens;
    int64_t rows =
        std::min(most * options_.max_num_seqs, on_gpu() ? kMaxDraftRowsGpu : kMaxDraftRows);
    if (model_.recurrent() && !on_gpu()) {
      rows = std::min(rows, kSpareStateBytes / model_.cache.per_slot);
    }
    return std::max(rows, most);
  }

  /// Everything but weights and caches, into `out`.
  void add_fixed(int64_t length, MemoryPlan& out) const {
    out.weight_bytes = model_.weight_bytes;
    // The arena of the step and the scratch memory of one op: each of this size at most.
    out.arena_bytes = 2 * model_.arena_bytes(options_.max_num_batched_tokens + draft_rows());
    if (model_.recurrent() && !on_gpu()) {
      const int64_t drafting = std::min<int64_t>(options_.max_num_seqs, draft_rows());
      out.slot_bytes =
          cache_of(0, drafting) + (drafting + draft_rows()) * model_.cache.per_kept_row;
    }
    out.image_bytes = model_.image_bytes;
    add_swap(out);
    out.logit_bytes = on_gpu() ? GpuExecutor::device_bytes(limits(length), model_.hidden_size,
                                                           options_.speculation)
                               : LocalExecutor::bytes(limits(length), model_.hidden_size,
                                                      options_.num_threads, options_.speculation);
    out.rest_bytes =
        (on_gpu() ? kGpuProgramBytes : kProgramBytes) + length * model_.bytes_per_position;
  }
  void add_swap(MemoryPlan& out) const {
    if (model_.recurrent()) {
      const int64_t share = model_.paged() ? options_.swap_bytes / 2 : options_.swap_bytes;
      out.num_swap_slots = std::min(share / model_.cache.per_slot, 2 * options_.max_num_seqs);
    }
    const int64_t left = options_.swap_bytes - cache_of(0, out.num_swap_slots);
    if (model_.paged()) out.num_swap_blocks = left / model_.cache.per_block;
    (on_gpu() ? out.host_swap_bytes : out.swap_bytes) =
        cache_of(out.num_swap_blocks, out.num_swap_slots);
  }
  int64_t fixed_bytes(int64_t length) const {
    MemoryPlan fixed;
    add_fixed(length, fixed);
    return fixed.total_bytes();
  }

  int64_t cache_limit(int64_t length) const {
    const int64_t left = limit_ - fixed_bytes(length);
    return options_.kv_cache_bytes > 0 ? std::min(left, options_.kv_cache_bytes) : left;
  }
  bool fits(int64_t length) const { return least_cache(length) <= cache_limit(length); }

  /// The largest multiple of kChunk that fits (or the model's own limit); 0 if none does.
  int64_t largest_length() const {
    if (fits(model_.max_positions)) return model_.max_positions;
    int64_t low = 0, high = model_.max_positions / kChunk + 1;  // low fits, high does not
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (middle * kChunk <= model_.max_positions && fits(middle * kChunk) ? low : high) = middle;
    }
    return low * kChunk;
  }

  Error too_small(const std::string& what, int64_t length) const {
    const int64_t fixed = fixed_bytes(length), cache = least_cache(length);
    const int64_t largest = largest_length();
    const std::string advice =
        largest > 0 ? fmt::format("the largest --max-model-len that fits is {}", largest)
                    : "free memory, use --quantization, or lower --max-num-batched-tokens";
    if (options_.kv_cache_bytes > 0 && options_.kv_cache_bytes < cache) {
      return exhausted(
          fmt::format("{} needs {} of cache, but --kv-cache-memory is {}: {}", what, mib(cache),
                      mib(options_.kv_cache_bytes),
                      largest > 0 ? advice : "give --kv-cache-memory " + mib(cache) + " at least"));
    }
    return exhausted(
        fmt::format("{} needs {} ({} of weights, {} of cache, {} besides), but only "
                    "{} of memory can be used: {}",
                    what, mib(fixed + cache), mib(model_.weight_bytes), mib(cache),
                    mib(fixed - model_.weight_bytes), mib(limit_), advice));
  }

  MemoryPlan plan(int64_t length) const {
    MemoryPlan out;
    add_fixed(length, out);
    out.max_model_len = length;
    out.available_bytes = available_;
    out.limit_bytes = limit_;
    out.num_blocks = blocks_of(length);
    out.num_slots = least_slots();

    const int64_t useful_blocks = out.num_blocks * options_.max_num_seqs;
    int64_t budget = cache_limit(length);
    if (!takes_all()) {
      const int64_t useful = cache_of(useful_blocks, useful_slots());
      budget = std::min(budget, std::max(least_cache(length), std::min(useful, kAutoCacheBytes)));
    }
    int64_t left = budget - least_cache(length);
    if (model_.recurrent()) {
      const int64_t share = model_.paged() ? left / 2 : left;
      const int64_t more = std::min(share / model_.cache.per_slot, useful_slots() - out.num_slots);
      out.num_slots += std::max<int64_t>(0, more);
      left = budget - cache_of(out.num_blocks, out.num_slots);
    }
    if (model_.paged()) {
      // Blocks that the user asked for by size are all given, and those of a GPU, whose memory
      // nobody else wants: they serve the prefix cache.
      int64_t more = left / model_.cache.per_block;
      if (!takes_all()) more = std::min(more, useful_blocks - out.num_blocks);
      out.num_blocks += more;
    }
    out.block_bytes = cache_of(out.num_blocks, 0);
    out.slot_bytes += cache_of(0, out.num_slots);
    out.limits = limits(length);
    out.limits.num_blocks = out.num_blocks;
    out.limits.num_slots = out.num_slots;
    return out;
  }

  const ModelMemory& model_;
  const MemoryOptions& options_;
  int64_t available_, limit_;
};

}  // namespace

int64_t kept_rows(const SpeculationConfig& speculation, DeviceKind device) {
  return device == DeviceKind::kCuda && speculation.on() ? speculation.num_speculative_tokens + 1
                                                         : 0;
}

Result<MemoryPlan> plan_memory(const ModelMemory& model, const MemoryOptions& options,
                               int64_t available_bytes) {
  CHECK(model.paged() || model.recurrent());
  return Planner(model, options, available_bytes).run();
}

std::string MemoryPlan::table() const {
  std::string out;
  const auto line = [&](const char* name, int64_t bytes, const std::string& note) {
    out += fmt::format("  {:<14}{:>12}  {}\n", name, mib(bytes), note);
  };
  line("weights", weight_bytes, "");
  if (num_blocks > 0) {
    const int64_t tokens = num_blocks * limits.block_size;
    line("KV blocks", block_bytes,
         fmt::format("{} blocks of {} = {} tokens, {:.1f} sequences of {}", num_blocks,
                     limits.block_size, tokens,
                     static_cast<double>(tokens) / static_cast<double>(max_model_len),
                     max_model_len));
  }
  if (num_slots > 0) line("state slots", slot_bytes, fmt::format("{} slots", num_slots));
  const std::string swapped =
      fmt::format("{} blocks{}", num_swap_blocks,
                  num_swap_slots > 0 ? fmt::format(", {} states", num_swap_slots) : "");
  if (swap_bytes > 0) line("swap space", swap_bytes, swapped);
  line("activations", arena_bytes, fmt::format("steps of {} tokens", limits.max_rows));
  if (image_bytes > 0) {
    line("images", image_bytes, fmt::format("{} image tokens a step", limits.image_tokens));
  }
  line("logits", logit_bytes, fmt::format("{} sequences at once", limits.max_seqs));
  line("rest", rest_bytes, "program, tables");
  line("total", total_bytes(), fmt::format("of {} that can be used", mib(limit_bytes)));
  if (host_swap_bytes > 0) {
    line("swap space", host_swap_bytes, swapped + ", beside that: pinned memory of the host");
  }
  return out;
}

}  // namespace weft
