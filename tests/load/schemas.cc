// 10^5 distinct schemas (A31): what is compiled for one is not kept for ever, and the last costs
// what the first did. And grammars (A30) under which a model would only open brackets, or that can
// be read in very many ways: they end, and cost nobody else a bit.
#include <nlohmann/json.hpp>
#include <random>

#include "tests/load/scenario.h"

namespace weft::load {
namespace {

std::string schema_request(std::mt19937_64& rng, int number) {
  const std::string n = std::to_string(number);
  std::string properties = "\"first_" + n + R"(": {"type": "string", "maxLength": )" +
                           std::to_string(2 + rng() % 40) + "}";
  for (uint64_t i = rng() % 6; i > 0; --i) {
    const char* const kinds[] = {
        R"({"type": "integer", "minimum": 3, "maximum": 4711})",
        R"({"type": "array", "items": {"type": "number"}, "maxItems": 5})",
        R"({"enum": ["red", "green", null, 7]})",
        R"({"type": "string", "pattern": "^[a-f0-9]{4}-[x-z]+$"})",
        R"({"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"a": {}}}]})",
        R"({"type": "string", "format": "date-time"})"};
    properties += ", \"p" + n + "_" + std::to_string(i) + "\": " + kinds[rng() % 6];
  }
  return request_text(
      "/v1/chat/completions",
      R"({"messages": [{"role": "user", "content": "a"}], "max_tokens": 6, "seed": )" + n +
          R"(, "response_format": {"type": "json_schema", "json_schema":
                          {"name": "s", "schema": {"type": "object", "additionalProperties": false,
                          "properties": {)" +
          properties + "}}}}}");
}

/// A completion of the demo model, whose every step prefers the token of `wanted`.
std::string hostile_request(Loop& loop, const std::string& constraint, const std::string& wanted) {
  const nlohmann::json text = wanted;
  const Answer ids = ask(loop, request_text("/tokenize", R"({"prompt": )" + text.dump() +
                                                             R"(, "add_special_tokens": false})"));
  const auto body = nlohmann::json::parse(ids.body);
  return request_text("/v1/completions",
                      R"({"prompt": "a", "max_tokens": 2500, "temperature": 0, "logit_bias": {")" +
                          body.at("tokens").at(0).dump() + R"(": 100}, "structured_outputs": )" +
                          constraint + "}");
}

void hostile_grammars(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--max-model-len", "4096", "--kv-cache-memory", "256M"});
  Loop loop(server.port());
  const std::pair<const char*, const char*> cases[] = {
      {R"({"grammar": "root ::= \"(\" root \")\" | word\nword ::= [a-z]"})", "("},
      {R"({"grammar": "root ::= \"(\" root? \")\"?"})", "("},
      {R"({"json": {"type": "array", "items": {"$ref": "#"}}})", "["},
      {R"({"json": {"properties": {"a": {"$ref": "#"}}, "required": ["a"],
           "anyOf": [{"type": "object"}, {"type": "null"}]}})",
       "{"},
      {R"({"grammar": "root ::= item root? [a-z]? item? | item\nitem ::= \"t\" item? \"h\"? | [a-z ]"})",
       "t"},
      {R"({"grammar": "root ::= \" \"? half root? half? [a-n]? | half\nhalf ::= [a-z] half? \"e\"? | [a-z ] [a-z]? root?"})",
       "a"},
      {R"({"regex": "(.*t){20}.{100}"})", "t"}};
  Victim victim(loop, request_text("/v1/completions",
                                   R"({"prompt": "A quiet answer", "max_tokens": 48, "seed": 5,
                                       "ignore_eos": true, "logprobs": 3, "stream": true})"));
  victim.start();
  int answered = 0, wrong = 0, closed = 0, open = 0;
  for (const auto& [constraint, wanted] : cases) {
    const Answer answer = ask(loop, hostile_request(loop, constraint, wanted));
    wrong += answer.status != 200;
    ++answered;
    if (answer.status != 200) continue;
    const auto choice = nlohmann::json::parse(answer.body).at("choices").at(0);
    const auto text = choice.at("text").get<std::string>();
    for (const char c : text) {
      open += c == '(' || c == '[';
      closed += c == ')' || c == ']';
    }
  }
  victim.stop();
  report.figures("hostile grammars", {{"answers", answered},
                                      {"brackets_opened", open},
                                      {"brackets_closed", closed},
                                      {"answers_of_the_victim", victim.num_answers()},
                                      {"gap_p99_ms_alone", victim.gap_p99_alone() * 1000},
                                      {"gap_p99_ms", victim.gap_p99() * 1000}});
  report.check_equal(wrong, 0, "hostile grammars without an answer");
  report.check(closed > 1000, "brackets are closed again");
  report.check_equal(victim.num_different(), 0, "answers of the victim that differ, grammars");
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left after the grammars: " + left);
}

}  // namespace

void run_schemas(const Settings& settings, Report& report) {
  hostile_grammars(settings, report);
  WeftServer server(settings.weft, {"--device", "fake"});
  Loop loop(server.port());
  std::mt19937_64 rng(settings.seed);
  const int n = settings.full ? 100'000 : 3000;
  int sent = 0, ended = 0, wrong = 0;
  std::function<void()> next = [&] {
    const auto c = loop.open();
    c->on_end = [&](Connection& self, Connection::End how) {
      ++ended;
      wrong += how != Connection::End::kComplete || self.status() != 200;
      if (sent < n) next();
    };
    c->send(schema_request(rng, sent++));
  };
  for (int i = 0; i < 8; ++i) next();
  const auto run_to = [&](int count) {
    loop.run(Clock::now() + std::chrono::minutes(20), [&] { return ended >= count; });
  };
  const auto resident = [&] {
    return static_cast<double>(server.process().resident_bytes()) / 1048576;
  };
  // The first thousand fill what is kept; then tenths of the rest are compared.
  run_to(n / 3);
  const double mib_before = resident();
  const int part = (n - n / 3) / 4;
  const double cpu_begin = server.process().cpu_seconds();
  run_to(n / 3 + part);
  const double cpu_early = server.process().cpu_seconds() - cpu_begin;
  run_to(n - part);
  const double cpu_middle = server.process().cpu_seconds();
  run_to(n - 8);
  const double cpu_late = server.process().cpu_seconds() - cpu_middle;
  run_to(n);
  report.figures("distinct schemas", {{"schemas", n},
                                      {"resident_mib_after_a_third", mib_before},
                                      {"resident_mib", resident()},
                                      {"cpu_ms_each_early", cpu_early * 1000 / part},
                                      {"cpu_ms_each_late", cpu_late * 1000 / part}});
  report.check_equal(wrong, 0, "schemas without an answer");
  report.check_at_most(resident(), 1.05 * mib_before + 8, "resident MiB, all against a third");
  report.check_at_most(cpu_late, 1.5 * cpu_early, "CPU s of the last quarter against the first");
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left after the schemas: " + left);
}

}  // namespace weft::load
