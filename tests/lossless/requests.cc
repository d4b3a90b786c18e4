#include "tests/lossless/requests.h"

#include <fmt/format.h>

#include "api/constraints.h"
#include "api/validate.h"
#include "app/bench_speculate.h"
#include "app/eval_prompt.h"

namespace weft {
namespace {

constexpr double kTemperatures[] = {0, 0.5, 1.0, 1.5};
constexpr int64_t kMaxTokens = 36;

/// Free texts in a fixed frame: the grammar allows some places much and others one token.
constexpr const char* kSchema = R"({"type": "object", "properties": {
  "name": {"type": "string", "maxLength": 20}, "city": {"type": "string", "maxLength": 12},
  "age": {"type": "integer"}, "day": {"enum": ["Sunday", "Monday"]}},
  "required": ["name", "city", "age", "day"], "additionalProperties": false})";

/// `count` items of a task, others for other rounds.
void take(const std::vector<SpeculateItem>& from, const std::string& task, size_t count, int round,
          std::vector<SpeculateItem>& to) {
  std::vector<const SpeculateItem*> all;
  for (const SpeculateItem& item : from) {
    if (item.task == task) all.push_back(&item);
  }
  for (size_t i = 0; i < count && !all.empty(); ++i) {
    to.push_back(*all[(static_cast<size_t>(round) * count + i) % all.size()]);
  }
}

}  // namespace

Result<std::vector<LosslessRequest>> make_lossless_requests(const LocalEngine& local,
                                                            const ChatFrontend& chat, int round) {
  const std::string data = WEFT_SOURCE_DIR "/models/demo/eval/heldout.jsonl";
  const std::vector<SpeculateItem> held_out = TRY(read_speculate_items(data));
  std::vector<SpeculateItem> items;
  for (const char* task : {"rewrite", "story_write", "json", "picture_describe"}) {
    take(held_out, task, 2, round, items);
  }
  for (const char* task : {"tool_answer", "arithmetic_think", "recall_500", "chat"}) {
    take(held_out, task, 1, round, items);
  }
  take(generate_speculate_items(16, static_cast<uint64_t>(round) + 1), "copy", 2, round, items);
  take(held_out, "story_write", 2, round + 7, items);

  const EvalImages images{.reader = image_reader_of(local.plan()),
                          .directory = WEFT_SOURCE_DIR "/models/demo/eval"};
  ConstraintFactory constraints(chat.tokenizer(), local.spec().vocab, {});
  std::vector<LosslessRequest> out;
  for (size_t i = 0; i < items.size(); ++i) {
    const SpeculateItem& item = items[i];
    const size_t turn = i + static_cast<size_t>(round);
    LosslessRequest& one = out.emplace_back();
    const auto ids = TRY(chat.encode(
        {.messages = item.messages,
         .tools = item.tools,
         .template_kwargs = {{"enable_thinking", item.enable_thinking ? "true" : "false"}}}));
    TRY(set_eval_prompt(images, ids.ids, item.images, one.request));
    SamplingRequest sampling{.temperature = kTemperatures[turn % 4], .max_tokens = kMaxTokens};
    one.features.push_back(fmt::format("temperature {}", *sampling.temperature));
    if (!item.images.empty()) one.features.emplace_back("images");
    const auto mark = [&](const char* feature) { one.features.emplace_back(feature); };
    if (turn % 3 > 0) {
      sampling.logprobs = turn % 3 == 1 ? 0 : 5;
      mark("logprobs");
    }
    switch (turn % 6) {
      case 1:
        sampling.repetition_penalty = 1.1;
        sampling.presence_penalty = 0.3;
        sampling.frequency_penalty = 0.2;
        mark("penalties");
        break;
      case 2:
        sampling.stop = {" dog", "}\n", "ing ", ". The"};
        sampling.ignore_eos = true;
        mark("stop strings");
        break;
      case 3: {
        const GenerationRequest asked{
            .is_chat = true,
            .messages = item.messages,
            .format = {.kind = OutputFormat::Kind::kJsonSchema, .text = kSchema}};
        one.request.constraint = TRY(constraints.make(asked, Thinking::kNone));
        mark("json_schema");
        break;
      }
      case 4:
        sampling.min_tokens = 24;
        sampling.logit_bias = {{int64_t(turn * 31 % 4000), -100.0}, {int64_t(turn * 17 % 4000), 1}};
        mark("min_tokens, bias");
        break;
      case 5:
        sampling.top_p = 0.9;
        sampling.top_k = 20;
        sampling.ignore_eos = true;
        mark("top_p, top_k");
        break;
      default: break;
    }
    const auto length = std::ssize(one.request.prompt);
    const uint64_t seed = static_cast<uint64_t>(round) * 1000 + i + 1;
    one.request.sampling =
        TRY(validate_sampling(sampling, local.defaults(), local.limits(), length, seed));
    one.text.stop_ids = one.request.sampling.stop_ids;
    one.text.min_tokens = one.request.sampling.min_tokens;
    if (!sampling.stop.empty()) one.text.stops = TRY(StopStrings::make(sampling.stop, false));
  }
  return out;
}

}  // namespace weft
