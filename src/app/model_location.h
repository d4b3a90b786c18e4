#pragma once

#include <string>

#include "base/result.h"
#include "checkpoint/hub.h"

namespace weft {

/// The bundled demo model: beside the binary's build tree, installed under share/weft, or in the
/// source tree that this binary was built from.
Result<std::string> demo_model_directory();

/// A directory for what the user named: empty is the demo model, an existing directory wins, then
/// the Hugging Face cache, then a download of these parts with progress on standard error.
Result<std::string> locate_model(const std::string& name_or_directory,
                                 ModelParts parts = ModelParts::kAll);

/// Downloads into the Hugging Face cache and returns the snapshot directory.
Result<std::string> pull_model(const std::string& name);

}  // namespace weft
