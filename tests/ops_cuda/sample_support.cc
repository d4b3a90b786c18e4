// The CPU's sampler, whose sources are compiled in beside this without the grammar library: the
// matcher is a fake.

#include "tests/ops_cuda/sample_support.h"

#include "grammar/grammar.h"

namespace weft {

struct GrammarMatcher::Parts {};
namespace {
const Constraint* current_constraint = nullptr;  // of the row that is sampled on the CPU
}
GrammarMatcher::GrammarMatcher(const OutputConstraint&) {}
GrammarMatcher::~GrammarMatcher() = default;
bool GrammarMatcher::binds() const {
  return current_constraint->binds;
}
std::span<const uint32_t> GrammarMatcher::mask() {
  return current_constraint->mask;
}
bool GrammarMatcher::may_end() const {
  return current_constraint->may_end;
}

Answer cpu_answer(const Case& c) {
  const auto vocab = static_cast<int64_t>(c.logits.size());
  static ThreadPool pool(1);
  static std::unique_ptr<Sampler> sampler;
  static int64_t sampler_vocab = 0;
  if (sampler_vocab != vocab) sampler = std::make_unique<Sampler>(vocab, 1);
  sampler_vocab = vocab;
  Answer out;
  const auto take = [&](const TokenLogprob& logprob) {
    out.result.logprob = logprob.logprob;
    out.result.num_top = static_cast<int32_t>(logprob.top.size());
    for (const TopLogprob& top : logprob.top) {
      out.top_ids.push_back(top.token);
      out.top_logprobs.push_back(top.logprob);
    }
  };
  if (c.target >= 0) {
    const LogprobRow row{c.logits, c.target, c.params.logprobs};
    LogprobResult result;
    sampler->logprobs(pool, {&row, 1}, {&result, 1});
    out.result.numeric_error = result.numeric_error;
    if (!result.numeric_error) take(result.logprob);
    return out;
  }
  Request request;
  request.prompt = c.prompt;
  request.sampling = c.params;
  request.sampling.max_tokens = 100000;
  TokenHistory history(request, vocab, 100000);
  for (const int32_t id : c.generated) history.append(id);
  std::vector<float> logits = c.logits;
  current_constraint = c.constraint ? &*c.constraint : nullptr;
  GrammarMatcher matcher{OutputConstraint{}};
  const SampleRow row{logits,
                      &c.params,
                      &history,
                      c.position,
                      static_cast<int64_t>(c.generated.size()),
                      c.constraint ? &matcher : nullptr};
  SampledToken token;
  sampler->sample(pool, {&row, 1}, {&token, 1});
  out.result.token = token.token;
  out.result.numeric_error = token.numeric_error;
  if (!token.numeric_error && c.params.logprobs >= 0) take(token.logprob);
  return out;
}

}  // namespace weft
