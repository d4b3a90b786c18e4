// noninterference [--seconds N] [--schedules N] [--seed S] [--family X] [--device cpu|cuda]
//                 [--weights FORMAT] [--cache FORMAT] [--plant NAME [--expect-caught]]
//
// The promise of docs/architecture.md: the tokens and logprob bits of a request are those it has
// alone. Random requests run together under random schedules of batch, chunk budget, prefix hits,
// preemption and aborts, on tiny checkpoints of every family, with every op table of this machine
// and every weight format; each answer is compared with the request run alone.
#include <fmt/format.h>

#include <charconv>
#include <chrono>
#include <cstring>
#include <optional>
#include <string>

#include "base/check.h"
#include "tests/noninterference/plants.h"
#include "tests/noninterference/schedule.h"
#include "tests/support/sanitized.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  double seconds = 120;
  int64_t schedules = 0;  // at least
  bool cuda = false;
  uint64_t seed = 1;
  std::string family;                  // empty: all
  std::optional<WeightFormat> format;  // none: all
  std::optional<KvFormat> cache;       // none: all
  const Plant* plant = nullptr;
  bool expect_caught = false;
};

struct Totals {
  Counters all;
  std::map<std::string, Counters> by_family;
};

bool recurrent_family(const std::string& family) {
  return family == "qwen3_next" || family.starts_with("qwen3_5");
}

constexpr int kSchedulesPerModel = kSanitized ? 1 : 3;

Variant random_variant(const std::string& family, uint64_t seed, bool cuda,
                       std::optional<WeightFormat> format, std::optional<KvFormat> cache) {
  std::mt19937_64 rng(seed);
  const auto tables = all_op_tables(cuda);
  Variant out;
  out.family = family;
  out.ops = tables[rng() % tables.size()];
  constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kInt8,
                                       WeightFormat::kInt4};
  out.format = kFormats[rng() % 4];
  constexpr KvFormat kCaches[] = {KvFormat::kBf16,        KvFormat::kF32,      KvFormat::kInt8,
                                  KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kFp8,
                                  KvFormat::kInt4};
  out.kv_format = kCaches[rng() % std::size(kCaches)];
  out.block_size = rng() % 2 == 0 ? 64 : 16;
  if (cuda) {  // nothing is f32 there
    if (out.format == WeightFormat::kF32) out.format = WeightFormat::kFp8Block;
    if (out.kv_format == KvFormat::kF32) out.kv_format = KvFormat::kBf16;
  }
  if (format) out.format = *format;
  if (cache) out.kv_format = *cache;
  // Heads of 16 dims.
  if (family == "ernie4_5_moe" && out.kv_format == KvFormat::kInt4) {
    out.kv_format = KvFormat::kInt8Dynamic;
  }
  const bool may_choose = family == "qwen3" || family == "qwen2" || family == "llama3";
  if (may_choose && rng() % 3 == 0) {
    out.prefill = {.kind = PrefillOptions::Kind::kXattn, .threshold = 0.5f, .stride = 8};
    if (rng() % 2 == 0) out.heads_seed = seed + 1;
  }
  if (family.starts_with("paw") && rng() % 3 == 0) {  // the routers are not asked
    out.prefill = {.kind = PrefillOptions::Kind::kXattn, .threshold = 0.5f, .stride = 8};
    out.heads_seed = seed + 1;
  }
  return out;
}

