#include "app/bench_serve_data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "text/read_file.h"

namespace weft {
namespace {

using nlohmann::json;
using Rng = std::mt19937_64;

constexpr int kMaxTries = 10;  // to meet a length exactly

/// From [low, high], both inclusive.
int64_t draw(Rng& rng, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

/// Random text of a wanted length.
class TextSource {
 public:
  TextSource(const Tokenizer* tokenizer, Rng& rng) : tokenizer_(tokenizer), rng_(rng) {
    if (tokenizer_ == nullptr) return;
    for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
      if (!tokenizer_->is_added(id) && !tokenizer_->token_bytes(id).empty()) allowed_.push_back(id);
    }
  }

  int64_t num_special() const {
    if (tokenizer_ == nullptr) return 0;
    return static_cast<int64_t>(tokenizer_->prefix_ids().size() + tokenizer_->suffix_ids().size());
  }

  std::vector<int32_t> tokens(int64_t n) {
    std::vector<int32_t> out(static_cast<size_t>(n));
    for (int32_t& id : out) {
      id = allowed_.empty() ? static_cast<int32_t>(draw(rng_, 0, kWords.size() - 1))
                            : allowed_[static_cast<size_t>(
                                  draw(rng_, 0, static_cast<int64_t>(allowed_.size()) - 1))];
    }
    return out;
  }

  /// A text of about ids.size() tokens: neighbours merge when it is read back, so it is cut or
  /// grown until the length is right, or nearly.
  Result<BenchPrompt> prompt(std::vector<int32_t> ids) {
    const size_t wanted = ids.size();
    BenchPrompt out;
    if (tokenizer_ == nullptr) {
      for (const int32_t word : ids) {
        if (!out.text.empty()) out.text += ' ';
        out.text += kWords[static_cast<size_t>(word)];
      }
      out.prompt_len = static_cast<int64_t>(wanted);
      return out;
    }
    for (int i = 0;; ++i) {
      out.text = tokenizer_->decode(ids, false);
      ids = TRY(tokenizer_->encode(out.text, false));
      out.prompt_len = static_cast<int64_t>(ids.size());
      if (ids.size() == wanted || i == kMaxTries) return out;
      if (ids.size() > wanted) {
        ids.resize(wanted);
      } else {
        const std::vector<int32_t> more = tokens(static_cast<int64_t>(wanted - ids.size()));
        ids.insert(ids.end(), more.begin(), more.end());
      }
    }
  }

 private:
  static constexpr std::array<const char*, 32> kWords = {
      "time",  "year",  "way",   "day",   "thing", "world", "life",  "hand",
      "part",  "child", "eye",   "place", "work",  "week",  "case",  "point",
      "river", "stone", "light", "house", "road",  "tree",  "night", "water",
      "paper", "music", "field", "bread", "chair", "glass", "horse", "cloud"};
  const Tokenizer* tokenizer_;
  Rng& rng_;
  std::vector<int32_t> allowed_;
};

Result<std::vector<BenchPrompt>> random_prompts(const BenchServeOptions& o,
                                                const Tokenizer* tokenizer) {
  const double r = o.random_range_ratio;
  if (!(r >= 0 && r < 1)) return invalid_argument("--random-range-ratio: it must be in [0, 1)");
  Rng rng(o.seed);
  TextSource source(tokenizer, rng);
  const auto around = [r](int64_t len, int64_t least) {
    const auto low = static_cast<int64_t>(std::floor(static_cast<double>(len) * (1 - r)));
    const auto high = static_cast<int64_t>(std::ceil(static_cast<double>(len) * (1 + r)));
    return std::pair(std::max(low, least), std::max(high, least));
  };
  const auto input = around(
      std::max<int64_t>(0, o.input_len.value_or(o.random_input_len) - source.num_special()), 0);
  const auto output = around(o.output_len.value_or(o.random_output_len), 1);
  if (o.random_prefix_len + input.first < 1) {
    return invalid_argument("--random-input-len: with --random-range-ratio and the tokenizer's " +
                            std::to_string(source.num_special()) +
                            " special tokens a prompt could be empty; make it larger");
  }
  const std::vector<int32_t> prefix = source.tokens(o.random_prefix_len);
  std::vector<BenchPrompt> out;
  for (int64_t i = 0; i < o.num_prompts; ++i) {
    std::vector<int32_t> ids = prefix;
    const std::vector<int32_t> own = source.tokens(draw(rng, input.first, input.second));
    ids.insert(ids.end(), own.begin(), own.end());
    out.push_back(TRY(source.prompt(std::move(ids))));
    out.back().output_len = draw(rng, output.first, output.second);
  }
  return out;
}

Result<std::vector<BenchPrompt>> repeated_prefixes(const BenchServeOptions& o,
                                                   const Tokenizer* tokenizer) {
  Rng rng(o.seed);
  TextSource source(tokenizer, rng);
  std::vector<BenchPrompt> out;
  const int64_t each = o.num_prompts / o.repetition_num_prefixes;
  if (each == 0) {
    return invalid_argument("--num-prompts: it must be at least --prefix-repetition-num-prefixes");
  }
  for (int64_t p = 0; p < o.repetition_num_prefixes; ++p) {
    const std::vector<int32_t> prefix = source.tokens(o.repetition_prefix_len);
    for (int64_t i = 0; i < each; ++i) {
      std::vector<int32_t> ids = prefix;
      const std::vector<int32_t> own = source.tokens(o.repetition_suffix_len);
      ids.insert(ids.end(), own.begin(), own.end());
      out.push_back(TRY(source.prompt(std::move(ids))));
      out.back().output_len = o.output_len.value_or(o.repetition_output_len);
    }
  }
  std::shuffle(out.begin(), out.end(), rng);
  return out;
}

Result<int64_t> count_tokens(const Tokenizer* tokenizer, const std::string& text) {
  if (tokenizer != nullptr) {
    return static_cast<int64_t>(TRY(tokenizer->encode(text, true)).size());
  }
  std::istringstream words(text);
  int64_t n = 0;
  for (std::string word; words >> word;) ++n;
  return n;
}

/// Fewer than --num-prompts: some are sent again, unless that is not wanted.
void oversample(std::vector<BenchPrompt>& prompts, const BenchServeOptions& o, Rng& rng) {
  if (o.no_oversample || prompts.empty()) return;
  const auto have = static_cast<int64_t>(prompts.size());
  for (int64_t i = have; i < o.num_prompts; ++i) {
    prompts.push_back(prompts[static_cast<size_t>(draw(rng, 0, have - 1))]);
  }
}

Result<std::vector<BenchPrompt>> custom_prompts(const BenchServeOptions& o,
                                                const Tokenizer* tokenizer,
                                                const ChatTemplate* chat_template) {
  std::vector<json> lines;
  std::istringstream file(TRY(text::read_file(o.dataset_path, kMaxFileBytes)));
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    json item = json::parse(line, nullptr, false);
    if (!item.is_object() || !item.contains("prompt") || !item["prompt"].is_string()) {
      return invalid_argument(o.dataset_path + ":" + std::to_string(number) +
                              ": not a JSON object with a string \"prompt\"");
    }
    lines.push_back(std::move(item));
  }
  Rng rng(o.seed);
  if (!o.disable_shuffle) std::shuffle(lines.begin(), lines.end(), rng);
  std::vector<BenchPrompt> out;
  for (const json& item : lines) {
    if (o.num_prompts > 0 && static_cast<int64_t>(out.size()) >= o.num_prompts) break;
    BenchPrompt prompt{.text = item["prompt"].get<std::string>()};
    if (chat_template != nullptr) {
      const json messages = {{{"role", "user"}, {"content", prompt.text}}};
      const ChatInput input{.messages_json = messages.dump(), .add_generation_prompt = true};
      prompt.text = TRY(chat_template->render(input)).text;
    }
    prompt.prompt_len = TRY(count_tokens(tokenizer, prompt.text));
    prompt.output_len = o.output_len.value_or(o.custom_output_len);
    if (prompt.output_len == -1) {
      if (!item.contains("output_tokens") || !item["output_tokens"].is_number_integer()) {
        return invalid_argument(o.dataset_path +
                                ": --custom-output-len -1 needs \"output_tokens\" in every line");
      }
      prompt.output_len = item["output_tokens"].get<int64_t>();
    }
    out.push_back(std::move(prompt));
  }
  oversample(out, o, rng);
  return out;
}

/// The lengths that `vllm bench serve` keeps.
bool sharegpt_fits(int64_t prompt_len, int64_t output_len, bool length_given) {
  return prompt_len >= 4 && (length_given || output_len >= 4) && prompt_len <= 1024 &&
         prompt_len + output_len <= 2048;
}

Result<std::vector<BenchPrompt>> sharegpt_prompts(const BenchServeOptions& o,
                                                  const Tokenizer* tokenizer) {
  json file = json::parse(TRY(text::read_file(o.dataset_path, kMaxFileBytes)), nullptr, false);
  if (!file.is_array()) return invalid_argument(o.dataset_path + ": not a JSON array");
  Rng rng(o.seed);
  std::vector<json> entries;
  for (json& entry : file) {
    const auto turns = entry.is_object() ? entry.find("conversations") : entry.end();
    if (!entry.is_object() || turns == entry.end() || turns->size() < 2) continue;
    entries.push_back(std::move(*turns));
  }
  if (!o.disable_shuffle) std::shuffle(entries.begin(), entries.end(), rng);
  const std::optional<int64_t> given = o.output_len ? o.output_len : o.sharegpt_output_len;
  std::vector<BenchPrompt> out;
  for (const json& turns : entries) {
    if (static_cast<int64_t>(out.size()) >= o.num_prompts) break;
    const json& asked = turns[0];
    const json& answered = turns[1];
    if (!asked.is_object() || !answered.is_object()) continue;
    BenchPrompt prompt{.text = asked.value("value", "")};
    prompt.prompt_len = TRY(count_tokens(tokenizer, prompt.text));
    prompt.output_len = given ? *given : TRY(count_tokens(tokenizer, answered.value("value", "")));
    if (sharegpt_fits(prompt.prompt_len, prompt.output_len, given.has_value())) {
      out.push_back(std::move(prompt));
    }
  }
  oversample(out, o, rng);
  return out;
}

}  // namespace

