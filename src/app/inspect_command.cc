// weft inspect attention: what the heads of a model see of one prompt.
#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "app/attention_report.h"
#include "app/cli.h"
#include "app/image_plan.h"
#include "app/local_engine.h"
#include "app/prefill_plan.h"
#include "models/prefill.h"
#include "runtime/runner.h"
#include "text/read_file.h"
#include "text/tokenizer.h"

namespace weft {
namespace {

constexpr size_t kMaxPromptBytes = size_t{64} << 20;

/// Token ids of a file: a JSON array of them, or text.
Result<std::vector<int32_t>> read_prompt(const std::string& path, const EnginePlan& plan) {
  const std::string text = TRY(text::read_file(path, kMaxPromptBytes));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::vector<int32_t> ids;
  if (json.is_array()) {
    for (const auto& id : json) {
      if (!id.is_number_integer() || id < 0 || id >= plan.spec.vocab) {
        return invalid_argument(path + ": " + id.dump() + " is no token id; allowed: 0 to " +
                                std::to_string(plan.spec.vocab - 1));
      }
      ids.push_back(id.get<int32_t>());
    }
  } else {
    ids = TRY(TRY(Tokenizer::load(plan.directory)).encode(text, true));
  }
  const auto length = static_cast<int64_t>(ids.size());
  if (length < 1 || length > plan.memory.max_model_len) {
    return invalid_argument(path + " has " + std::to_string(length) + " tokens; allowed: 1 to " +
                            std::to_string(plan.memory.max_model_len));
  }
  return ids;
}

/// Runs one prompt without a scheduler and keeps what its heads saw.
class Inspection {
 public:
  Inspection(const EnginePlan& plan, std::vector<int32_t> prompt)
      : plan_(plan), limits_(plan.memory.limits), request_(std::make_shared<Request>()) {
    request_->id = SeqId{0};
    request_->prompt = std::move(prompt);
    for (int64_t i = 0; i < (length() + plan.load.block_size - 1) / plan.load.block_size; ++i) {
      blocks_.push_back(BlockId{static_cast<int32_t>(i)});
    }
    if (plan.plan_tokens > 0) limits_.layered_rows = length();
  }

  Result<PlanRecord> run() {
    const OpTable& ops = *plan_.ops;
    ThreadPool pool(plan_.threads);
    Arena scratch(TRY(Buffer::allocate(
        ops.device, weft::scratch_bytes(plan_, limits_.max_rows, limits_.image_tokens))));
    Stream stream(pool, scratch);
    std::optional<Checkpoint> checkpoint;
    if (!plan_.load.dummy_weights) checkpoint = TRY(Checkpoint::open(plan_.directory));
    const auto model =
        TRY(Model::load(plan_.spec, checkpoint ? &*checkpoint : nullptr, plan_.load, stream, ops));
    KvStore kv =
        TRY(KvStore::create(model->cache_specs(), ops, static_cast<int64_t>(blocks_.size()), 0));
    limits_.num_blocks = kv.num_blocks();
    Runner runner = TRY(Runner::create(*model, kv, stream, ops, limits_));
    PackedStep packed = TRY(PackedStep::create(limits_));
    PlanRecord record{.num_blocks = (length() + HeadPlan::kBlock - 1) / HeadPlan::kBlock,
                      .true_mass = true};
    runner.set_record(&record);
    const int64_t window = std::min(plan_.plan_tokens, length());
    for (int64_t first = 0; first < length();) {
      // The window of a router layer by layer, the rest in chunks.
      const int64_t end =
          first < window ? window : std::min(length(), first + limits_.piece_rows());
      step(runner, packed, first, end);
      first = end;
    }
    return record;
  }

 private:
  int64_t length() const { return static_cast<int64_t>(request_->prompt.size()); }

  void step(Runner& runner, PackedStep& packed, int64_t first, int64_t end) {
    StepPlan plan;
    if (first == 0) plan.admitted.push_back(request_);
    Slice slice{.seq = request_->id, .first = first, .blocks = blocks_};
    slice.tokens = std::span<const int32_t>(request_->prompt)
                       .subspan(static_cast<size_t>(first), static_cast<size_t>(end - first));
    slice.decides = first == 0 && plan_.plan_tokens > 0;
    if (slice.decides) {
      slice.layers = {.end = static_cast<int>(plan_.spec.layers.size()), .last = true};
    }
    plan.slices.push_back(slice);
    packed.pack(plan, sequences_);
    StepResult result;
    runner.run(packed, result);
  }

  const EnginePlan& plan_;
  StepLimits limits_;
  std::shared_ptr<Request> request_;
  std::vector<BlockId> blocks_;
  PackedStep::Sequences sequences_;
};

Result<void> inspect(const InspectOptions& options) {
  EngineOptions engine = options.engine;
  engine.device = "cpu";  // plans are read from host memory
  const EnginePlan plan = TRY(plan_engine(engine));
  if (!has_sparse_prefill(plan.spec)) {
    return invalid_argument(plan.name +
                            ": every head sees all keys; give --prefill-attention xattn");
  }
  AttentionReport report{.model = plan.name, .prefill = describe_prefill(plan)};
  std::vector<int32_t> prompt = TRY(read_prompt(options.prompt_file, plan));
  report.tokens = static_cast<int64_t>(prompt.size());
  if (report.tokens < plan.sparse_from) {
    return invalid_argument(
        fmt::format("{} has {} tokens, and prompts of fewer than {} see all keys; add from=0 to "
                    "--prefill-attention xattn",
                    options.prompt_file, report.tokens, plan.sparse_from));
  }
  if (!std::ofstream(options.output, std::ios::binary | std::ios::app)) {
    return unavailable("can't write " + options.output);
  }
  report.record = TRY(Inspection(plan, std::move(prompt)).run());
  std::fputs(attention_text(report).c_str(), stdout);
  std::ofstream file(options.output, std::ios::binary | std::ios::trunc);
  file << attention_page(report);
  file.close();
  if (!file) return unavailable("can't write " + options.output);
  std::printf("%s\n", options.output.c_str());
  return {};
}

}  // namespace

int inspect_command(const InspectOptions& options) {
  const Result<void> done = inspect(options);
  return done.ok() ? kExitOk : report_error(done.error());
}

}  // namespace weft
