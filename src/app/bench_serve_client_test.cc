// The client of `weft bench serve` against a small OpenAI server in this process.
#include "app/bench_serve_client.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "app/bench_serve.h"
#include "base/temp_dir.h"
#include "server/http.h"

namespace weft {
namespace {

using nlohmann::json;
using Clock = StreamClient::Clock;
using std::chrono::milliseconds;

/// Answers like an OpenAI server; what the model is called decides what goes wrong.
void answer(const std::shared_ptr<HttpExchange>& exchange) {
  const HttpRequest& request = exchange->request();
  if (request.path == "/v1/models") {
    exchange->respond({.body = R"({"object": "list", "data": [{"id": "m", "root": "/nowhere"}]})"});
    return;
  }
  const json body = json::parse(request.body);
  const std::string model = body["model"];
  if (model == "full") {
    exchange->respond({.status = 429, .body = R"({"error": {"message": "queue is full"}})"});
    return;
  }
  const bool chat = request.path == "/v1/chat/completions";
  exchange->begin_stream(200, "text/event-stream", {});
  std::thread([exchange, chat, model] {
    const auto frame = [chat](const std::string& text) {
      const json choice = chat ? json{{"delta", {{"content", text}}}} : json{{"text", text}};
      return "data: " + json{{"choices", {choice}}}.dump() + "\n\n";
    };
    exchange->write(": ping\n\n");
    for (int i = 0; i < 4; ++i) {
      std::this_thread::sleep_for(milliseconds(20));
      const std::string text = frame("t" + std::to_string(i) + " ");
      exchange->write(text.substr(0, 9));  // frames are cut anywhere
      exchange->write(text.substr(9));
    }
    if (model == "breaks") {
      exchange->write("data: {\"error\": {\"message\": \"engine died\"}}\n\n");
    } else if (model != "no-usage") {
      exchange->write(
          "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 11, \"completion_tokens\": "
          "4}}\n\n");
    }
    exchange->write("data: [DONE]\n\n");
    exchange->end_stream();
  }).detach();
}

class BenchServeClient : public ::testing::Test {
 protected:
  void SetUp() override {
    server_ = HttpServer::start({.port = 0}, answer).value();
    base_ = "http://127.0.0.1:" + std::to_string(server_->port());
  }
  RequestOutcome ask(const std::string& model, const std::string& path = "/v1/completions") {
    auto client = StreamClient::create({.url = base_ + path}).value();
    RequestOutcome outcome;
    client->start(json{{"model", model}}.dump(), "r1", outcome);
    EXPECT_EQ(client->wait(Clock::time_point::max()), 1u);
    return outcome;
  }
  std::unique_ptr<HttpServer> server_;
  std::string base_;
};

TEST_F(BenchServeClient, TimesEachFrame) {
  for (const char* path : {"/v1/completions", "/v1/chat/completions"}) {
    const RequestOutcome o = ask("m", path);
    EXPECT_TRUE(o.success) << o.error;
    EXPECT_EQ(o.text, "t0 t1 t2 t3 ");
    EXPECT_EQ(o.prompt_len, 11);
    EXPECT_EQ(o.output_len, 4);
    ASSERT_EQ(o.itl.size(), 3u);
    EXPECT_GE(o.ttft, 0.02);
    double sum = o.ttft;
    for (const double gap : o.itl) sum += gap;
    EXPECT_NEAR(o.latency, sum, 1e-6);
    EXPECT_GE(o.latency, 0.08);
  }
}

TEST_F(BenchServeClient, ErrorsAreTold) {
  EXPECT_EQ(ask("full").error, "HTTP 429: queue is full");
  const RequestOutcome broken = ask("breaks");
  EXPECT_FALSE(broken.success);
  EXPECT_EQ(broken.error, "engine died");
  EXPECT_EQ(ask("no-usage").output_len, 0);
  server_.reset();
  EXPECT_FALSE(ask("m").error.empty());
}

TEST_F(BenchServeClient, ManyStreamsAtOnce) {
  auto client = StreamClient::create({.url = base_ + "/v1/completions"}).value();
  std::vector<RequestOutcome> outcomes(100);
  for (RequestOutcome& o : outcomes) client->start(R"({"model": "m"})", "", o);
  size_t done = 0;
  while (done < outcomes.size()) done += client->wait(Clock::time_point::max());
  for (const RequestOutcome& o : outcomes) EXPECT_TRUE(o.success) << o.error;
}

TEST_F(BenchServeClient, TheCommandMeasuresAndWrites) {
  const TempDir dir;
  BenchServeOptions o;
  o.base_url = base_, o.num_prompts = 12, o.random_input_len = 8, o.disable_tqdm = true;
  o.max_concurrency = 3, o.num_warmups = 2, o.ready_check_timeout_s = 5;
  o.save_result = true, o.save_detailed = true, o.result_dir = dir.path(),
  o.result_filename = "r.json";
  o.goodput = {"e2el:60000"};
  EXPECT_EQ(bench_serve_command(o, "key"), 0);
  std::ifstream file(dir.file("r.json"));
  const json result = json::parse(file);
  EXPECT_EQ(result["completed"], 12);
  EXPECT_EQ(result["model_id"], "m");
  EXPECT_EQ(result["tokenizer_id"], nullptr);
  EXPECT_EQ(result["total_input_tokens"], 12 * 11);
  EXPECT_EQ(result["total_output_tokens"], 12 * 4);
  EXPECT_EQ(result["max_concurrent_requests"], 3);
  EXPECT_EQ(result["request_goodput"], result["request_throughput"]);
  EXPECT_GE(result["duration"].get<double>(), 0.32);  // four rounds of three
  o.model = "full", o.ready_check_timeout_s = 0, o.num_warmups = 0, o.skip_tokenizer_init = true;
  EXPECT_EQ(bench_serve_command(o, nullptr), 1);
  o.endpoint = "/v1/chat/completions";
  EXPECT_EQ(bench_serve_command(o, nullptr), 2);
}

}  // namespace
}  // namespace weft
