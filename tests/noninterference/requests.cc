#include "tests/noninterference/requests.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>

#include "media/positions.h"

namespace weft {
namespace {

constexpr size_t kNumBases = 3;

bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

bool same_bits(const TokenLogprob& a, const TokenLogprob& b) {
  if (!same_bits(a.logprob, b.logprob) || a.top.size() != b.top.size()) return false;
  for (size_t i = 0; i < a.top.size(); ++i) {
    if (a.top[i].token != b.top[i].token || !same_bits(a.top[i].logprob, b.top[i].logprob)) {
      return false;
    }
  }
  return true;
}

std::string logprob_difference(const char* what, const std::vector<TokenLogprob>& want,
                               const std::vector<TokenLogprob>& got) {
  for (size_t i = 0; i < std::min(want.size(), got.size()); ++i) {
    if (!same_bits(want[i], got[i])) {
      return fmt::format(
          "{} {} or its alternatives differ: alone {:.9g} ({:08x}), together {:.9g} ({:08x})", what,
          i, want[i].logprob, std::bit_cast<uint32_t>(want[i].logprob), got[i].logprob,
          std::bit_cast<uint32_t>(got[i].logprob));
    }
  }
  return "";
}

/// Grammars over texts that tokens are given for this purpose: one to three letters by their id.
std::vector<std::shared_ptr<const TokenGrammar>> make_grammars(int32_t vocab_size) {
  std::vector<std::string> texts;
  for (int32_t id = 0; id < vocab_size; ++id) {
    std::string text;
    for (int32_t rest = id; text.empty() || rest > 0; rest /= 8) {
      text += static_cast<char>('a' + rest % 8);
      if (text.size() == 3) break;
    }
    texts.push_back(text);
  }
  const auto vocab = GrammarVocab::build(
      vocab_size, [&](int32_t id) { return std::string_view(texts[static_cast<size_t>(id)]); });
  std::vector<std::shared_ptr<const TokenGrammar>> out;
  for (const char* regex : {"([a-d]+e)*", "(ab|ba|[c-h]{2,9}a){3,40}", "[a-h]{5,30}"}) {
    out.push_back(TokenGrammar::make(grammar_from_regex(regex, "regex").value(), vocab));
  }
  out.push_back(TokenGrammar::make(
      grammar_from_ebnf("root ::= \"a\" root \"b\" | [c-h] root | \"\"\n", "ebnf").value(), vocab));
  return out;
}

/// Positions of a prompt with images. Where one follows another of its size they are a video's
/// groups of frames, 2 positions apart.
void place(Request& request) {
  if (request.images.empty()) return;
  std::vector<TokenGrid> grids;
  for (const PromptImage& image : request.images) {
    const TokenGrid grid{
        .first = image.first, .h = image.content->h / 2, .w = image.content->w / 2, .seconds = 2};
    if (!grids.empty() && grids.back().first + grids.back().tokens() == grid.first &&
        grids.back().h == grid.h && grids.back().w == grid.w) {
      ++grids.back().t;
    } else {
      grids.push_back(grid);
    }
  }
  PromptPositions positions = prompt_positions(grids, std::ssize(request.prompt));
  request.positions = std::move(positions.triples);
  request.rope_delta = positions.rope_delta;
}

}  // namespace

RequestMaker::RequestMaker(uint64_t seed, int32_t vocab_size, int64_t max_model_len,
                           const VisionSpec* vision)
    : rng_(seed),
      vocab_size_(vocab_size),
      max_model_len_(max_model_len),
      grammars_(make_grammars(vocab_size)) {
  // Half of the rounds of an image family: enough pictures for few to be seen twice, or not.
  for (int i = vision ? static_cast<int>(2 + below(4)) : 0; i > 0; --i) {
    auto picture = std::make_shared<ImagePatches>();
    picture->h = static_cast<int>(2 * (1 + below(6)));
    picture->w = static_cast<int>(2 * (1 + below(8)));
    picture->num_tokens = int64_t{picture->h} * picture->w / 4;
    for (uint8_t& byte : picture->digest) byte = static_cast<uint8_t>(rng_());
    for (float& value : picture->values) value = static_cast<float>(below(2001)) / 1000.0f - 1.0f;
    const int64_t samples = int64_t{picture->h} * picture->w * vision->patch_values();
    for (int64_t j = 0; j < samples; ++j) {
      picture->samples.push_back(static_cast<uint8_t>(rng_()));
    }
    pictures_.push_back(std::move(picture));
  }
  for (size_t i = 0; i < kNumBases; ++i) {
    Text base;
    // The third begins as the first does: a branch inside a prompt.
    if (i == 2) base.tokens.assign(bases_[0].tokens.begin(), bases_[0].tokens.begin() + 20);
    while (base.tokens.size() < 420) {
      if (one_in(60)) {
        add_image(base);
      } else {
        base.tokens.push_back(token());
      }
    }
    bases_.push_back(std::move(base));
  }
}

void RequestMaker::add_image(Text& text) {
  if (pictures_.empty()) return;
  const auto& picture = pictures_[below(static_cast<uint32_t>(pictures_.size()))];
  // Small ones at times several times: a video.
  int64_t times = one_in(3) ? std::min<int64_t>(2 + below(3), 48 / picture->num_tokens) : 1;
  for (times = std::max<int64_t>(times, 1); times > 0; --times) {
    text.images.push_back({std::ssize(text.tokens), picture});
    text.tokens.insert(text.tokens.end(), static_cast<size_t>(picture->num_tokens), 7);
  }
}

void RequestMaker::append_beginning(const Text& from, size_t length, Request& to) {
  auto end = static_cast<int64_t>(length);
  const int64_t first = std::ssize(to.prompt);
  for (const PromptImage& image : from.images) {
    if (image.first >= end) break;
    end = std::max(end, image.end());
    to.images.push_back({first + image.first, image.content});
  }
  to.prompt.insert(to.prompt.end(), from.tokens.begin(), from.tokens.begin() + end);
}

void RequestMaker::choose_sampling(SamplingParams& p) {
  p.temperature = one_in(3) ? 0.0f : 0.5f + static_cast<float>(below(10)) / 10.0f;
  if (one_in(4)) p.top_k = static_cast<int>(1 + below(40));
  if (one_in(4)) p.top_p = 0.5f + static_cast<float>(below(50)) / 100.0f;
  if (one_in(6)) p.min_p = static_cast<float>(below(20)) / 100.0f;
  if (one_in(4)) p.repetition_penalty = 1.0f + static_cast<float>(below(5)) / 10.0f;
  if (one_in(4)) p.presence_penalty = static_cast<float>(below(20)) / 10.0f;
  if (one_in(4)) p.frequency_penalty = static_cast<float>(below(20)) / 10.0f;
  if (one_in(6)) p.logit_bias = {{token(), 2.0f}, {token(), -100.0f}};
  if (one_in(8)) p.banned_ids = {token(), token()};
  if (one_in(12)) {
    for (int i = 0; i < 12; ++i) p.allowed_ids.push_back(token());
  }
  for (uint32_t i = below(5); i > 0; --i) p.stop_ids.push_back(token());
  if (one_in(3)) p.min_tokens = static_cast<int>(below(10));
  p.max_tokens = static_cast<int>(1 + below(one_in(3) ? 90 : 24));
  p.seed = rng_();
  p.logprobs = one_in(4) ? -1 : static_cast<int>(below(6));
  if (one_in(8)) p.prompt_logprobs = static_cast<int>(below(3));
}

std::shared_ptr<Request> RequestMaker::make(SeqId id) {
  auto request = std::make_shared<Request>();
  request->id = id;
  choose_sampling(request->sampling);
  if (!one_in(5)) {
    const Text& base = bases_[below(kNumBases)];
    append_beginning(base, one_in(3) ? 64 * (1 + below(5)) : 1 + below(420), *request);
  }
  if (one_in(4)) {
    Text own;
    for (uint32_t i = below(3); i > 0; --i) add_image(own);
    append_beginning(own, own.tokens.size(), *request);
  }
  const uint32_t own = one_in(3) ? below(6) : below(150);
  for (uint32_t i = 0; i < own || request->prompt.empty(); ++i) request->prompt.push_back(token());
  place(*request);
  const auto room = max_model_len_ - static_cast<int64_t>(request->prompt.size()) -
                    std::max(request->rope_delta, 0);
  if (request->sampling.max_tokens > room) request->sampling.max_tokens = static_cast<int>(room);
  if (one_in(8)) request->cache_salt = "other";
  request->priority = static_cast<int>(below(3)) - 1;
  if (one_in(5) && request->sampling.allowed_ids.empty()) {
    OutputConstraint constraint{.grammar =
                                    grammars_[below(static_cast<uint32_t>(grammars_.size()))]};
    if (one_in(4)) constraint.begins_after = token();
    request->constraint = std::make_shared<const OutputConstraint>(std::move(constraint));
  }
  return request;
}

std::string difference(const Answer& want, const Answer& got, bool aborted) {
  const size_t both = std::min(want.tokens.size(), got.tokens.size());
  for (size_t i = 0; i < both; ++i) {
    if (want.tokens[i] != got.tokens[i]) {
      return fmt::format("token {} differs: alone {}, together {}", i, want.tokens[i],
                         got.tokens[i]);
    }
  }
  std::string text = logprob_difference("logprob", want.logprobs, got.logprobs);
  if (text.empty()) {
    text = logprob_difference("prompt logprob", want.prompt_logprobs, got.prompt_logprobs);
  }
  if (!text.empty()) return text;
  if (got.tokens.size() > want.tokens.size() || got.logprobs.size() > want.logprobs.size() ||
      got.prompt_logprobs.size() > want.prompt_logprobs.size()) {
    return "more came than alone";
  }
  if (aborted) return "";
  if (got.tokens.size() != want.tokens.size() || got.logprobs.size() != want.logprobs.size() ||
      got.prompt_logprobs.size() != want.prompt_logprobs.size()) {
    return fmt::format("alone {} tokens, {} logprobs, {} prompt logprobs; together {}, {}, {}",
                       want.tokens.size(), want.logprobs.size(), want.prompt_logprobs.size(),
                       got.tokens.size(), got.logprobs.size(), got.prompt_logprobs.size());
  }
  if (want.finish != got.finish) return "finish reasons differ";
  return "";
}

std::string describe(const Request& r) {
  const SamplingParams& p = r.sampling;
  return fmt::format(
      "request {}: prompt [{}], temperature {} top_k {} top_p {} min_p {} repetition {} presence "
      "{} frequency {} bias {} banned [{}] allowed [{}] stop [{}] min {} max {} seed {} logprobs "
      "{} "
      "prompt_logprobs {} salt '{}' priority {} images {}",
      r.id.value, fmt::join(r.prompt, " "), p.temperature, p.top_k, p.top_p, p.min_p,
      p.repetition_penalty, p.presence_penalty, p.frequency_penalty, p.logit_bias.size(),
      fmt::join(p.banned_ids, " "), fmt::join(p.allowed_ids, " "), fmt::join(p.stop_ids, " "),
      p.min_tokens, p.max_tokens, p.seed, p.logprobs, p.prompt_logprobs, r.cache_salt, r.priority,
      r.images.size());
}

}  // namespace weft
