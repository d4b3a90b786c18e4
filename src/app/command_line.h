#pragma once

#include <string>
#include <vector>

#include "app/completion.h"
#include "app/flags.h"

namespace weft {

/// The whole program: parses the words, runs the command, returns the exit code.
int run_command_line(int argc, char** argv);

/// Every command with its flags, those without a meaning left out.
CommandInfo command_tree();

/// What `weft serve WORDS...` means, with the environment and --config. For tests.
Result<FinishedServe> parse_serve(std::vector<std::string> words, const char* vllm_api_key);

}  // namespace weft
