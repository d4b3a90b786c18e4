#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "base/result.h"
#include "device/stream.h"
#include "kernels/args.h"

namespace weft {

/// YaRN (Peng et al. 2023, arXiv 2309.00071) with the knobs of transformers.
struct YarnScaling {
  double factor = 1;
  int64_t original_positions = 0;
  double beta_fast = 32, beta_slow = 1;
  double attention_factor = 1;  ///< on cos and sin; see yarn_attention_factor
  bool truncate = true;         ///< round the correction range to whole frequencies
};
/// The default of attention_factor: 0.1 ln(factor) + 1, or the quotient of the two mscale forms
/// (each counts only if both are non-zero).
double yarn_attention_factor(double factor, double mscale, double mscale_all_dim);

struct Llama3Scaling {
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_positions = 0;
};
struct LinearScaling {
  double factor = 1;
};
using RopeScaling = std::variant<std::monostate, LinearScaling, YarnScaling, Llama3Scaling>;

/// How mrope gives its frequencies to the axes.
enum class SectionOrder : uint8_t {
  kBlocks,       ///< t.. h.. w.. (Qwen2-VL, Qwen2.5-VL)
  kInterleaved,  ///< t h w t h w ... t (Qwen3-VL, Qwen3.5)
  kAlternating,  ///< h w h w ... then t.. (ERNIE-4.5-VL)
};

struct RopeSpec {
  double theta = 10000;
  int rotary_dim = 0;  ///< R: even, at most head_dim
  RopeStyle style = RopeStyle::kNeox;
  RopeScaling scaling;
  std::array<int, 3> sections{};  ///< frequencies of (t, h, w), summing to R/2; 0s: plain rope
  SectionOrder section_order = SectionOrder::kBlocks;

  bool multimodal() const { return sections != std::array<int, 3>{}; }
};

/// R/2 inverse frequencies in radians a position, rounded to f32 as transformers keeps them.
std::vector<float> rope_inverse_frequencies(const RopeSpec& spec);
/// Factor on cos and sin.
double rope_attention_factor(const RopeSpec& spec);
/// R/2 axes: which of (t, h, w) turns frequency i.
std::vector<uint8_t> rope_axes(const RopeSpec& spec);

/// Owns the one shared 1-D table of a model: cos and sin of positions [0, num_positions).
class Rope {
 public:
  static Result<Rope> create(const RopeSpec& spec, int64_t num_positions);
  /// The same in the memory of a device.
  static Result<Rope> create(const RopeSpec& spec, int64_t num_positions, Stream& stream,
                             DeviceKind device);
  const RopeTable& table() const { return table_; }
  int64_t num_positions() const { return num_positions_; }
  static int64_t bytes(const RopeSpec& spec, int64_t num_positions);

 private:
  Buffer buffer_;
  RopeTable table_;
  int64_t num_positions_ = 0;
};

struct Position {
  int32_t t = 0, h = 0, w = 0;
  bool operator==(const Position&) const = default;
};

/// The one position function (docs/architecture.md, Positions). Prompt tokens have explicit triples
/// (images, video) or none (`prompt` empty: text); all other tokens have t = h = w = index +
/// rope_delta. It must lie in [0, rows of the rope table); callers check that on the host.
inline Position position(std::span<const std::array<int32_t, 3>> prompt, int32_t rope_delta,
                         int64_t index) {
  if (index < static_cast<int64_t>(prompt.size())) {
    const auto& p = prompt[static_cast<size_t>(index)];
    return {p[0], p[1], p[2]};
  }
  const int32_t p = static_cast<int32_t>(index + rope_delta);
  return {p, p, p};
}

}  // namespace weft
