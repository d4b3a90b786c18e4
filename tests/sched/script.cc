#include "sched/script.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <utility>

#include "base/check.h"

namespace weft {

namespace {

constexpr int32_t kVocab = 1000;

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& w : words) out += (out.empty() ? "" : " ") + w;
  return out.empty() ? "none" : out;
}

int64_t to_number(std::string_view text) {
  if (text == "on") return 1;
  if (text == "off") return 0;
  int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  CHECK(code == std::errc() && end == text.data() + text.size(),
        "not a number: " + std::string(text));
  return value;
}

std::pair<std::string, std::string> key_value(const std::string& word) {
  const size_t at = word.find('=');
  CHECK(at != std::string::npos, "expected key=value: " + word);
  return {word.substr(0, at), word.substr(at + 1)};
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

/// "64" (own text), or pieces joined by '+': "tag:count" (equal tags are equal tokens) or "=id".
std::vector<int32_t> make_prompt(const std::string& name, const std::string& text) {
  std::vector<int32_t> prompt;
  for (const std::string& piece : split(text, '+')) {
    if (piece.starts_with('=')) {
      prompt.push_back(static_cast<int32_t>(to_number(std::string_view(piece).substr(1))));
      continue;
    }
    const size_t colon = piece.find(':');
    const std::string tag = colon == std::string::npos ? name : piece.substr(0, colon);
    const int64_t count = to_number(colon == std::string::npos ? piece : piece.substr(colon + 1));
    uint32_t hash = 2166136261u;
    for (const char c : tag) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619u;
    for (int64_t i = 0; i < count; ++i) {
      hash = (hash ^ static_cast<uint32_t>(i)) * 16777619u;
      prompt.push_back(static_cast<int32_t>((hash >> 8) % kVocab));
    }
  }
  return prompt;
}

std::string finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "none";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAbort: return "abort";
    case FinishReason::kError: return "error";
  }
  return "?";
}

/// "!" of a slice that decides, and its layers where they are only some.
std::string decision_of(const Slice& slice) {
  if (!slice.decides) return "";
  if (!slice.layers.partial()) return "!";
  return "!" + std::to_string(slice.layers.begin) + "-" + std::to_string(slice.layers.end);
}

}  // namespace

std::string SchedScript::run(const std::string& text) {
  SchedScript script;
  std::istringstream in(text);
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (const size_t hash = line.find('#'); hash != std::string::npos) line.resize(hash);
    std::vector<std::string> words;
    std::istringstream in_line(line);
    for (std::string word; in_line >> word;) words.push_back(word);
    if (words.empty()) continue;
    std::string wrong;
    try {
      wrong = script.line(words, line);
      if (wrong.empty() && script.scheduler_) wrong = script.scheduler_->audit();
    } catch (const Panic& panic) {
      wrong = panic.what();
    }
    if (!wrong.empty()) return "line " + std::to_string(number) + ": " + line + "\n  " + wrong;
  }
  return {};
}

Scheduler& SchedScript::scheduler() {
  CHECK(scheduler_ != nullptr, "config comes first");
  return *scheduler_;
}

std::string SchedScript::name_of(SeqId id) const {
  return names_.at(static_cast<size_t>(id.value));
}

