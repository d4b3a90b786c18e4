#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace weft {

struct FlagInfo {
  std::vector<std::string> names;  ///< with their dashes; the first is the flag's name
  bool takes_value = false;
  std::vector<std::string> choices;  ///< of the value, where they are few
  std::string help;
  std::string environment;  ///< the twin's name
};

/// A command as the shell's completion and the documents see it. Flags without a meaning are left
/// out.
struct CommandInfo {
  std::string name;
  std::string help;
  std::vector<FlagInfo> flags;
  std::vector<CommandInfo> commands;
};

/// The completion script of a shell: bash, zsh or fish.
Result<std::string> completion_script(const CommandInfo& root, const std::string& shell);

}  // namespace weft
