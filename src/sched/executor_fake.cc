#include "sched/executor_fake.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"

namespace weft {

namespace {

constexpr uint64_t kEmptyPrefix = 0x77656674;  // hash of no token

uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t extend(uint64_t prefix, uint64_t symbol, Arithmetic arithmetic, bool mixed) {
  const uint64_t kind = mixed ? 0 : static_cast<uint64_t>(arithmetic) + 1;
  return mix(prefix ^ (symbol << 8) ^ kind);
}

uint64_t symbol_of(int32_t token) {
  return static_cast<uint32_t>(token);
}

uint64_t content_of(const ImagePatches& image) {
  uint64_t out = 0;
  for (const uint8_t byte : image.digest) out = mix(out + byte);
  return out;
}

/// A prompt token, or the piece of the image that it stands for.
uint64_t symbol_of(const Request& request, size_t index) {
  const auto at = static_cast<int64_t>(index);
  for (const PromptImage& image : request.images) {
    if (at < image.first || at >= image.end()) continue;
    return mix(content_of(*image.content) + static_cast<uint64_t>(at - image.first)) >> 8;
  }
  return symbol_of(request.prompt[index]);
}

/// The hash of no token, for a prompt that is computed by what its first tokens decided.
uint64_t root_of(const Request& request, const FakeExecutorConfig& config) {
  uint64_t root = kEmptyPrefix;
  if (std::ssize(request.prompt) < config.sparse_from) root = mix(root ^ 1);
  const int64_t window = std::min(static_cast<int64_t>(request.prompt.size()), config.plan_tokens);
  for (int64_t i = 0; i < window; ++i) {
    root = mix(root ^ symbol_of(request.prompt[static_cast<size_t>(i)]));
  }
  return root;
}

struct Draw {
  int32_t token = 0;
  bool numeric_error = false;
};

Draw draw(uint64_t prefix, uint64_t seed, const FakeExecutorConfig& config) {
  const uint64_t h = mix(prefix + mix(seed));
  Draw d;
  d.token = static_cast<int32_t>(h % static_cast<uint64_t>(config.vocab));
  d.numeric_error = config.numeric_error_in > 0 &&
                    (h >> 32) % static_cast<uint64_t>(config.numeric_error_in) == 0;
  return d;
}

/// The token, or where the grammar forbids it another one that it allows; takes it. -1: the grammar
/// doesn't take it after all, the bound of its work is met. `ends`: nothing may follow.
int32_t constrain(GrammarMatcher& grammar, int32_t token, const SamplingParams& sampling,
                  int64_t num_generated, bool& ends) {
  const std::vector<int32_t>& stops = sampling.stop_ids;
  const auto is_stop = [&](int32_t id) {
    return std::find(stops.begin(), stops.end(), id) != stops.end();
  };
  if (grammar.binds()) {
    const std::span<const uint32_t> mask = grammar.mask();
    std::vector<int32_t> allowed;
    for (size_t i = 0; i < 32 * mask.size(); ++i) {
      const auto id = static_cast<int32_t>(i);
      if (((mask[i / 32] >> (i % 32)) & 1) != 0 && !is_stop(id)) allowed.push_back(id);
    }
    if (grammar.may_end() && (num_generated >= sampling.min_tokens || allowed.empty())) {
      allowed.insert(allowed.end(), stops.begin(), stops.end());
    }
    if (allowed.empty()) return token;  // over already: the row is discarded
    if (std::find(allowed.begin(), allowed.end(), token) == allowed.end()) {
      token = allowed[static_cast<size_t>(token) % allowed.size()];
    }
    if (is_stop(token)) return token;
  } else if (is_stop(token)) {
    token = 0;  // the thought ends first: no stop id within it
  }
  if (!grammar.accept(token)) return -1;
  ends = grammar.exhausted();
  return token;
}

std::string where(const Slice& slice) {
  return "sequence " + std::to_string(slice.seq.value) + " at " + std::to_string(slice.first);
}

}  // namespace

FakeExecutor::FakeExecutor(const FakeExecutorConfig& config)
    : config_(config),
      kv_(static_cast<size_t>(config.num_blocks) * static_cast<size_t>(config.block_size)),
      host_kv_(static_cast<size_t>(config.num_swap_blocks) *
               static_cast<size_t>(config.block_size)),
      states_(static_cast<size_t>(config.num_state_slots)),
      host_states_(static_cast<size_t>(config.num_swap_slots)),
      block_user_(static_cast<size_t>(config.num_blocks)),
      slot_user_(static_cast<size_t>(config.num_state_slots)) {}

void FakeExecutor::launch(const StepPlan& plan) {
  CHECK(results_.size() < 2, "at most two steps are in flight");
  for (const auto& request : plan.admitted) {
    Sequence seq;
    seq.request = request;
    if (request->constraint) seq.grammar = std::make_unique<GrammarMatcher>(*request->constraint);
    seq.last = root_of(*request, config_);
    seq.prefix.push_back(static_cast<uint32_t>(seq.last));
    CHECK(sequences_.emplace(request->id, std::move(seq)).second, "admitted twice");
  }
  for (const SeqId id : plan.preempted) {
    const auto it = sequences_.find(id);
    // Who waits for a turn of layers has blocks before anything was computed.
    CHECK(it != sequences_.end() && (!it->second.restarted || config_.plan_tokens > 0),
          "preempted without blocks");
    it->second.restarted = true;
  }
  swap(plan);
  StepResult result;
  result.step = plan.step;
  for (const ImageEncoding& encoding : plan.encodings) {
    for (const int32_t page : encoding.pages) image_pages_[page] = content_of(*encoding.image);
  }
  for (const Slice& slice : plan.slices) {
    CHECK(!slice.layers.partial() || plan.slices.size() == 1, where(slice) + ": not alone");
    check_images(slice, plan);
    run(slice, plan.step, result);
  }
  for (const SeqId id : plan.retired) CHECK(sequences_.erase(id) == 1, "retired a stranger");
  results_.push_back(std::move(result));
}

/// What comes back overwrites nothing that a step in flight uses.
void FakeExecutor::swap(const StepPlan& plan) {
  const uint64_t oldest = results_.empty() ? plan.step : results_.front().step;
  const auto idle = [&](const User& user) { return user.step < oldest; };
  const int64_t size = config_.block_size;
  for (const BlockSwap& s : plan.block_swaps) {
    CHECK(s.host >= 0 && s.host < config_.num_swap_blocks);
    CHECK(s.out || idle(block_user_[static_cast<size_t>(s.block.value)]),
          "swaps into a used block");
    const auto device = kv_.begin() + s.block.value * size;
    const auto host = host_kv_.begin() + s.host * size;
    s.out ? std::copy_n(device, size, host) : std::copy_n(host, size, device);
  }
  for (const StateSwap& s : plan.state_swaps) {
    CHECK(s.host >= 0 && s.host < config_.num_swap_slots);
    const auto slot = static_cast<size_t>(s.slot.value);
    CHECK(s.out || idle(slot_user_[slot]), "swaps into a used slot");
    StateSlot& host = host_states_[static_cast<size_t>(s.host)];
    s.out ? host = states_[slot] : states_[slot] = host;
  }
}

StepResult FakeExecutor::collect() {
  CHECK(!results_.empty(), "nothing was launched");
  StepResult result = std::move(results_.front());
  results_.pop_front();
  return result;
}

/// What a slice writes, no other sequence may name in a step that is still in flight.
void FakeExecutor::check_fence(const Slice& slice, uint64_t step) {
  const uint64_t oldest = results_.empty() ? step : results_.front().step;
  const auto claim = [&](User& user, bool writes) {
    const bool alone = user.seq == slice.seq || user.step < oldest;
    CHECK(!writes || alone,
          where(slice) + " writes what a step in flight still uses for another sequence");
    user = {alone ? slice.seq : SeqId{}, step};
  };
  const int64_t first_written = slice.first / config_.block_size;
  for (size_t i = 0; i < slice.blocks.size(); ++i) {
    const auto index = static_cast<size_t>(slice.blocks[i].value);
    CHECK(index < block_user_.size());
    claim(block_user_[index], static_cast<int64_t>(i) >= first_written);
  }
  if (slice.state_read.valid() && slice.state_read != slice.state_write) {
    claim(slot_user_[static_cast<size_t>(slice.state_read.value)], false);
  }
  if (slice.state_write.valid()) {
    claim(slot_user_[static_cast<size_t>(slice.state_write.value)], true);
  }
}

/// The features of every image that a prompt slice has tokens of are where the plan says.
void FakeExecutor::check_images(const Slice& slice, const StepPlan& plan) {
  const auto it = sequences_.find(slice.seq);
  if (slice.arithmetic != Arithmetic::kPrompt || it == sequences_.end()) return;
  const auto& images = it->second.request->images;
  const int64_t end = slice.first + static_cast<int64_t>(slice.tokens.size());
  for (size_t i = 0; i < images.size(); ++i) {
    if (images[i].first >= end || images[i].end() <= slice.first) continue;
    const auto use = std::find_if(
        plan.image_uses.begin(), plan.image_uses.end(),
        [&](const auto& u) { return u.seq == slice.seq && u.image == static_cast<int>(i); });
    CHECK(use != plan.image_uses.end(), where(slice) + ": the plan forgot an image");
    CHECK(static_cast<int64_t>(use->pages.size()) * kImagePage >= images[i].content->num_tokens);
    for (const int32_t page : use->pages) {
      CHECK(image_pages_[page] == content_of(*images[i].content),
            where(slice) + " reads the features of another image");
    }
  }
}

/// Whoever begins a prompt decides, by the whole window.
void FakeExecutor::check_decision(const Slice& slice, const Sequence& seq) const {
  const bool decides = config_.plan_tokens > 0 && slice.first == 0;
  CHECK(slice.decides == decides, where(slice) + ": decides when it should not, or not");
  const auto prompt_len = static_cast<int64_t>(seq.request->prompt.size());
  CHECK(!decides || std::ssize(slice.tokens) == std::min(prompt_len, config_.plan_tokens),
        where(slice) + ": decides by other tokens than its window");
}

/// Some layers of a window. False: there are more to come, and what lies in its blocks is nobody's.
bool FakeExecutor::run_layers(const Slice& slice, Sequence& seq) {
  if (!slice.layers.partial()) return true;
  if (slice.layers.begin == 0) seq.layers_done = 0;
  CHECK(slice.decides && slice.layers.begin == seq.layers_done, where(slice) + ": wrong layers");
  CHECK(slice.layers.end <= config_.num_layers &&
            slice.layers.last == (slice.layers.end == config_.num_layers),
        where(slice) + ": wrong layers");
  seq.layers_done = slice.layers.end;
  if (slice.layers.last) return true;
  CHECK(!slice.sample);
  for (const BlockId block : slice.blocks) {
    std::fill_n(kv_.begin() + int64_t{block.value} * config_.block_size, config_.block_size, 0);
  }
  seq.computed = 0;
  seq.restarted = false;
  return false;
}

uint64_t& FakeExecutor::entry(const Slice& slice, int64_t position) {
  const auto index = static_cast<size_t>(position / config_.block_size);
  CHECK(index < slice.blocks.size(), where(slice) + " has no block for what it computes");
  return kv_[static_cast<size_t>(int64_t{slice.blocks[index].value} * config_.block_size +
                                 position % config_.block_size)];
}

/// The prefix that ends with the token at `position` has this hash.
void FakeExecutor::write(const Slice& slice, Sequence& seq, int64_t position, uint64_t hash) {
  entry(slice, position) = hash;
  const auto next = static_cast<size_t>(position) + 1;
  if (seq.prefix.size() == next) seq.prefix.emplace_back();
  seq.prefix[next] = static_cast<uint32_t>(hash);
  if (seq.prefix.size() == next + 1) seq.last = hash;
}

void FakeExecutor::run(const Slice& slice, uint64_t step, StepResult& result) {
  const auto it = sequences_.find(slice.seq);
  CHECK(it != sequences_.end(), where(slice) + ": a retired or unknown sequence");
  Sequence& seq = it->second;
  check_fence(slice, step);
  const auto size = static_cast<int64_t>(slice.tokens.size());
  CHECK(size > 0);
  const bool from_device = slice.tokens[0] == kDeviceToken;
  // Accepted drafts of the step before have brought it further than the plan knows.
  const int64_t first = from_device ? std::max(slice.first, seq.computed) : slice.first;
  const int64_t end = first + size;
  const auto prompt_len = static_cast<int64_t>(seq.request->prompt.size());
  const bool prompt = slice.arithmetic == Arithmetic::kPrompt;
  CHECK(seq.restarted || first == seq.computed, where(slice) + ": not where it stopped");
  CHECK(first - slice.first <= seq.drafts, where(slice) + ": further back than it can be");
  seq.drafts = slice.max_drafts;
  CHECK(prompt == (first < prompt_len), where(slice) + ": wrong arithmetic");
  CHECK(!prompt || first % config_.chunk == 0, where(slice) + ": begins inside a chunk");
  CHECK(!prompt || end == prompt_len || (end < prompt_len && end % config_.chunk == 0),
        where(slice) + ": cut inside a chunk");
  CHECK(slice.max_drafts == 0 || (slice.sample && size == 1 && !prompt), where(slice));
  SampledRow row{.seq = slice.seq};
  if (from_device && end > slice.limit) {
    // Its length is reached; the scheduler will know it before this result comes.
    result.rows.push_back(std::move(row));
    return;
  }
  CHECK(end <= slice.limit, where(slice) + " goes beyond its limit");
  check_decision(slice, seq);
  if (!run_layers(slice, seq)) return;

  // Reused prompt tokens were never sent: their hashes come from the request.
  while (static_cast<int64_t>(seq.prefix.size()) <= first) {
    const size_t i = seq.prefix.size() - 1;
    CHECK(i < seq.request->prompt.size(), where(slice) + ": unknown context");
    seq.last =
        extend(seq.last, symbol_of(*seq.request, i), Arithmetic::kPrompt, config_.reuse_generated);
    seq.prefix.push_back(static_cast<uint32_t>(seq.last));
  }
  auto expected = seq.prefix.begin() + 1;
  for (int64_t begin = 0; begin < first; begin += config_.block_size) {
    const uint64_t* block = &entry(slice, begin);
    const int64_t n = std::min<int64_t>(config_.block_size, first - begin);
    for (int64_t i = 0; i < n; ++i) {
      CHECK(static_cast<uint32_t>(block[i]) == *expected++,
            where(slice) + " reads a wrong KV entry at " + std::to_string(begin + i));
    }
  }
  // Where it goes on at an earlier token than its last, the entry just checked has the whole hash.
  uint64_t hash = static_cast<int64_t>(seq.prefix.size()) == first + 1 ? seq.last
                  : first > 0                                          ? entry(slice, first - 1)
                              : root_of(*seq.request, config_);
  if (config_.num_state_slots > 0) {
    CHECK(slice.state_write.valid());
    CHECK(slice.state_read.valid() == (first > 0));
    if (first > 0) {
      const StateSlot& state = states_[static_cast<size_t>(slice.state_read.value)];
      CHECK(state.position == first && state.hash == hash,
            where(slice) + " reads a wrong recurrent state");
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    int32_t token = slice.tokens[static_cast<size_t>(i)];
    if (token == kDeviceToken) token = seq.last_token;
    CHECK(token >= 0, where(slice) + ": no sampled token to continue from");
    const uint64_t symbol =
        prompt ? symbol_of(*seq.request, static_cast<size_t>(first + i)) : symbol_of(token);
    hash = extend(hash, symbol, slice.arithmetic, config_.reuse_generated);
    write(slice, seq, first + i, hash);
  }
  seq.computed = end;
  seq.current = hash;
  seq.restarted = false;
  if (slice.sample) sample(slice, seq, row);
  const int64_t garbage = slice.max_drafts > 0 ? verify(slice, seq, row) : 0;
  for (int64_t i = 0; i < garbage; ++i) {
    entry(slice, seq.computed + i) = mix(seq.current + static_cast<uint64_t>(i));
  }
  if (config_.num_state_slots > 0) {
    states_[static_cast<size_t>(slice.state_write.value)] = {seq.current, seq.computed};
  }
  const bool logprobs = prompt && seq.request->sampling.prompt_logprobs >= 0;
  if (logprobs) {
    const int64_t last = std::min(end, prompt_len - 1);
    for (int64_t i = first; i < last; ++i) {
      row.prompt_logprobs.push_back({.logprob = -static_cast<float>(i + 1), .top = {}});
    }
  }
  if (slice.sample || logprobs) result.rows.push_back(std::move(row));
}

/// Some drafts, the right tokens at first, and what becomes of them. Returns how many rejected
/// drafts have written their entries.
int64_t FakeExecutor::verify(const Slice& slice, Sequence& seq, SampledRow& row) {
  uint64_t dice = mix(seq.current ^ static_cast<uint64_t>(slice.max_drafts));
  const int64_t room = std::min<int64_t>(slice.max_drafts, slice.limit - seq.computed);
  const auto proposed = static_cast<int64_t>(dice % static_cast<uint64_t>(room + 1));
  row.speculation.proposed[static_cast<size_t>(DraftSource::kNgram)] = static_cast<int>(proposed);
  const std::vector<int32_t>& stops = seq.request->sampling.stop_ids;
  int64_t accepted = 0;
  while (accepted < proposed && !row.numeric_error && !row.ends) {
    dice = mix(dice);
    const int32_t token = row.tokens.back();
    const bool stop = std::find(stops.begin(), stops.end(), token) != stops.end();
    if (stop || static_cast<int>(dice % 8) >= config_.right_drafts) break;
    ++accepted;
    seq.current =
        extend(seq.current, symbol_of(token), Arithmetic::kDecode, config_.reuse_generated);
    write(slice, seq, seq.computed++, seq.current);
    sample(slice, seq, row);
  }
  row.speculation.accepted[static_cast<size_t>(DraftSource::kNgram)] = static_cast<int>(accepted);
  return proposed - accepted;
}

void FakeExecutor::sample(const Slice& slice, Sequence& seq, SampledRow& row) {
  const Draw d = draw(seq.current, seq.request->sampling.seed, config_);
  int32_t token = d.numeric_error ? -1 : d.token;
  if (hook_) token = hook_(slice.seq, seq.computed, token);
  if (seq.grammar && token >= 0) {
    const auto generated = seq.computed - static_cast<int64_t>(seq.request->prompt.size());
    token = constrain(*seq.grammar, token, seq.request->sampling, generated, row.ends);
  }
  row.numeric_error = token < 0;
  seq.last_token = std::max(token, 0);  // a device has something there in any case
  if (row.numeric_error) return;
  row.tokens.push_back(seq.last_token);
  if (seq.request->sampling.logprobs >= 0) {
    row.logprobs.push_back({.logprob = -static_cast<float>(seq.computed), .top = {}});
  }
}

FakeExecutor::Answer FakeExecutor::answer(const Request& request, const FakeExecutorConfig& config,
                                          int64_t max_model_len) {
  uint64_t prefix = root_of(request, config);
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    prefix = extend(prefix, symbol_of(request, i), Arithmetic::kPrompt, config.reuse_generated);
  }
  const SamplingParams& sampling = request.sampling;
  Answer answer;
  std::unique_ptr<GrammarMatcher> grammar;
  if (request.constraint) grammar = std::make_unique<GrammarMatcher>(*request.constraint);
  auto length = static_cast<int64_t>(request.prompt.size());
  for (;;) {
    Draw d = draw(prefix, sampling.seed, config);
    if (d.numeric_error) {
      answer.finish = FinishReason::kError;
      return answer;
    }
    const auto index = static_cast<int>(answer.tokens.size());
    bool ends = false;
    if (grammar) d.token = constrain(*grammar, d.token, sampling, index, ends);
    if (d.token < 0) {
      answer.finish = FinishReason::kError;
      return answer;
    }
    answer.tokens.push_back(d.token);
    ++length;
    const auto& stops = sampling.stop_ids;
    const bool stop = std::find(stops.begin(), stops.end(), d.token) != stops.end();
    if (ends || (stop && index >= sampling.min_tokens)) {
      answer.finish = FinishReason::kStop;
      return answer;
    }
    if (index + 1 >= sampling.max_tokens || length >= max_model_len) {
      answer.finish = FinishReason::kLength;
      return answer;
    }
    prefix = extend(prefix, symbol_of(d.token), Arithmetic::kDecode, config.reuse_generated);
  }
}

}  // namespace weft
