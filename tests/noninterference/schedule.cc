#include "tests/noninterference/schedule.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "runtime/executor_gpu.h"
#include "runtime/executor_local.h"
#include "runtime/memory_plan.h"

namespace weft {
namespace {

bool recurrent(const Model& model) {
  return std::ranges::any_of(model.cache_specs(), [](const CacheSpec& spec) {
    return std::holds_alternative<StateSpec>(spec);
  });
}

/// Whoever reads what nobody wrote, gets NaN.
void poison(Stream& stream, const KvStore& kv, const Model& model) {
  for (size_t i = 0; i < model.cache_specs().size(); ++i) {
    const LayerCache& layer = kv.layer(LayerId{static_cast<int32_t>(i)});
    if (const auto* paged = std::get_if<PagedKv>(&layer)) {
      fill_bytes(stream, paged->data, 0xFF, paged->num_blocks * paged->block_bytes);
      if (paged->kinds.defined()) {  // of no kind there is
        fill_bytes(stream, paged->kinds.data, 0x77, paged->kinds.bytes());
      }
    } else if (const auto* state = std::get_if<StateSlots>(&layer)) {
      fill_bytes(stream, state->conv.data, 0xFF, state->conv.bytes());
      fill_bytes(stream, state->recurrent.data, 0xFF, state->recurrent.bytes());
    }
  }
}

class Driver {
 public:
  Driver(const ScheduleOptions& options, const std::vector<std::shared_ptr<Request>>& requests,
         Executor& executor, Counters& counters)
      : options_(options),
        requests_(requests),
        executor_(executor),
        counters_(counters),
        rng_(options.seed),
        scheduler_(Scheduler::create(options.scheduler).value()) {}

  Outcome run() {
    while (next_ < requests_.size() || !scheduler_->idle()) {
      hand_in();
      abort_somebody();
      const StepPlan& plan = scheduler_->schedule();
      const bool empty = plan.empty();
      if (!empty) {
        count(plan);
        executor_.launch(plan);
        ++in_flight_;
      }
      CHECK(!empty || in_flight_ > 0 || scheduler_->num_waiting() == 0, "the schedule is stuck");
      const int depth = options_.scheduler.overlap ? 2 : 1;
      if (in_flight_ == depth || (in_flight_ > 0 && (empty || rng_() % 4 == 0))) apply();
      if (++rounds_ % 16 == 0) {
        const std::string wrong = scheduler_->audit();
        CHECK(wrong.empty(), wrong);
      }
    }
    const std::string wrong = scheduler_->audit();
    CHECK(wrong.empty(), wrong);
    counters_.add(scheduler_->stats());
    return std::move(outcome_);
  }

 private:
  void hand_in() {
    while (next_ < requests_.size() && rng_() % static_cast<uint64_t>(options_.arrival_in) == 0) {
      const auto& request = requests_[next_++];
      scheduler_->add(request).value();
      live_.push_back(request->id);
    }
  }

  void abort_somebody() {
    if (options_.abort_in == 0 || live_.empty() ||
        rng_() % static_cast<uint64_t>(options_.abort_in) != 0) {
      return;
    }
    const SeqId id = live_[rng_() % live_.size()];
    if (!scheduler_->abort(id)) return;
    std::erase(live_, id);
    outcome_.aborted.push_back(id);
    outcome_.answers[id].finish = FinishReason::kAbort;
    ++counters_.aborts;
  }

