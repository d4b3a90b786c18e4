// What an n-gram draft costs on one core: a step appends the accepted tokens of each sequence and
// proposes the next drafts. JSON lines: microseconds a step and sequence, by context length, and
// what the prompt's index cost. usage: ngram_bench [SEQUENCES=256] [STEPS=50]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <vector>

#include "sched/ngram_matcher.h"

namespace {

/// CPU seconds of this thread: a busy machine does not count.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Text whose frequencies are Zipf's over `vocab` tokens, with every tenth sentence a copy of an
/// earlier one; or one token without end, when everything matches.
std::vector<int32_t> text(size_t length, bool loop, std::mt19937& random) {
  constexpr double kVocab = 32000;
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<int32_t> out;
  while (out.size() < length) {
    const size_t sentence = 10 + random() % 20;
    const bool copy = out.size() > 1000 && random() % 10 == 0;
    const size_t from = copy ? random() % (out.size() - sentence) : 0;
    for (size_t i = 0; i < sentence; ++i) {
      const int32_t fresh = static_cast<int32_t>(std::exp(uniform(random) * std::log(kVocab)));
      out.push_back(loop ? 7 : copy ? out[from + i] : fresh);
    }
  }
  out.resize(length);
  return out;
}

void measure(size_t sequences, size_t steps, size_t context, bool loop) {
  constexpr size_t kAccepted = 2, kDrafts = 5;
  std::mt19937 random(1);
  std::vector<weft::NgramMatcher> matchers;
  std::vector<std::vector<int32_t>> answers;
  const double start = cpu_seconds();
  double made = 0;
  for (size_t s = 0; s < sequences; ++s) {
    const double before = cpu_seconds();
    const std::vector<int32_t> all = text(context + steps * kAccepted, loop, random);
    made += cpu_seconds() - before;
    matchers.emplace_back(2, 5, static_cast<int64_t>(all.size()));
    matchers.back().append(std::span(all).first(context));
    answers.emplace_back(all.begin() + static_cast<ptrdiff_t>(context), all.end());
  }
  const double index = cpu_seconds() - start - made;
  std::vector<double> times;
  size_t proposed = 0;
  int32_t draft[kDrafts];
  for (size_t step = 0; step < steps; ++step) {
    const double before = cpu_seconds();
    for (size_t s = 0; s < sequences; ++s) {
      matchers[s].append(std::span(answers[s]).subspan(step * kAccepted, kAccepted));
      proposed += static_cast<size_t>(matchers[s].propose(draft).num_tokens);
    }
    times.push_back(1e6 * (cpu_seconds() - before) / static_cast<double>(sequences));
  }
  std::sort(times.begin(), times.end());
  std::printf(
      "{\"text\":\"%s\",\"context\":%zu,\"sequences\":%zu,\"us_a_sequence_median\":%.3f,"
      "\"us_a_sequence_max\":%.3f,\"us_a_step_median\":%.1f,\"index_ns_a_token\":%.1f,"
      "\"drafts_a_proposal\":%.2f}\n",
      loop ? "loop" : "zipf", context, sequences, times[times.size() / 2], times.back(),
      times[times.size() / 2] * static_cast<double>(sequences),
      1e9 * index / static_cast<double>(sequences * context),
      static_cast<double>(proposed) / static_cast<double>(sequences * steps));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t sequences = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 256;
  const size_t steps = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 50;
  if (sequences == 0 || steps == 0) {
    std::fprintf(stderr, "usage: ngram_bench [SEQUENCES=256] [STEPS=50]\n");
    return 2;
  }
  for (const size_t context : {2048, 8192, 32768}) {
    measure(sequences, steps, context, false);
  }
  measure(sequences, steps, 32768, true);
  return 0;
}
