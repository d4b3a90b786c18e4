// 10^5 distinct schemas (A31): what is compiled for one is not kept for ever, and the last costs
// what the first did.
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

}  // namespace

void run_schemas(const Settings& settings, Report& report) {
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
