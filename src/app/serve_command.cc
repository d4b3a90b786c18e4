// weft serve: the OpenAI server. Composes engine, front end, service and transport, and leads them
// from loading through serving to the drain.

#include <csignal>
#include <ctime>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "app/cli.h"
#include "app/descriptor_limit.h"
#include "app/fake_engine.h"
#include "app/heap_trim.h"
#include "app/image_fetch.h"
#include "app/local_engine.h"
#include "app/media_files.h"
#include "app/model_location.h"
#include "app/serve_options.h"
#include "app/version.h"
#include "base/log.h"
#include "checkpoint/config_json.h"
#include "server/service.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kFlushTime{2000};  // for the last frames after the engine has stopped

/// SIGTERM and SIGINT, taken one by one by the main thread: blocked before any other thread begins,
/// so that all inherit the mask.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  /// True when one has come within `patience`.
  bool wait(milliseconds patience) {
    const timespec time = {patience.count() / 1000, (patience.count() % 1000) * 1'000'000};
    return sigtimedwait(&set_, nullptr, &time) > 0;
  }

 private:
  sigset_t set_;
};

Result<void> override_defaults(const std::string& text, GenerationDefaults& defaults) {
  if (text.empty()) return {};
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return invalid_argument("--override-generation-config: it must be a JSON object");
  }
  for (const auto& [name, value] : json.items()) {
    std::optional<double>* real = name == "temperature"          ? &defaults.temperature
                                  : name == "top_p"              ? &defaults.top_p
                                  : name == "min_p"              ? &defaults.min_p
                                  : name == "repetition_penalty" ? &defaults.repetition_penalty
                                                                 : nullptr;
    if (real != nullptr && value.is_number()) {
      *real = value.get<double>();
    } else if (name == "top_k" && value.is_number_integer()) {
      defaults.top_k = value.get<int64_t>();
    } else {
      return invalid_argument("--override-generation-config: '" + name +
                              "' is not a number among temperature, top_k, top_p, min_p, "
                              "repetition_penalty");
    }
  }
  return {};
}

GenerationDefaults defaults_from(const GenerationConfig& config) {
  EnginePlan plan;
  plan.generation = config;
  return defaults_of(plan);
}

/// What the model is to requests: found out before anything heavy is loaded.
struct Served {
  std::string directory, name;
  ModelLimits limits;
  GenerationDefaults defaults;
  int block_size = 64;
  std::string kv_format = "auto";
  int num_blocks = 0, num_slots = 0, num_swap_blocks = 0;
};

Result<GenerationDefaults> generation_defaults(const ServeOptions& options,
                                               const GenerationConfig& own) {
  GenerationDefaults defaults = defaults_from(own);
  if (options.generation_config == "vllm") {
    defaults = {.eos_ids = defaults.eos_ids};
  } else if (options.generation_config != "auto") {
    defaults = defaults_from(TRY(load_config(options.generation_config)).generation);
  }
  TRY(override_defaults(options.override_generation_config, defaults));
  return defaults;
}

class Server {
 public:
  explicit Server(const ServeOptions& options) : options_(options) {}
  ~Server();

  /// Everything up to an open port; the model loads afterwards.
  Result<void> open();
  /// Loads the model and says so.
  Result<void> load();
  /// Stops accepting and waits for streams to end, at most the grace time or until another signal.
  void drain(Signals& signals);
  /// Nothing is being answered.
  bool idle() const { return service_->num_open() == 0; }

 private:
  Result<Served> plan_model();
  Result<Served> plan_fake();
  Result<std::unique_ptr<Frontend>> make_frontend() const;
  Result<void> start_engine();
  Engine& engine() { return local_ ? local_->engine() : *fake_; }
  std::string address() const;

  const ServeOptions& options_;
  Served served_;
  std::shared_ptr<const ImageReader> images_;  // null: the model takes none
  std::optional<EnginePlan> plan_;             // until the engine takes it
  std::unique_ptr<Telemetry> telemetry_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<LocalEngine> local_;
  std::unique_ptr<Engine> fake_;
};

Server::~Server() {
  if (telemetry_) telemetry_->detach();
  if (local_) local_->engine().stop();
  if (fake_) fake_->stop();
  // The handler uses the service, whose threads may still prepare requests and post to the server.
  if (http_) http_->close();
  service_.reset();
}