std::string SchedScript::line(Words words, const std::string& rest) {
  const std::string& verb = words[0];
  if (verb == "config") return configure(words.subspan(1));
  if (verb == "submit") return submit(words.subspan(1), nullptr);
  if (verb == "refuse") {  // refuse NAME ... : words of the message
    const size_t colon = rest.rfind(" : ");
    CHECK(colon != std::string::npos, "refuse NAME key=value ... : part of the message");
    const std::string expected = rest.substr(colon + 3);
    const auto end = std::find(words.begin(), words.end(), ":");
    std::string message;
    submit(words.subspan(1, static_cast<size_t>(end - words.begin()) - 1), &message);
    return message.find(expected) == std::string::npos ? "it says: " + message : "";
  }
  if (verb == "tokens") {
    for (const std::string& word : words.subspan(2)) {
      clients_.at(words[1]).scripted.push_back(static_cast<int32_t>(to_number(word)));
    }
    return {};
  }
  if (verb == "abort") {
    const bool alive = scheduler().abort(clients_.at(words[1]).id);
    clients_.at(words[1]).finish = FinishReason::kAbort;
    return alive ? "" : "it had ended";
  }
  if (verb == "pause") return scheduler().pause(clients_.at(words[1]).id), "";
  if (verb == "resume") return scheduler().resume(clients_.at(words[1]).id), "";
  if (verb == "plan") return plan(), "";
  if (verb == "apply") return apply(), "";
  if (verb == "step") return plan(), apply(), "";
  if (verb == "run") {
    for (int i = 0; i < 10'000 && !scheduler().idle(); ++i) {
      plan();
      if (scheduler().num_in_flight() > 0) apply();
    }
    return scheduler().idle() ? "" : "still not idle";
  }
  if (verb == "expect") return expect(words.subspan(1));
  return "unknown verb " + verb;
}

std::string SchedScript::configure(Words words) {
  config_.num_blocks = 64;
  config_.max_model_len = 4096;
  config_.max_seqs = 8;
  config_.overlap = false;
  config_.dense_checkpoints = 0;
  config_.hash_key = 42;
  for (const std::string& word : words) {
    const auto [key, text] = key_value(word);
    if (key == "sparse_from") {
      config_.sparse_from = to_number(text);
      continue;
    }
    if (key == "window") {
      config_.plan_tokens = text == "whole" ? kWholePrompt : to_number(text);
      continue;
    }
    const auto value = static_cast<int>(to_number(text));
    if (key == "chunk")
      config_.chunk = value;
    else if (key == "layers")
      config_.num_layers = value;
    else if (key == "block")
      config_.block_size = value;
    else if (key == "blocks")
      config_.num_blocks = value;
    else if (key == "slots")
      config_.num_state_slots = value;
    else if (key == "swap_blocks")
      config_.num_swap_blocks = value;
    else if (key == "swap_slots")
      config_.num_swap_slots = value;
    else if (key == "tokens")
      config_.max_batched_tokens = value;
    else if (key == "lone")
      config_.lone_batched_tokens = value;
    else if (key == "seqs")
      config_.max_seqs = value;
    else if (key == "max_len")
      config_.max_model_len = value;
    else if (key == "prefix")
      config_.prefix_caching = value;
    else if (key == "reuse_generated")
      config_.reuse_generated = value;
    else if (key == "every")
      config_.checkpoint_every = value;
    else if (key == "dense")
      config_.dense_checkpoints = value;
    else if (key == "overlap")
      config_.overlap = value;
    else
      return "unknown key " + key;
  }
  auto made = Scheduler::create(config_);
  if (!made.ok()) return made.error().message;
  scheduler_ = std::move(made).value();
  executor_ =
      std::make_unique<FakeExecutor>(FakeExecutorConfig{.block_size = config_.block_size,
                                                        .num_blocks = config_.num_blocks,
                                                        .num_state_slots = config_.num_state_slots,
                                                        .num_swap_blocks = config_.num_swap_blocks,
                                                        .num_swap_slots = config_.num_swap_slots,
                                                        .vocab = kVocab,
                                                        .reuse_generated = config_.reuse_generated,
                                                        .chunk = config_.chunk,
                                                        .plan_tokens = config_.plan_tokens,
                                                        .sparse_from = config_.sparse_from,
                                                        .num_layers = config_.num_layers});
  executor_->set_sample_hook([this](SeqId id, int64_t position, int32_t token) {
    const Client& client = clients_.at(name_of(id));
    const size_t index = static_cast<size_t>(position) - client.request->prompt.size();
    return index < client.scripted.size() ? client.scripted[index] : token;
  });
  return {};
}

