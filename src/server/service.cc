#include "server/service.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <span>

#include "base/hash.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/random_key.h"
#include "server/page.h"

namespace weft {
namespace {

constexpr size_t kMaxRequestId = 128;
constexpr size_t kMaxWaitingWork = 1024;                // requests before the front-end threads
constexpr size_t kMaxWaitingBytes = size_t{256} << 20;  // of their bodies
constexpr int kRetryAfterSeconds = 1;

/// The client's own id where it is one that can stand in a header and a log; else a fresh one.
std::string request_id(const HttpRequest& request) {
  const std::string_view given = request.header("x-request-id");
  const bool usable =
      !given.empty() && given.size() <= kMaxRequestId &&
      std::all_of(given.begin(), given.end(), [](char c) { return c > 0x20 && c < 0x7F; });
  if (usable) return std::string(given);
  const std::array<uint64_t, 2> bits = {random_key(), random_key()};
  std::string id;
  for (const uint64_t word : bits) {
    for (int i = 7; i >= 0; --i) append_hex(id, static_cast<uint8_t>(word >> 8 * i));
  }
  return id;
}

/// The password of "Basic base64(user:password)" (RFC 7617).
std::optional<std::string> basic_password(std::string_view authorization) {
  constexpr std::string_view kScheme = "Basic ";
  if (!authorization.starts_with(kScheme)) return std::nullopt;
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string_view coded = authorization.substr(kScheme.size());
  while (!coded.empty() && coded.back() == '=') coded.remove_suffix(1);
  std::string text;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : coded) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = ((bits << 6) | static_cast<uint32_t>(digit)) & 0xFFFFFF;
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    text += static_cast<char>((bits >> num_bits) & 0xFF);
  }
  const size_t colon = text.find(':');
  if (colon == std::string::npos) return std::nullopt;
  return text.substr(colon + 1);
}

/// "application/json", with parameters or not.
bool is_json(std::string_view content_type) {
  const std::string_view media = content_type.substr(0, content_type.find(';'));
  std::string lower(media.substr(0, media.find_last_not_of(" \t") + 1));
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower == "application/json";
}

}  // namespace

/// One request on its way through the service.
struct Service::Call {
  std::shared_ptr<HttpExchange> exchange;
  std::string path;  // without the root path
  std::string id;
  const Route* route = nullptr;
  std::string scope;  // of the API key: salts the prefix cache

  const HttpRequest& request() const { return exchange->request(); }
};

struct Service::Route {
  std::string_view path;  // ends in '*': a prefix
  bool post = false;
  bool open = false;  // needs no key
  void (Service::*serve)(const std::shared_ptr<Call>&) = nullptr;

  bool matches(std::string_view other) const {
    if (path.back() != '*') return path == other;
    return other.size() >= path.size() && other.starts_with(path.substr(0, path.size() - 1));
  }
};

const std::vector<Service::Route>& Service::routes() {
  static const std::vector<Route> kRoutes = {
      {"/v1/chat/completions", true, false, &Service::post_chat},
      {"/v1/completions", true, false, &Service::post_completion},
      {"/v1/models", false, false, &Service::get_models},
      {"/v1/models/*", false, false, &Service::get_model},
      {"/tokenize", true, false, &Service::post_tokenize},
      {"/detokenize", true, false, &Service::post_detokenize},
      {"/health", false, true, &Service::get_health},
      {"/ready", false, false, &Service::get_ready},
      {"/version", false, false, &Service::get_version},
      {"/load", false, false, &Service::get_load},
      {"/metrics", false, false, &Service::get_metrics},
      {"/weft/live", false, false, &Service::get_live},
      {"/", false, false, &Service::get_page},
      {"/assets/*", false, false, &Service::get_page},
      {"/favicon.ico", false, false, &Service::get_page},
  };
  return kRoutes;
}

Service::Service(ServiceConfig config, ApiKeys keys, Telemetry& telemetry)
    : config_(std::move(config)),
      keys_(std::move(keys)),
      telemetry_(telemetry),
      seed_key_(random_key()),
      work_(std::make_unique<WorkQueue>(config_.num_workers, kMaxWaitingWork)) {}

