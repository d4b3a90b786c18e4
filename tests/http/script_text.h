#pragma once

#include <string>
#include <utility>
#include <vector>

#include "http/pattern.h"
#include "http/script.h"

namespace weft {

// The text of scripts and of the requests they make.

struct ScriptLine {
  int number = 0;
  std::string text;
};
struct ScriptCase {
  ScriptLine title;
  std::vector<ScriptLine> request;
  std::vector<std::vector<ScriptLine>> answers;  // the first line of each is "--- ..."
};

struct Script {
  ScriptSettings settings;
  std::vector<ScriptCase> cases;
};

/// What does not hold; travels as an exception inside the runner.
struct ScriptFailure {
  int line;
  std::string message;
};

[[noreturn]] void fail(const ScriptLine& line, const std::string& message);

/// Throws ScriptFailure.
Script parse_script(const std::string& text);

/// The line with its macros and remembered values.
std::string expand(const ScriptLine& line, const ScriptMemory& memory);
std::string replace_all(std::string text, const std::string& what, const std::string& with);

/// Whether a line is "Name: value".
bool is_header(const std::string& text);
std::pair<std::string, std::string> split_header(const std::string& text);
std::string lower(std::string text);

/// The bytes of a request; `start`: "METHOD TARGET".
std::string write_request(const std::string& start, const std::vector<std::string>& header_lines,
                          const std::string& body, bool has_body);

}  // namespace weft
