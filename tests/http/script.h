#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

namespace weft {

/// A server that a script talks to.
class ScriptServer {
 public:
  virtual ~ScriptServer() = default;
  virtual uint16_t port() const = 0;
  /// What a script's `DO WORDS` asks for; false when it is unknown.
  virtual bool command(const std::string& words) = 0;
};

using ScriptSettings = std::map<std::string, std::string>;
/// Starts the server for a script; null when it does not know a setting.
using ScriptServerFactory =
    std::function<std::unique_ptr<ScriptServer>(const ScriptSettings& settings)>;

/// Runs a `.http` script (tests/http/README.md describes the language) against a server of its own.
/// "" when everything holds, else "line N: TITLE" and what did not, one a line.
std::string run_http_script(const std::string& text, const ScriptServerFactory& start);

}  // namespace weft
