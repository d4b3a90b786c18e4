#include "server/openai_response.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(OpenAiResponse, SpeculateMetricsAreFastDeploysAndTheDraftsBySource) {
  SpeculationCounts counts;
  counts.add(SpeculationStep{.emitted = 1});
  counts.add(SpeculationStep{.emitted = 3, .proposed = {2, 1}, .accepted = {2, 0}});
  counts.add(SpeculationStep{.emitted = 1, .proposed = {2, 0}});
  EXPECT_EQ(speculate_metrics_json(counts, 3),
            R"({"accepted_tokens":5,"rejected_tokens":7,"accept_ratio":0.4,)"
            R"("average_accept_length":1.6666666666666667,"accepted_tokens_per_head":[3,1,1,0],)"
            R"("accept_ratio_per_head":[0.3333333333333333,1.0,0.0],)"
            R"("proposed_drafts":{"mtp":4,"ngram":1},"accepted_drafts":{"mtp":2,"ngram":0}})");
}

TEST(OpenAiResponse, DraftsAreInTheUsageOnlyWhereThereAreSome) {
  UsageTotals usage{.prompt_tokens = 3, .completion_tokens = 5};
  EXPECT_EQ(usage_json(usage).find("prediction"), std::string::npos);
  usage.accepted_drafts = 2;
  usage.rejected_drafts = 0;
  EXPECT_NE(
      usage_json(usage).find(R"("completion_tokens_details":{"reasoning_tokens":0,)"
                             R"("accepted_prediction_tokens":2,"rejected_prediction_tokens":0}})"),
      std::string::npos)
      << usage_json(usage);
}

TEST(OpenAiResponse, TheMetricsStandInTheChoiceOfTheLastFrameAndOfTheWholeAnswer) {
  const ResponseHead head{.id = "x", .created = 1, .model = "m", .is_chat = true};
  const ChoiceEnd end{.reason = "stop"};
  const std::string frame =
      stream_frame(head, {.index = 0, .speculate_metrics = "{\"a\":1}", .end = &end}, "");
  EXPECT_NE(frame.find(R"("speculate_metrics":{"a":1}}]})"), std::string::npos) << frame;
  EXPECT_EQ(stream_frame(head, {.index = 0, .end = &end}, "").find("speculate"), std::string::npos);
  WholeChoice whole;
  whole.end = end;
  EXPECT_EQ(whole_body(head, {whole}, {}).find("speculate"), std::string::npos);
  whole.speculate_metrics = "{\"a\":1}";
  EXPECT_NE(whole_body(head, {whole}, {}).find(R"("speculate_metrics":{"a":1}}])"),
            std::string::npos);
}

}  // namespace
}  // namespace weft
