#include "http/local_server.h"

#include <cstdlib>
#include <set>
#include <vector>

#include "app/fake_engine.h"
#include "base/log.h"
#include "checkpoint/config_json.h"
#include "server/service.h"
#include "support/demo_model.h"
#include "text/chat_format.h"

namespace weft {
namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    out.push_back(list.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

class LocalServer final : public ScriptServer {
 public:
  explicit LocalServer(const ScriptSettings& settings) : settings_(settings) {}
  ~LocalServer() override {
    if (telemetry_) telemetry_->detach();
    if (engine_) engine_->stop();
    if (http_) http_->close();  // as weft serve does
    service_.reset();
  }

  bool start() {
    static const std::set<std::string> kKnown = {
        "rate",          "keys",  "names",    "origins",        "root",         "max_len",
        "max_sequences", "max_n", "max_body", "header_timeout", "body_timeout", "loading"};
    for (const auto& [name, value] : settings_) {
      if (!kKnown.contains(name)) return false;
    }
    make_frontend();
    telemetry_ =
        Telemetry::start(
            {.metrics = {.model_name = "demo"}, .live = {.model_name = "demo"}, .log_stats = false})
            .value();
    ServiceConfig config{.model_names = split(text("names", "demo")),
                         .version = "1.2.3",
                         .root_path = text("root", ""),
                         .allowed_origins = split(text("origins", "")),
                         .max_sequences = number("max_sequences", 1024)};
    config.limits.max_n = number("max_n", 16);
    service_ = std::make_unique<Service>(
        std::move(config), ApiKeys::make(split(text("keys", ""))).value(), *telemetry_);
    HttpConfig http{.port = 0};
    http.max_body = static_cast<size_t>(number("max_body", int64_t{16} << 20));
    http.header_timeout = std::chrono::milliseconds(number("header_timeout", 20'000));
    http.body_timeout = std::chrono::milliseconds(number("body_timeout", 60'000));
    auto started = HttpServer::start(
        http, [this](std::shared_ptr<HttpExchange> exchange) { service_->handle(exchange); });
    if (!started) return false;
    http_ = std::move(started).value();
    service_->bind(*http_);
    if (!settings_.contains("loading")) load();
    return true;
  }

  uint16_t port() const override { return http_->port(); }

  bool command(const std::string& words) override {
    if (words == "load") {
      load();
    } else if (words == "drain") {
      service_->begin_drain();
    } else if (words == "stop-engine") {
      engine_->stop();
    } else {
      return false;
    }
    return true;
  }

 private:
  std::string text(const std::string& name, const std::string& standard) const {
    const auto it = settings_.find(name);
    return it == settings_.end() ? standard : it->second;
  }
  int64_t number(const std::string& name, int64_t standard) const {
    return std::atoll(text(name, std::to_string(standard)).c_str());
  }

  void make_frontend() {
    const ModelConfig model = load_config(kDemoModel).value();
    ChatFrontend chat = ChatFrontend::load(kDemoModel).value();
    FrontendConfig config{
        .limits = {.vocab_size = chat.tokenizer().vocab_size(),
                   .max_model_len = number("max_len", 4096)},
        .format = detect_chat_format(chat.chat_template()->source()),
    };
    config.defaults.eos_ids.assign(model.generation.eos_token_ids.begin(),
                                   model.generation.eos_token_ids.end());
    frontend_ = std::make_unique<Frontend>(std::move(chat), std::move(config));
  }

  void load() {
    EngineOptions options;
    options.max_num_seqs = 64;
    const FakeEngineOptions fake{.tokens_per_second = std::atof(text("rate", "0").c_str()),
                                 .max_model_len = number("max_len", 4096)};
    const EngineConfig config{.on_step = [this](const StepRecord& r) { telemetry_->step(r); }};
    const auto& eos = frontend_->config().defaults.eos_ids;
    engine_ = make_fake_engine(options, fake, config, frontend_->tokenizer(),
                               eos.empty() ? -1 : eos.front())
                  .value();
    telemetry_->attach(*engine_);
    service_->model_ready(
        *frontend_, *engine_,
        {.root = "models/demo", .max_model_len = fake.max_model_len, .created = 1'700'000'000});
  }

  const ScriptSettings settings_;
  std::unique_ptr<Telemetry> telemetry_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<ScriptServer> start_local_server(const ScriptSettings& settings) {
  set_log_level(LogLevel::kOff);
  auto server = std::make_unique<LocalServer>(settings);
  if (!server->start()) return nullptr;
  return server;
}

}  // namespace weft
