// lossless [--tokens N] [--first-pass N] [--device cpu|cuda]
//
// Speculation changes no bit of an answer. The demo model answers the same requests without drafts,
// one at a time, and with drafts: by every method, with K = 1..8, over KV caches of every format,
// alone and beside others, with a prefix cache or without. Ids, logprob bits, texts and reasons are
// compared, and counted by what was special: in every cell of the table drafts have to have been
// accepted and rejected. A pass is every method with every K, each over one format of the cache;
// the next pass takes the next format. On a GPU every other engine has no CUDA graphs.
#include <fmt/format.h>

#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <thread>

#include "api/answer.h"
#include "app/cli.h"
#include "base/temp_dir.h"
#include "tests/lossless/requests.h"

namespace weft {
namespace {

constexpr int kMaxK = 8;
constexpr std::array<SpeculationMethod, 3> kMethods = {
    SpeculationMethod::kNgram, SpeculationMethod::kMtp, SpeculationMethod::kHybrid};
constexpr std::array<const char*, 7> kCaches = {"bfloat16", "float32", "int8_dynamic", "fp8_block",
                                                "int8",     "fp8",     "int4"};

struct Options {
  int64_t tokens = 100000;  // generated with drafts, at least
  int first_pass = 0;       // so that a long run can be done in pieces
  std::string device = "cpu";
};

struct Cell {
  int64_t answers = 0, tokens = 0, accepted = 0, rejected = 0, without_drafts = 0;
  int64_t different_ids = 0, different_logprobs = 0, different_ends = 0;
  int64_t different() const { return different_ids + different_logprobs + different_ends; }
};

struct EngineChoice {
  const char* cache;
  SpeculationConfig speculation;
  int at_once = 1;
  bool prefix_cache = false;
  bool eager = true;
};

bool same_bits(const TokenLogprob& a, const TokenLogprob& b) {
  const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
  if (bits(a.logprob) != bits(b.logprob) || a.top.size() != b.top.size()) return false;
  for (size_t i = 0; i < a.top.size(); ++i) {
    if (a.top[i].token != b.top[i].token) return false;
    if (bits(a.top[i].logprob) != bits(b.top[i].logprob)) return false;
  }
  return true;
}

/// Entries of which one is missing or another.
template <class T, class Same>
int64_t differences(const std::vector<T>& a, const std::vector<T>& b, const Same& same) {
  const size_t both = std::min(a.size(), b.size());
  auto count = static_cast<int64_t>(std::max(a.size(), b.size()) - both);
  for (size_t i = 0; i < both; ++i) count += !same(a[i], b[i]);
  return count;
}

void compare(const Answer& plain, const Answer& drafted, Cell& cell) {
  ++cell.answers;
  cell.tokens += std::ssize(drafted.tokens);
  cell.accepted += drafted.speculation.num_accepted();
  cell.rejected += drafted.speculation.num_proposed() - drafted.speculation.num_accepted();
  // The first step is the prompt's.
  cell.without_drafts += drafted.speculation.steps - drafted.speculation.draft_steps - 1;
  cell.different_ids += differences(plain.tokens, drafted.tokens, std::equal_to<>());
  cell.different_logprobs += differences(plain.logprobs, drafted.logprobs, same_bits);
  cell.different_ends += plain.text != drafted.text || plain.reason != drafted.reason;
}

class Lossless {
 public:
  explicit Lossless(const Options& options) : options_(options) {}

  Result<int> run() {
    calibrate();
    for (int pass = options_.first_pass; all_.tokens < options_.tokens; ++pass) {
      plain_.clear();
      int index = pass;
      for (int k = 1; k <= kMaxK; ++k) {
        for (const SpeculationMethod method : kMethods) TRY(try_one(pass, index++, method, k));
      }
      std::fprintf(stderr, "pass %d: %lld tokens, %lld differences\n", pass,
                   static_cast<long long>(all_.tokens), static_cast<long long>(all_.different()));
    }
    return report();
  }

 private:
  bool gpu() const { return options_.device != "cpu"; }

