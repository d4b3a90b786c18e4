#include "app/eval_set.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

const std::string kEval = std::string(WEFT_SOURCE_DIR) + "/models/demo/eval";

TEST(EvalSet, ReadsTheBundledSet) {
  const auto items = read_eval_items(kEval + "/heldout.jsonl").value();
  EXPECT_EQ(items.size(), 964u);
  int with_images = 0;
  for (const EvalItem& item : items) with_images += item.images.empty() ? 0 : 1;
  EXPECT_EQ(with_images, 300);
  const auto golden = read_golden_items(kEval + "/golden.jsonl").value();
  ASSERT_EQ(golden.size(), 48u);
  EXPECT_EQ(golden[0].output_ids, (std::vector<int32_t>{2403, 4084}));
  EXPECT_EQ(golden[0].top5[0][1].first, 2321);
  EXPECT_DOUBLE_EQ(read_reference_accuracy(kEval + "/results.json").value().at("arithmetic"),
                   0.965);
  EXPECT_FALSE(read_eval_items(kEval + "/absent.jsonl").ok());
}

TEST(EvalSet, GradesEveryKind) {
  const auto grade = [](const char* check, const char* expected, const char* answer) {
    return grade_answer({.expected = expected, .check = check}, answer);
  };
  EXPECT_TRUE(grade("exact", "\"red\"", "<think>\nblue\n</think>\n\n red\n"));
  EXPECT_FALSE(grade("exact", "\"red\"", "red."));
  EXPECT_TRUE(grade("json", R"("{\"a\": 1, \"b\": 2}")", R"({"b":2,"a":1})"));
  EXPECT_FALSE(grade("json", R"("{\"a\": 1}")", "{\"a\": 1"));
  EXPECT_TRUE(grade("tool_call", R"({"name":"f","arguments":{}})",
                    "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>"));
  EXPECT_FALSE(
      grade("tool_call", R"({"name":"f","arguments":{}})", "{\"name\": \"f\", \"arguments\": {}}"));
  EXPECT_TRUE(grade("any", "\"\"", "A story."));
  EXPECT_FALSE(grade("any", "\"\"", "A story"));
}

}  // namespace
}  // namespace weft
