// weft eval: accuracy per task of an evaluation set, and token-by-token equality with golden
// outputs.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>

#include "api/answer.h"
#include "api/chat.h"
#include "app/cli.h"
#include "app/eval_kl.h"
#include "app/eval_prompt.h"
#include "app/eval_set.h"
#include "app/local_engine.h"

namespace weft {
namespace {

constexpr double kLogprobTolerance = 1e-3;
/// The reference resized pictures with torch's kernels, which round a sample differently here and
/// there.
constexpr double kPictureTolerance = 1e-2;
/// Below this gap between best and second token the reference's own rounding decides.
constexpr double kNearTie = 1e-3;

bool wanted(const EvalOptions& options, const std::string& task) {
  if (options.tasks.empty()) return true;
  return std::find(options.tasks.begin(), options.tasks.end(), task) != options.tasks.end();
}

struct TaskScore {
  int right = 0, total = 0, left_out = 0;
  int64_t prompt_tokens = 0, answer_tokens = 0;
};

/// What the items need to become requests.
struct Tools {
  LocalEngine& local;
  const ChatFrontend* chat = nullptr;
  EvalImages images;  // without a reader items with images are left out
};

/// Answers on their way through the engine: so many that its batches stay full, and far fewer than
/// it refuses.
class AnswerQueue {
 public:
  using Done = std::function<void(const Answer&)>;

  explicit AnswerQueue(Engine& engine) : engine_(engine) {}
  AnswerQueue(const AnswerQueue&) = delete;
  AnswerQueue& operator=(const AnswerQueue&) = delete;
  /// What still runs, behind an error, ends before its stream does.
  ~AnswerQueue() {
    for (const Running& r : running_) engine_.abort(r.id);
    for (const Running& r : running_) r.stream->wait();
  }

  /// Submits the request of item `item_id`; behind a full queue waits for its oldest answer first.
  Result<void> add(const std::string& item_id, Request request,
                   std::unique_ptr<AnswerStream> stream, Done done) {
    if (running_.size() == kAtOnce) TRY(finish_oldest());
    const SeqId id = TRY(engine_.submit(std::move(request), *stream));
    running_.push_back({id, item_id, std::move(stream), std::move(done)});
    return {};
  }

  /// Waits for all of them. An Error: one of them has ended with one.
  Result<void> finish() {
    while (!running_.empty()) TRY(finish_oldest());
    return {};
  }

 private:
  static constexpr size_t kAtOnce = 1024;
  struct Running {
    SeqId id;
    std::string item_id;
    std::unique_ptr<AnswerStream> stream;
    Done done;
  };

  Result<void> finish_oldest() {
    const Running oldest = std::move(running_.front());
    running_.pop_front();
    const Answer& answer = oldest.stream->wait();
    if (answer.error) return with_context(*answer.error, oldest.item_id);
    oldest.done(answer);
    return {};
  }