Result<std::vector<BenchPrompt>> make_bench_prompts(const BenchServeOptions& o,
                                                    const Tokenizer* tokenizer,
                                                    const ChatTemplate* chat_template) {
  const bool from_file = o.dataset_name == "custom" || o.dataset_name == "sharegpt";
  if (from_file != !o.dataset_path.empty()) {
    return invalid_argument(from_file
                                ? "--dataset-path: the data set " + o.dataset_name + " needs it"
                                : "--dataset-path: the data set " + o.dataset_name +
                                      " has none; choose --dataset-name custom or sharegpt");
  }
  if (o.num_prompts <= 0 && o.dataset_name != "custom") {
    return invalid_argument("--num-prompts: it must be at least 1");
  }
  std::vector<BenchPrompt> out =
      TRY(o.dataset_name == "random"              ? random_prompts(o, tokenizer)
          : o.dataset_name == "prefix_repetition" ? repeated_prefixes(o, tokenizer)
          : o.dataset_name == "custom"            ? custom_prompts(o, tokenizer, chat_template)
                                                  : sharegpt_prompts(o, tokenizer));
  if (out.empty()) return invalid_argument("--dataset-path: no prompt in it can be used");
  return out;
}

std::vector<double> arrival_times(const BenchServeOptions& o, size_t n) {
  Rng rng(o.seed + 1);
  std::vector<double> due(n, 0);
  double at = 0;
  for (size_t i = 0; i < n; ++i) {
    double rate = o.request_rate;
    if (!o.ramp_up_strategy.empty()) {
      const double progress =
          static_cast<double>(i) / static_cast<double>(std::max<size_t>(n, 2) - 1);
      const double start = o.ramp_up_start_rps.value_or(0), end = o.ramp_up_end_rps.value_or(0);
      rate = o.ramp_up_strategy == "linear" ? start + (end - start) * progress
                                            : start * std::pow(end / start, progress);
      rate = std::max(rate, 1e-9);
    }
    if (std::isinf(rate)) continue;
    at += std::isinf(o.burstiness)
              ? 1 / rate
              : std::gamma_distribution<double>(o.burstiness, 1 / (rate * o.burstiness))(rng);
    due[i] = at;
  }
  if (o.ramp_up_strategy.empty() && at > 0) {
    const double scale = static_cast<double>(n) / o.request_rate / at;
    for (double& t : due) t *= scale;
  }
  return due;
}

}  // namespace weft
