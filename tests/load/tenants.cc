// Two holders of keys on one server (A61, A62, A64): what one asks is neither seen nor felt in the
// answers of the other. And who has no key (A60) finds nothing open by guessing.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "app/bench_serve_metrics.h"
#include "tests/load/scenario.h"

namespace weft::load {
namespace {

const std::string kAlice = "Authorization: Bearer alice-key\r\n";
const std::string kBob = "Authorization: Bearer bob-key\r\n";

std::vector<std::string> with_keys(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"--api-key", "alice-key", "--api-key", "bob-key"});
  return arguments;
}

/// A text of some `words` words that nobody has asked before.
std::string fresh_text(std::mt19937_64& rng, int words) {
  std::string out = "Report";
  for (int i = 0; i < words; ++i) out += " item " + std::to_string(rng() % 100'000);
  return out + ".";
}

std::string completion(const std::string& prompt, const std::string& more, const std::string& key) {
  const nlohmann::json text = prompt;
  return request_text("/v1/completions", R"({"prompt": )" + text.dump() + ", " + more + "}", key);
}

/// One token: the time of the answer is that to the first token.
Answer probe(Loop& loop, const std::string& prompt, const std::string& key) {
  return ask(loop, completion(prompt, R"("max_tokens": 1, "temperature": 0)", key));
}

/// The chance that one of `a` is larger than one of `b` (ties half): area under the ROC curve.
double auc(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> sorted = b;
  std::sort(sorted.begin(), sorted.end());
  double wins = 0;
  for (const double x : a) {
    const auto [low, high] = std::equal_range(sorted.begin(), sorted.end(), x);
    wins += static_cast<double>((low - sorted.begin()) + (high - sorted.begin())) / 2;
  }
  return wins / static_cast<double>(a.size()) / static_cast<double>(b.size());
}

/// A60: thousands of guessed paths, made of the routes' own parts and of what other servers leave
/// open, each with a method at random: without a key only /health answers.
void guessed_routes(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, with_keys({"--device", "fake"}));
  Loop loop(server.port());
  std::mt19937_64 rng(settings.seed + 2);
  const std::vector<std::string> parts = {"v1",
                                          "chat",
                                          "completions",
                                          "models",
                                          "tokenize",
                                          "detokenize",
                                          "health",
                                          "ready",
                                          "metrics",
                                          "version",
                                          "load",
                                          "weft",
                                          "live",
                                          "assets",
                                          "app.js",
                                          "fake",
                                          "invocations",
                                          "ping",
                                          "pause",
                                          "resume",
                                          "sleep",
                                          "wake_up",
                                          "update_weights",
                                          "server_info",
                                          "reset_prefix_cache",
                                          "embeddings",
                                          "responses",
                                          "docs",
                                          "openapi.json",
                                          "admin",
                                          "..%2fhealth",
                                          "health%2f",
                                          "%68ealth",
                                          "HEALTH",
                                          "health?x",
                                          "health%3f",
                                          "health#",
                                          ".health",
                                          "*",
                                          "",
                                          "~",
                                          "favicon.ico"};
  const char* const methods[] = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"};
  const int n = settings.full ? 10'000 : 1000;
  int open = 0, health = 0, broken = 0;
  std::string first;
  for (int i = 0; i < n; ++i) {
    std::string path;
    for (uint64_t k = 1 + rng() % 4; k > 0; --k) path += "/" + parts[rng() % parts.size()];
    if (i == 0) path = "/health";
    const std::string method = i == 0 ? "GET" : methods[rng() % std::size(methods)];
    const Answer answer = ask(loop, method + " " + path +
                                        " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                                        "Content-Length: 2\r\nConnection: close\r\n\r\n{}");
    const bool is_health = path == "/health" || path == "/%68ealth" ||
                           path.starts_with("/health?") || path.starts_with("/%68ealth?");
    health += is_health && answer.status == 200;
    broken += answer.status < 200 || answer.status >= 500;
    if (!is_health && answer.status < 400) {
      ++open;
      if (first.empty()) first = method + " " + path + " " + std::to_string(answer.status);
    }
  }
  report.figures("guessed routes", {{"guesses", n}, {"health", health}});
  report.check_equal(open, 0, "routes open without a key " + first);
  report.check_equal(broken, 0, "guesses without a proper answer");
  report.check(health > 0, "/health needs no key");
}

/// A61: the time to the first token and cached_tokens tell Bob nothing of what Alice has asked.
void prefix_probe(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, with_keys({"--max-model-len", "4096"}));
  Loop loop(server.port());
  std::mt19937_64 rng(settings.seed);
  const int rounds = settings.full ? 3000 : 150;
  std::vector<double> asked, unasked, own, own_unasked;  // s
  int64_t alices_hits = 0, bobs_hits = 0, rounds_with_hit = 0;
  for (int i = 0; i < rounds; ++i) {
    const std::string secret = fresh_text(rng, 40);
    probe(loop, secret, kAlice);
    const bool secret_first = rng() % 2 == 0;
    for (const bool first : {true, false}) {
      const bool guess = first == secret_first;
      const Answer answer = probe(loop, guess ? secret : fresh_text(rng, 40), kBob);
      (guess ? asked : unasked).push_back(answer.seconds);
      bobs_hits += usage_of(answer).cached;
    }
    const Answer again = probe(loop, secret, kAlice);
    own.push_back(again.seconds);
    own_unasked.push_back(probe(loop, fresh_text(rng, 40), kAlice).seconds);
    alices_hits += usage_of(again).cached;
    rounds_with_hit += usage_of(again).cached > 0;
  }
  const double across = auc(unasked, asked), within = auc(own_unasked, own);
  const double sigma = std::sqrt((2.0 * rounds + 1) / (12.0 * rounds * rounds));
  report.figures("prefix probe", {{"rounds", rounds},
                                  {"auc_across_keys", across},
                                  {"auc_within_a_key", within},
                                  {"sigma", sigma},
                                  {"median_ms_asked_by_another", percentile(asked, 50) * 1000},
                                  {"median_ms_asked_by_nobody", percentile(unasked, 50) * 1000},
                                  {"median_ms_own", percentile(own, 50) * 1000}});
  report.check_equal(bobs_hits, 0, "cached tokens that Bob is told of");
  report.check_equal(rounds_with_hit, rounds, "prompts of her own that Alice finds cached");
  report.check_equal(server.metrics()["weft:reused_tokens_total"], static_cast<double>(alices_hits),
                     "tokens reused in all against those that Alice was told of");
  report.check(within > 0.8, "the probe sees a hit where there is one");
  // 0.02 beside what chance does in so few rounds.
  report.check_at_most(std::abs(across - 0.5), 0.02 + 3 * sigma, "AUC across keys, from 0.5");
}

