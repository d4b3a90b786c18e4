#include "app/bench_speculate.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "app/speculative_config.h"
#include "base/temp_dir.h"

namespace weft {
namespace {

using nlohmann::json;

TEST(BenchSpeculate, ConfigsHaveShortNames) {
  for (const char* name : {"none", "ngram-5", "mtp-1", "mtp-3", "hybrid-3-5"}) {
    const auto config = parse_bench_config(name);
    ASSERT_TRUE(config.ok()) << config.error().message;
    EXPECT_EQ(short_name(*config), name);
  }
  const auto config = parse_bench_config(R"({"method":"ngram","num_speculative_tokens":2})");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(short_name(*config), "ngram-2");
  for (const char* wrong :
       {"", "mtp", "mtp-", "mtp-x", "mtp-3-5", "hybrid-3", "eagle-3", "mtp-99"}) {
    const auto refused = parse_bench_config(wrong);
    ASSERT_FALSE(refused.ok()) << wrong;
    EXPECT_NE(refused.error().message.find("--configs: "), std::string::npos);
  }
}

TEST(BenchSpeculate, ReadsLinesOfChatsAndTextsAndArraysOfShareGpt) {
  const TempDir directory;
  const std::string path = directory.file("data.json");
  std::ofstream(path)
      << R"({"task":"a","messages":[{"role":"user","content":"hi"}],"max_tokens":7,)"
      << R"("tools":[{"x":1}],"enable_thinking":true})"
      << "\n\n"
      << R"({"prompt":"once","output_tokens":9})"
      << "\n";
  const auto lines = read_speculate_items(path);
  ASSERT_TRUE(lines.ok()) << lines.error().message;
  ASSERT_EQ(lines->size(), 2U);
  EXPECT_EQ((*lines)[0].task, "a");
  EXPECT_EQ((*lines)[0].max_tokens, 7);
  EXPECT_EQ((*lines)[0].tools, R"([{"x":1}])");
  EXPECT_TRUE((*lines)[0].enable_thinking);
  EXPECT_EQ((*lines)[1].prompt, "once");
  EXPECT_EQ((*lines)[1].max_tokens, 9);
  EXPECT_EQ((*lines)[1].task, "all");

  std::ofstream(path) << R"([{"conversations":[{"from":"human","value":"q"},{"value":"a"}]}])";
  const auto shared = read_speculate_items(path);
  ASSERT_TRUE(shared.ok()) << shared.error().message;
  EXPECT_EQ(json::parse((*shared)[0].messages)[0]["content"], "q");

  std::ofstream(path) << "{\"prompt\":\"x\"}\n{\"question\":\"y\"}\n";
  EXPECT_NE(read_speculate_items(path).error().message.find("data.json:2"), std::string::npos);
  std::ofstream(path) << "\n";
  EXPECT_FALSE(read_speculate_items(path).ok());
}

TEST(BenchSpeculate, PicturesAreFoundInTheMessages) {
  const TempDir directory;
  const std::string path = directory.file("data.jsonl");
  std::ofstream(path)
      << R"({"messages":[{"role":"user","content":[{"type":"image","image":"a.png"},)"
      << R"({"type":"text","text":"what?"}]}]})";
  const auto items = read_speculate_items(path);
  ASSERT_TRUE(items.ok()) << items.error().message;
  EXPECT_EQ((*items)[0].images, std::vector<std::string>{"a.png"});
}

TEST(BenchSpeculate, TheMixIsSeededAndHasFourTasksByTurns) {
  const auto items = generate_speculate_items(8, 1), again = generate_speculate_items(8, 1);
  ASSERT_EQ(items.size(), 8U);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(items[i].messages, again[i].messages);
    EXPECT_EQ(items[i].task, items[i % 4].task);
  }
  EXPECT_NE(items[0].messages, items[4].messages);
  EXPECT_NE(items[0].messages, generate_speculate_items(1, 2)[0].messages);
}

TEST(BenchSpeculate, ItemsAreTakenByTurnsFromEachTask) {
  std::vector<SpeculateItem> items(6);
  const char* const tasks[] = {"a", "a", "a", "b", "c", "c"};
  for (size_t i = 0; i < 6; ++i) items[i] = {.task = tasks[i], .prompt = std::to_string(i)};
  const auto order = [](const std::vector<SpeculateItem>& chosen) {
    std::string out;
    for (const SpeculateItem& item : chosen) out += item.prompt;
    return out;
  };
  EXPECT_EQ(order(choose_items(items, {}, 100)), "034152");
  EXPECT_EQ(order(choose_items(items, {}, 4)), "0341");
  EXPECT_EQ(order(choose_items(items, {"c", "a"}, 3)), "041");
  EXPECT_EQ(order(choose_items(items, {"x"}, 3)), "");
}

SpeculateReport two_methods() {
  SpeculateReport out{.model = "m<&>", .device = "cpu", .format = "bf16", .data = "a mix"};
  out.num_prompts = 1;
  out.tasks = {"t"};
  SpeculateRun none{.name = "none"}, mtp{.name = "mtp-2", .num_speculative_tokens = 2},
      no{.name = "ngram-3", .num_speculative_tokens = 3, .refused = "not here"};
  none.output_rates = {100, 300, 110};
  mtp.output_rates = {220};
  none.all = {
      .requests = 1, .prompt_tokens = 10, .output_tokens = 6, .seconds = 2, .decode_seconds = 1.5};
  mtp.all = {
      .requests = 1, .prompt_tokens = 10, .output_tokens = 6, .seconds = 1, .decode_seconds = 0.5};
  mtp.all.counts.add(SpeculationStep{.emitted = 1});
  mtp.all.counts.add(SpeculationStep{.emitted = 3, .proposed = {2, 0}, .accepted = {2, 0}});
  mtp.all.counts.add(SpeculationStep{.emitted = 2, .proposed = {2, 0}, .accepted = {1, 0}});
  none.tasks["t"] = none.all;
  mtp.tasks["t"] = mtp.all;
  out.runs = {none, mtp, no};
  return out;
}

TEST(BenchSpeculate, TheReportSaysTheSameInAllForms) {
  const std::string markdown = speculate_markdown(two_methods());
  EXPECT_NE(markdown.find("| none | 110.0 | 1.00x | 1.00x |"), std::string::npos) << markdown;
  EXPECT_NE(markdown.find("| mtp-2 | 220.0 | 2.00x | 3.00x |"), std::string::npos) << markdown;
  EXPECT_NE(markdown.find("| 2.00 | 3 of 4 | 100 %, 50 % | 0 of 1 |"), std::string::npos)
      << markdown;
  EXPECT_NE(markdown.find("| ngram-3 | refused: not here |"), std::string::npos) << markdown;
  EXPECT_NE(markdown.find("| t | 1 | 10 | 6.0 | 3.00x, 2.00, 100 % |"), std::string::npos)
      << markdown;

  const json parsed = json::parse(speculate_json(two_methods()));
  const json& mtp = parsed["runs"][1];
  EXPECT_EQ(mtp["speed"], 2.0);
  EXPECT_EQ(mtp["all"]["proposed"]["mtp"], 4);
  EXPECT_EQ(mtp["all"]["accepted_at"], json::array({2, 1}));
  EXPECT_EQ(mtp["tasks"]["t"]["speculate_metrics"]["accepted_tokens_per_head"],
            json::array({3, 2, 1}));
  EXPECT_EQ(parsed["runs"][2]["refused"], "not here");

  const std::string svg = speculate_svg(two_methods());
  EXPECT_NE(svg.find("m&lt;&amp;&gt;"), std::string::npos);
  EXPECT_NE(svg.find(">2.00x<"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(BenchSpeculate, AReportOfRefusalsAloneIsStillOne) {
  SpeculateReport refused{.model = "m"};
  refused.runs = {{.name = "mtp-1", .num_speculative_tokens = 1, .refused = "no module"}};
  EXPECT_NE(speculate_markdown(refused).find("no module"), std::string::npos);
  EXPECT_TRUE(json::accept(speculate_json(refused)));
  EXPECT_EQ(speculate_svg(refused).find("nan"), std::string::npos);
}

}  // namespace
}  // namespace weft
