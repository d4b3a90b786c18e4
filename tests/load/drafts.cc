// Speculation, overlapping steps, captured graphs, log-probabilities and streams together: every
// answer, streamed or not, alone or among others, is what a server without drafts (and on a GPU
// without graphs) gives for that request alone in one piece.
#include <nlohmann/json.hpp>
#include <random>

#include "tests/load/scenario.h"

namespace weft::load {
namespace {

using nlohmann::json;

const std::string kText =
    "The baker opened the window and looked at the water. The baker opened the door and looked at "
    "the road. ";

struct Probe {
  std::string path;
  json body;
};

std::vector<Probe> make_probes() {
  std::string long_text;
  for (int i = 0; i < 12; ++i) long_text += kText;
  const json schema = json::parse(R"({"type": "json_schema", "json_schema": {"name": "x", "schema":
      {"type": "object", "properties": {"name": {"type": "string", "maxLength": 16},
       "age": {"type": "integer"}, "day": {"enum": ["Sunday", "Monday"]}},
       "required": ["name", "age", "day"], "additionalProperties": false}}})");
  const std::vector<json> how = {
      {{"temperature", 0}, {"max_tokens", 48}},
      {{"temperature", 0.9}, {"seed", 11}, {"max_tokens", 40}, {"n", 2}},
      {{"temperature", 0.7}, {"seed", 3}, {"top_p", 0.9}, {"top_k", 40}, {"max_tokens", 40}},
      {{"temperature", 0},
       {"repetition_penalty", 1.1},
       {"presence_penalty", 0.3},
       {"max_tokens", 40}},
      {{"temperature", 1},
       {"seed", 5},
       {"min_tokens", 12},
       {"stop", {" water", "!"}},
       {"max_tokens", 48}},
      {{"temperature", 0}, {"ignore_eos", true}, {"max_tokens", 64}},
  };
  const std::vector<std::string> prompts = {"Repeat: " + kText, "Who opened the door? " + kText,
                                            long_text + "Tell a story about it."};
  std::vector<Probe> out;
  for (const std::string& prompt : prompts) {
    for (const json& sampling : how) {
      json body = sampling;
      body["prompt"] = prompt;
      body["logprobs"] = 3;
      out.push_back({"/v1/completions", body});
      body = sampling;
      body["messages"] = {{{"role", "user"}, {"content", prompt}}};
      body["logprobs"] = true;
      body["top_logprobs"] = 2;
      out.push_back({"/v1/chat/completions", body});
    }
    out.push_back({"/v1/chat/completions",
                   {{"messages", {{{"role", "user"}, {"content", prompt}}}},
                    {"temperature", 0},
                    {"logprobs", true},
                    {"max_tokens", 48},
                    {"response_format", schema}}});
  }
  return out;
}

/// A choice: its text, what it thought, its log-probabilities and its end, put together.
struct Choice {
  std::string text, reasoning, reason;
  json logprobs = json::array();
};

/// Adds an answer, or one frame of it, to its choices.
void add(const json& answer, std::map<int, Choice>& choices) {
  for (const json& from : answer.at("choices")) {
    Choice& to = choices[from.at("index").get<int>()];
    const json& message = from.contains("delta")     ? from.at("delta")
                          : from.contains("message") ? from.at("message")
                                                     : from;
    const auto text = [&message](const char* name) {
      const auto it = message.find(name);
      return it != message.end() && it->is_string() ? it->get<std::string>() : "";
    };
    to.text += text("content") + text("text");
    to.reasoning += text("reasoning_content");
    const auto reason = from.find("finish_reason");
    if (reason != from.end() && reason->is_string()) to.reason = reason->get<std::string>();
    const auto logprobs = from.find("logprobs");
    if (logprobs == from.end() || !logprobs->is_object()) continue;
    if (logprobs->contains("content")) {
      for (const json& entry : logprobs->at("content")) to.logprobs.push_back(entry);
      continue;
    }
    for (size_t i = 0; i < logprobs->at("tokens").size(); ++i) {
      to.logprobs.push_back({logprobs->at("tokens")[i], logprobs->at("token_logprobs")[i],
                             logprobs->at("top_logprobs")[i]});
    }
  }
}

/// What an answer says, however it came; "" for one that is no answer.
std::string content_of(int status, const std::string& body, bool streamed) {
  if (status != 200) return "";
  std::map<int, Choice> choices;
  try {
    if (streamed) {
      std::istringstream lines(body);
      for (std::string line; std::getline(lines, line);) {
        if (!line.starts_with("data: {")) continue;
        add(json::parse(line.substr(6)), choices);
      }
    } else {
      add(json::parse(body), choices);
    }
  } catch (const json::exception& e) {
    return "";
  }
  json out;
  for (const auto& [index, choice] : choices) {
    out.push_back({choice.text, choice.reasoning, choice.reason, choice.logprobs});
  }
  return out.empty() ? "" : out.dump();
}