/// A62: Bob fills the cache as fast as he can; Alice's answers stay the same to the bit.
void eviction_flood(const Settings& settings, Report& report) {
  WeftServer server(settings.weft,
                    with_keys({"--max-model-len", "1024", "--kv-cache-memory", "24M"}));
  Loop loop(server.port());
  std::mt19937_64 rng(settings.seed);
  const std::string more = R"("max_tokens": 24, "seed": 5, "ignore_eos": true, "logprobs": 3, )";
  Victim victim(loop, completion(fresh_text(rng, 30), more + R"("stream": true)", kAlice));
  victim.start();
  int flooded = 0, refused = 0;
  bool going = true;
  std::function<void()> flood = [&] {
    if (!going) return;
    const auto c = loop.open();
    c->on_end = [&](Connection& self, Connection::End) {
      ++(self.status() == 200 ? flooded : refused);
      flood();
    };
    c->send(completion(fresh_text(rng, 100 + static_cast<int>(rng() % 20)), R"("max_tokens": 2)",
                       kBob));
  };
  const auto before = server.metrics();
  for (int i = 0; i < 16; ++i) flood();
  loop.run_for(milliseconds(settings.full ? 60'000 : 6000));
  going = false;
  victim.stop();
  loop.run(Clock::now() + std::chrono::seconds(60), [&] { return loop.num_open() == 0; });
  auto after = server.metrics();
  const double evicted =
      after["weft:block_evictions_total"] - before.at("weft:block_evictions_total");
  report.figures("eviction flood", {{"requests_of_the_flood", flooded},
                                    {"blocks_evicted", evicted},
                                    {"answers_of_the_victim", victim.num_answers()},
                                    {"gap_p99_ms_alone", victim.gap_p99_alone() * 1000},
                                    {"gap_p99_ms", victim.gap_p99() * 1000}});
  report.check(evicted > 100 && flooded > 20, "the flood pushed blocks out of the cache");
  report.check_equal(refused, 0, "requests of the flood that failed");
  report.check(victim.num_answers() > 2, "the victim's answers went on");
  report.check_equal(victim.num_different(), 0, "answers of the victim that differ, flood");
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left after the flood: " + left);
}

constexpr std::string_view kCanary = "xq7canary";

bool has_canary(std::string_view text) {
  std::string lower;
  for (const char c : text) lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower.find(kCanary) != std::string::npos;
}

/// What Alice writes: her secret in every place that takes a text, also where it is refused.
std::vector<std::string> secret_requests() {
  const std::string s = "XQ7CANARY-" + std::string("0451");
  const std::string user = R"({"role": "user", "content": "My secret is )" + s + R"( keep it."})";
  const auto chat = [&](const std::string& more) {
    return request_text("/v1/chat/completions",
                        R"({"max_tokens": 12, "messages": [)" + user + "]" + more + "}", kAlice);
  };
  return {
      chat(""),
      chat(R"(, "stream": true, "logprobs": true, "top_logprobs": 3)"),
      chat(R"(, "cache_salt": ")" + s + R"(", "user": ")" + s + R"(", "stop": [")" + s + "\"]"),
      chat(R"(, "tools": [{"type": "function", "function": {"name": ")" + s +
           R"(", "description": ")" + s + R"(", "parameters": {"type": "object"}}}])"),
      chat(R"(, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema":
             {"type": "object", "properties": {")" +
           s + R"(": {"const": ")" + s + R"("}}}}})"),
      chat(R"(, "structured_outputs": {"regex": "()" + s + R"("})"),  // refused
      chat(R"(, "model": ")" + s + "\""),                             // refused
      chat(R"(, "chat_template_kwargs": {")" + s + R"(": ")" + s + "\"}"),
      request_text("/v1/completions",
                   R"({"prompt": ")" + s + R"(", "echo": true, "max_tokens": 4, "n": 2})", kAlice),
      request_text("/tokenize", R"({"prompt": ")" + s + "\"}", kAlice),
      request_text("/v1/chat/completions", "{\"" + s + "\": ", kAlice),  // no JSON
      request_text("/" + s, "", kAlice),
  };
}