Service::~Service() = default;

void Service::bind(HttpServer& http) {
  http_ = &http;
}

void Service::model_ready(const Frontend& frontend, Engine& engine, ModelCard card) {
  http_->post([this, &frontend, &engine, card = std::move(card)] {
    context_.engine = &engine;
    context_.frontend = &frontend;
    context_.emit = [this](std::shared_ptr<GenerationJob> job, size_t sequence, TokenEvent event) {
      emit(std::move(job), sequence, std::move(event));
    };
    context_.telemetry = &telemetry_;
    context_.num_speculative_tokens = config_.num_speculative_tokens;
    context_.on_answer = [this](std::string_view route, int status) {
      num_open_.fetch_sub(1, std::memory_order_relaxed);
      telemetry_.metrics().http_answered(route, status);
    };
    model_ = Model{&frontend, &engine, card};
  });
}

void Service::begin_drain() {
  draining_.store(true, std::memory_order_relaxed);
}

// Requests, routes, answers

/// A key as Bearer token or X-Api-Key, or as the password of Basic (what browsers send).
std::optional<KeyScope> Service::check_key(const HttpRequest& request) const {
  const std::string_view authorization = request.header("authorization");
  if (const std::optional<std::string> password = basic_password(authorization)) {
    return keys_.check("Bearer " + *password, "");
  }
  return keys_.check(authorization, request.header("x-api-key"));
}

void Service::handle(std::shared_ptr<HttpExchange> exchange) {
  auto call = std::make_shared<Call>();
  call->exchange = std::move(exchange);
  call->id = request_id(call->request());
  std::string_view path = call->request().path;
  if (!config_.root_path.empty() && path.starts_with(config_.root_path)) {
    path.remove_prefix(config_.root_path.size());
  }
  call->path = path.empty() ? "/" : std::string(path);
  dispatch(call);
}

void Service::dispatch(const std::shared_ptr<Call>& call) {
  const HttpRequest& request = call->request();
  if (request.method == "OPTIONS" && !config_.allowed_origins.empty()) {
    answer(call, HttpResponse{.status = 204});  // CORS asks before it sends a key
    return;
  }
  for (const Route& route : routes()) {
    if (route.matches(call->path)) call->route = &route;
  }
  if (call->route == nullptr || !call->route->open) {
    // Unknown paths too: without a key nobody learns what there is.
    const std::optional<KeyScope> scope = check_key(request);
    if (!scope) {
      ApiError error = unauthorized();
      // A browser that opens the page asks for the key (as a password) and sends it from then on.
      const bool page = call->route != nullptr && call->route->serve == &Service::get_page;
      if (page)
        error.headers = {{"WWW-Authenticate", "Basic realm=\"weft: an API key as password\""}};
      answer(call, error);
      return;
    }
    call->scope = scope->id;
  }
  if (call->route == nullptr) {
    answer(call, no_such_route());
    return;
  }
  const bool fits = call->route->post ? request.method == "POST"
                                      : request.method == "GET" || request.method == "HEAD";
  if (!fits) {
    answer(call, method_not_allowed(call->route->post ? "POST" : "GET, HEAD"));
    return;
  }
  if (call->route->post && !is_json(request.header("content-type"))) {
    answer(call, unsupported_media_type());
    return;
  }
  (this->*call->route->serve)(call);
}

bool Service::add_cors(const Call& call, HttpHeaders& headers) const {
  const std::string_view origin = call.request().header("origin");
  const auto& allowed = config_.allowed_origins;
  if (origin.empty() || allowed.empty()) return false;
  const bool any = std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
  if (!any && std::find(allowed.begin(), allowed.end(), origin) == allowed.end()) return false;
  headers.emplace_back("Access-Control-Allow-Origin", any ? "*" : std::string(origin));
  headers.emplace_back("Vary", "Origin");
  headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
  if (call.request().method == "OPTIONS") {
    headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    headers.emplace_back("Access-Control-Allow-Headers",
                         "Authorization, Content-Type, X-Api-Key, X-Request-Id, traceparent");
    headers.emplace_back("Access-Control-Max-Age", "600");
  }
  return true;
}

