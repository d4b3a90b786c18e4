#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace weft {

/// One item of an evaluation set (a line of heldout.jsonl).
struct EvalItem {
  std::string id, task;
  std::string messages;  ///< JSON text
  std::string tools;     ///< JSON text or empty
  bool enable_thinking = false;
  std::vector<std::string> images;  ///< paths below the set's directory, in order
  std::string expected;             ///< JSON text of the expected value
  std::string check;                ///< exact | number | json | tool_call | any
  int max_tokens = 0;
};

/// One line of golden.jsonl: greedy output of the reference implementation.
struct GoldenItem {
  std::string id;
  std::vector<std::string> images;
  std::vector<int32_t> prompt_ids, output_ids;
  double smallest_margin = 0;  ///< closest call between the best and the second token
  std::vector<std::vector<std::pair<int32_t, double>>> top5;  ///< of the first positions
};

Result<std::vector<EvalItem>> read_eval_items(const std::string& path);
Result<std::vector<GoldenItem>> read_golden_items(const std::string& path);
/// Reference accuracy per task (results.json); empty when the file is absent.
Result<std::map<std::string, double>> read_reference_accuracy(const std::string& path);

/// True when the model's answer (without its thoughts) is right; the rules of
/// tools/demo_model/generate.py: JSON and tool calls compare as values, the rest as trimmed text.
bool grade_answer(const EvalItem& item, const std::string& answer);

}  // namespace weft