  /// Ranges for the formats with static scales.
  void calibrate() {
    CalibrateOptions options;
    options.engine.model = model_;
    options.engine.device = "cpu";
    options.data = model_ + "/eval/heldout.jsonl";
    options.out = scales_;
    options.limit = 8;
    CHECK(calibrate_command(options) == 0);
  }

  Result<std::unique_ptr<LocalEngine>> start(const EngineChoice& choice) {
    EngineOptions options;
    options.model = model_;
    options.device = options_.device;
    if (gpu()) {
      options.gpu_memory_utilization = 0.1;
      options.enforce_eager = choice.eager;
    }
    const std::string cache = choice.cache;
    if (cache == "float32") {
      options.dtype = "float32";
    } else {
      options.kv_cache_dtype = cache;
    }
    if (cache == "int8" || cache == "fp8") options.kv_scales = scales_;
    options.kv_cache_memory = "64M";
    options.max_model_len = "2k";
    options.max_num_seqs = 8;
    options.threads = 1 + choice.speculation.num_speculative_tokens % 2;
    options.max_num_batched_tokens = 128;  // prompts beside drafts, often
    options.prefix_caching = choice.prefix_cache;
    options.speculation = choice.speculation;
    EngineConfig config;
    config.on_step = [this](const StepRecord& step) {
      mixed_steps_ += step.prompt_rows > 0 && step.decode_rows > 0;
      graphs_ += step.device_graphs;
    };
    return LocalEngine::start(options, config);
  }

  Result<std::vector<Answer>> answer_all(LocalEngine& local,
                                         const std::vector<LosslessRequest>& list, int at_once) {
    std::vector<Answer> answers(list.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i = next++; i < list.size(); i = next++) {
        AnswerStream stream(&chat_->tokenizer(), list[i].text);
        CHECK(local.engine().submit(list[i].request, stream).ok());
        answers[i] = stream.wait();
      }
    };
    std::vector<std::thread> workers;
    for (int i = 0; i < at_once; ++i) workers.emplace_back(work);
    for (std::thread& worker : workers) worker.join();
    for (const Answer& answer : answers) {
      if (answer.error) return *answer.error;
    }
    return answers;
  }

  Result<void> try_one(int pass, int index, SpeculationMethod method, int k) {
    EngineChoice choice{.cache = kCaches[static_cast<size_t>(index + pass) % kCaches.size()]};
    // A GPU has no caches of float32.
    if (gpu() && choice.cache == kCaches[1]) choice.cache = kCaches[0];
    if (!plain_.contains(choice.cache)) {
      const auto local = TRY(start(choice));
      if (!chat_) chat_ = TRY(ChatFrontend::load(local->plan().directory));
      if (plain_.empty()) requests_ = TRY(make_lossless_requests(*local, *chat_, pass));
      plain_[choice.cache] = TRY(answer_all(*local, requests_, 1));
    }
    choice.speculation = {.method = method,
                          .num_speculative_tokens = k,
                          .num_mtp_steps = method == SpeculationMethod::kMtp ? k : (k + 1) / 2,
                          .min_ngram_size = 1,
                          .max_ngram_size = 3,
                          .adaptive = (k + pass) % 2 == 0};
    choice.at_once = std::array{1, 3, 8}[static_cast<size_t>((k + pass) % 3)];
    choice.prefix_cache = (k / 2 + pass) % 2 == 0;
    choice.eager = (k + static_cast<int>(method)) % 4 == 0;
    const auto local = TRY(start(choice));
    const std::vector<Answer> answers = TRY(answer_all(*local, requests_, choice.at_once));
    const size_t column = static_cast<size_t>(method) - 1;
    for (size_t i = 0; i < answers.size(); ++i) {
      Cell cell;
      compare(plain_[choice.cache][i], answers[i], cell);
      std::vector<std::string> rows = requests_[i].features;
      rows.push_back(fmt::format("K = {}", k));
      rows.push_back(fmt::format("cache {}", choice.cache));
      rows.push_back(fmt::format("{} at once", choice.at_once));
      rows.emplace_back(choice.speculation.adaptive ? "adaptive" : "always K");
      if (choice.prefix_cache) rows.emplace_back("prefix cache");
      rows.emplace_back("all");
      for (const std::string& row : rows) add(cells_[row][column], cell);
      add(all_, cell);
      if (cell.different() > 0) {
        fmt::print("DIFFERS: pass {} request {}: method {}, {}\n", pass, i, column,
                   fmt::join(rows, ", "));
      }
    }
    return {};
  }

