#include "http/script.h"

#include <cstdlib>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "http/client.h"
#include "http/pattern.h"

namespace weft {
namespace {

struct Line {
  int number = 0;
  std::string text;
};
struct Case {
  Line title;
  std::vector<Line> request;
  std::vector<std::vector<Line>> answers;  // the first line of each is "--- ..."
};

std::vector<Line> split_lines(const std::string& text) {
  std::vector<Line> lines;
  std::istringstream in(text);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) lines.push_back({number, line});
  return lines;
}

/// Failure texts travel as exceptions inside the runner.
struct ScriptFailure {
  int line;
  std::string message;
};

[[noreturn]] void fail(const Line& line, const std::string& message) {
  throw ScriptFailure{line.number, message};
}

std::string replace_all(std::string text, const std::string& what, const std::string& with) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size()) {
    text.replace(at, what.size(), with);
  }
  return text;
}

/// "repeat N TEXT" or "list N TEXT".
std::string expand_macro(const Line& line, const std::string& macro) {
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

std::string expand(const Line& line, const ScriptMemory& memory) {
  std::string out;
  const std::string& text = line.text;
  for (size_t at = 0; at < text.size();) {
    if (text.compare(at, 2, "${") == 0) {
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

JsonValue read_pattern(const Line& line, const std::string& text) {
  Result<JsonValue> pattern = parse_json(text);
  if (!pattern) fail(line, "bad pattern (" + pattern.error().message + "): " + text);
  return std::move(pattern).value();
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

struct RequestText {
  std::string bytes;
  bool is_head = false;
};

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

RequestText write_request(const std::string& start, const std::vector<std::string>& header_lines,
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
  RequestText out{.bytes = start + " HTTP/1.1\r\n", .is_head = start.starts_with("HEAD ")};
  for (const auto& [name, value] : headers) out.bytes += name + ": " + value + "\r\n";
  out.bytes += "\r\n";
  out.bytes += in_chunks ? chunked(body) : body;
  return out;
}

std::string type_of_status(int status) {
  switch (status) {
    case 401: return "authentication_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

/// "" when the body is an error as the OpenAI API writes it.
std::string error_defect(const WireResponse& response) {
  const Result<JsonValue> body = parse_json(response.body);
  if (!body) return "the error is no JSON: " + response.body.substr(0, 200);
  ScriptMemory none;
  const JsonValue form =
      *parse_json(R"({"error":{"message":"<string>","type":")" + type_of_status(response.status) +
                  R"(","param":"<any>","code":"<any>"}})");
  const std::string why = mismatch(form, *body, none);
  if (!why.empty()) return "not an OpenAI error: " + why;
  const JsonValue& error = *body->find("error");
  const size_t len = error.find("message")->as<std::string>()->size();
  if (len == 0 || len > 512) return "a message of " + std::to_string(len) + " bytes";
  if (error.as<JsonObject>()->size() != 4) return "more than four members: " + response.body;
  for (const char* name : {"param", "code"}) {
    const JsonValue& value = *error.find(name);
    if (!value.is_null() && !value.as<std::string>()) return std::string(name) + " is no string";
  }
  return {};
}

struct Frame {
  std::string text;
};

std::vector<Frame> split_frames(const Line& line, const std::string& body) {
  std::vector<Frame> frames;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos) fail(line, "a frame without an end: " + body.substr(at, 200));
    const std::string frame = body.substr(at, end - at);
    at = end + 2;
    if (frame.starts_with(":")) continue;
    if (!frame.starts_with("data: ")) fail(line, "not a frame: " + frame);
    frames.push_back({frame.substr(6)});
  }
  return frames;
}

class Runner {
 public:
  explicit Runner(ScriptServer& server) : server_(server) {}

  void run(const Case& c) {
    const Line& first = c.request.empty() ? c.title : c.request.front();
    if (c.request.empty()) fail(c.title, "an exchange without a request");
    if (first.text.starts_with("TABLE ")) return run_table(c);
    if (is_directive(first.text)) {
      for (const Line& line : c.request) direct(line);
      return;
    }
    auto client = std::make_unique<WireClient>(server_.port());
    bool is_head = false;
    if (first.text == "RAW") {
      send_raw(c, *client);
    } else {
      const RequestText request = read_request(c);
      is_head = request.is_head;
      client->send(request.bytes);
    }
    for (const auto& answer : c.answers) {
      const std::string wanted = answer.front().text.substr(4);
      if (wanted == "closed") {
        client->set_patience(std::chrono::milliseconds(2000));
        if (!client->closed_by_server()) fail(answer.front(), "the connection stays open");
        continue;
      }
      std::istringstream words(wanted);
      std::string status, open, name;
      words >> status >> open >> name;
      if (open == "open") {
        const auto response = client->receive_head();
        if (!response) fail(answer.front(), "no answer");
        check_head(answer, *response, std::atoi(status.c_str()));
        open_[name] = std::move(client);
        return;
      }
      const auto response = client->receive(is_head);
      if (!response) fail(answer.front(), "no answer");
      check(answer, *response, std::atoi(status.c_str()), is_head);
    }
  }

 private:
  static bool is_directive(const std::string& text) {
    return text.starts_with("CLOSE ") || text.starts_with("DO ") || text.starts_with("WAIT ");
  }

  void direct(const Line& line) {
    const size_t space = line.text.find(' ');
    const std::string verb = line.text.substr(0, space), rest = line.text.substr(space + 1);
    if (verb == "WAIT") {
      std::this_thread::sleep_for(std::chrono::milliseconds(std::atoi(rest.c_str())));
    } else if (verb == "CLOSE") {
      if (open_.erase(rest) == 0) fail(line, "nothing open has this name");
    } else if (verb != "DO" || !server_.command(rest)) {
      fail(line, "the server does not know this");
    }
  }

  RequestText read_request(const Case& c) {
    std::vector<std::string> headers;
    std::string body;
    bool in_body = false;
    for (size_t i = 1; i < c.request.size(); ++i) {
      const std::string text = expand(c.request[i], memory_);
      if (!in_body && text.empty()) {
        in_body = true;
      } else if (!in_body && is_header(text)) {
        headers.push_back(text);
      } else {
        body += (body.empty() ? "" : "\n") + text;
        in_body = true;
      }
    }
    return write_request(c.request.front().text, headers, body, in_body);
  }

  void send_raw(const Case& c, WireClient& client) {
    for (size_t i = 1; i < c.request.size(); ++i) {
      const Line& line = c.request[i];
      if (line.text.empty()) continue;
      if (line.text == "shut") {
        client.close_writing();
      } else if (line.text.starts_with("pause ")) {
        std::this_thread::sleep_for(std::chrono::milliseconds(std::atoi(&line.text[6])));
      } else {
        const size_t quote = line.text.rfind('"');
        const size_t star = line.text.find('*', quote);
        const JsonValue piece = read_pattern(line, line.text.substr(0, quote + 1));
        const int times = star == std::string::npos ? 1 : std::atoi(&line.text[star + 1]);
        for (int k = 0; k < times; ++k) {
          // A server that has seen enough may close before all is sent.
          if (!client.send(latin1(*piece.as<std::string>()))) break;
        }
      }
    }
  }

  /// JSON can't say bytes above 127: U+0080 to U+00FF stand for them.
  static std::string latin1(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      const auto c = static_cast<unsigned char>(text[i]);
      if ((c == 0xC2 || c == 0xC3) && i + 1 < text.size()) {
        out += static_cast<char>(((c & 3) << 6) | (text[++i] & 0x3F));
      } else {
        out += static_cast<char>(c);
      }
    }
    return out;
  }

  void run_table(const Case& c) {
    std::istringstream first(c.request.front().text.substr(6));
    std::string method, target, body;
    first >> method >> target;
    std::getline(first >> std::ws, body);
    std::string failures;
    int first_line = 0;
    for (size_t i = 1; i < c.request.size(); ++i) {
      const Line& line = c.request[i];
      if (line.text.empty() || line.text.starts_with('#')) continue;
      try {
        run_row(line, method + " " + target, body);
      } catch (const ScriptFailure& failure) {
        if (first_line == 0) first_line = failure.line;
        failures += "\n  line " + std::to_string(failure.line) + ": " + failure.message;
      }
    }
    if (first_line != 0) throw ScriptFailure{first_line, "rows do not hold:" + failures};
  }

  void run_row(const Line& line, const std::string& start, const std::string& body) {
    const size_t arrow = line.text.rfind(" => ");
    if (arrow == std::string::npos) fail(line, "a row without =>");
    std::istringstream wanted(line.text.substr(arrow + 4));
    int status = 0;
    std::string param;
    wanted >> status >> param;
    const std::string members = expand({line.number, line.text.substr(0, arrow)}, memory_);
    const std::string whole = body.empty() ? members : replace_all(body, "$$", members);
    WireClient client(server_.port());
    client.send(write_request(start, {}, whole, true).bytes);
    const auto response = client.receive();
    if (!response) fail(line, "no answer");
    check_common(line, *response, status, false);
    if (param.empty()) return;
    const Result<JsonValue> error = parse_json(response->body);
    const JsonValue* got = error ? value_at(*error, "error.param") : nullptr;
    const std::string shown = !got || got->is_null() ? "-" : *got->as<std::string>();
    if (shown != param) {
      fail(line, "error.param: wanted " + param + ", got " + shown + " in " + response->body);
    }
  }

  void check_common(const Line& line, const WireResponse& response, int status, bool is_head) {
    if (response.status != status) {
      fail(line, "status: wanted " + std::to_string(status) + ", got " +
                     std::to_string(response.status) + " " + response.body.substr(0, 400));
    }
    if (!response.complete) fail(line, "the body breaks off");
    if (status < 400 || is_head) return;
    const std::string defect = error_defect(response);
    if (!defect.empty()) fail(line, defect);
  }

  void check_headers(const std::vector<Line>& answer, const WireResponse& response) {
    for (const Line& line : answer) {
      if (!is_header(line.text)) continue;
      const auto [name, value] = split_header(expand(line, memory_));
      const std::optional<std::string> got = response.header(lower(name));
      if (value == "<absent>") {
        if (got) fail(line, name + " is there: " + *got);
        continue;
      }
      if (!got) fail(line, name + " is absent");
      const std::string why = mismatch({.data = value}, {.data = *got}, memory_);
      if (!why.empty()) fail(line, name + ": " + why);
    }
  }

  void check_head(const std::vector<Line>& answer, const WireResponse& response, int status) {
    if (response.status != status) {
      fail(answer.front(), "status: got " + std::to_string(response.status));
    }
    check_headers(answer, response);
  }

  void check(const std::vector<Line>& answer, const WireResponse& response, int status,
             bool is_head) {
    check_common(answer.front(), response, status, is_head);
    check_headers(answer, response);
    std::vector<Line> frames, joined;
    Line json{};
    for (size_t i = 1; i < answer.size(); ++i) {
      const Line& line = answer[i];
      const std::string& text = line.text;
      if (text.starts_with("data")) {
        frames.push_back(line);
      } else if (text.starts_with("joined ")) {
        joined.push_back(line);
      } else if (text.starts_with("text ") || text.starts_with("not-text ")) {
        check_text(line, response.body);
      } else if (!is_header(text) && !text.empty()) {
        if (json.text.empty()) json.number = line.number;
        json.text += text + "\n";
      }
    }
    if (!json.text.empty()) check_json(json, response);
    if (!frames.empty() || !joined.empty()) check_frames(answer.front(), response, frames, joined);
  }

  void check_text(const Line& line, const std::string& body) {
    const size_t space = line.text.find(' ');
    const std::string why =
        mismatch(read_pattern(line, line.text.substr(space + 1)), {.data = body}, memory_);
    if (why.empty() != line.text.starts_with("text ")) {
      fail(line, why.empty() ? "the body fits" : why);
    }
  }

  void check_json(const Line& pattern, const WireResponse& response) {
    const Result<JsonValue> body = parse_json(response.body);
    if (!body) fail(pattern, "the body is no JSON: " + response.body.substr(0, 400));
    const std::string why =
        mismatch(read_pattern(pattern, expand(pattern, memory_)), *body, memory_);
    if (!why.empty()) fail(pattern, why);
  }

  void check_frames(const Line& at, const WireResponse& response, const std::vector<Line>& patterns,
                    const std::vector<Line>& joined) {
    if (response.header("content-type").value_or("").find("text/event-stream") != 0) {
      fail(at, "not a stream: " + response.body.substr(0, 400));
    }
    const std::vector<Frame> frames = split_frames(at, response.body);
    if (!patterns.empty()) match_frames(patterns, frames);
    for (const Line& line : joined) {
      std::istringstream in(line.text.substr(7));
      std::string path, pattern, whole;
      in >> path;
      std::getline(in >> std::ws, pattern);
      for (const Frame& frame : frames) {
        const Result<JsonValue> json = parse_json(frame.text);
        const JsonValue* piece = json ? value_at(*json, path) : nullptr;
        if (const auto* text = piece ? piece->as<std::string>() : nullptr) whole += *text;
      }
      const std::string why = mismatch(read_pattern(line, pattern), {.data = whole}, memory_);
      if (!why.empty()) fail(line, why);
    }
  }

  void match_frames(const std::vector<Line>& patterns, const std::vector<Frame>& frames) {
    size_t next = 0;
    for (const Line& line : patterns) {
      const char kind = line.text.size() > 4 ? line.text[4] : ' ';
      const std::string pattern = line.text.substr(line.text.find(' ') + 1);
      const size_t most = kind == ' ' ? 1 : frames.size();
      size_t got = 0;
      std::string why = "the stream has ended";
      while (got < most && next < frames.size()) {
        why = frame_mismatch(line, pattern, frames[next].text);
        if (!why.empty()) break;
        ++got, ++next;
      }
      if (got == 0 && kind != '*') {
        fail(line, "frame " + std::to_string(next) + ": " + why);
      }
    }
    if (next < frames.size()) {
      fail(patterns.back(), "further frames: " + frames[next].text);
    }
  }

  std::string frame_mismatch(const Line& line, const std::string& pattern,
                             const std::string& frame) {
    if (pattern == "[DONE]" || frame == "[DONE]") {
      return pattern == frame ? "" : "got " + frame;
    }
    const Result<JsonValue> json = parse_json(frame);
    if (!json) return "no JSON: " + frame;
    return mismatch(read_pattern(line, pattern), *json, memory_);
  }

  ScriptServer& server_;
  ScriptMemory memory_;
  std::map<std::string, std::unique_ptr<WireClient>> open_;
};

struct Script {
  ScriptSettings settings;
  std::vector<Case> cases;
};

Script parse_script(const std::string& text) {
  Script script;
  for (const Line& line : split_lines(text)) {
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
  for (Case& c : script.cases) {
    while (!c.request.empty() && c.request.back().text.empty()) c.request.pop_back();
    while (!c.request.empty() && c.request.front().text.empty()) c.request.erase(c.request.begin());
  }
  return script;
}

}  // namespace

std::string run_http_script(const std::string& text, const ScriptServerFactory& start) {
  std::string failures;
  const auto note = [&](const ScriptFailure& failure, const std::string& title) {
    failures +=
        "line " + std::to_string(failure.line) + ": " + title + "\n  " + failure.message + "\n";
  };
  try {
    const Script script = parse_script(text);
    if (script.cases.empty()) return "a script without an exchange\n";
    const std::unique_ptr<ScriptServer> server = start(script.settings);
    if (!server) return "line 1: a setting that the server does not know\n";
    Runner runner(*server);
    for (const Case& c : script.cases) {
      try {
        runner.run(c);
      } catch (const ScriptFailure& failure) {
        note(failure, c.title.text.substr(4));
      }
    }
  } catch (const ScriptFailure& failure) {
    note(failure, "the script");
  }
  return failures;
}

}  // namespace weft
