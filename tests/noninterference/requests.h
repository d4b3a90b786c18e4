#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "nn/specs.h"
#include "sched/request.h"

namespace weft {

/// Everything of a request that its answer may depend on, and the answer.
struct Answer {
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  std::vector<TokenLogprob> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
};

/// Requests that share beginnings of a few base prompts, of every kind of sampling.
class RequestMaker {
 public:
  /// `vision` may be null: texts alone.
  RequestMaker(uint64_t seed, int32_t vocab_size, int64_t max_model_len, const VisionSpec* vision);
  std::shared_ptr<Request> make(SeqId id);

 private:
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(rng_() % n); }
  bool one_in(uint32_t n) { return below(n) == 0; }
  int32_t token() { return static_cast<int32_t>(below(static_cast<uint32_t>(vocab_size_))); }
  void choose_sampling(SamplingParams& params);
  /// Tokens, and images among them.
  struct Text {
    std::vector<int32_t> tokens;
    std::vector<PromptImage> images;
  };
  void add_image(Text& text);
  /// The first `length` tokens, and a few more where they would cut an image.
  static void append_beginning(const Text& from, size_t length, Request& to);

  std::mt19937_64 rng_;
  int32_t vocab_size_;
  int64_t max_model_len_;
  std::vector<std::shared_ptr<const ImagePatches>> pictures_;
  std::vector<Text> bases_;
  std::vector<std::shared_ptr<const TokenGrammar>> grammars_;
};

/// "" if `got` is bit-equal to `want`; else where they differ. `aborted`: got may be a beginning.
std::string difference(const Answer& want, const Answer& got, bool aborted);

std::string describe(const Request& request);

}  // namespace weft
