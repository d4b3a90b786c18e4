// Acceptance point 9: the same request alone and among 32 random others gives the same bytes, on
// the demo model, through HTTP.
#include <random>

#include "tests/load/scenario.h"

namespace weft::load {
namespace {

constexpr int kOthers = 32;
constexpr const char* kPreemptions = "vllm:num_preemptions_total";

const std::string kStory =
    "Once upon a time there was a small town by a river. Every morning the baker opened the "
    "window, "
    "looked at the water and wrote down what he saw. ";

/// Requests whose answers must not depend on who else is there.
std::vector<std::string> probe_texts() {
  const std::vector<std::string> samplings = {
      R"("temperature": 0)", R"("temperature": 0.9, "seed": 11)",
      R"("temperature": 1.2, "top_p": 0.9, "top_k": 40, "seed": 12, "repetition_penalty": 1.1)"};
  std::string long_text;
  for (int i = 0; i < 24; ++i) long_text += kStory;
  const std::vector<std::string> prompts = {"Calculate 13 + 79.", kStory + "Who was the baker?",
                                            long_text + "How does it end?"};
  std::vector<std::string> out;
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (size_t s = 0; s < samplings.size(); ++s) {
      const bool stream = (p + s) % 2 == 0;
      const std::string rest =
          samplings[s] + R"(, "max_tokens": )" + std::to_string(16 + 9 * s) +
          (stream ? R"(, "stream": true, "stream_options": {"include_usage": true})" : "");
      out.push_back(request_text("/v1/completions",
                                 R"({"prompt": ")" + prompts[p] +
                                     R"(", "logprobs": 5, "ignore_eos": true, )" + rest + "}"));
      out.push_back(request_text("/v1/chat/completions",
                                 R"({"messages": [{"role": "user", "content": ")" + prompts[p] +
                                     R"("}], "logprobs": true, "top_logprobs": 3, )" + rest + "}"));
    }
  }
  return out;
}

/// A server, and what the others ask of it.
struct Place {
  std::string name;
  int stories = 12;     // of a prompt, at most
  int tokens = 40;      // of an answer, at most
  int preemptions = 0;  // that there have to be
};

class Crowd {
 public:
  Crowd(Loop& loop, uint64_t seed, const Place& place) : loop_(loop), rng_(seed), place_(place) {}

  /// Sends a random other after a random moment; some of them leave again before their answer.
  void add_one() {
    const milliseconds when(draw(0, 150));
    const std::string request = make();
    const bool leaves = draw(0, 3) == 0;
    const milliseconds stay(draw(1, 400));
    ++open_;
    loop_.after(when, [this, request, leaves, stay] {
      const auto c = loop_.open();
      if (!c) {
        --open_;
        return;
      }
      c->on_end = [this](Connection&, Connection::End) { --open_; };
      c->send(request);
      if (!leaves) return;
      loop_.after(stay, [this, c] {
        if (c->ended()) return;
        c->close();
        --open_;
        ++num_left_;
      });
    });
  }
  int open() const { return open_; }
  int num_left() const { return num_left_; }

 private:
  int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }

  std::string make() {
    std::string prompt;
    for (int i = draw(0, place_.stories); i > 0; --i) prompt += kStory;  // the probes' prefix: hits
    for (int i = draw(1, 30); i > 0; --i) prompt += " word" + std::to_string(draw(0, 999));
    std::string body = R"({"prompt": ")" + prompt + R"(", "max_tokens": )" +
                       std::to_string(draw(1, place_.tokens)) + R"(, "temperature": )" +
                       std::to_string(draw(0, 2) / 2.0);
    if (draw(0, 4) == 0) body += ", \"n\": 2";
    if (draw(0, 2) == 0) body += ", \"logprobs\": " + std::to_string(draw(0, 5));
    if (draw(0, 3) == 0) body += ", \"presence_penalty\": 0.5";
    if (draw(0, 9) == 0) body += ", \"echo\": true";
    if (draw(0, 2) == 0) body += ", \"priority\": -1";
    if (draw(0, 1) == 0) body += ", \"stream\": true";
    return request_text("/v1/completions", body + "}");
  }

  Loop& loop_;
  std::mt19937_64 rng_;
  const Place& place_;
  int open_ = 0, num_left_ = 0;
};

