#include "server/trace.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "base/temp_dir.h"
#include "server/json.h"

namespace weft {
namespace {

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Traceparent, ReadsWhatTheStandardAllows) {
  const std::string good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const auto context = parse_traceparent(good);
  ASSERT_TRUE(context);
  EXPECT_EQ(context->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(context->parent_id, "00f067aa0ba902b7");
  EXPECT_TRUE(context->sampled);
  EXPECT_FALSE(
      parse_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1a")->sampled);
  EXPECT_TRUE(parse_traceparent("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"));
}

TEST(Traceparent, RefusesEverythingElse) {
  for (const char* bad : {
           "",
           "00",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
           "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
           "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
           "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
           "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
       }) {
    EXPECT_FALSE(parse_traceparent(bad)) << bad;
  }
}

class TraceFile : public testing::Test {
 protected:
  const TempDir directory_;
  const std::string path_ = directory_.file("trace.json");
  const RequestRecord::Clock::time_point now_ = RequestRecord::Clock::now();
};

TEST_F(TraceFile, HoldsStepsAndNestedRequestSpans) {
  auto writer = std::move(TraceWriter::open(path_)).value();
  writer->step({.step = 7,
                .start = now_ + std::chrono::milliseconds(1),
                .end = now_ + std::chrono::milliseconds(3),
                .sequences = 2,
                .prompt_rows = 64,
                .decode_rows = 1});
  RequestRecord record;
  record.id = "id \"quoted\"\n\xff";  // a client chose it
  record.trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  record.arrival = now_;
  record.scheduled = now_ + std::chrono::milliseconds(1);
  record.first_token = now_ + std::chrono::milliseconds(5);
  record.last_token = record.finished = now_ + std::chrono::milliseconds(9);
  record.finish_reason = "stop";
  writer->request(record);
  RequestRecord aborted;  // never scheduled
  aborted.arrival = now_;
  aborted.finished = now_ + std::chrono::milliseconds(2);
  writer->request(aborted);
  EXPECT_EQ(writer->dropped(), 0u);
  writer.reset();

  const auto parsed = parse_json(read(path_));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message << read(path_);
  std::map<std::string, int> begun, ended;
  int steps = 0;
  for (const JsonValue& event : *parsed->as<JsonArray>()) {
    const std::string phase = *event.find("ph")->as<std::string>();
    const std::string name = *event.find("name")->as<std::string>();
    if (phase == "b") ++begun[name];
    if (phase == "e") ++ended[name];
    if (phase == "X") {
      ++steps;
      EXPECT_NEAR(event.find("dur")->as<JsonReal>()->value, 2000, 0.2);
    }
    if (phase == "b" && name == "request" && event.find("args")->find("trace_id")) {
      EXPECT_EQ(*event.find("args")->find("trace_id")->as<std::string>(), record.trace_id);
    }
  }
  EXPECT_EQ(steps, 1);
  EXPECT_EQ(begun, ended);
  EXPECT_EQ(begun, (std::map<std::string, int>{
                       {"request", 2}, {"queued", 2}, {"prefill", 1}, {"decode", 1}}));
}

TEST_F(TraceFile, TellsWhatTheGpuDid) {
  auto writer = std::move(TraceWriter::open(path_)).value();
  writer->step({.step = 7,
                .start = now_,
                .end = now_ + std::chrono::milliseconds(3),
                .device_idle_us = 12.5,
                .device_us = 2000,
                .device_graphs = 3});
  writer.reset();
  ASSERT_TRUE(parse_json(read(path_)).ok());
  EXPECT_NE(read(path_).find("\"step\":7,\"idle_before_us\":12.5,\"graphs\":3}"),
            std::string::npos);
}

TEST_F(TraceFile, IsAValidPrefixAtAnyTime) {
  auto writer = std::move(TraceWriter::open(path_)).value();
  std::string text;
  for (int i = 0; i < 100 && text.find("\"step\":99") == std::string::npos; ++i) {
    writer->step({.step = i < 1 ? 99u : 1u, .start = now_, .end = now_});
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    text = read(path_);
    EXPECT_TRUE(parse_json(text + "]").ok()) << text;
  }
  EXPECT_NE(text.find("\"step\":99"), std::string::npos) << "written while it runs";
}

TEST_F(TraceFile, FloodIsDroppedAndCounted) {
  auto writer = std::move(TraceWriter::open(path_)).value();
  for (int i = 0; i < 200000; ++i) writer->step({.step = 1, .start = now_, .end = now_});
  EXPECT_GT(writer->dropped(), 0u);
  writer.reset();
  EXPECT_LT(read(path_).size(), 100u << 20);
}

TEST(TraceWriter, NamesAFileThatCannotBeWritten) {
  const auto opened = TraceWriter::open("/nonexistent/trace.json");
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find("/nonexistent/trace.json"), std::string::npos);
}

}  // namespace
}  // namespace weft
