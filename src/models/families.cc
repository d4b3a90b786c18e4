#include <algorithm>

#include "models/config.h"

namespace weft {
namespace {

/// Every architecture that weft runs. A new family adds its file and its line here.
constexpr const ModelFamily* kFamilies[] = {
    &kQwen3,      &kQwen2,          &kLlama,      &kPawQwen3,      //
    &kQwen3Moe,   &kQwen3Next,      &kQwen35,     &kQwen35Image,   //
    &kQwen35Moe,  &kQwen35MoeImage, &kErnie45,    &kErnie45First,  //
    &kErnie45Moe, &kQwen25Image,    &kQwen3Image,
};

std::string joined(const std::vector<std::string_view>& names) {
  std::string out;
  for (const std::string_view name : names) out += (out.empty() ? "" : ", ") + std::string(name);
  return out;
}

}  // namespace

std::vector<std::string_view> supported_architectures() {
  std::vector<std::string_view> names;
  for (const ModelFamily* family : kFamilies) names.push_back(family->architecture);
  std::sort(names.begin(), names.end());
  return names;
}

Result<ModelSpec> parse_model(const ConfigJson& config) {
  const std::vector<std::string> names = TRY(config.strings("architectures"));
  if (names.size() != 1) {
    return invalid_argument(config.field("architectures") + " must name one architecture, got " +
                            config.dump("architectures"));
  }
  for (const ModelFamily* family : kFamilies) {
    if (family->architecture != names[0]) continue;
    ModelSpec spec = TRY(family->parse(config));
    spec.architecture = names[0];
    return spec;
  }
  return unsupported(config.field("architectures") + ": " + config.dump("architectures") +
                     " is not supported; supported are " + joined(supported_architectures()));
}

}  // namespace weft