std::string text_of(const Probe& probe, bool streamed) {
  json body = probe.body;
  if (streamed) body["stream"] = true;
  return request_text(probe.path, body.dump());
}

void compare(const Settings& settings, Report& report, const std::string& drafts, int at_once,
             const std::vector<std::string>& alone) {
  const std::vector<Probe> probes = make_probes();
  std::vector<std::string> flags = {"--max-model-len", "2048", "--speculative-config", drafts};
  flags.insert(flags.end(), settings.engine_flags.begin(), settings.engine_flags.end());
  WeftServer server(settings.weft, flags);
  Loop loop(server.port());
  std::mt19937_64 rng(settings.seed);
  int compared = 0, streamed = 0, different = 0, under_way = 0;
  // Every probe both ways, in any order, so many at once.
  std::vector<std::pair<size_t, bool>> order;
  for (int round = 0; round < (settings.full ? 8 : 1); ++round) {
    for (size_t i = 0; i < probes.size(); ++i) {
      order.emplace_back(i, false);
      order.emplace_back(i, true);
    }
  }
  std::shuffle(order.begin(), order.end(), rng);
  size_t next = 0;
  const std::function<void()> send = [&] {
    if (next == order.size()) return;
    const auto [i, stream] = order[next++];
    ++under_way;
    const auto c = loop.open();
    c->on_end = [&, i = i, stream = stream](Connection& self, Connection::End how) {
      --under_way;
      ++compared;
      streamed += stream;
      const std::string content = content_of(self.status(), self.body(), stream);
      if (how != Connection::End::kComplete || content != alone[i]) {
        if (different++ == 0) {
          report.check(false, "alone:\n" + alone[i] + "\nwith drafts:\n" + content);
        }
      }
      send();
    };
    c->send(text_of(probes[i], stream));
  };
  for (int i = 0; i < at_once; ++i) send();
  loop.run(Clock::now() + std::chrono::minutes(4), [&] { return under_way == 0; });
  auto metrics = server.metrics();
  const std::string name = drafts + ", " + std::to_string(at_once) + " at once";
  const double drafted = metrics["vllm:spec_decode_num_draft_tokens_total"];
  const double accepted = metrics["vllm:spec_decode_num_accepted_tokens_total"];
  report.figures(name, {{"compared", compared},
                        {"streamed", streamed},
                        {"tokens", metrics["vllm:generation_tokens_total"]},
                        {"drafted", drafted},
                        {"accepted", accepted}});
  report.check_equal(compared, static_cast<double>(order.size()), "answers compared, " + name);
  report.check_equal(different, 0, "answers that are not those without drafts, " + name);
  report.check(accepted > 0 && accepted < drafted, "drafts were accepted and rejected, " + name);
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left, " + name + ": " + left);
}

}  // namespace

void run_drafts(const Settings& settings, Report& report) {
  std::vector<std::string> alone;
  {
    std::vector<std::string> flags = {"--max-model-len", "2048", "--enforce-eager"};
    flags.insert(flags.end(), settings.engine_flags.begin(), settings.engine_flags.end());
    WeftServer server(settings.weft, flags);
    Loop loop(server.port());
    int without = 0;
    for (const Probe& probe : make_probes()) {
      const Answer answer = ask(loop, text_of(probe, false));
      alone.push_back(content_of(answer.status, answer.body, false));
      without += alone.back().empty();
    }
    report.check_equal(without, 0, "requests without an answer");
  }
  const auto config = [](const std::string& method, int drafts, const std::string& rest) {
    return R"({"method": ")" + method + R"(", "num_speculative_tokens": )" +
           std::to_string(drafts) + rest + "}";
  };
  compare(settings, report, config("hybrid_mtp_ngram", 5, R"(, "num_model_steps": 3)"), 12, alone);
  compare(settings, report, config("mtp", 3, R"(, "adaptive": false)"), 8, alone);
  compare(settings, report, config("ngram", 4, R"(, "adaptive": false)"), 8, alone);
  if (!settings.full) return;
  compare(settings, report, config("mtp", 1, ""), 32, alone);
  compare(settings, report, config("ngram", 8, ""), 32, alone);
  compare(settings, report, config("hybrid_mtp_ngram", 4, R"(, "adaptive": false)"), 1, alone);
}

}  // namespace weft::load
