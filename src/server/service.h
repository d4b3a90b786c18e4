#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/api_keys.h"
#include "server/generation_job.h"
#include "server/http.h"
#include "server/openai_request.h"
#include "server/telemetry.h"
#include "server/work_queue.h"

namespace weft {

struct ServiceConfig {
  std::vector<std::string> model_names;  ///< the first is what answers say; the others are aliases
  std::string version;
  std::string root_path;                     ///< a prefix of every route, "" or "/x"
  std::vector<std::string> allowed_origins;  ///< CORS; "*": any; empty: none
  int64_t max_sequences = 1024;              ///< running and waiting; beyond it 429
  std::optional<uint64_t> seed;              ///< of requests without one; absent: drawn for each
  int num_workers = 2;                       ///< front-end threads
  int num_speculative_tokens = 0;            ///< drafts a step at most; 0: nothing is drafted
  RequestLimits limits;
  bool log_requests = false;  ///< a line for each: never its text
};

/// What /v1/models and the page tell of the model.
struct ModelCard {
  std::string root;  ///< where it was loaded from
  int64_t max_model_len = 0;
  int64_t created = 0;
};

/// The server's mind: routes, keys, the life of every request from JSON to the last frame. Sits
/// behind an HttpServer; handle() and everything it causes run on the I/O thread, but parsing and
/// preparing, which the front-end threads do.
class Service {
 public:
  /// `telemetry` must outlive it.
  Service(ServiceConfig config, ApiKeys keys, Telemetry& telemetry);
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  /// The transport; before the first request. It must stop before this object ends.
  void bind(HttpServer& http);
  /// I/O thread.
  void handle(std::shared_ptr<HttpExchange> exchange);

  /// The model can be used from now on; both must outlive the transport. Any thread, once.
  void model_ready(const Frontend& frontend, Engine& engine, ModelCard card);
  /// /ready says 503 from now on; requests that still come are served. Any thread.
  void begin_drain();
  /// Generation requests without a complete answer. Any thread.
  int num_open() const { return num_open_.load(std::memory_order_relaxed); }

 private:
  struct Route;
  struct Call;  // one request on its way through the service
  struct Model {
    const Frontend* frontend = nullptr;
    Engine* engine = nullptr;
    ModelCard card;
  };
  struct Queued {
    std::shared_ptr<GenerationJob> job;
    size_t sequence = 0;
    TokenEvent event;
  };
  static const std::vector<Route>& routes();

  void dispatch(const std::shared_ptr<Call>& call);
  void answer(const std::shared_ptr<Call>& call, HttpResponse response);
  void answer(const std::shared_ptr<Call>& call, const ApiError& error);
  HttpHeaders common_headers(const Call& call) const;
  bool add_cors(const Call& call, HttpHeaders& headers) const;
  std::optional<KeyScope> check_key(const HttpRequest& request) const;
  bool admit(const std::shared_ptr<Call>& call, int64_t more);
  void refuse_overload(const std::shared_ptr<Call>& call, const std::string& why);

  void get_health(const std::shared_ptr<Call>& call);
  void get_ready(const std::shared_ptr<Call>& call);
  void get_version(const std::shared_ptr<Call>& call);
  void get_load(const std::shared_ptr<Call>& call);
  void get_metrics(const std::shared_ptr<Call>& call);
  void get_live(const std::shared_ptr<Call>& call);
  void get_models(const std::shared_ptr<Call>& call);
  void get_model(const std::shared_ptr<Call>& call);
  void get_page(const std::shared_ptr<Call>& call);
  void post_chat(const std::shared_ptr<Call>& call);
  void post_completion(const std::shared_ptr<Call>& call);
  void post_tokenize(const std::shared_ptr<Call>& call);
  void post_detokenize(const std::shared_ptr<Call>& call);
  struct Outcome;
  using Parse = Result<GenerationRequest> (*)(std::string_view body, const RequestLimits& limits);
  using Transform = Result<HttpResponse> (Service::*)(std::string_view, const Model&) const;
  void generate(const std::shared_ptr<Call>& call, Parse parse, const char* id_prefix);
  Outcome prepare(const Call& call, Parse parse, const Model& model);
  void begin(const std::shared_ptr<Call>& call, Outcome& outcome, const char* id_prefix);
  void transform(const std::shared_ptr<Call>& call, Transform transform);
  /// Runs `work` on a front-end thread and what it returns on the I/O thread.
  void off_thread(const std::shared_ptr<Call>& call, std::function<std::function<void()>()> work);
  Result<HttpResponse> tokenize(std::string_view body, const Model& model) const;
  Result<HttpResponse> detokenize(std::string_view body, const Model& model) const;
  std::string model_json(const std::string& name) const;
  std::string state() const;
  bool knows_model(const std::string& name) const;
  uint64_t next_seed();
  void emit(std::shared_ptr<GenerationJob> job, size_t sequence, TokenEvent event);
  void deliver();

  const ServiceConfig config_;
  const ApiKeys keys_;
  Telemetry& telemetry_;
  HttpServer* http_ = nullptr;
  std::optional<Model> model_;  // the I/O thread's
  JobContext context_;
  int64_t num_preparing_ = 0;   // requests at the front-end threads
  size_t bytes_preparing_ = 0;  // of their bodies
  std::atomic<bool> draining_{false};
  std::atomic<int> num_open_{0};
  std::atomic<uint64_t> num_seeds_{0};
  const uint64_t seed_key_;

  std::mutex events_mutex_;
  std::vector<Queued> events_;
  bool delivery_due_ = false;  // guarded by events_mutex_

  std::unique_ptr<WorkQueue> work_;  // last: its threads use the rest
};

}  // namespace weft
