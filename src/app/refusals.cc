#include "app/refusals.h"

namespace weft {
namespace {

constexpr Refusal kRefusals[] = {
    {"cuda-models", [](const EngineOptions& o) { return o.device == "cuda"; },
     "--device cuda: models run on the CPU only in this version; use --device cpu or auto"},
    {"float32-quantized",
     [](const EngineOptions& o) { return o.dtype == "float32" && o.quantization != "none"; },
     "--dtype float32 keeps every weight exact and --quantization rounds them: give one of the "
     "two"},
    {"dummy-without-model",
     [](const EngineOptions& o) { return o.load_format == "dummy" && o.model.empty(); },
     "--load-format dummy needs a MODEL whose config.json gives the shapes"},
    {"reuse-without-cache",
     [](const EngineOptions& o) { return o.reuse_generated && !o.prefix_caching; },
     "--prefix-cache reuse-generated needs the prefix cache; drop --no-enable-prefix-caching"},
};

}  // namespace

std::span<const Refusal> refusals() {
  return kRefusals;
}

Result<void> check_refusals(const EngineOptions& options) {
  for (const Refusal& refusal : kRefusals) {
    if (refusal.applies(options)) {
      return invalid_argument("[" + std::string(refusal.id) + "] " + refusal.reason);
    }
  }
  return {};
}

}  // namespace weft