/// What Bob asks, of every route and kind; the answers are functions of the request.
std::vector<std::string> curious_requests(std::mt19937_64& rng, int n) {
  std::vector<std::string> out;
  for (int i = 0; i < n; ++i) {
    const std::string prompt = i % 3 == 0 ? "My secret is" : fresh_text(rng, 1 + i % 60);
    const std::string sampling = i % 2 == 0 ? R"("temperature": 0)" : R"("seed": 9, "top_p": 0.9)";
    out.push_back(completion(
        prompt,
        sampling + R"(, "max_tokens": 16, "ignore_eos": true, "logprobs": 5, "echo": )" +
            (i % 4 == 0 ? "true" : "false") + R"(, "stream": )" + (i % 5 == 0 ? "true" : "false"),
        kBob));
  }
  return out;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

/// A64: nothing of Alice's requests in anything that Bob or the operator gets, and Bob's answers
/// are those of a server that has never seen her: no memory that was hers shines through.
void memory_scrape(const Settings& settings, Report& report) {
  const std::string trace = scratch_directory() + "/tenants_trace.json";
  const std::vector<std::string> arguments = {"--max-model-len", "1024", "--kv-cache-memory", "24M",
                                              "--enable-log-requests"};
  std::mt19937_64 rng(settings.seed + 1);
  const auto curious = curious_requests(rng, settings.full ? 1200 : 60);
  std::vector<std::string> innocent;
  {
    WeftServer server(settings.weft, with_keys(arguments));
    Loop loop(server.port());
    for (const std::string& request : curious) {
      innocent.push_back(without_identity(ask(loop, request).body));
    }
  }
  std::vector<std::string> with_trace = arguments;
  with_trace.insert(with_trace.end(), {"--trace-file", trace});
  WeftServer server(settings.weft, with_keys(with_trace));
  Loop loop(server.port());
  const std::vector<std::string> secret = secret_requests();
  int seen = 0, different = 0;
  for (size_t i = 0; i < curious.size(); ++i) {
    for (int k = 0; k < 3; ++k) {  // beside Bob's, and before it
      loop.open()->send(secret[rng() % secret.size()]);
    }
    const Answer answer = ask(loop, curious[i]);
    seen += has_canary(answer.head + answer.body);
    different += without_identity(answer.body) != innocent[i];
  }
  loop.run(Clock::now() + std::chrono::seconds(60), [&] { return loop.num_open() == 0; });
  for (const char* route : {"/metrics", "/weft/live", "/v1/models", "/load", "/health", "/ready",
                            "/version", "/nothing", "/"}) {
    seen += has_canary(ask(loop, request_text(route, "", kBob)).body);
  }
  report.figures("memory scrape", {{"answers", static_cast<double>(curious.size())}});
  report.check_equal(seen, 0, "answers to Bob with Alice's secret");
  report.check_equal(different, 0, "answers to Bob that differ from those of a server without her");
  report.check(!has_canary(server.process().log()), "no secret in the log");
  server.process().signal(SIGTERM);
  report.check(server.process().wait(milliseconds(10'000)) == 0, "the server ends");
  const std::string spans = read_file(trace);
  report.check(spans.size() > 1000 && !has_canary(spans), "no secret in the trace");
}

}  // namespace

void run_tenants(const Settings& settings, Report& report) {
  guessed_routes(settings, report);
  prefix_probe(settings, report);
  eviction_flood(settings, report);
  memory_scrape(settings, report);
}

}  // namespace weft::load