HttpHeaders Service::common_headers(const Call& call) const {
  HttpHeaders headers = {{"X-Request-Id", call.id}};
  add_cors(call, headers);
  return headers;
}

void Service::answer(const std::shared_ptr<Call>& call, HttpResponse response) {
  for (auto& header : common_headers(*call)) response.headers.push_back(std::move(header));
  telemetry_.metrics().http_answered(call->route != nullptr ? call->route->path : "none",
                                     response.status);
  call->exchange->respond(std::move(response));
}

void Service::answer(const std::shared_ptr<Call>& call, const ApiError& error) {
  answer(call, to_response(error));
}

// What is known without the model's help

void Service::get_version(const std::shared_ptr<Call>& call) {
  answer(call, {.body = "{\"version\":" + json_string(config_.version) + "}"});
}

void Service::get_load(const std::shared_ptr<Call>& call) {
  answer(call, {.body = "{\"server_load\":" + std::to_string(num_open()) + "}"});
}

void Service::get_health(const std::shared_ptr<Call>& call) {
  if (const Health health = telemetry_.health(); !health.healthy) {
    answer(call, not_ready(health.reason));
    return;
  }
  answer(call, {.body = "{\"status\":\"ok\"}"});
}

void Service::get_ready(const std::shared_ptr<Call>& call) {
  if (!model_) {
    answer(call, not_ready("the model is loading"));
  } else if (draining_.load(std::memory_order_relaxed)) {
    answer(call, not_ready("the server is draining"));
  } else {
    get_health(call);
  }
}

std::string Service::state() const {
  if (!model_) return "loading";
  return draining_.load(std::memory_order_relaxed) ? "draining" : "ready";
}

void Service::get_metrics(const std::shared_ptr<Call>& call) {
  answer(call,
         {.body = telemetry_.metrics_text(), .content_type = std::string(kMetricsContentType)});
}

void Service::get_live(const std::shared_ptr<Call>& call) {
  answer(call, {.body = telemetry_.live_json(call->request().query, state())});
}

void Service::get_models(const std::shared_ptr<Call>& call) {
  if (!model_) {
    answer(call, not_ready("the model is loading"));
    return;
  }
  std::string body = "{\"object\":\"list\",\"data\":[";
  for (const std::string& name : config_.model_names) {
    if (&name != &config_.model_names.front()) body += ',';
    body += model_json(name);
  }
  answer(call, {.body = body + "]}"});
}

std::string Service::model_json(const std::string& name) const {
  const ModelCard& card = model_->card;
  const auto& images = model_->frontend->config().images;
  return "{\"id\":" + json_string(name) +
         ",\"object\":\"model\",\"created\":" + std::to_string(card.created) +
         ",\"owned_by\":\"weft\",\"root\":" + json_string(card.root) +
         ",\"parent\":null,\"max_model_len\":" + std::to_string(card.max_model_len) +
         ",\"modalities\":{\"input\":[\"text\"" + (images ? ",\"image\"" : "") +
         (images && images->config().video ? ",\"video\"" : "") + "],\"output\":[\"text\"]}}";
}

void Service::get_model(const std::shared_ptr<Call>& call) {
  constexpr std::string_view kSlash = HttpRequest::kEncodedSlash;
  std::string name = call->path.substr(std::string_view("/v1/models/").size());
  for (size_t at = 0; (at = name.find(kSlash, at)) != std::string::npos; ++at) {
    name.replace(at, kSlash.size(), "/");
  }
  if (!model_) {
    answer(call, not_ready("the model is loading"));
  } else if (!knows_model(name)) {
    answer(call, no_such_model(name));
  } else {
    answer(call, {.body = model_json(name)});
  }
}

void Service::get_page(const std::shared_ptr<Call>& call) {
  const PageAsset* asset = find_page_asset(call->path);
  if (asset == nullptr) {
    answer(call, no_such_route());
    return;
  }
  answer(call, page_response(*asset, call->request()));
}

// Work for the front-end threads

