// Prefix hits of a hybrid model through the server: prompts with a shared beginning, and chats
// whose turns begin with all that was said before. On a GPU where the machine has one.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/load/scenario.h"

namespace weft::load {
namespace {

constexpr int kShared = 1500, kOwn = 700, kPrompts = 64;
constexpr int kChunk = 64;  // what is reused ends at a multiple of it

/// 64 prompts of 1,500 shared and 700 own tokens, one after another.
void shared_prefixes(Loop& loop, const Settings& settings, Report& report) {
  std::mt19937_64 rng(settings.seed);
  const auto token = [&rng] { return static_cast<int>(300 + rng() % 3000); };
  std::vector<int> shared(kShared);
  std::generate(shared.begin(), shared.end(), token);
  int answered = 0, hits = 0;
  int64_t least = kShared;
  double cold = 0, warm = 0;
  for (int i = 0; i < kPrompts; ++i) {
    std::vector<int> prompt = shared;
    std::generate_n(std::back_inserter(prompt), kOwn, token);
    const nlohmann::json body = {
        {"prompt", prompt}, {"max_tokens", 1}, {"temperature", 0}, {"ignore_eos", true}};
    const Answer answer = ask(loop, request_text("/v1/completions", body.dump()));
    const Usage usage = usage_of(answer);
    answered += answer.status == 200 && usage.prompt == kShared + kOwn;
    (i == 0 ? cold : warm) += answer.seconds / (i == 0 ? 1 : kPrompts - 1);
    if (usage.cached < kShared - kChunk) continue;
    ++hits;
    least = std::min(least, usage.cached);
  }
  report.figures("shared prefix", {{"prompts", kPrompts},
                                   {"hits", hits},
                                   {"least_cached_tokens", static_cast<double>(least)},
                                   {"cold_seconds", cold},
                                   {"warm_seconds_mean", warm}});
  report.check_equal(answered, kPrompts, "prompts answered");
  report.check(hits >= kPrompts - 1, "all prompts but the first reuse the shared part");
  report.check(least >= kShared - kChunk, "they reuse at least 1,436 tokens each");
}

/// Chats of some turns: a turn reuses all but the last tokens of the prompt before it.
void turns(Loop& loop, const Settings& settings, Report& report) {
  std::mt19937_64 rng(settings.seed + 1);
  constexpr int kChats = 4, kTurns = 5;
  int later_turns = 0, enough = 0;
  int64_t most_lost = 0;
  for (int chat = 0; chat < kChats; ++chat) {
    nlohmann::json messages = nlohmann::json::array();
    int64_t before = 0;  // tokens of the earlier prompt
    for (int turn = 0; turn < kTurns; ++turn) {
      std::string text = "Report " + std::to_string(chat) + ".";
      for (int i = 0; i < 40; ++i) text += " item " + std::to_string(rng() % 100'000);
      messages.push_back({{"role", "user"}, {"content", text}});
      const nlohmann::json body = {
          {"messages", messages}, {"max_tokens", 24}, {"temperature", 0}, {"ignore_eos", true}};
      const Answer answer = ask(loop, request_text("/v1/chat/completions", body.dump()));
      const auto json = nlohmann::json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
      if (answer.status != 200) {
        report.check(false, "a turn is answered: " + answer.body);
        return;
      }
      const Usage usage = usage_of(answer);
      if (turn > 0) {
        ++later_turns;
        enough += usage.cached >= before - kChunk;
        most_lost = std::max(most_lost, before - usage.cached);
      }
      before = usage.prompt;
      messages.push_back(
          {{"role", "assistant"}, {"content", json["choices"][0]["message"]["content"]}});
    }
  }
  report.figures(
      "turns", {{"later_turns", later_turns},
                {"most_tokens_of_the_earlier_prompt_not_reused", static_cast<double>(most_lost)}});
  report.check_equal(enough, later_turns, "turns that reuse all but 64 tokens of the one before");
}

}  // namespace

void run_prefixes(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--max-model-len", "8192"});
  Loop loop(server.port());
  shared_prefixes(loop, settings, report);
  turns(loop, settings, report);
  const auto metrics = server.metrics();
  const auto hits = metrics.find("vllm:prefix_cache_hits_total");
  report.check(hits != metrics.end() && hits->second > 0, "the hits are counted");
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left: " + left);
}

}  // namespace weft::load
