#pragma once

#include <string>
#include <vector>

#include "api/validate.h"
#include "app/engine_options.h"
#include "app/serve_options.h"

namespace CLI {
class App;
}

namespace weft {

/// The flags of the engine, the same for every command that runs one. `fake`: also the test device.
void add_engine_options(CLI::App& app, EngineOptions& o, bool positional_model, bool fake = false);

/// Ranges are checked by validate_sampling(), for the command line and the server alike.
void add_sampling_options(CLI::App& app, SamplingRequest& o);

/// Every option that takes a number refuses what is none (NaN too) or does not fit its 64 bits.
/// (CLI11 leaves the default for an empty text, wraps and saturates integers, lets NaN through
/// every range and reads 010 as eight.) Call it after all options and their checks are there.
void require_numbers(CLI::App& app);

/// "--max-model-len" -> WEFT_MAX_MODEL_LEN: every flag that has a meaning has a twin in the
/// environment.
void add_environment_twins(CLI::App& app);

/// What the parser puts down of `weft serve`; finish_serve() makes ServeOptions of it.
struct ServeArguments {
  struct Known {  // of a flag of vLLM that has no meaning here
    std::string name;
    std::vector<std::string> values;  // empty: not given
  };
  ServeOptions options;
  std::string config_file;
  std::string revision;
  std::vector<std::string> api_key_files;
  std::vector<std::string> chat_template_kwargs;  // JSON objects, later ones win
  std::vector<std::string> generation_overrides;  // JSON objects, later ones win
  std::vector<std::string> allowed_origins;
  std::string log_level = "info";
  bool log_stats_off = false;
  std::vector<Known> ignored, refused;
};

/// The flags of `weft serve`. `arguments` must outlive `app` and stay where it is.
void add_serve_options(CLI::App& app, ServeArguments& arguments);

struct FinishedServe {
  ServeOptions options;
  std::vector<std::string> warnings;  ///< one a flag that has no meaning here
};

/// Checks what single flags cannot: refusals, JSON, key files, VLLM_API_KEY (`vllm_api_key`, used
/// when no other key is given). Errors name the flag.
Result<FinishedServe> finish_serve(const ServeArguments& arguments, const char* vllm_api_key);

}  // namespace weft