/// One model under a few schedules. The text of the first difference, or "".
std::string run_round(const Options& options, const std::string& family, uint64_t seed,
                      Counters& counters) {
  const Variant variant = random_variant(family, seed, options.cuda, options.format, options.cache);
  const std::unique_ptr<Model> model = load_tiny(variant).value();
  OpTable ops = *variant.ops;
  ExecutorWrapper wrap;
  if (options.plant != nullptr) {
    if (options.plant->ops != nullptr) ops = options.plant->ops(*variant.ops);
    if (options.plant->executor != nullptr) wrap = options.plant->executor;
  }
  for (int i = 0; i < kSchedulesPerModel; ++i) {
    const uint64_t schedule_seed = seed * 1000 + static_cast<uint64_t>(i);
    RequestMaker maker(schedule_seed, static_cast<int32_t>(model->spec().vocab), kTinyModelLen,
                       model->vision() ? &model->vision()->spec() : nullptr);
    std::vector<std::shared_ptr<Request>> requests;
    const int count = 4 + static_cast<int>(schedule_seed % 11);
    for (int r = 0; r < count; ++r) requests.push_back(maker.make(SeqId{r}));
    ScheduleOptions schedule = random_schedule(schedule_seed, *model, variant.block_size);
    ScheduleOptions lonely = alone(*model, variant.block_size);
    if (variant.prefill.kind == PrefillOptions::Kind::kXattn && i > 0) {  // some are dense
      schedule.scheduler.sparse_from = 150 * i;
    }
    lonely.scheduler.plan_tokens = schedule.scheduler.plan_tokens;
    lonely.scheduler.sparse_from = schedule.scheduler.sparse_from;
    const std::string where = fmt::format("round --seed {} --family {}: {}; schedule {}: {}", seed,
                                          family, describe(variant), i, describe(schedule));
    Answers answers;
    for (const auto& request : requests) {
      Counters ignored;
      try {
        answers[request->id] =
            run_schedule(*model, ops, lonely, {request}, wrap, ignored).answers[request->id];
      } catch (const Panic& panic) {
        return where + "\n  alone: " + panic.what() + "\n  " + describe(*request);
      }
    }
    schedule.known = &answers;
    Outcome together;
    try {
      together = run_schedule(*model, ops, schedule, requests, wrap, counters);
    } catch (const Panic& panic) {
      return where + "\n  " + panic.what();
    }
    ++counters.schedules;
    counters.tables += variant.heads_seed != 0 ? 1 : 0;
    for (const auto& request : requests) {
      const Answer& want = answers[request->id];
      const Answer& got = together.answers[request->id];
      const bool aborted = got.finish == FinishReason::kAbort;
      const std::string text = difference(want, got, aborted);
      if (!text.empty()) return where + "\n  " + text + "\n  " + describe(*request);
      ++counters.requests;
      counters.tokens += static_cast<int64_t>(got.tokens.size());
      counters.prompt_logprobs += static_cast<int64_t>(got.prompt_logprobs.size());
      if (request->constraint) counters.constrained += static_cast<int64_t>(got.tokens.size());
    }
  }
  return "";
}

void print(const std::string& name, const Counters& c) {
  fmt::print(
      "{:<14}{:>6} schedules {:>7} requests {:>9} tokens {:>9} steps | {} hits, {} state hits, {} "
      "preemptions, {} swaps out, {} in ({} blocks), {} replays, {} cut prompts, {} mixed steps, "
      "{} aborts, {} evictions, {} prompt "
      "logprobs, {} tokens by grammar, {} images encoded, {} found, {} cut, {} steps of layers, {} "
      "blocks left out, {} full, {} streaming and {} list heads, {} tables of heads, batch up to "
      "{}, "
      "drafts of MTP {} of {}, others {} of {}, "
      "{} steps with graphs, {} of them with drafts\n",
      name, c.schedules, c.requests, c.tokens, c.steps, c.hits, c.state_hits, c.preemptions,
      c.swap_outs, c.swap_ins, c.copies_in, c.replays, c.chunked, c.mixed, c.aborts, c.evictions,
      c.prompt_logprobs, c.constrained, c.encoded, c.image_hits, c.cut_images, c.layer_steps,
      c.plans.causal_blocks - c.plans.computed_blocks, c.plans.full_heads, c.plans.streaming_heads,
      c.plans.block_heads, c.tables, c.largest_batch, c.drafts.accepted[0], c.drafts.proposed[0],
      c.drafts.accepted[1], c.drafts.proposed[1], c.graph_steps, c.draft_graph_steps);
}

