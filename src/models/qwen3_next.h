#pragma once

#include "models/config.h"

namespace weft {

/// What tells Qwen3-Next and Qwen3.5 apart.
struct HybridTraits {
  bool grouped_projections = false;  ///< see GdnSpec
  std::optional<MoeSpec> moe;        ///< none: dense
};

/// Decoder that alternates gated delta rule and gated attention: the common part of Qwen3-Next and
/// Qwen3.5. Norms are stored as w - 1, a quarter of each head is rotary, an MTP module may follow.
Result<ModelSpec> parse_hybrid(const ConfigJson& config, const HybridTraits& traits);

}  // namespace weft
