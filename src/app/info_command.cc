#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/cli.h"
#include "app/local_engine.h"
#include "app/prefill_plan.h"
#include "app/progress.h"

namespace weft {
namespace {

struct LayerCounts {
  int attention = 0, recurrent = 0, experts = 0;
};

LayerCounts count_layers(const ModelSpec& spec) {
  LayerCounts counts;
  for (const LayerSpec& layer : spec.layers) {
    ++(std::holds_alternative<AttentionSpec>(layer.mixer) ? counts.attention : counts.recurrent);
    if (std::holds_alternative<MoeSpec>(layer.mlp)) ++counts.experts;
  }
  return counts;
}

/// Layers of the MTP module of the checkpoint.
int mtp_layers(const ModelSpec& spec) {
  const std::optional<MtpSpec>& mtp = spec.mtp ? spec.mtp : spec.mtp_left_out;
  return mtp ? mtp->num_layers : 0;
}

double cache_bytes_per_token(const EnginePlan& plan) {
  return static_cast<double>(plan.cache.per_block) / plan.load.block_size;
}

nlohmann::ordered_json kernels_json(const EnginePlan& plan) {
  auto out = nlohmann::ordered_json::array();
  for (const KernelChoice& choice : plan.kernels) {
    auto others = nlohmann::ordered_json::object();
    for (const KernelChoice::Other& other : choice.others) others[other.name] = other.why_not;
    out.push_back({{"op", choice.op}, {"chosen", choice.name}, {"why_not", others}});
  }
  return out;
}

/// What runs here of it; null where nothing does.
nlohmann::ordered_json fits_json(const EnginePlan& plan) {
  if (!plan.not_here.empty()) return nullptr;
  return {{"max_model_len", plan.memory.max_model_len},
          {"kv_tokens", plan.memory.num_blocks * plan.load.block_size},
          {"state_slots", plan.memory.num_slots},
          {"available_bytes", plan.memory.available_bytes},
          {"total_bytes", plan.memory.total_bytes()}};
}

nlohmann::ordered_json info_json(const EnginePlan& plan) {
  const LayerCounts layers = count_layers(plan.spec);
  return {{"model", plan.name},
          {"directory", plan.directory},
          {"architecture", plan.spec.architecture},
          {"layers", plan.spec.layers.size()},
          {"attention_layers", layers.attention},
          {"recurrent_layers", layers.recurrent},
          {"moe_layers", layers.experts},
          {"mtp_layers", mtp_layers(plan.spec)},
          {"vision", plan.spec.vision.has_value()},
          {"hidden_size", plan.spec.hidden},
          {"vocab_size", plan.spec.vocab},
          {"context_length", plan.spec.max_positions},
          {"parameters", plan.parameters},
          {"device", plan.device_name},
          {"kernels", kernels_json(plan)},
          {"prefill_attention", describe_prefill(plan)},
          {"weight_format", weight_format_name(plan.load.format)},
          {"weight_bytes", plan.footprint.weight_bytes},
          {"cache_format", kv_format_name(plan.load.kv_format)},
          {"cache_bytes_per_token", cache_bytes_per_token(plan)},
          {"cache_bytes_per_sequence", plan.cache.per_slot},
          {"fits", fits_json(plan)},
          {"why_not", plan.not_here}};
}

void print_info(const EnginePlan& plan) {
  const ModelSpec& spec = plan.spec;
  const LayerCounts layers = count_layers(spec);
  std::printf("model         %s\n", plan.name.c_str());
  std::printf("directory     %s\n", plan.directory.c_str());
  std::printf("architecture  %s\n", spec.architecture.c_str());
  std::printf(
      "layers        %zu: %d attention, %d recurrent%s\n", spec.layers.size(), layers.attention,
      layers.recurrent,
      layers.experts > 0 ? (", " + std::to_string(layers.experts) + " with experts").c_str() : "");
  if (mtp_layers(spec) > 0) {
    std::printf("mtp           %d layer(s)%s\n", mtp_layers(spec),
                spec.mtp ? "" : ", loaded where --speculative-config asks for drafts of it");
  }
  if (spec.vision) std::printf("vision        %d blocks\n", spec.vision->depth);
  std::printf("hidden        %lld\n", static_cast<long long>(spec.hidden));
  std::printf("vocabulary    %lld\n", static_cast<long long>(spec.vocab));
  std::printf("context       %lld tokens\n", static_cast<long long>(spec.max_positions));
  std::printf("parameters    %.2f M\n", static_cast<double>(plan.parameters) / 1e6);
  std::printf("weights       %s as %s\n",
              bytes_text(static_cast<double>(plan.footprint.weight_bytes)).c_str(),
              std::string(weight_format_name(plan.load.format)).c_str());
  std::printf("prompts       %s\n", describe_prefill(plan).c_str());
  std::printf("cache         %s a token as %s, %s a sequence\n",
              bytes_text(cache_bytes_per_token(plan)).c_str(),
              std::string(kv_format_name(plan.load.kv_format)).c_str(),
              bytes_text(static_cast<double>(plan.cache.per_slot)).c_str());
  std::printf("device        %s\n", plan.device_name.c_str());
  if (!plan.not_on_gpu.empty()) std::printf("not on a GPU  %s\n", plan.not_on_gpu.c_str());
  std::printf("kernels\n%s", choices_table(plan.kernels).c_str());
  if (!plan.not_here.empty()) {
    std::printf("fits here     no: %s\n", plan.not_here.c_str());
    return;
  }
  const int64_t tokens = plan.memory.num_blocks * plan.load.block_size;
  std::printf("fits here     %lld tokens a sequence, %lld in all\n%s",
              static_cast<long long>(plan.memory.max_model_len), static_cast<long long>(tokens),
              plan.memory.table().c_str());
}

}  // namespace

int info_command(const InfoOptions& options) {
  const Result<EnginePlan> plan = plan_engine(options.engine, ModelParts::kConfig);
  if (!plan) return report_error(plan.error());
  if (options.json) {
    std::printf("%s\n", info_json(*plan).dump(2).c_str());
  } else {
    print_info(*plan);
  }
  return kExitOk;
}

}  // namespace weft