/// What has to have happened for the run to mean something.
std::string vacuous(const Totals& totals, const Options& options) {
  if (kSanitized && options.family.empty()) {  // there the bits and the sanitizer count
    return totals.all.tokens > 0 ? "" : "nothing tested";
  }
  const Counters& c = totals.all;
  const std::pair<const char*, int64_t> needed[] = {
      {"prefix hits", c.hits},
      {"preemptions", c.preemptions},
      {"replays", c.replays},
      {"cut prompts", c.chunked},
      {"mixed steps", c.mixed},
      {"aborts", c.aborts},
      {"evictions", c.evictions},
      {"prompt logprobs", c.prompt_logprobs},
      {"tokens by grammar", c.constrained},
      {"batches above 3", c.largest_batch > 3 ? 1 : 0}};
  for (const auto& [what, count] : needed) {
    if (count == 0) return fmt::format("nothing tested: no {}", what);
  }
  if (options.family.empty() || recurrent_family(options.family)) {
    if (c.state_hits == 0) return "nothing tested: no state hits";
  }
  if (options.cuda && c.draft_graph_steps == 0) return "nothing tested: no drafts in graphs";
  if (c.swap_ins == 0 || c.copies_in == 0) return "nothing tested: no swaps";
  if (options.family.empty() || options.family.starts_with("paw")) {
    if (c.layer_steps == 0) return "nothing tested: no prompt was computed layer by layer";
    if (c.plans.computed_blocks == c.plans.causal_blocks) {
      return "nothing tested: all heads dense";
    }
    if (c.plans.full_heads == 0) return "nothing tested: no full heads";
    if (c.plans.streaming_heads == 0) return "nothing tested: no streaming heads";
    if (c.plans.block_heads == 0) return "nothing tested: no heads with lists";
    if (c.tables == 0) return "nothing tested: no full heads beside sparse ones";
  }
  for (size_t i = 0; i < kNumDraftSources; ++i) {
    const bool mtp = i == static_cast<size_t>(DraftSource::kMtp);
    if (mtp && !options.family.empty() && options.family != kMtpFamily) continue;
    // Seldom right with random weights; tests/lossless sees many.
    if (mtp && options.seconds < 60) continue;
    if (c.drafts.accepted[i] == 0) return "nothing tested: no draft was accepted";
    if (c.drafts.accepted[i] == c.drafts.proposed[i]) return "nothing tested: no draft rejected";
  }
  if (!options.cuda && options.family.empty()) {
    if (c.encoded == 0 || c.image_hits == 0) return "nothing tested: no images";
    if (c.cut_images == 0) return "nothing tested: no image was cut";
  }
  return "";
}

int run(const Options& options) {
  std::vector<std::string> families = tiny_families();
  if (!options.family.empty()) families = {options.family};
  if (options.plant != nullptr && options.plant->images_only && options.family.empty()) {
    families = {"qwen3_5", "qwen3_vl", "qwen2_5_vl"};
  }
  if (options.plant != nullptr && options.plant->routed_only && options.family.empty()) {
    families = {"pawqwen3_xattn_streaming"};
  }
  if (options.plant != nullptr && options.plant->recurrent_only && options.family.empty()) {
    std::erase_if(families, [](const std::string& f) { return !recurrent_family(f); });
  }
  const auto start = Clock::now();
  Totals totals;
  std::string failure;
  uint64_t round = 0;
  do {
    const std::string& family = families[round % families.size()];
    Counters counters;
    failure = run_round(options, family, options.seed + round, counters);
    for (Counters* sum : {&totals.all, &totals.by_family[family]}) {
      sum->schedules += counters.schedules;
      sum->requests += counters.requests;
      sum->tokens += counters.tokens;
      sum->steps += counters.steps;
      sum->hits += counters.hits;
      sum->state_hits += counters.state_hits;
      sum->preemptions += counters.preemptions;
      sum->swap_outs += counters.swap_outs;
      sum->swap_ins += counters.swap_ins;
      sum->copies_in += counters.copies_in;
      sum->replays += counters.replays;
      sum->chunked += counters.chunked;
      sum->mixed += counters.mixed;
      sum->aborts += counters.aborts;
      sum->evictions += counters.evictions;
      sum->prompt_logprobs += counters.prompt_logprobs;
      sum->constrained += counters.constrained;
      sum->encoded += counters.encoded;
      sum->image_hits += counters.image_hits;
      sum->cut_images += counters.cut_images;
      sum->layer_steps += counters.layer_steps;
      sum->graph_steps += counters.graph_steps;
      sum->draft_graph_steps += counters.draft_graph_steps;
      sum->plans.add(counters.plans);
      sum->tables += counters.tables;
      sum->drafts.add(counters.drafts);
      sum->largest_batch = std::max(sum->largest_batch, counters.largest_batch);
    }
    ++round;
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    // On a slow machine the time may be up before everything has happened: then go on for it.
    constexpr double kPatience = kSanitized ? 6 : 30;
    const bool enough = round >= families.size() && totals.all.schedules >= options.schedules &&
                        vacuous(totals, options).empty();
    if (seconds >= options.seconds && (enough || seconds >= kPatience * options.seconds)) break;
  } while (failure.empty());

  for (const auto& [family, counters] : totals.by_family) print(family, counters);
  print("all", totals.all);
  if (options.expect_caught) {
    if (failure.empty()) {
      fmt::print("NOT CAUGHT: {} ({})\n", options.plant->name, options.plant->what);
      return 1;
    }
    fmt::print("caught {} after {} rounds: {}\n", options.plant->name, round, failure);
    return 0;
  }
  if (failure.empty()) failure = vacuous(totals, options);
  if (failure.empty()) {
    fmt::print("OK: every bit is that of the request alone\n");
    return 0;
  }
  fmt::print("FAILED: {}\n", failure);
  return 1;
}