  void apply() {
    --in_flight_;
    StepResult result = executor_.collect();
    if (result.device_graphs > 0) {
      ++counters_.graph_steps;
      counters_.draft_graph_steps +=
          std::any_of(result.rows.begin(), result.rows.end(), [](const SampledRow& row) {
            return row.speculation.proposed[0] + row.speculation.proposed[1] > 0;
          });
    }
    for (SequenceOutput& out : scheduler_->apply(std::move(result))) {
      Answer& answer = outcome_.answers[out.seq];
      const auto append = [](auto& to, auto& from) {
        to.insert(to.end(), std::make_move_iterator(from.begin()),
                  std::make_move_iterator(from.end()));
      };
      CHECK(out.speculation.emitted == static_cast<int>(out.tokens.size()));
      if (!out.tokens.empty()) counters_.drafts.add(out.speculation);
      append(answer.tokens, out.tokens);
      append(answer.logprobs, out.logprobs);
      append(answer.prompt_logprobs, out.prompt_logprobs);
      if (out.finish == FinishReason::kNone) continue;
      answer.finish = out.finish;
      std::erase(live_, out.seq);
    }
  }

  void count(const StepPlan& plan) {
    int64_t prompt = 0, decode = 0;
    for (const Slice& slice : plan.slices) {
      if (slice.arithmetic == Arithmetic::kDecode) {
        ++decode;
        counters_.replays += slice.tokens.size() > 1;
        continue;
      }
      ++prompt;
      const Sequence* seq = scheduler_->find(slice.seq);
      for (const PromptImage& image : seq->request->images) {
        counters_.cut_images += image.first < slice.first && slice.first < image.end();
      }
      counters_.chunked +=
          slice.first + static_cast<int64_t>(slice.tokens.size()) < seq->prompt_len;
    }
    for (const BlockSwap& swap : plan.block_swaps) counters_.copies_in += !swap.out;
    counters_.mixed += prompt > 0 && decode > 0;
    counters_.largest_batch = std::max(counters_.largest_batch, decode);
  }

