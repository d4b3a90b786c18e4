#include "http/script_text.h"

#include <sstream>

namespace weft {
namespace {

std::vector<ScriptLine> split_lines(const std::string& text) {
  std::vector<ScriptLine> lines;
  std::istringstream in(text);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) lines.push_back({number, line});
  return lines;
}

/// "repeat N TEXT" or "list N TEXT".
std::string expand_macro(const ScriptLine& line, const std::string& macro) {
  std::istringstream in(macro);
  std::string verb, item;
  int count = 0;
  in >> verb >> count;
  std::getline(in >> std::ws, item);
  std::string out;
  for (int i = 0; i < count; ++i) {
    if (verb == "repeat") {
      out += item;
    } else if (verb == "list") {
      out += (i > 0 ? "," : "") + replace_all(item, "#", std::to_string(i));
    } else {
      fail(line, "unknown macro " + verb);
    }
  }
  return out;
}

std::string chunked(const std::string& body) {
  constexpr size_t kChunk = 7;
  std::ostringstream out;
  for (size_t at = 0; at < body.size(); at += kChunk) {
    const std::string piece = body.substr(at, kChunk);
    out << std::hex << piece.size() << "\r\n" << piece << "\r\n";
  }
  out << "0\r\n\r\n";
  return out.str();
}

}  // namespace

void fail(const ScriptLine& line, const std::string& message) {
  throw ScriptFailure{line.number, message};
}

std::string replace_all(std::string text, const std::string& what, const std::string& with) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size()) {
    text.replace(at, what.size(), with);
  }
  return text;
}

std::string expand(const ScriptLine& line, const ScriptMemory& memory) {
  std::string out;
  const std::string& text = line.text;
  for (size_t at = 0; at < text.size();) {
    if (text.compare(at, 2, "$<") == 0) {  // for texts with braces that have no partner
      const size_t end = text.find('>', at);
      if (end == std::string::npos) fail(line, "a macro without an end");
      out += expand_macro(line, text.substr(at + 2, end - at - 2));
      at = end + 1;
    } else if (text.compare(at, 2, "${") == 0) {
      // A macro ends at the brace that closes it: TEXT may hold pairs of them.
      int depth = 1;
      size_t end = at + 2;
      for (; end < text.size() && depth > 0; ++end) {
        if (text[end] == '{') ++depth;
        if (text[end] == '}') --depth;
      }
      if (depth > 0) fail(line, "a macro without an end");
      out += expand_macro(line, text.substr(at + 2, end - at - 3));
      at = end;
    } else if (text.compare(at, 2, "{{") == 0 && text.find("}}", at) != std::string::npos &&
               memory.contains(text.substr(at + 2, text.find("}}", at) - at - 2))) {
      const size_t end = text.find("}}", at);
      out += memory.at(text.substr(at + 2, end - at - 2));
      at = end + 2;
    } else {
      out += text[at++];
    }
  }
  return out;
}

bool is_header(const std::string& text) {
  const size_t colon = text.find(':');
  return colon != std::string::npos && colon > 0 &&
         text.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == colon;
}

std::pair<std::string, std::string> split_header(const std::string& text) {
  const size_t colon = text.find(':');
  const size_t begin = text.find_first_not_of(' ', colon + 1);
  return {text.substr(0, colon), begin == std::string::npos ? "" : text.substr(begin)};
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string write_request(const std::string& start, const std::vector<std::string>& header_lines,
                          const std::string& body, bool has_body) {
  std::vector<std::pair<std::string, std::string>> headers = {{"Host", "localhost"}};
  if (has_body) {
    headers.emplace_back("Content-Type", "application/json");
    headers.emplace_back("Content-Length", std::to_string(body.size()));
  }
  bool in_chunks = false;
  for (const std::string& text : header_lines) {
    const auto [name, value] = split_header(text);
    in_chunks |= lower(name) == "transfer-encoding" && value == "chunked";
    std::erase_if(headers, [&, &n = name](const auto& h) {
      return lower(h.first) == lower(n) || (in_chunks && h.first == "Content-Length");
    });
    if (!value.empty()) headers.emplace_back(name, value);
  }
  std::string out = start + " HTTP/1.1\r\n";
  for (const auto& [name, value] : headers) out += name + ": " + value + "\r\n";
  out += "\r\n";
  out += in_chunks ? chunked(body) : body;
  return out;
}

Script parse_script(const std::string& text) {
  Script script;
  for (const ScriptLine& line : split_lines(text)) {
    const bool in_case = !script.cases.empty();
    if (line.text.starts_with('#')) continue;
    if (line.text.starts_with("=== ")) {
      script.cases.push_back({.title = line});
    } else if (!in_case && line.text.starts_with("server ")) {
      std::istringstream words(line.text.substr(7));
      for (std::string word; words >> word;) {
        const size_t equals = word.find('=');
        if (equals == std::string::npos) fail(line, "not a setting: " + word);
        script.settings[word.substr(0, equals)] = word.substr(equals + 1);
      }
    } else if (!in_case) {
      if (!line.text.empty()) fail(line, "unknown: " + line.text);
    } else if (line.text.starts_with("--- ")) {
      script.cases.back().answers.push_back({line});
    } else if (!script.cases.back().answers.empty()) {
      script.cases.back().answers.back().push_back(line);
    } else {
      script.cases.back().request.push_back(line);
    }
  }
  // Blank lines part the exchanges; the request's own (before a body) stay.
  for (ScriptCase& c : script.cases) {
    while (!c.request.empty() && c.request.back().text.empty()) c.request.pop_back();
    while (!c.request.empty() && c.request.front().text.empty()) c.request.erase(c.request.begin());
  }
  return script;
}

}  // namespace weft
