#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "device/cpu_info.h"
#include "tests/golden/driver.h"

// The demo model against transformers (models/demo/eval/golden.jsonl): greedy ids and the five most
// probable tokens of the first positions, text prompts, in f32 on the CPU backend.

namespace weft::testing {
namespace {

using Json = nlohmann::json;

double log_sum_exp(std::span<const float> x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

std::vector<Json> text_lines() {
  std::ifstream file(WEFT_SOURCE_DIR "/models/demo/eval/golden.jsonl");
  std::vector<Json> out;
  for (std::string line; std::getline(file, line);) {
    Json item = Json::parse(line);
    if (item["images"].empty()) out.push_back(std::move(item));
  }
  return out;
}

TEST(DemoModel, GoldenContinuationsInF32) {
  const std::vector<Json> lines = text_lines();
  ASSERT_GE(lines.size(), 20u);
  size_t longest = 0;
  for (const Json& line : lines) {
    longest = std::max(longest, line["prompt_ids"].size() + line["output_ids"].size());
  }
  const int64_t max_len = (static_cast<int64_t>(longest) + 63) / 64 * 64;
  const auto driver = Driver::load(WEFT_SOURCE_DIR "/models/demo",
                                   {.ops = &cpu_ops(cpu_info().isa), .max_len = max_len});
  ASSERT_TRUE(driver.ok()) << driver.error().message;
  Driver& run = **driver;
  for (const Json& line : lines) {
    SCOPED_TRACE(line["id"].get<std::string>());
    const auto expected = line["output_ids"].get<std::vector<int32_t>>();
    run.reset();
    std::vector<float> logits = run.prefill(line["prompt_ids"].get<std::vector<int32_t>>(), 512, 1);
    for (size_t i = 0; i < expected.size(); ++i) {
      if (i > 0) logits = run.decode(expected[i - 1]);
      ASSERT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), expected[i])
          << "token " << i;
      if (i >= line["top5"].size()) continue;
      const double total = log_sum_exp(logits);
      for (const Json& entry : line["top5"][i]) {
        EXPECT_NEAR(logits[entry[0].get<size_t>()] - total, entry[1].get<double>(), 1e-3)
            << "token " << i;
      }
    }
  }
}

}  // namespace
}  // namespace weft::testing