void Service::off_thread(const std::shared_ptr<Call>& call,
                         std::function<std::function<void()>()> work) {
  const size_t bytes = call->request().body.size();
  if (bytes_preparing_ + bytes > kMaxWaitingBytes) {
    refuse_overload(call, "too much is waiting to be read");
    return;
  }
  ++num_preparing_;
  bytes_preparing_ += bytes;
  const bool taken = work_->submit([this, call, bytes, work = std::move(work)] {
    std::function<void()> then;
    try {
      then = work();
    } catch (const std::exception& failure) {
      log_error(std::string("server: ") + failure.what());
      then = [this, call] { answer(call, internal_error()); };
    }
    http_->post([this, bytes, then = std::move(then)] {
      --num_preparing_;
      bytes_preparing_ -= bytes;
      then();
    });
  });
  if (taken) return;
  --num_preparing_;
  bytes_preparing_ -= bytes;
  refuse_overload(call, "too many requests are waiting to be read");
}

void Service::refuse_overload(const std::shared_ptr<Call>& call, const std::string& why) {
  telemetry_.metrics().refused_overload();
  answer(call, overloaded(why + "; try again later", kRetryAfterSeconds));
}

/// Whether `more` sequences may join; otherwise the call is answered.
bool Service::admit(const std::shared_ptr<Call>& call, int64_t more) {
  if (!model_) {
    answer(call, not_ready("the model is loading"));
    return false;
  }
  if (model_->engine->failed()) {
    answer(call, not_ready("the engine has failed; restart the server"));
    return false;
  }
  if (model_->engine->num_requests() + more <= config_.max_sequences) return true;
  refuse_overload(call, "too many requests: " + std::to_string(config_.max_sequences) +
                            " sequences may run or wait");
  return false;
}

bool Service::knows_model(const std::string& name) const {
  const auto& names = config_.model_names;
  return std::find(names.begin(), names.end(), name) != names.end();
}

uint64_t Service::next_seed() {
  if (config_.seed) return *config_.seed;
  const uint64_t count = num_seeds_.fetch_add(1, std::memory_order_relaxed);
  return chain_hash(seed_key_, {}, std::as_bytes(std::span(&count, 1))).lo;
}

void Service::post_chat(const std::shared_ptr<Call>& call) {
  generate(call, &parse_chat_request, "chatcmpl-");
}

void Service::post_completion(const std::shared_ptr<Call>& call) {
  generate(call, &parse_completion_request, "cmpl-");
}

/// What the front-end threads make of a body.
struct Service::Outcome {
  std::optional<ApiError> error;
  GenerationRequest request;
  PreparedRequest prepared;
};

Service::Outcome Service::prepare(const Call& call, Parse parse, const Model& model) {
  Outcome out;
  Result<GenerationRequest> request = parse(call.request().body, config_.limits);
  if (!request) {
    out.error = to_api_error(request.error());
    return out;
  }
  out.request = std::move(request).value();
  if (!out.request.model.empty() && !knows_model(out.request.model)) {
    out.error = no_such_model(out.request.model);
    return out;
  }
  // One key's prompts are never found by another's.
  out.request.cache_salt = call.scope + "/" + out.request.cache_salt;
  Result<PreparedRequest> prepared = model.frontend->prepare(out.request, next_seed());
  out.request.videos = {};
  out.request.images = {};  // decoded; a job keeps its request to the end of the answer
  if (prepared) {
    out.prepared = std::move(prepared).value();
  } else {
    out.error = to_api_error(prepared.error());
  }
  return out;
}

void Service::generate(const std::shared_ptr<Call>& call, Parse parse, const char* id_prefix) {
  if (!admit(call, num_preparing_ + 1)) return;
  off_thread(call, [this, call, parse, id_prefix, model = *model_]() -> std::function<void()> {
    auto outcome = std::make_shared<Outcome>(prepare(*call, parse, model));
    return [this, call, outcome, id_prefix] {
      if (outcome->error) {
        answer(call, *outcome->error);
      } else if (admit(call, static_cast<int64_t>(outcome->prepared.sequences.size()))) {
        begin(call, *outcome, id_prefix);
      }
    };
  });
}