int usage(const std::string& problem) {
  fmt::print(stderr,
             "{}\nusage: noninterference [--seconds N] [--schedules N] [--seed S] [--family X] "
             "[--device cpu|cuda] [--weights FORMAT] [--cache FORMAT] [--plant NAME "
             "[--expect-caught]]\nplants:\n",
             problem);
  for (const Plant& plant : plants()) fmt::print(stderr, "  {:<22}{}\n", plant.name, plant.what);
  return 2;
}

template <class T>
bool parse_number(const char* text, T& value) {
  const char* end = text + std::strlen(text);
  const auto result = std::from_chars(text, end, value);
  return result.ec == std::errc() && result.ptr == end;
}

int main_with(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--expect-caught") {
      options.expect_caught = true;
      continue;
    }
    if (i + 1 == argc) return usage(flag + " needs a value");
    const char* value = argv[++i];
    if (flag == "--seconds") {
      if (!parse_number(value, options.seconds)) return usage("--seconds: not a number");
    } else if (flag == "--seed") {
      if (!parse_number(value, options.seed)) return usage("--seed: not a whole number");
    } else if (flag == "--schedules") {
      if (!parse_number(value, options.schedules)) return usage("--schedules: not a whole number");
    } else if (flag == "--device") {
      options.cuda = std::string_view(value) == "cuda";
      if (!options.cuda && std::string_view(value) != "cpu") return usage("--device: cpu or cuda");
    } else if (flag == "--family") {
      options.family = value;
    } else if (flag == "--weights") {
      for (const auto format : {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kInt8,
                                WeightFormat::kInt4, WeightFormat::kFp8Block}) {
        if (weight_format_name(format) == value) options.format = format;
      }
      if (!options.format) return usage("--weights: bf16, f32, int8, int4 or fp8");
    } else if (flag == "--cache") {
      for (const auto cache :
           {KvFormat::kBf16, KvFormat::kF32, KvFormat::kInt8, KvFormat::kInt8Dynamic,
            KvFormat::kFp8Block, KvFormat::kFp8, KvFormat::kInt4}) {
        if (kv_format_name(cache) == value) options.cache = cache;
      }
      if (!options.cache) return usage(std::string("--cache: no KV format ") + value);
    } else if (flag == "--plant") {
      for (const Plant& plant : plants()) {
        if (plant.name == value) options.plant = &plant;
      }
      if (options.plant == nullptr) return usage(std::string("no plant ") + value);
    } else {
      return usage("unknown flag " + flag);
    }
  }
  if (options.expect_caught && options.plant == nullptr) return usage("--expect-caught: of what?");
  return run(options);
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  return weft::main_with(argc, argv);
}
