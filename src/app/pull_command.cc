#include <cstdio>

#include "app/cli.h"
#include "app/model_location.h"

namespace weft {

int pull_command(const PullOptions& options) {
  const Result<std::string> directory = pull_model(options.model);
  if (!directory) return report_error(directory.error());
  std::printf("%s\n", directory->c_str());
  return kExitOk;
}

}  // namespace weft
