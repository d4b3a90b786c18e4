#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace weft {

/// One key of a configuration file, as words of the command line.
struct ConfigEntry {
  std::string flag;                 ///< "--max-model-len"
  std::vector<std::string> values;  ///< "true" or "false" of a boolean; several of a list
  bool is_boolean = false;
  int line = 0;
};

/// Reads a YAML mapping of flags without their dashes ("max-model-len" or "max_model_len"); a list
/// repeats a flag, a mapping is a JSON object. Errors name file and line.
Result<std::vector<ConfigEntry>> read_config_file(const std::string& path);

}  // namespace weft