std::string SchedScript::submit(Words words, std::string* refusal) {
  const std::string& name = words[0];
  CHECK(!clients_.contains(name), "the name is taken");
  auto request = std::make_shared<Request>();
  request->id = SeqId{static_cast<int32_t>(names_.size())};
  for (const std::string& word : words.subspan(1)) {
    const auto [key, text] = key_value(word);
    if (key == "prompt")
      request->prompt = make_prompt(name, text);
    else if (key == "salt")
      request->cache_salt = text;
    else if (key == "priority")
      request->priority = static_cast<int>(to_number(text));
    else if (key == "max")
      request->sampling.max_tokens = static_cast<int>(to_number(text));
    else if (key == "min")
      request->sampling.min_tokens = static_cast<int>(to_number(text));
    else if (key == "seed")
      request->sampling.seed = static_cast<uint64_t>(to_number(text));
    else if (key == "logprobs")
      request->sampling.prompt_logprobs = static_cast<int>(to_number(text));
    else if (key == "stop") {
      for (const std::string& id : split(text, ',')) {
        request->sampling.stop_ids.push_back(static_cast<int32_t>(to_number(id)));
      }
    } else
      return "unknown key " + key;
  }
  const Result<void> added = scheduler().add(request);
  if (refusal) {
    *refusal = added.ok() ? "nothing; it was accepted" : added.error().message;
    return {};
  }
  if (!added.ok()) return added.error().message;
  names_.push_back(name);
  clients_[name] = {.id = request->id, .request = request};
  return {};
}

void SchedScript::plan() {
  const StepPlan& plan = scheduler().schedule();
  plan_.clear();
  plan_states_.clear();
  preempted_.clear();
  retired_.clear();
  for (const Slice& s : plan.slices) {
    std::string text = name_of(s.seq) + ":" + std::to_string(s.first) + "-" +
                       std::to_string(s.first + static_cast<int64_t>(s.tokens.size())) +
                       (s.arithmetic == Arithmetic::kPrompt ? "p" : "d") + decision_of(s) +
                       (s.sample ? "*" : "");
    plan_.push_back(text);
    const std::string read = s.state_read.valid() ? std::to_string(s.state_read.value) : "zero";
    plan_states_.push_back(text + "[" + read + ">" + std::to_string(s.state_write.value) + "]");
  }
  for (const SeqId id : plan.preempted) preempted_.push_back(name_of(id));
  for (const SeqId id : plan.retired) retired_.push_back(name_of(id));
  if (!plan.empty()) executor_->launch(plan);
}

void SchedScript::apply() {
  for (const SequenceOutput& out : scheduler().apply(executor_->collect())) {
    Client& client = clients_.at(name_of(out.seq));
    client.tokens.insert(client.tokens.end(), out.tokens.begin(), out.tokens.end());
    client.cached_tokens = out.cached_tokens;
    client.finish = out.finish;
  }
}

std::string SchedScript::expect(Words words) {
  const std::string& what = words[0];
  const Words rest = words.subspan(1);
  const PrefixCache& cache = scheduler().cache();
  if (what == "plan") return expect_plan(rest);
  if (what == "finished") return expect_finished(rest);
  if (what == "preempted") return expect_names(rest, preempted_);
  if (what == "retired") return expect_names(rest, retired_);
  if (what == "running" || what == "waiting") {
    std::vector<std::string> names;
    for (const auto& [name, client] : clients_) {
      const Sequence* seq = scheduler().find(client.id);
      const bool running = seq && seq->state == SequenceState::kRunning;
      if (seq && running == (what == "running")) names.push_back(name);
    }
    return expect_names(rest, names);
  }
  if (what == "tokens") {
    std::vector<std::string> got;
    for (const int32_t t : clients_.at(rest[0]).tokens) got.push_back(std::to_string(t));
    const std::vector<std::string> want(rest.begin() + 1, rest.end());
    return got == want ? "" : "got " + joined(got);
  }
  if (what == "cached") {
    const int64_t cached = clients_.at(rest[0]).cached_tokens;
    return cached == to_number(rest[1]) ? "" : "it reused " + std::to_string(cached);
  }
  if (what == "blocks") {
    return expect_numbers(rest, {{"free", cache.blocks().num_free()},
                                 {"cached", cache.blocks().num_evictable()},
                                 {"used", cache.blocks().num_used()}});
  }
  if (what == "slots") {
    return expect_numbers(rest, {{"free", cache.slots().num_free()},
                                 {"cached", cache.slots().num_evictable()},
                                 {"used", cache.slots().num_used()}});
  }
  if (what == "stats") return expect_numbers(rest, stats());
  return "unknown expectation " + what;
}

