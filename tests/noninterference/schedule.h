#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sched/executor.h"
#include "sched/scheduler.h"
#include "tests/noninterference/requests.h"
#include "tests/noninterference/tiny_model.h"

namespace weft {

/// What happened, summed over schedules; a run in which one of them stays 0 proves little.
struct Counters {
  int64_t schedules = 0, requests = 0, tokens = 0, steps = 0;
  int64_t hits = 0;        ///< admissions that reused prefix blocks
  int64_t state_hits = 0;  ///< of them, with a recurrent state
  int64_t preemptions = 0;
  int64_t swap_outs = 0;        ///< of them, whose blocks and states were kept in host memory
  int64_t swap_ins = 0;         ///< that came back from there
  int64_t copies_in = 0;        ///< blocks that did
  int64_t replays = 0;          ///< decode slices of more than one token
  int64_t chunked = 0;          ///< prompt slices that end inside their prompt
  int64_t mixed = 0;            ///< steps with prompt and decode slices
  int64_t largest_batch = 0;    ///< decode slices in one step
  int64_t aborts = 0;           ///< requests cut short
  int64_t evictions = 0;        ///< cached blocks given to somebody else
  int64_t prompt_logprobs = 0;  ///< prompt logprobs compared
  int64_t constrained = 0;      ///< tokens of requests with a grammar
  int64_t encoded = 0;          ///< images that went through the tower
  int64_t image_hits = 0;       ///< that were there already
  int64_t cut_images = 0;       ///< prompt slices that begin inside an image
  int64_t layer_steps = 0;      ///< steps of some layers of a long prompt
  int64_t graph_steps = 0;      ///< of a GPU, with captured graphs; and of them, with drafts
  int64_t draft_graph_steps = 0;
  PlanCounters plans;        ///< of heads that see less than all keys; of a GPU, their kinds alone
  int64_t tables = 0;        ///< schedules under a table of heads of every kind
  SpeculationCounts drafts;  ///< of n-grams and guesses, and of the MTP module
  void add(const SchedulerStats& stats);
};

using Answers = std::map<SeqId, Answer>;

/// How one schedule runs; all of it must not matter.
struct ScheduleOptions {
  SchedulerConfig scheduler;
  int num_threads = 1;
  bool graphs = false;  ///< decode steps of a GPU
  SpeculationConfig speculation;
  int max_draft_rows = 0;
  int right_guesses = 0;           ///< of 8 drafts, in the place of n-grams; 0: n-grams
  bool whims = false;              ///< drafts come and go with "adaptive"
  const Answers* known = nullptr;  ///< what guesses are made of
  int arrival_in = 1;  ///< a waiting request is handed in at a step with probability 1 / this
  int abort_in = 0;    ///< at each step, somebody is aborted with probability 1 / this; 0: never
  uint64_t seed = 0;
};

ScheduleOptions random_schedule(uint64_t seed, const Model& model, int block_size);
/// One request at a time, no prefix cache, a whole prompt in one step.
ScheduleOptions alone(const Model& model, int block_size);
std::string describe(const ScheduleOptions& options);

using ExecutorWrapper = std::function<std::unique_ptr<Executor>(std::unique_ptr<Executor>)>;

struct Outcome {
  std::map<SeqId, Answer> answers;
  std::vector<SeqId> aborted;
};

/// Runs the requests through a scheduler and a LocalExecutor of fresh caches, whose memory holds
/// NaN at first. Panics on a bug that the scheduler, its audit or the executor notices.
Outcome run_schedule(const Model& model, const OpTable& ops, const ScheduleOptions& options,
                     const std::vector<std::shared_ptr<Request>>& requests,
                     const ExecutorWrapper& wrap, Counters& counters);

}  // namespace weft