Result<Served> Server::plan_model() {
  plan_ = TRY(plan_engine(options_.engine));
  const EnginePlan& plan = *plan_;
  Served out{.directory = plan.directory, .name = plan.name, .limits = limits_of(plan)};
  out.defaults = TRY(generation_defaults(options_, plan.generation));
  images_ = image_reader_of(
      plan,
      image_fetcher({.enabled = options_.fetch_images || !options_.media_domains.empty(),
                     .domains = options_.media_domains}),
      media_file_reader(options_.media_path));
  out.block_size = plan.load.block_size;
  out.kv_format = kv_format_name(plan.load.kv_format);
  out.num_blocks = static_cast<int>(plan.memory.limits.num_blocks);
  out.num_slots = static_cast<int>(plan.memory.limits.num_slots);
  out.num_swap_blocks = static_cast<int>(plan.memory.num_swap_blocks);
  return out;
}

Result<Served> Server::plan_fake() {
  Served out{.directory = TRY(locate_model(options_.engine.model, ModelParts::kTokenizer)),
             .name = "fake"};
  const ModelConfig config = TRY(load_config(out.directory));
  const Tokenizer tokenizer = TRY(Tokenizer::load(out.directory));
  int64_t max_len = FakeEngineOptions().max_model_len;
  if (options_.engine.max_model_len != "auto") {
    max_len = TRY(parse_size("--max-model-len", options_.engine.max_model_len));
  }
  out.limits = {.vocab_size = tokenizer.vocab_size(), .max_model_len = max_len};
  out.defaults = TRY(generation_defaults(options_, config.generation));
  out.num_blocks = kFakeBlocks;
  out.num_slots = fake_slots(options_.engine);
  return out;
}

Result<std::unique_ptr<Frontend>> Server::make_frontend() const {
  ChatFrontend chat = TRY(ChatFrontend::load(served_.directory, options_.chat_template));
  ChatFormat format;
  if (const ChatTemplate* t = chat.chat_template()) format = detect_chat_format(t->source());
  format = TRY(choose_chat_format(options_.tool_call_parser, options_.reasoning_parser, format));
  FrontendConfig config{.limits = served_.limits,
                        .defaults = served_.defaults,
                        .format = format,
                        .images = images_,
                        .template_kwargs = options_.default_chat_template_kwargs};
  return std::make_unique<Frontend>(std::move(chat), std::move(config));
}

std::string Server::address() const {
  if (!options_.uds.empty()) return "unix:" + options_.uds;
  const bool v6 = options_.host.find(':') != std::string::npos;
  return "http://" + (v6 ? "[" + options_.host + "]" : options_.host) + ":" +
         std::to_string(http_->port());
}

Result<void> Server::open() {
  ApiKeys keys = TRY(ApiKeys::make(options_.api_keys));
  served_ = options_.fake() ? TRY(plan_fake()) : TRY(plan_model());
  frontend_ = TRY(make_frontend());
  const std::vector<std::string> names = options_.served_model_names.empty()
                                             ? std::vector<std::string>{served_.name}
                                             : options_.served_model_names;
  const SpeculationConfig& speculation = options_.engine.speculation;
  const int speculative_tokens = speculation.on() ? speculation.num_speculative_tokens : 0;
  telemetry_ = TRY(Telemetry::start({.metrics = {.model_name = names.front(),
                                                 .block_size = served_.block_size,
                                                 .num_blocks = served_.num_blocks,
                                                 .num_state_slots = served_.num_slots,
                                                 .num_swap_blocks = served_.num_swap_blocks,
                                                 .kv_cache_dtype = served_.kv_format,
                                                 .prefix_caching = options_.engine.prefix_caching,
                                                 .num_speculative_tokens = speculative_tokens},
                                     .live = {.model_name = names.front(),
                                              .block_size = served_.block_size,
                                              .num_blocks = served_.num_blocks,
                                              .num_state_slots = served_.num_slots,
                                              .max_num_seqs = options_.engine.max_num_seqs,
                                              .max_model_len = served_.limits.max_model_len,
                                              .num_speculative_tokens = speculative_tokens},
                                     .trace_file = options_.trace_file,
                                     .log_stats = options_.log_stats}));
  ServiceConfig config{
      .model_names = names,
      .version = kVersion,
      .root_path = options_.root_path,
      .allowed_origins = options_.allowed_origins,
      .max_sequences = int64_t{options_.engine.max_num_seqs} + options_.max_waiting,
      .log_requests = options_.log_requests};
  config.num_speculative_tokens = speculative_tokens;
  config.limits.max_n = options_.max_n;
  if (options_.engine.seed != 0) config.seed = options_.engine.seed;
  service_ = std::make_unique<Service>(std::move(config), std::move(keys), *telemetry_);
  HttpConfig http{.host = options_.host, .port = options_.port, .unix_socket = options_.uds};
  http_ = TRY(HttpServer::start(http, [this](std::shared_ptr<HttpExchange> exchange) {
    service_->handle(std::move(exchange));
  }));
  service_->bind(*http_);
  log_info("listening on " + address() + " (loading the model)");
  return {};
}