  Engine& engine_;
  std::deque<Running> running_;
};

Result<void> submit_item(const EvalItem& item, const Tools& tools, TaskScore& score,
                         AnswerQueue& queue) {
  const ChatRequest chat_request{
      .messages = item.messages,
      .tools = item.tools,
      .template_kwargs = {{"enable_thinking", item.enable_thinking ? "true" : "false"}}};
  Request request;
  TRY(set_eval_prompt(tools.images, TRY(tools.chat->encode(chat_request)).ids, item.images,
                      request));
  score.prompt_tokens += static_cast<int64_t>(request.prompt.size());
  SamplingRequest sampling{.temperature = 0, .max_tokens = item.max_tokens};
  request.sampling =
      TRY(validate_sampling(sampling, with_eos_of(tools.chat->tokenizer(), tools.local.defaults()),
                            tools.local.limits(), static_cast<int64_t>(request.prompt.size()), 0));
  TextOptions options{.stop_ids = request.sampling.stop_ids, .skip_special = false};
  auto stream = std::make_unique<AnswerStream>(&tools.chat->tokenizer(), options);
  return queue.add(item.id, std::move(request), std::move(stream),
                   [&item, &score](const Answer& answer) {
                     score.answer_tokens += answer.usage.generated_tokens;
                     if (grade_answer(item, answer.text)) ++score.right;
                   });
}

Result<void> run_tasks(const EvalOptions& options, const std::vector<EvalItem>& items,
                       const Tools& tools) {
  const std::map<std::string, double> reference =
      TRY(read_reference_accuracy(options.directory + "/results.json"));
  std::vector<std::string> order;
  std::map<std::string, TaskScore> scores;
  AnswerQueue queue(tools.local.engine());  // ends before the scores do
  for (const EvalItem& item : items) {
    if (!wanted(options, item.task)) continue;
    if (!scores.contains(item.task)) order.push_back(item.task);
    TaskScore& score = scores[item.task];
    if (!item.images.empty() && !tools.images.reader) {
      ++score.left_out;
      continue;
    }
    if (options.limit > 0 && score.total >= options.limit) continue;
    ++score.total;
    TRY(submit_item(item, tools, score, queue));
  }
  if (scores.empty())
    return invalid_argument("--tasks: no item of these tasks in " + options.directory);
  TRY(queue.finish());
  std::printf("%-18s %9s %10s %7s %14s %14s\n", "task", "accuracy", "reference", "items",
              "prompt tokens", "answer tokens");
  for (const std::string& task : order) {
    const TaskScore& s = scores[task];
    const auto known = reference.find(task);
    char reference_text[16] = "-";
    if (known != reference.end()) {
      std::snprintf(reference_text, sizeof(reference_text), "%.1f %%", known->second * 100);
    }
    if (s.total == 0) {
      std::printf("%-18s %9s %10s %7d   needs pictures, which the model does not take here\n",
                  task.c_str(), "-", reference_text, s.left_out);
      continue;
    }
    std::printf("%-18s %7.1f %% %10s %7d %14.1f %14.1f\n", task.c_str(), 100.0 * s.right / s.total,
                reference_text, s.total, static_cast<double>(s.prompt_tokens) / s.total,
                static_cast<double>(s.answer_tokens) / s.total);
  }
  return {};
}

struct GoldenScore {
  int compared = 0, equal = 0, near_ties = 0, left_out = 0, logprob_misses = 0;
  double worst_logprob = 0, worst_picture = 0;  ///< differences, of texts and with pictures
};

void compare_golden(const GoldenItem& item, const Answer& answer, GoldenScore& score) {
  ++score.compared;
  size_t same = 0;
  while (same < item.output_ids.size() && same < answer.tokens.size() &&
         item.output_ids[same] == answer.tokens[same]) {
    ++same;
  }
  if (same == item.output_ids.size() && same == answer.tokens.size()) {
    ++score.equal;
  } else if (item.smallest_margin < kNearTie) {
    ++score.near_ties;
    std::printf("%s: differs at token %zu of %zu; the reference's closest call is %.4f\n",
                item.id.c_str(), same, item.output_ids.size(), item.smallest_margin);
  } else {
    std::printf("%s: DIFFERS at token %zu of %zu\n", item.id.c_str(), same, item.output_ids.size());
  }
  // Log-probabilities are comparable up to and including the first position that differs.
  for (size_t i = 0; i < item.top5.size() && i <= same && i < answer.logprobs.size(); ++i) {
    for (const auto& [token, logprob] : item.top5[i]) {
      double ours = std::nan("");
      for (const TopLogprob& top : answer.logprobs[i].top) {
        if (top.token == token) ours = top.logprob;
      }
      const double difference = std::abs(ours - logprob);
      const bool pictures = !item.images.empty();
      if (!(difference <= (pictures ? kPictureTolerance : kLogprobTolerance))) {
        ++score.logprob_misses;
      }
      double& worst = pictures ? score.worst_picture : score.worst_logprob;
      worst = std::max(worst, difference);
    }
  }
}

/// The reference's prompt with one token an image, as the template writes it.
std::vector<int32_t> with_placeholders(const GoldenItem& item, int32_t image_token) {
  std::vector<int32_t> out;
  for (const int32_t id : item.prompt_ids) {
    if (id != image_token || out.empty() || out.back() != image_token) out.push_back(id);
  }
  return out;
}

Result<bool> run_golden(const EvalOptions& options, const Tools& tools) {
  LocalEngine& local = tools.local;
  const std::vector<GoldenItem> items = TRY(read_golden_items(options.directory + "/golden.jsonl"));
  GoldenScore score;
  AnswerQueue queue(local.engine());
  for (const GoldenItem& item : items) {
    if (!item.images.empty() && !tools.images.reader) {
      ++score.left_out;
      continue;
    }
    Request request;
    std::vector<int32_t> ids = item.prompt_ids;
    if (!item.images.empty()) ids = with_placeholders(item, local.spec().vision->image_token);
    TRY(set_eval_prompt(tools.images, ids, item.images, request));
    if (request.prompt != item.prompt_ids) {
      return data_loss(item.id + ": its images have another number of tokens here");
    }
    // A few more alternatives than compared: equal log-probabilities may come in another order.
    SamplingRequest sampling{.temperature = 0,
                             .max_tokens = static_cast<int64_t>(item.output_ids.size()),
                             .logprobs = 10};
    request.sampling = TRY(validate_sampling(sampling, local.defaults(), local.limits(),
                                             static_cast<int64_t>(item.prompt_ids.size()), 0));
    TRY(queue.add(item.id, std::move(request),
                  std::make_unique<AnswerStream>(nullptr, TextOptions{}),
                  [&item, &score](const Answer& answer) { compare_golden(item, answer, score); }));
  }
  TRY(queue.finish());
  std::printf("golden: %d of %d continuations equal", score.equal, score.compared);
  if (score.near_ties > 0)
    std::printf(", %d differ at a near tie of the reference", score.near_ties);
  std::printf(
      "; top-5 log-probabilities: largest difference %.2g (%.2g with pictures), %d beyond %.0e "
      "(%.0e)",
      score.worst_logprob, score.worst_picture, score.logprob_misses, kLogprobTolerance,
      kPictureTolerance);
  if (score.left_out > 0) std::printf("; %d prompts with pictures left out", score.left_out);
  std::printf("\n");
  return score.equal + score.near_ties == score.compared && score.logprob_misses == 0;
}

Result<bool> run_eval(const EvalOptions& options) {
  // The files are read first: a wrong directory must not cost a model load.
  const std::vector<EvalItem> items = TRY(read_eval_items(options.directory + "/heldout.jsonl"));
  const std::unique_ptr<LocalEngine> local = TRY(LocalEngine::start(options.engine));
  Tools tools{.local = *local,
              .images = {.reader = image_reader_of(local->plan()), .directory = options.directory}};
  if (!options.golden_only) {
    const ChatFrontend chat = TRY(ChatFrontend::load(local->plan().directory));
    tools.chat = &chat;
    TRY(run_tasks(options, items, tools));
  }
  const bool exact = local->plan().load.format == WeightFormat::kF32;
  const bool equal = TRY(run_golden(options, tools));
  if (!exact) std::printf("(run with --dtype float32 for the exact comparison)\n");
  return equal || !exact;
}

}  // namespace

int eval_command(const EvalOptions& options) {
  if (options.kl) {
    const Result<void> result = run_eval_kl(options);
    return result ? kExitOk : report_error(result.error());
  }
  const Result<bool> result = run_eval(options);
  if (!result) return report_error(result.error());
  return *result ? kExitOk : kExitRuntime;
}

}  // namespace weft
