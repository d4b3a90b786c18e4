#include "models/spec.h"

#include <algorithm>

namespace weft {

std::optional<MtpSpec> mtp_of(const ModelSpec& spec, int64_t num_layers) {
  if (num_layers == 0 || !spec.mtp_layer) return std::nullopt;
  const int64_t layers = std::min(num_layers, spec.most_mtp_layers);
  return MtpSpec{.num_layers = static_cast<int>(layers), .layer = *spec.mtp_layer};
}

void leave_out_mtp(ModelSpec& spec) {
  if (!spec.mtp_layer) return;
  spec.mtp_left_out = spec.mtp;
  spec.mtp_layer.reset();
  spec.mtp.reset();
  spec.names.ignored_prefixes.push_back(spec.names.mtp.all);
}

void adapt_to_checkpoint(ModelSpec& spec, const Checkpoint& checkpoint) {
  if (!checkpoint.find(spec.names.head)) {
    spec.tied_head = true;
  } else if (spec.tied_head) {
    spec.names.ignored_prefixes.push_back(spec.names.head);  // a copy of the embedding
  }
  // Qwen2.5-VL was saved under two sets of names.
  if (spec.vision && spec.names.model == "model." &&
      checkpoint.find("model.language_model.embed_tokens.weight")) {
    spec.names.model = "model.language_model.";
    spec.names.vision = "model.visual.";
  }
  if (!spec.mtp_layer) return;
  // transformers drops the module when it saves a checkpoint, and leaves the config as it was.
  int64_t layers = 0;
  if (checkpoint.find(spec.names.mtp.fc)) {
    while (layers < kMaxMtpLayers &&
           checkpoint.find(spec.names.mtp.layers + std::to_string(layers) +
                           ".input_layernorm.weight")) {
      ++layers;
    }
  }
  spec.mtp = mtp_of(spec, layers);
}

}  // namespace weft