  static void add(Cell& to, const Cell& from) {
    to.answers += from.answers;
    to.tokens += from.tokens;
    to.accepted += from.accepted;
    to.rejected += from.rejected;
    to.without_drafts += from.without_drafts;
    to.different_ids += from.different_ids;
    to.different_logprobs += from.different_logprobs;
    to.different_ends += from.different_ends;
  }

  int report() const {
    int vacuous = 0;
    fmt::print("{:<18}{:^36}{:^36}{:^36}\n", "", "ngram", "mtp", "hybrid");
    fmt::print("{:<18}", "");
    for (size_t i = 0; i < kMethods.size(); ++i) {
      fmt::print("{:>9}{:>10}{:>10}{:>7}", "tokens", "accepted", "rejected", "differ");
    }
    fmt::print("\n");
    for (const auto& [row, columns] : cells_) {
      fmt::print("{:<18}", row);
      for (const Cell& cell : columns) {
        fmt::print("{:>9}{:>10}{:>10}{:>7}", cell.tokens, cell.accepted, cell.rejected,
                   cell.different());
        vacuous += cell.accepted == 0 || cell.rejected == 0;
      }
      fmt::print("\n");
    }
    fmt::print(
        "{} answers, {} tokens, {} drafts accepted, {} rejected, {} decode steps without drafts, "
        "{} "
        "steps with prompts beside: {} ids, {} logprobs, {} texts or reasons differ\n",
        all_.answers, all_.tokens, all_.accepted, all_.rejected, all_.without_drafts,
        mixed_steps_.load(), all_.different_ids, all_.different_logprobs, all_.different_ends);
    if (vacuous > 0) fmt::print("FAILED: {} cells without accepted or without rejected\n", vacuous);
    const bool empty = all_.without_drafts == 0 || mixed_steps_ == 0;
    if (empty) fmt::print("FAILED: no step without drafts, or none with prompts\n");
    if (gpu()) fmt::print("{} captured graphs launched\n", graphs_.load());
    const bool eager = gpu() && graphs_ == 0;
    if (eager) fmt::print("FAILED: no step was a graph\n");
    const bool ok = vacuous == 0 && !empty && !eager && all_.different() == 0;
    fmt::print("{}\n", ok ? "OK: every bit is that of plain decoding" : "FAILED");
    return ok ? 0 : 1;
  }

  const Options options_;
  const std::string model_ = WEFT_SOURCE_DIR "/models/demo";
  const TempDir directory_;
  const std::string scales_ = directory_.file("scales.safetensors");
  std::optional<ChatFrontend> chat_;
  std::vector<LosslessRequest> requests_;             // of the pass
  std::map<std::string, std::vector<Answer>> plain_;  // by format of the cache
  std::map<std::string, std::array<Cell, 3>> cells_;
  Cell all_;
  std::atomic<int64_t> mixed_steps_{0};
  std::atomic<int64_t> graphs_{0};  // captured, of a GPU
};

int main_with(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const char* value = argv[i + 1];
    const char* end = value + std::strlen(value);
    if (flag == "--tokens" && std::from_chars(value, end, options.tokens).ptr == end) continue;
    if (flag == "--first-pass" && std::from_chars(value, end, options.first_pass).ptr == end) {
      continue;
    }
    if (flag == "--device" && (std::string(value) == "cpu" || std::string(value) == "cuda")) {
      options.device = value;
      continue;
    }
    fmt::print(stderr, "usage: lossless_run [--tokens N] [--first-pass N] [--device cpu|cuda]\n");
    return 2;
  }
  Lossless lossless(options);
  const Result<int> result = lossless.run();
  return result.ok() ? *result : report_error(result.error());
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  return weft::main_with(argc, argv);
}
