#include "app/completion.h"

#include <functional>

namespace weft {
namespace {

/// 'text' for a shell, with a quote inside written '\''.
std::string shell_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

std::string joined(const std::vector<std::string>& words, const std::string& between = " ") {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : between) + word;
  return out;
}

std::vector<std::string> flag_words(const CommandInfo& command) {
  std::vector<std::string> words;
  for (const FlagInfo& flag : command.flags) {
    words.insert(words.end(), flag.names.begin(), flag.names.end());
  }
  return words;
}

std::vector<std::string> command_words(const CommandInfo& command) {
  std::vector<std::string> words;
  for (const CommandInfo& sub : command.commands) words.push_back(sub.name);
  return words;
}

/// Calls `visit` with every command and its path ("weft", "weft bench", "weft bench serve", ...).
void walk(const CommandInfo& command, const std::string& path,
          const std::function<void(const CommandInfo&, const std::string&)>& visit) {
  visit(command, path);
  for (const CommandInfo& sub : command.commands) walk(sub, path + " " + sub.name, visit);
}

/// The part that finds out which command is being typed, the same for bash and zsh: `where` grows
/// by each word that is a command there. `loop`: the shell's head of a loop over the words.
std::string find_path(const CommandInfo& root, const std::string& loop) {
  // Not `path`: zsh ties that to PATH.
  std::string out = "  local where=weft word\n  " + loop + "\n    case \"$where $word\" in\n";
  std::vector<std::string> paths;
  walk(root, "weft", [&paths](const CommandInfo&, const std::string& path) {
    if (path != "weft") paths.push_back(shell_quoted(path));
  });
  out += "      " + joined(paths, "|") + ") where=\"$where $word\" ;;\n    esac\n  done\n";
  return out;
}

/// The arms of `case "$where $prev"`: what may follow a flag that takes a value; `complete` writes
/// what an arm does.
std::string value_arms(const CommandInfo& root,
                       const std::function<std::string(const FlagInfo&)>& complete) {
  std::string out;
  walk(root, "weft", [&](const CommandInfo& command, const std::string& path) {
    for (const FlagInfo& flag : command.flags) {
      if (!flag.takes_value) continue;
      std::vector<std::string> patterns;
      for (const std::string& name : flag.names)
        patterns.push_back(shell_quoted(path + " " + name));
      out += "    " + joined(patterns, "|") + ") " + complete(flag) + "; return ;;\n";
    }
  });
  return out;
}

std::string bash_script(const CommandInfo& root) {
  std::string out =
      "# bash completion of weft: source <(weft completion bash)\n"
      "_weft() {\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flags= commands=\n"
      "  COMPREPLY=()\n";
  out += find_path(root, "for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do");
  out += "  case \"$where $prev\" in\n";
  out += value_arms(root, [](const FlagInfo& flag) -> std::string {
    if (flag.choices.empty()) return ":";  // a value of its own: files are the default
    return "COMPREPLY=($(compgen -W " + shell_quoted(joined(flag.choices)) + " -- \"$cur\"))";
  });
  out += "  esac\n  case $where in\n";
  walk(root, "weft", [&out](const CommandInfo& command, const std::string& path) {
    out += "    " + shell_quoted(path) + ") flags=" + shell_quoted(joined(flag_words(command))) +
           " commands=" + shell_quoted(joined(command_words(command))) + " ;;\n";
  });
  out +=
      "  esac\n"
      "  if [[ $cur == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$flags\" -- \"$cur\"))\n"
      "  elif [[ $commands ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$commands\" -- \"$cur\"))\n"
      "  fi\n"
      "}\n"
      "complete -o default -F _weft weft\n";
  return out;
}

std::string described(const std::string& word, const std::string& help) {
  std::string name;
  for (const char c : word) name += c == ':' ? "\\:" : std::string(1, c);
  return shell_quoted(name + ":" + help);
}

std::string zsh_script(const CommandInfo& root) {
  std::string out =
      "#compdef weft\n"
      "# zsh completion of weft: weft completion zsh > \"${fpath[1]}/_weft\"\n"
      "_weft() {\n"
      "  local cur=${words[CURRENT]} prev=${words[CURRENT-1]}\n"
      "  local -a flags commands\n";
  out += find_path(root, "for word in \"${words[@]:1:$((CURRENT-2))}\"; do");
  out += "  case \"$where $prev\" in\n";
  out += value_arms(root, [](const FlagInfo& flag) -> std::string {
    return flag.choices.empty() ? "_files" : "compadd -- " + joined(flag.choices);
  });
  out += "  esac\n  case $where in\n";
  walk(root, "weft", [&out](const CommandInfo& command, const std::string& path) {
    std::vector<std::string> flags, commands;
    for (const FlagInfo& flag : command.flags) {
      for (const std::string& name : flag.names) flags.push_back(described(name, flag.help));
    }
    for (const CommandInfo& sub : command.commands) {
      commands.push_back(described(sub.name, sub.help));
    }
    out += "    " + shell_quoted(path) + ")\n      flags=(" + joined(flags, "\n        ") +
           ")\n      commands=(" + joined(commands, "\n        ") + ") ;;\n";
  });
  out +=
      "  esac\n"
      "  if [[ $cur == -* ]]; then\n"
      "    _describe flag flags\n"
      "  elif (( $#commands )); then\n"
      "    _describe command commands\n"
      "  else\n"
      "    _files\n"
      "  fi\n"
      "}\n"
      // Loaded from fpath the body is the function; sourced, it has to be registered.
      "if [[ $funcstack[1] == _weft ]]; then _weft \"$@\"; else compdef _weft weft; fi\n";
  return out;
}

std::string fish_script(const CommandInfo& root) {
  std::string out = "# fish completion of weft: weft completion fish | source\n";
  walk(root, "weft", [&out](const CommandInfo& command, const std::string& path) {
    // Every command of the path was typed, and none below it.
    std::string condition;
    for (size_t at = path.find(' '); at != std::string::npos;) {
      const size_t next = path.find(' ', at + 1);
      condition += (condition.empty() ? "" : "; and ") +
                   ("__fish_seen_subcommand_from " + path.substr(at + 1, next - at - 1));
      at = next;
    }
    const std::vector<std::string> subs = command_words(command);
    if (!subs.empty()) {
      condition +=
          (condition.empty() ? "" : "; and ") + ("not __fish_seen_subcommand_from " + joined(subs));
    }
    const std::string begin = "complete -c weft -n " + shell_quoted(condition);
    for (const CommandInfo& sub : command.commands) {
      out += begin + " -f -a " + shell_quoted(sub.name) + " -d " + shell_quoted(sub.help) + "\n";
    }
    for (const FlagInfo& flag : command.flags) {
      out += begin;
      for (const std::string& name : flag.names) {
        const bool is_long = name.substr(0, 2) == "--";
        out += is_long ? " -l " + name.substr(2) : " -s " + name.substr(1);
      }
      if (flag.takes_value) out += " -r";
      if (!flag.choices.empty()) out += " -f -a " + shell_quoted(joined(flag.choices));
      out += " -d " + shell_quoted(flag.help) + "\n";
    }
  });
  return out;
}

}  // namespace

Result<std::string> completion_script(const CommandInfo& root, const std::string& shell) {
  if (shell == "bash") return bash_script(root);
  if (shell == "zsh") return zsh_script(root);
  if (shell == "fish") return fish_script(root);
  return invalid_argument("completion: '" + shell + "' is not one of bash, zsh, fish");
}

}  // namespace weft