Result<void> Server::start_engine() {
  const EngineConfig config{.max_requests = std::numeric_limits<int>::max(),
                            .on_step = [this](const StepRecord& step) { telemetry_->step(step); }};
  if (!options_.fake()) {
    local_ = TRY(LocalEngine::start(std::move(*plan_), options_.engine, config));
    const EnginePlan& plan = local_->plan();
    if (!plan.not_on_gpu.empty()) log_info("not on the GPU: " + plan.not_on_gpu);
    log_info("kernels on " + plan.device_name + ":\n" + choices_table(plan.kernels));
    log_info("start-up budget:\n" + plan.memory.table());
    return {};
  }
  const FakeEngineOptions fake{.tokens_per_second = options_.fake_tokens_per_second,
                               .hang_after = options_.fake_hang_after,
                               .max_model_len = served_.limits.max_model_len};
  const auto& eos = served_.defaults.eos_ids;
  fake_ = TRY(make_fake_engine(options_.engine, fake, config, frontend_->tokenizer(),
                               eos.empty() ? -1 : eos.front()));
  return {};
}

Result<void> Server::load() {
  TRY(start_engine());
  telemetry_->attach(engine());
  service_->model_ready(*frontend_, engine(),
                        {.root = served_.directory,
                         .max_model_len = served_.limits.max_model_len,
                         .created = std::time(nullptr)});
  const int64_t tokens = int64_t{served_.num_blocks} * served_.block_size;
  log_info("KV cache size: " + std::to_string(tokens) + " tokens");
  char concurrency[32];
  std::snprintf(concurrency, sizeof(concurrency), "%.2f",
                static_cast<double>(tokens) / static_cast<double>(served_.limits.max_model_len));
  log_info("Maximum concurrency for " + std::to_string(served_.limits.max_model_len) +
           " tokens per request: " + concurrency + "x");
  log_info("Application startup complete. Page and API: " + address());
  return {};
}

void Server::drain(Signals& signals) {
  log_info("draining: no new connections; waiting for " + std::to_string(service_->num_open()) +
           " answers");
  service_->begin_drain();
  http_->stop_accepting();
  const auto wait_for_connections = [&](Clock::time_point end) {
    while (http_->num_connections() > 0 && Clock::now() < end) {
      if (signals.wait(milliseconds(20))) return;
    }
  };
  const auto grace = std::chrono::duration<double>(options_.shutdown_timeout);
  wait_for_connections(Clock::now() + std::chrono::duration_cast<Clock::duration>(grace));
  if (service_->num_open() > 0) {
    log_warning("ending " + std::to_string(service_->num_open()) + " answers that are not done");
  }
  engine().stop();  // what is still running ends with an error event
  wait_for_connections(Clock::now() + kFlushTime);
  log_info("stopped");
}

Result<int> serve(const ServeOptions& options) {
  set_log_level(options.log_level);
  raise_descriptor_limit();
  Signals signals;
  Server server(options);
  TRY(server.open());
  std::future<Result<void>> loading = std::async(std::launch::async, [&] { return server.load(); });
  while (loading.wait_for(milliseconds(0)) != std::future_status::ready) {
    if (signals.wait(milliseconds(50))) std::_Exit(kExitOk);  // nothing was promised to anybody
  }
  TRY(loading.get());
  HeapTrim heap;
  while (!signals.wait(std::chrono::seconds(1))) heap.look(server.idle());
  server.drain(signals);
  return kExitOk;
}

}  // namespace

int serve_command(const ServeOptions& options) {
  const Result<int> code = serve(options);
  return code ? *code : report_error(code.error());
}

}  // namespace weft
