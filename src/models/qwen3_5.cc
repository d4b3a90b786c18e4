#include "models/qwen3_next.h"

namespace weft {
namespace {

Result<ModelSpec> parse_qwen3_5(const ConfigJson& config) {
  return parse_hybrid(config, {});
}

Result<ModelSpec> parse_qwen3_5_moe(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  MoeSpec moe = TRY(parse_qwen_moe(text, /*default_renormalize=*/true));
  moe.rule.renormalize = true;  // whatever norm_topk_prob says
  return parse_hybrid(config, {.moe = moe});
}

/// The checkpoints with a vision tower: the same language model under longer names.
template <Result<ModelSpec> (*parse)(const ConfigJson&)>
Result<ModelSpec> parse_with_vision(const ConfigJson& config) {
  if (!config.is_object("text_config")) {
    return invalid_argument(config.field("text_config") + " must be an object, got " +
                            config.dump("text_config"));
  }
  return put_behind_tower(config, TRY(parse(config)));
}

}  // namespace

const ModelFamily kQwen35{"Qwen3_5ForCausalLM", parse_qwen3_5};
const ModelFamily kQwen35Image{"Qwen3_5ForConditionalGeneration", parse_with_vision<parse_qwen3_5>};
const ModelFamily kQwen35Moe{"Qwen3_5MoeForCausalLM", parse_qwen3_5_moe};
const ModelFamily kQwen35MoeImage{"Qwen3_5MoeForConditionalGeneration",
                                  parse_with_vision<parse_qwen3_5_moe>};

}  // namespace weft
