#include "app/prefill_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "models/prefill.h"
#include "sched/scheduler.h"

namespace weft {
namespace {

constexpr int64_t kStickyTokens = 2048;

const char* name_of(HeadKind kind) {
  switch (kind) {
    case HeadKind::kFull: return "full";
    case HeadKind::kStreaming: return "streaming";
    case HeadKind::kBlocks: return "xattn";
  }
  return "?";
}

const SparsePrefillSpec* sparse_of(const ModelSpec& spec) {
  for (const LayerSpec& layer : spec.layers) {
    const auto* attention = std::get_if<AttentionSpec>(&layer.mixer);
    if (attention != nullptr && attention->sparse) return &*attention->sparse;
  }
  return nullptr;
}

bool has_one_threshold(const ModelSpec& spec) {
  const std::vector<float>& first = sparse_of(spec)->thresholds;
  return first.size() == 1 &&
         std::all_of(spec.layers.begin(), spec.layers.end(), [&](const LayerSpec& layer) {
           const auto* attention = std::get_if<AttentionSpec>(&layer.mixer);
           return attention == nullptr || !attention->sparse ||
                  attention->sparse->thresholds == first;
         });
}

}  // namespace

Result<int64_t> parse_prefill_policy(const std::string& flag, std::string_view text) {
  constexpr std::string_view kTokens = "sticky:tokens=";
  if (text == "exact") return kWholePrompt;
  if (text == "sticky") return kStickyTokens;
  if (text.starts_with(kTokens)) {
    const int64_t tokens = TRY(parse_size(flag, std::string(text.substr(kTokens.size()))));
    if (tokens > 0 && tokens % HeadPlan::kBlock == 0) return tokens;
  }
  return invalid_argument(
      fmt::format("{}: '{}' is not one of exact, sticky, sticky:tokens=N with a multiple of {}",
                  flag, text, HeadPlan::kBlock));
}

Result<void> plan_prefill(const EngineOptions& options, const Checkpoint* weights,
                          EnginePlan& plan) {
  const PrefillOptions prefill =
      TRY(parse_prefill("--prefill-attention", options.prefill_attention));
  const int64_t tokens = TRY(parse_prefill_policy("--prefill-policy", options.prefill_policy));
  TRY(apply_prefill(prefill, plan.spec));
  if (!has_sparse_prefill(plan.spec)) return {};
  if (weights != nullptr) TRY(check_prefill_router(plan.spec, *weights));
  if (options.reuse_generated) {
    return invalid_argument(
        "[sparse-reuse] --prefix-cache reuse-generated: generated tokens see all keys and those of "
        "prompts only what the heads of " +
        plan.spec.architecture + " let them; use exact, or --prefill-attention dense");
  }
  plan.chunk = HeadPlan::kBlock;
  if (prefill.kind == PrefillOptions::Kind::kXattn) plan.sparse_from = prefill.from;
  if (plan.sparse_from > 0) {
    log_info(
        fmt::format("--prefill-attention: prompts of fewer than {} tokens are dense, where an "
                    "estimate costs about what it saves (from=0 estimates for all)",
                    plan.sparse_from));
  }
  plan.plan_tokens = has_prefill_router(plan.spec) ? tokens : 0;
  return {};
}

std::string describe_prefill(const EnginePlan& plan) {
  const SparsePrefillSpec* sparse = sparse_of(plan.spec);
  if (sparse == nullptr) return "dense";
  const std::string estimate = fmt::format(
      "stride {}, threshold {}", sparse->stride,
      has_one_threshold(plan.spec) ? fmt::format("{:g}", sparse->thresholds[0]) : "by head");
  if (!sparse->routed) {
    return fmt::format("{} ({})", sparse->heads.empty() ? "xattn" : "heads of a file, xattn",
                       estimate);
  }
  const bool lists = sparse->retrieval == HeadKind::kBlocks || sparse->sparse == HeadKind::kBlocks;
  const bool streams = sparse->sparse == HeadKind::kStreaming;
  std::string out = fmt::format("heads by a router: {} or {}", name_of(sparse->retrieval),
                                name_of(sparse->sparse));
  if (lists) out += fmt::format(" (xattn: {})", estimate);
  if (streams) {
    out += fmt::format(" (streaming: {} + {} blocks of {})", sparse->sink_blocks,
                       sparse->window_blocks, HeadPlan::kBlock);
  }
  return out + (plan.plan_tokens == kWholePrompt
                    ? std::string(", decided by the whole prompt")
                    : fmt::format(", decided by the first {} tokens", plan.plan_tokens));
}

}  // namespace weft