std::string SchedScript::expect_plan(Words words) const {
  const std::vector<std::string> want(words.begin(), words.end());
  if (want == std::vector<std::string>{"none"} && plan_.empty()) return {};
  const bool states = !want.empty() && want[0].find('[') != std::string::npos;
  const std::vector<std::string>& got = states ? plan_states_ : plan_;
  return got == want ? "" : "planned: " + joined(got);
}

std::string SchedScript::expect_finished(Words words) {
  const Client& client = clients_.at(words[0]);
  if (words.size() > 1 && words[1] != finish_name(client.finish)) {
    return "its finish is " + finish_name(client.finish);
  }
  if (client.finish == FinishReason::kNone) return "it has not ended";
  if (client.finish == FinishReason::kAbort || !client.scripted.empty()) return {};
  // Nothing was scripted: the answer must be that of the request alone.
  const FakeExecutorConfig device{.vocab = kVocab,
                                  .reuse_generated = config_.reuse_generated,
                                  .plan_tokens = config_.plan_tokens,
                                  .sparse_from = config_.sparse_from};
  const auto alone = FakeExecutor::answer(*client.request, device, config_.max_model_len);
  return alone.tokens == client.tokens ? "" : "its output differs from the request alone";
}

std::string SchedScript::expect_numbers(Words words,
                                        const std::map<std::string, int64_t>& actual) const {
  std::string wrong;
  for (const std::string& word : words) {
    const auto [key, text] = key_value(word);
    const auto it = actual.find(key);
    if (it == actual.end()) return "unknown figure " + key;
    if (it->second != to_number(text)) wrong += key + "=" + std::to_string(it->second) + " ";
  }
  return wrong.empty() ? "" : "but " + wrong;
}

std::string SchedScript::expect_names(Words words, std::vector<std::string> actual) const {
  std::vector<std::string> want(words.begin(), words.end());
  if (want == std::vector<std::string>{"none"}) want.clear();
  std::sort(want.begin(), want.end());
  std::sort(actual.begin(), actual.end());
  return want == actual ? "" : "actual: " + joined(actual);
}

std::map<std::string, int64_t> SchedScript::stats() const {
  const SchedulerStats s = scheduler_->stats();
  return {{"hits", s.hits},
          {"layer_steps", s.layer_steps},
          {"misses", s.misses},
          {"kv_hit_tokens", s.kv_hit_tokens},
          {"reused", s.reused_tokens},
          {"lost", s.state_lost_tokens},
          {"state_hits", s.state_hits},
          {"checkpoints", s.checkpoints},
          {"branches", s.branch_checkpoints},
          {"take_overs", s.take_overs},
          {"preemptions", s.preemptions},
          {"swap_outs", s.swap_outs},
          {"swap_ins", s.swap_ins},
          {"swapped_blocks", s.swapped_blocks},
          {"swapped_in", s.swapped_in_tokens},
          {"stalls", s.stalls},
          {"evictions", s.block_evictions},
          {"state_evictions", s.state_evictions},
          {"aborted", s.aborted},
          {"discarded", s.discarded_rows},
          {"ended_waiting", s.finished_waiting}};
}

}  // namespace weft
