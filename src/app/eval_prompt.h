#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api/images.h"
#include "base/result.h"
#include "sched/request.h"

namespace weft {

/// Where the pictures of an evaluation set lie, and who reads them.
struct EvalImages {
  std::shared_ptr<const ImageReader> reader;  ///< null: the model takes no pictures here
  std::string directory;
};

/// Puts the prompt of one token an image, and the images at `paths`, into `request`. With paths
/// there must be a reader.
Result<void> set_eval_prompt(const EvalImages& images, const std::vector<int32_t>& ids,
                             const std::vector<std::string>& paths, Request& request);

}  // namespace weft
