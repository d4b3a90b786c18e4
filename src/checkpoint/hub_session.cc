#include "checkpoint/hub_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <utility>

#include "checkpoint/model_file.h"

namespace weft {
namespace {

constexpr int kMaxRedirects = 5;
constexpr double kMaxBackoff = 8;  // seconds
constexpr double kMaxRetryAfter = 60;

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/// A revision in a URL path: its slashes don't separate.
std::string escaped(const std::string& revision) {
  std::string out;
  for (const char c : revision) c == '/' ? out += "%2F" : out += c;
  return out;
}

}  // namespace

HubSession::HubSession(ModelName model, const HubOptions& options, const ProgressSink& progress)
    : model_(std::move(model)),
      options_(options),
      progress_(progress),
      origin_(url_origin(options.endpoint)) {}

std::string HubSession::file_url(const std::string& commit, const std::string& file) const {
  return options_.endpoint + "/" + model_.repo() + "/resolve/" + commit + "/" + file;
}

std::string HubSession::info_url() const {
  return options_.endpoint + "/api/models/" + model_.repo() + "/revision/" +
         escaped(model_.revision);
}

bool HubSession::is_own_url(const std::string& url) const {
  return url_origin(url) == origin_;
}

bool HubSession::is_transient(int status) {
  return status == 408 || status == 429 || status >= 500;
}

Result<HubSession::Answer> HubSession::send(FetchClient& client, FetchRequest request) const {
  const std::vector<std::string> hub_headers = std::move(request.headers);
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    request.headers = {"Accept-Encoding: identity"};
    const bool own = is_own_url(request.url);
    if (own && hop == 0) {
      request.headers.insert(request.headers.end(), hub_headers.begin(), hub_headers.end());
    }
    if (own && !options_.token.empty()) {
      request.headers.push_back("Authorization: Bearer " + options_.token);
    }
    FetchResponse response = TRY(client.perform(request));
    const std::string target = response.header("location");
    if (!is_redirect(response.status) || target.empty()) {
      return Answer{std::move(response), request.url};
    }
    const std::string target_origin = url_origin(target);
    if (target_origin.empty() ||
        (request.url.starts_with("https:") && !target_origin.starts_with("https "))) {
      return unavailable(request.url + " redirects to " + in_quotes(target) +
                         "; only https and http URLs are followed, and never from https to http");
    }
    const bool describes_file = !response.header("x-linked-etag").empty();
    if (request.head && (describes_file || target_origin != origin_)) {
      return Answer{std::move(response), request.url};
    }
    request.url = target;
  }
  return unavailable(request.url + ": more than " + std::to_string(kMaxRedirects) + " redirects");
}

Result<HubSession::Answer> HubSession::send_with_retries(FetchClient& client,
                                                         const FetchRequest& request,
                                                         const std::string& what) {
  for (int attempt = 0;; ++attempt) {
    auto answer = send(client, request);
    if (answer.ok() && !is_transient(answer->response.status)) return answer;
    const Error error = answer.ok() ? error_of(answer->response, what) : answer.error();
    if (attempt >= options_.num_retries || stopped()) {
      return unavailable(fmt::format("{}: no answer from {} after {} attempts: {}", what,
                                     options_.endpoint, attempt + 1, error.message));
    }
    wait_before_retry(what, error.message, attempt,
                      answer.ok() ? retry_after(answer->response) : 0);
  }
}

double HubSession::retry_after(const FetchResponse& response) {
  const std::string text = response.header("retry-after");
  int seconds = 0;  // the other form, a date, is not what the hub sends
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (end != text.data() + text.size()) return 0;
  if (error == std::errc::result_out_of_range) return kMaxRetryAfter;
  return error == std::errc() ? std::clamp<double>(seconds, 0, kMaxRetryAfter) : 0;
}

Error HubSession::error_of(const FetchResponse& response, const std::string& what) const {
  const std::string code = response.header("x-error-code");
  const std::string status = " (HTTP " + std::to_string(response.status) + ")";
  const std::string page = options_.endpoint + "/" + model_.repo();
  if (code == "GatedRepo") {
    return permission_denied(model_.repo() + " is gated" + status + ": accept its terms at " +
                             page + " and set HF_TOKEN to a token of that account");
  }
  if (response.status == 401) {
    if (options_.token.empty()) {
      return permission_denied(model_.repo() + ": the hub asks for a token" + status +
                               ": the model is private or gated, or there is no model of that name "
                               "at " +
                               options_.endpoint + "; set HF_TOKEN to read a private one");
    }
    return permission_denied(model_.repo() + ": the hub refused the token" + status +
                             ": HF_TOKEN is not valid, or there is no model of that name");
  }
  if (response.status == 403) {
    return permission_denied(model_.repo() + ": access is forbidden" + status +
                             ": the token may not read this model; see " + page);
  }
  if (response.status == 404) {
    if (code == "RevisionNotFound") {
      return not_found(model_.repo() + " has no revision " + in_quotes(model_.revision) + status);
    }
    if (code == "EntryNotFound") return not_found(what + ": the hub has no such file" + status);
    return not_found("there is no model " + model_.repo() + " at " + options_.endpoint + status);
  }
  if (response.status == 429) return unavailable("the hub allows no more requests now" + status);
  return unavailable(what + ": the hub answered with HTTP status " +
                     std::to_string(response.status));
}

void HubSession::wait_before_retry(const std::string& what, const std::string& why, int attempt,
                                   double at_least_s) {
  double seconds = options_.first_backoff_s;
  for (int i = 0; i < attempt && seconds < kMaxBackoff; ++i) seconds *= 2;
  seconds = std::max(std::min(seconds, kMaxBackoff), at_least_s);
  const std::string prefix = why.starts_with(what + ": ") ? "" : what + ": ";
  note(fmt::format("{}{}; trying again in {:.1f} s", prefix, why, seconds));
  std::unique_lock lock(stop_mutex_);
  stop_changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return stopped_; });
}

void HubSession::note(const std::string& text) {
  const std::lock_guard lock(progress_mutex_);
  if (progress_.on_note) progress_.on_note(text);
}

void HubSession::report(const FileProgress& progress) {
  const std::lock_guard lock(progress_mutex_);
  if (progress_.on_file) progress_.on_file(progress);
}

void HubSession::stop() {
  const std::lock_guard lock(stop_mutex_);
  stopped_ = true;
  stop_changed_.notify_all();
}

bool HubSession::stopped() {
  const std::lock_guard lock(stop_mutex_);
  return stopped_;
}

}  // namespace weft
