#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "sched/speculation.h"

namespace weft {

struct ParsedSpeculation {
  SpeculationConfig config;
  std::vector<std::string> warnings;
};

/// Reads the JSON objects of `--speculative-config`, later ones over earlier ones; none: no
/// speculation. Keys and methods are vLLM's and FastDeploy's (docs/speculation.md). Whether the
/// model can do it is checked where the model is known. Errors name the key, its value and what is
/// allowed.
Result<ParsedSpeculation> parse_speculative_config(const std::vector<std::string>& objects);

/// "mtp-3", "ngram-5", "hybrid-3-5" (MTP steps and tokens), "none", "mtp-3-topp-lossy": for logs
/// and tables.
std::string short_name(const SpeculationConfig& config);

}  // namespace weft
