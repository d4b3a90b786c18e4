#pragma once

// What heads see of long prompts, as the user and config.json say it (docs/kernels/elastic.md).

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/spec.h"

namespace weft {

/// --prefill-attention: how prompts are attended to. Generated tokens always see everything.
struct PrefillOptions {
  /// Below this an estimate costs about what the blocks that it leaves out would have
  /// (docs/kernels/elastic.md, "When").
  static constexpr int64_t kFrom = 10240;
  enum class Kind : uint8_t {
    kModel,  ///< as the checkpoint was trained
    kDense,  ///< every head sees all keys
    kXattn,  ///< every head sees the blocks that XAttention estimates
  };
  Kind kind = Kind::kModel;
  /// Mass that the blocks of a row reach; 1: all blocks. Null: of kXattn 0.9, of kModel the
  /// model's.
  std::optional<float> threshold;
  std::optional<int> stride;  ///< 4, 8 or 16; null: 16, or the model's
  int64_t from = kFrom;       ///< of kXattn: prompts of fewer tokens are dense
  /// A JSON file {"layers": [{"thresholds": [one, or one a head]}, one a layer]}; empty:
  /// `threshold` everywhere.
  std::string thresholds_file;
  /// Of kXattn: a JSON file {"sink_size", "local_window_size": tokens, "layers": [{"heads": [one of
  /// "full", "streaming", "xattn" a kv head]}, one a layer]}; empty: all heads are "xattn".
  std::string heads_file;
  bool operator==(const PrefillOptions&) const = default;
};

/// "auto", "auto:threshold=0.8,stride=8", "auto:thresholds=FILE", "dense", "xattn",
/// "xattn:threshold=0.9,stride=16", "xattn:thresholds=FILE", "xattn:heads=FILE". Errors name `flag`
/// and what is allowed.
Result<PrefillOptions> parse_prefill(const std::string& flag, std::string_view text);

/// Writes what `options` mean into the layers of `spec`. Refuses architectures that have no such
/// prefill, and tables of another shape than the model's.
Result<> apply_prefill(const PrefillOptions& options, ModelSpec& spec);

/// Some layer of the model has heads that see less than all keys.
bool has_sparse_prefill(const ModelSpec& spec);
/// A router of the checkpoint's decides what heads see.
bool has_prefill_router(const ModelSpec& spec);

/// Refuses by name what only the weights tell: a router of another kind under the same
/// architecture.
Result<> check_prefill_router(const ModelSpec& spec, const Checkpoint& checkpoint);

/// The fields of Elastic-Attention in config.json.
Result<SparsePrefillSpec> parse_elastic(const ConfigJson& text, const AttentionSpec& attention);

}  // namespace weft