  const ScheduleOptions& options_;
  const std::vector<std::shared_ptr<Request>>& requests_;
  Executor& executor_;
  Counters& counters_;
  std::mt19937_64 rng_;
  std::unique_ptr<Scheduler> scheduler_;
  Outcome outcome_;
  std::vector<SeqId> live_;
  size_t next_ = 0;
  int in_flight_ = 0;
  int64_t rounds_ = 0;
};

}  // namespace

void Counters::add(const SchedulerStats& stats) {
  encoded += stats.images_encoded;
  layer_steps += stats.layer_steps;
  plans.add(stats.plans);
  image_hits += stats.image_hits;
  steps += stats.steps;
  hits += stats.hits;
  state_hits += stats.state_hits;
  preemptions += stats.preemptions;
  swap_outs += stats.swap_outs;
  swap_ins += stats.swap_ins;
  evictions += stats.block_evictions;
}

namespace {

/// Prompts are cut as lists of blocks and routers want it.
void cut_for_plans(const Model& model, SchedulerConfig& c) {
  if (!has_sparse_prefill(model.spec())) return;
  c.chunk = HeadPlan::kBlock;
  c.num_layers = static_cast<int>(model.spec().layers.size());
  if (has_prefill_router(model.spec())) c.plan_tokens = kWholePrompt;
}

}  // namespace

ScheduleOptions random_schedule(uint64_t seed, const Model& model, int block_size) {
  std::mt19937_64 rng(seed);
  const auto between = [&](int64_t low, int64_t high) {
    return static_cast<int>(low +
                            static_cast<int64_t>(rng() % static_cast<uint64_t>(high - low + 1)));
  };
  ScheduleOptions out;
  SchedulerConfig& c = out.scheduler;
  c.block_size = block_size;
  c.max_model_len = static_cast<int>(kTinyModelLen);
  const int longest = static_cast<int>(kTinyModelLen) / block_size;
  // Room for one request of the greatest length up to four.
  c.num_blocks = between(longest, longest * (rng() % 3 == 0 ? 4 : 2));
  c.max_seqs = between(2, 12);
  // Whole chunks, and some rows for those that decode.
  c.max_batched_tokens = kChunk * between(1, rng() % 3 == 0 ? 8 : 2) + c.max_seqs;
  if (recurrent(model)) c.num_state_slots = between(3, 3 * c.max_seqs);
  if (has_sparse_prefill(model.spec())) {
    cut_for_plans(model, c);
    c.max_batched_tokens += kChunk;  // a block of 128 rows at least
    if (has_prefill_router(model.spec()) && rng() % 2 == 0) c.plan_tokens = 128 * between(1, 3);
  }
  c.prefix_caching = rng() % 8 != 0;
  if (model.vision()) {
    c.image_tokens = kTinyImageTokens;
    c.image_pages = least_image_pages(kTinyImageTokens) + between(0, 8);
  }
  c.checkpoint_every = kChunk * between(0, 4);
  c.dense_checkpoints = between(0, 2) * 3;
  c.overlap = rng() % 4 != 0;
  c.hash_key = rng();
  if (rng() % 3 != 0) {
    c.num_swap_blocks = between(1, 2 * longest);
    c.num_swap_slots = between(1, 4);
  }
  if (rng() % 4 != 0) {
    SpeculationConfig& s = out.speculation;
    const bool mtp = model.spec().mtp.has_value() && rng() % 4 != 0;
    s.method = !mtp             ? SpeculationMethod::kNgram
               : rng() % 2 == 0 ? SpeculationMethod::kMtp
                                : SpeculationMethod::kHybrid;
    s.num_speculative_tokens = between(1, rng() % 4 == 0 ? kMaxDrafts : 8);
    s.num_mtp_steps = s.method == SpeculationMethod::kMtp ? s.num_speculative_tokens
                                                          : between(1, s.num_speculative_tokens);
    s.min_ngram_size = between(1, 2);
    s.max_ngram_size = between(2, 4);
    s.adaptive = rng() % 2 == 0;
    if (rng() % 8 == 0) s.accept = AcceptPolicy::kRejectAll;
    out.whims = rng() % 4 != 0;
    c.max_drafts = s.num_speculative_tokens;
    out.max_draft_rows = between(1, c.max_drafts * c.max_seqs);
    if (rng() % 4 != 0) out.right_guesses = between(4, 7);
  }
  out.num_threads = rng() % 4 == 0 ? 2 : 1;
  out.graphs = rng() % 4 != 0;
  out.arrival_in = between(1, 6);
  out.abort_in = rng() % 2 == 0 ? between(20, 60) : 0;
  out.seed = rng();
  return out;
}

ScheduleOptions alone(const Model& model, int block_size) {
  ScheduleOptions out;
  SchedulerConfig& c = out.scheduler;
  c.block_size = block_size;
  c.max_model_len = static_cast<int>(kTinyModelLen);
  c.num_blocks = static_cast<int>(kTinyModelLen) / block_size;
  c.max_seqs = 1;
  c.max_batched_tokens = static_cast<int>(kTinyModelLen);
  if (recurrent(model)) c.num_state_slots = 1;
  if (model.vision()) {
    c.image_tokens = kTinyImageTokens;
    c.image_pages = least_image_pages(kTinyImageTokens);
  }
  c.prefix_caching = false;
  c.overlap = false;
  cut_for_plans(model, c);
  return out;
}

std::string describe(const ScheduleOptions& o) {
  const SchedulerConfig& c = o.scheduler;
  return fmt::format(
      "{} blocks of {}, {} slots, {} tokens a step, {} sequences, prefix cache {}, checkpoints "
      "every {} + {} dense, overlap {}, {} threads, graphs {}, arrivals 1/{}, aborts 1/{}, "
      "speculation {} of {} drafts ({} by MTP) in {} rows, {}/8 right, policy {}, adaptive {}, "
      "whims {}, "
      "{} blocks and {} states of swap space",
      c.num_blocks, c.block_size, c.num_state_slots, c.max_batched_tokens, c.max_seqs,
      c.prefix_caching, c.checkpoint_every, c.dense_checkpoints, c.overlap, o.num_threads, o.graphs,
      o.arrival_in, o.abort_in, static_cast<int>(o.speculation.method),
      o.speculation.num_speculative_tokens, o.speculation.num_mtp_steps, o.max_draft_rows,
      o.right_guesses, static_cast<int>(o.speculation.accept), o.speculation.adaptive, o.whims,
      c.num_swap_blocks, c.num_swap_slots);
}

namespace {

/// The request's own answer with mistakes.
Speculator::Guess make_guess(const Answers& known, int right_of_8, uint64_t seed) {
  return [&known, right_of_8, rng = std::mt19937_64(seed)](
             const Request& request, int64_t generated, std::span<int32_t> out) mutable {
    const std::vector<int32_t>& tokens = known.at(request.id).tokens;
    int count = 0;
    for (int32_t& draft : out) {
      if (rng() % 8 == 0) break;
      const auto at = static_cast<size_t>(generated + count++);
      const bool right = at < tokens.size() && static_cast<int>(rng() % 8) < right_of_8;
      draft = right ? tokens[at] : static_cast<int32_t>(rng() % 60);
    }
    return count;
  };
}

/// Drafts for a while, then none for a while.
Speculator::Whim make_whim(uint64_t seed) {
  return [rng = std::mt19937_64(seed + 1), on = true]() mutable {
    if (rng() % 6 == 0) on = !on;
    return on;
  };
}

}  // namespace

Outcome run_schedule(const Model& model, const OpTable& ops, const ScheduleOptions& options,
                     const std::vector<std::shared_ptr<Request>>& requests,
                     const ExecutorWrapper& wrap, Counters& counters) {
  const SchedulerConfig& c = options.scheduler;
  StepLimits limits;
  limits.max_rows = c.max_batched_tokens;
  limits.max_seqs = c.max_seqs;
  limits.max_model_len = c.max_model_len;
  limits.vocab_size = model.spec().vocab;
  limits.block_size = c.block_size;
  limits.num_blocks = c.num_blocks;
  limits.num_slots = c.num_state_slots;
  limits.recurrent = recurrent(model);
  limits.multimodal = true;  // so that a stale delta can be planted
  limits.image_tokens = c.image_tokens;
  limits.image_pages = c.image_pages;
  limits.sparse_from = c.sparse_from;
  limits.layered_rows = c.plan_tokens > 0 ? c.max_model_len : 0;
  limits.max_draft_rows = options.max_draft_rows;
  if (limits.recurrent) limits.kept_rows = kept_rows(options.speculation, ops.device);
  KvStore kv =
      KvStore::create(model.cache_specs(), ops, c.num_blocks, limits.all_slots(), limits.kept_rows)
          .value();
  kv.reserve_swap(c.num_swap_blocks, c.num_swap_slots).value();
  int64_t scratch = model.arena_bytes(limits.all_rows());
  if (model.vision()) {
    const int64_t patches = limits.image_tokens * model.vision()->spec().merge_patches();
    scratch = std::max(scratch, model.vision()->scratch_bytes(ops, patches, kTinyThreads));
  }
  TinyStream stream(ops.device, scratch, options.num_threads);
  poison(stream.get(), kv, model);
  std::unique_ptr<Executor> executor;
  const auto take = [&](auto made) {
    if (options.right_guesses > 0) {
      made->set_guess(make_guess(*options.known, options.right_guesses, options.seed));
    }
    if (options.whims) made->set_whim(make_whim(options.seed));
    executor = std::move(made);
  };
  if (ops.device == DeviceKind::kCuda) {
    take(GpuExecutor::create(model, kv, stream.get(), ops, limits,
                             {.graphs = options.graphs, .speculation = options.speculation})
             .value());
  } else {
    take(LocalExecutor::create(model, kv, stream.get(), ops, limits, options.speculation).value());
  }
  if (wrap) executor = wrap(std::move(executor));
  return Driver(options, requests, *executor, counters).run();
}

}  // namespace weft