void compare(WeftServer& server, const Settings& settings, Report& report,
             const std::vector<std::string>& probes, std::vector<std::string>& alone,
             const Place& place) {
  const std::string& name = place.name;
  Loop loop(server.port());
  int wrong_alone = 0;
  for (size_t i = 0; i < probes.size(); ++i) {
    for (int again = 0; again < 2; ++again) {  // cold, then with its prefix in the cache
      const Answer answer = ask(loop, probes[i]);
      const std::string body = without_identity(answer.body);
      if (alone.size() == i && answer.status == 200) alone.push_back(body);
      wrong_alone += answer.status != 200 || !answer.complete || alone[i] != body;
    }
  }
  report.check_equal(wrong_alone, 0, "answers alone that differ when asked again, " + name);
  std::mt19937_64 rng(settings.seed);
  Crowd crowd(loop, settings.seed + 1, place);
  const int rounds = settings.full ? 60 : 3;
  int compared = 0, different = 0;
  int round = 0;
  const auto enough = [&] {
    return round >= rounds && (place.preemptions == 0 || round >= 40 ||
                               server.metrics()[kPreemptions] >= place.preemptions);
  };
  for (; !enough(); ++round) {
    for (int i = 0; i < kOthers; ++i) crowd.add_one();
    int under_way = 0;
    for (int k = 0; k < 6; ++k) {
      const size_t i = rng() % probes.size();
      ++under_way;
      loop.after(milliseconds(rng() % 200), [&, i] {
        const auto c = loop.open();
        c->on_end = [&, i](Connection& self, Connection::End how) {
          --under_way;
          ++compared;
          const bool same =
              how == Connection::End::kComplete && without_identity(self.body()) == alone[i];
          if (!same && different++ == 0) {
            report.check(
                false, "alone:\n" + alone[i] + "\namong others:\n" + without_identity(self.body()));
          }
        };
        c->send(probes[i]);
      });
    }
    loop.run(Clock::now() + std::chrono::minutes(2),
             [&] { return under_way == 0 && crowd.open() == 0; });
  }
  const auto metrics = server.metrics();
  const auto metric = [&metrics](const char* key) {
    const auto it = metrics.find(key);
    return it == metrics.end() ? -1 : it->second;
  };
  report.figures(name, {{"compared", compared},
                        {"rounds", round},
                        {"others", round * kOthers},
                        {"others_that_left", crowd.num_left()},
                        {"prefix_hit_tokens", metric("vllm:prefix_cache_hits_total")},
                        {"preemptions", metric(kPreemptions)}});
  report.check_equal(compared, 6 * round, "answers compared, " + name);
  report.check_equal(different, 0, "answers that differ from those alone, " + name);
  report.check(metric(kPreemptions) >= place.preemptions, "there were preemptions, " + name);
  report.check(metric("vllm:prefix_cache_hits_total") > 0, "there were prefix hits, " + name);
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left, " + name + ": " + left);
}

}  // namespace

void run_exactness(const Settings& settings, Report& report) {
  const std::vector<std::string> probes = probe_texts();
  std::vector<std::string> alone;
  {
    WeftServer server(settings.weft, {"--max-model-len", "4096"});
    compare(server, settings, report, probes, alone, {"roomy server"});
  }
  {  // Few sequences at once, small steps: queueing, chunks. The answers are those of the other.
    WeftServer server(settings.weft, {"--max-model-len", "4096", "--max-num-seqs", "12",
                                      "--max-num-batched-tokens", "128"});
    compare(server, settings, report, probes, alone, {"narrow server"});
  }
  // Hardly more cache than one long request needs: others are thrown out in the middle and begin
  // again.
  WeftServer server(settings.weft, {"--max-model-len", "1280", "--kv-cache-memory", "13M",
                                    "--max-num-seqs", "12", "--max-num-batched-tokens", "256"});
  compare(server, settings, report, probes, alone, {"server without room", 24, 200, 4});
}

}  // namespace weft::load
