#include "http/script.h"

#include <cstdlib>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "http/client.h"
#include "http/pattern.h"
#include "http/script_text.h"

namespace weft {
namespace {

JsonValue read_pattern(const ScriptLine& line, const std::string& text) {
  Result<JsonValue> pattern = parse_json(text);
  if (!pattern) fail(line, "bad pattern (" + pattern.error().message + "): " + text);
  return std::move(pattern).value();
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

std::vector<Frame> split_frames(const ScriptLine& line, const std::string& body) {
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

  void run(const ScriptCase& c) {
    const ScriptLine& first = c.request.empty() ? c.title : c.request.front();
    if (c.request.empty()) fail(c.title, "an exchange without a request");
    if (first.text.starts_with("TABLE ") || first.text.starts_with("COUNT ")) return run_table(c);
    if (first.text.starts_with("FINISH ")) return finish(c);
    if (is_directive(first.text)) {
      for (const ScriptLine& line : c.request) direct(line);
      return;
    }
    auto client = std::make_unique<WireClient>(server_.port());
    bool is_head = false;
    if (first.text == "RAW") {
      send_raw(c, *client);
    } else {
      is_head = first.text.starts_with("HEAD ");
      client->send(read_request(c));
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
        open_[name] = {std::move(client), *response};
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

  void direct(const ScriptLine& line) {
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

  /// The rest of an answer that was left open.
  void finish(const ScriptCase& c) {
    const ScriptLine& line = c.request.front();
    const auto it = open_.find(line.text.substr(7));
    if (it == open_.end()) fail(line, "nothing open has this name");
    Open open = std::move(it->second);
    open_.erase(it);
    if (c.answers.size() != 1) fail(line, "one answer is needed");
    open.client->finish(open.head);
    check(c.answers.front(), open.head, std::atoi(c.answers.front().front().text.c_str() + 4),
          false);
  }

  std::string read_request(const ScriptCase& c) {
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

  void send_raw(const ScriptCase& c, WireClient& client) {
    for (size_t i = 1; i < c.request.size(); ++i) {
      const ScriptLine& line = c.request[i];
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

  /// What TABLE and COUNT say.
  struct Table {
    std::string start, body;
    std::string path, name;  // of COUNT
  };

  void run_table(const ScriptCase& c) {
    std::istringstream first(c.request.front().text);
    Table table;
    std::string verb, method, target;
    first >> verb;
    if (verb == "COUNT") first >> table.path >> table.name;
    first >> method >> target;
    std::getline(first >> std::ws, table.body);
    table.start = method + " " + target;
    std::string failures;
    int first_line = 0;
    for (size_t i = 1; i < c.request.size(); ++i) {
      const ScriptLine& line = c.request[i];
      if (line.text.empty()) continue;
      try {
        run_row(line, table);
      } catch (const ScriptFailure& failure) {
        if (first_line == 0) first_line = failure.line;
        failures += "\n  line " + std::to_string(failure.line) + ": " + failure.message;
      }
    }
    if (first_line != 0) throw ScriptFailure{first_line, "rows do not hold:" + failures};
  }

  void run_row(const ScriptLine& line, const Table& table) {
    const size_t arrow = line.text.rfind(" => ");
    if (arrow == std::string::npos) fail(line, "a row without =>");
    std::istringstream wanted(line.text.substr(arrow + 4));
    const std::string members = expand({line.number, line.text.substr(0, arrow)}, memory_);
    const std::string body = table.body.empty() ? members : replace_all(table.body, "$$", members);
    WireClient client(server_.port());
    client.send(write_request(table.start, {}, body, true));
    const auto response = client.receive();
    if (!response) fail(line, "no answer");
    int number = 0;
    wanted >> number;
    if (!table.path.empty()) return check_count(line, *response, table, number);
    check_common(line, *response, number, false);
    std::string param;
    wanted >> param;
    if (param.empty()) return;
    const Result<JsonValue> error = parse_json(response->body);
    const JsonValue* got = error ? value_at(*error, "error.param") : nullptr;
    const std::string shown = !got || got->is_null() ? "-" : *got->as<std::string>();
    if (shown != param) {
      fail(line, "error.param: wanted " + param + ", got " + shown + " in " + response->body);
    }
  }

  /// How many elements of the array are what was remembered.
  void check_count(const ScriptLine& line, const WireResponse& response, const Table& table,
                   int wanted) {
    check_common(line, response, 200, false);
    const Result<JsonValue> body = parse_json(response.body);
    const JsonValue* array = body ? value_at(*body, table.path) : nullptr;
    if (!array || !array->as<JsonArray>()) fail(line, "no array " + table.path);
    int count = 0;
    for (const JsonValue& item : *array->as<JsonArray>()) {
      if (to_json(item) == memory_[table.name]) ++count;
    }
    if (count != wanted) {
      fail(line, "wanted " + std::to_string(wanted) + ", got " + std::to_string(count));
    }
  }

  void check_common(const ScriptLine& line, const WireResponse& response, int status,
                    bool is_head) {
    if (response.status != status) {
      fail(line, "status: wanted " + std::to_string(status) + ", got " +
                     std::to_string(response.status) + " " + response.body.substr(0, 400));
    }
    if (!response.complete) fail(line, "the body breaks off");
    if (status < 400 || is_head) return;
    const std::string defect = error_defect(response);
    if (!defect.empty()) fail(line, defect);
  }

  void check_headers(const std::vector<ScriptLine>& answer, const WireResponse& response) {
    for (const ScriptLine& line : answer) {
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

  void check_head(const std::vector<ScriptLine>& answer, const WireResponse& response, int status) {
    if (response.status != status) {
      fail(answer.front(), "status: got " + std::to_string(response.status));
    }
    check_headers(answer, response);
  }

  void check(const std::vector<ScriptLine>& answer, const WireResponse& response, int status,
             bool is_head) {
    check_common(answer.front(), response, status, is_head);
    check_headers(answer, response);
    std::vector<ScriptLine> frames, joined;
    ScriptLine json{};
    for (size_t i = 1; i < answer.size(); ++i) {
      const ScriptLine& line = answer[i];
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

  void check_text(const ScriptLine& line, const std::string& body) {
    const size_t space = line.text.find(' ');
    const std::string why =
        mismatch(read_pattern(line, line.text.substr(space + 1)), {.data = body}, memory_);
    if (why.empty() != line.text.starts_with("text ")) {
      fail(line, why.empty() ? "the body fits" : why);
    }
  }

  void check_json(const ScriptLine& pattern, const WireResponse& response) {
    const Result<JsonValue> body = parse_json(response.body);
    if (!body) fail(pattern, "the body is no JSON: " + response.body.substr(0, 400));
    const std::string why =
        mismatch(read_pattern(pattern, expand(pattern, memory_)), *body, memory_);
    if (!why.empty()) fail(pattern, why);
  }

  void check_frames(const ScriptLine& at, const WireResponse& response,
                    const std::vector<ScriptLine>& patterns,
                    const std::vector<ScriptLine>& joined) {
    if (response.header("content-type").value_or("").find("text/event-stream") != 0) {
      fail(at, "not a stream: " + response.body.substr(0, 400));
    }
    const std::vector<Frame> frames = split_frames(at, response.body);
    if (!patterns.empty()) match_frames(patterns, frames);
    for (const ScriptLine& line : joined) {
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

  void match_frames(const std::vector<ScriptLine>& patterns, const std::vector<Frame>& frames) {
    size_t next = 0;
    for (const ScriptLine& line : patterns) {
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

  std::string frame_mismatch(const ScriptLine& line, const std::string& pattern,
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
  struct Open {
    std::unique_ptr<WireClient> client;
    WireResponse head;
  };
  std::map<std::string, Open> open_;
};

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
    for (const ScriptCase& c : script.cases) {
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