void Service::begin(const std::shared_ptr<Call>& call, Outcome& outcome, const char* id_prefix) {
  ResponseHead head{
      .id = id_prefix + call->id,
      .created = std::time(nullptr),
      .model = outcome.request.model.empty() ? config_.model_names.front() : outcome.request.model,
      .is_chat = outcome.request.is_chat};
  JobOrigin origin{
      .route = call->route->path, .request_id = call->id, .headers = common_headers(*call)};
  if (const auto trace = parse_traceparent(call->request().header("traceparent"))) {
    origin.trace_id = trace->trace_id;
  }
  if (config_.log_requests) {
    log_info("request " + call->id + " " + std::string(call->route->path) +
             (origin.trace_id.empty() ? "" : " trace " + origin.trace_id));
  }
  num_open_.fetch_add(1, std::memory_order_relaxed);
  const auto job = std::make_shared<GenerationJob>(
      context_, call->exchange, AnswerForm::take(outcome.request, outcome.prepared),
      std::move(head), std::move(origin));
  call->exchange->drop_request();
  job->start(std::move(outcome.prepared));
}

void Service::transform(const std::shared_ptr<Call>& call, Transform transform) {
  if (!admit(call, 0)) return;
  off_thread(call, [this, call, transform, model = *model_]() -> std::function<void()> {
    auto response =
        std::make_shared<Result<HttpResponse>>((this->*transform)(call->request().body, model));
    return [this, call, response] {
      if (*response) {
        answer(call, std::move(*response).value());
      } else {
        answer(call, to_api_error(response->error()));
      }
    };
  });
}

void Service::post_tokenize(const std::shared_ptr<Call>& call) {
  transform(call, &Service::tokenize);
}

void Service::post_detokenize(const std::shared_ptr<Call>& call) {
  transform(call, &Service::detokenize);
}

Result<HttpResponse> Service::tokenize(std::string_view body, const Model& model) const {
  const TokenizeRequest request = TRY(parse_tokenize_request(body, config_.limits));
  if (const std::string& name = request.request.model; !name.empty() && !knows_model(name)) {
    return to_response(no_such_model(name));
  }
  const Frontend& frontend = *model.frontend;
  const std::vector<int32_t> ids = TRY(frontend.tokenize(request.request));
  std::string out = "{\"count\":" + std::to_string(ids.size()) +
                    ",\"max_model_len\":" + std::to_string(model.card.max_model_len) +
                    ",\"tokens\":" + json_ids(ids) + ",\"token_strs\":";
  if (request.return_token_strs) {
    out += '[';
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) out += ',';
      out += json_string(frontend.tokenizer().id_to_token(ids[i]).value_or(""));
    }
    out += ']';
  } else {
    out += "null";
  }
  return HttpResponse{.body = out + "}"};
}

Result<HttpResponse> Service::detokenize(std::string_view body, const Model& model) const {
  const DetokenizeRequest request = TRY(parse_detokenize_request(body));
  if (!request.model.empty() && !knows_model(request.model)) {
    return to_response(no_such_model(request.model));
  }
  std::vector<int32_t> ids;
  if (!request.tokens.empty()) {
    ids = TRY(validate_prompt_ids(request.tokens, model.frontend->config().limits, "tokens"));
  }
  const std::string text = model.frontend->tokenizer().decode(ids, /*skip_special=*/false);
  return HttpResponse{.body = "{\"prompt\":" + json_string(text) + "}"};
}

// Events of the engine, in batches: one wake-up of the I/O thread for all that a step gave.

void Service::emit(std::shared_ptr<GenerationJob> job, size_t sequence, TokenEvent event) {
  const std::lock_guard lock(events_mutex_);
  events_.push_back({std::move(job), sequence, std::move(event)});
  if (delivery_due_) return;
  delivery_due_ = true;
  http_->post([this] { deliver(); });
}

void Service::deliver() {
  std::vector<Queued> events;
  {
    const std::lock_guard lock(events_mutex_);
    events.swap(events_);
    delivery_due_ = false;
  }
  for (Queued& queued : events) queued.job->on_event(queued.sequence, std::move(queued.event));
}

}  // namespace weft
