#include "nn/mixer.h"

#include "nn/attention_mixer.h"
#include "nn/gdn_mixer.h"

namespace weft {

std::unique_ptr<Mixer> make_mixer(const MixerSpec& spec, const MixerOptions& options) {
  if (const auto* gdn = std::get_if<GdnSpec>(&spec)) {
    return std::make_unique<GdnMixer>(*gdn, options);
  }
  return std::make_unique<AttentionMixer>(std::get<AttentionSpec>(spec), options);
}

}  // namespace weft
