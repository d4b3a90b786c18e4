// weft eval --kl: how far a quantised KV cache moves the model's distributions from those of a bf16
// cache, on the prompts of an evaluation set and the answers of its golden outputs.

#include "app/eval_kl.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "api/chat.h"
#include "app/eval_set.h"
#include "app/offline_model.h"

namespace weft {
namespace {

/// One sequence of known tokens.
struct Text {
  std::string task;
  std::vector<int32_t> ids;
};

Result<std::vector<Text>> read_texts(const EvalOptions& options, const ChatFrontend& chat) {
  std::vector<Text> out;
  std::map<std::string, int64_t> counts;
  for (const EvalItem& item : TRY(read_eval_items(options.directory + "/heldout.jsonl"))) {
    const bool asked =
        options.tasks.empty() ||
        std::find(options.tasks.begin(), options.tasks.end(), item.task) != options.tasks.end();
    if (!asked || !item.images.empty()) continue;
    if (options.limit > 0 && counts[item.task]++ >= options.limit) continue;
    const ChatRequest request{
        .messages = item.messages,
        .tools = item.tools,
        .template_kwargs = {{"enable_thinking", item.enable_thinking ? "true" : "false"}}};
    out.push_back({item.task, TRY(chat.encode(request)).ids});
  }
  if (!options.tasks.empty()) return out;
  for (const GoldenItem& item : TRY(read_golden_items(options.directory + "/golden.jsonl"))) {
    if (!item.images.empty()) continue;
    std::vector<int32_t> ids = item.prompt_ids;
    ids.insert(ids.end(), item.output_ids.begin(), item.output_ids.end());
    out.push_back({"golden", std::move(ids)});
  }
  return out;
}

struct KlSum {
  int64_t tokens = 0, same_best = 0;
  double sum = 0, largest = 0;

  void add(double kl, bool same) {
    ++tokens;
    same_best += same;
    sum += kl;
    largest = std::max(largest, kl);
  }
  void add(const KlSum& other) {
    tokens += other.tokens;
    same_best += other.same_best;
    sum += other.sum;
    largest = std::max(largest, other.largest);
  }
};

double log_sum(const float* x, size_t n) {
  const double top = static_cast<double>(*std::max_element(x, x + n));
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - top);
  return top + std::log(sum);
}

/// sum p log(p / q) of two rows of logits.
double divergence(const float* p, const float* q, size_t n) {
  const double p_sum = log_sum(p, n), q_sum = log_sum(q, n);
  double kl = 0;
  for (size_t i = 0; i < n; ++i) {
    const double log_p = static_cast<double>(p[i]) - p_sum;
    kl += std::exp(log_p) * (log_p - (static_cast<double>(q[i]) - q_sum));
  }
  return std::max(kl, 0.0);
}

KlSum compare(SequenceRunner& exact, SequenceRunner& quantised, const std::vector<int32_t>& ids,
              size_t vocab) {
  KlSum out;
  std::vector<float> expected;
  exact.run(ids, [&](int64_t, const TensorView& logits) {
    expected.insert(expected.end(), logits.ptr<float>(), logits.ptr<float>() + logits.size());
  });
  quantised.run(ids, [&](int64_t first, const TensorView& logits) {
    for (int64_t i = 0; i < logits.dim(0); ++i) {
      const float* p = expected.data() + static_cast<size_t>(first + i) * vocab;
      const float* q = logits.row<float>(i);
      const bool same = std::max_element(p, p + vocab) - p == std::max_element(q, q + vocab) - q;
      out.add(divergence(p, q, vocab), same);
    }
  });
  return out;
}

void print_row(const std::string& name, const KlSum& s) {
  std::printf("%-18s %9lld %12.3e %12.3e %10.3f %%\n", name.c_str(),
              static_cast<long long>(s.tokens), s.sum / static_cast<double>(s.tokens), s.largest,
              100.0 * static_cast<double>(s.same_best) / static_cast<double>(s.tokens));
}

}  // namespace

Result<void> run_eval_kl(const EvalOptions& options) {
  const std::unique_ptr<OfflineModel> offline = TRY(OfflineModel::load(options.engine));
  const KvFormat format = offline->plan().load.kv_format;
  const ChatFrontend chat = TRY(ChatFrontend::load(offline->plan().directory));
  const std::vector<Text> texts = TRY(read_texts(options, chat));
  if (texts.empty()) return invalid_argument("--tasks: no text of these tasks");
  int64_t longest = 0;
  for (const Text& text : texts) longest = std::max(longest, std::ssize(text.ids));
  const auto exact = TRY(offline->runner(KvFormat::kBf16, longest));
  const auto quantised = TRY(offline->runner(format, longest));
  const auto vocab = static_cast<size_t>(offline->model().spec().vocab);
  std::vector<std::string> order;
  std::map<std::string, KlSum> sums;
  for (const Text& text : texts) {
    if (!sums.contains(text.task)) order.push_back(text.task);
    sums[text.task].add(compare(*exact, *quantised, text.ids, vocab));
  }
  std::printf("KL(bfloat16 cache || %s cache), nats a token\n",
              std::string(kv_format_name(format)).c_str());
  std::printf("%-18s %9s %12s %12s %12s\n", "task", "tokens", "mean", "largest", "same best");
  KlSum all;
  for (const std::string& task : order) {
    print_row(task, sums[task]);
    all.add(sums[task]);
  }
  print_row("all", all);
  return {};
}

}  // namespace weft
