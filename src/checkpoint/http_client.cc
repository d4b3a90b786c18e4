#include "checkpoint/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <cctype>
#include <utility>

namespace weft {
namespace {

constexpr size_t kMaxErrorBody = size_t{64} << 10;
constexpr size_t kMaxHeaders = 200;
constexpr long kBufferBytes = 512L << 10;

/// libcurl asks for one global initialisation; a static's is thread-safe.
bool curl_ready() {
  static const bool ready = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  return ready;
}

struct Transfer {
  CURL* curl = nullptr;
  const FetchRequest* request = nullptr;
  FetchResponse response;
  bool ended_by_caller = false;
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

std::string_view trimmed(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

size_t on_header(char* data, size_t size, size_t count, void* context) {
  auto& transfer = *static_cast<Transfer*>(context);
  const std::string_view line(data, size * count);
  if (line.starts_with("HTTP/")) {  // a new block: after 100 Continue or a proxy's answer
    transfer.response.headers.clear();
    return line.size();
  }
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || transfer.response.headers.size() >= kMaxHeaders) {
    return line.size();
  }
  transfer.response.headers[lower(line.substr(0, colon))] = trimmed(line.substr(colon + 1));
  return line.size();
}

size_t on_data(char* data, size_t size, size_t count, void* context) {
  auto& transfer = *static_cast<Transfer*>(context);
  const size_t bytes = size * count;
  long status = 0;
  curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &status);
  transfer.response.status = static_cast<int>(status);
  if (status < 200 || status > 299) {
    std::string& text = transfer.response.text;
    text.append(data, std::min(bytes, kMaxErrorBody - text.size()));
    return bytes;
  }
  if (!transfer.request->on_body) return bytes;
  if (transfer.request->on_body(transfer.response, std::as_bytes(std::span(data, bytes)))) {
    return bytes;
  }
  transfer.ended_by_caller = true;
  return 0;
}

}  // namespace

struct FetchClient::Impl {
  CURL* curl = nullptr;
  double timeout_s = 0;
};

std::string FetchResponse::header(const std::string& lower_case_name) const {
  const auto it = headers.find(lower_case_name);
  return it == headers.end() ? std::string() : it->second;
}

std::string url_origin(std::string_view url) {
  std::unique_ptr<CURLU, void (*)(CURLU*)> parts(curl_url(), curl_url_cleanup);
  if (!parts ||
      curl_url_set(parts.get(), CURLUPART_URL, std::string(url).c_str(), 0) != CURLUE_OK) {
    return {};
  }
  std::string out;
  for (const CURLUPart part : {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT}) {
    char* text = nullptr;
    const unsigned flags = part == CURLUPART_PORT ? CURLU_DEFAULT_PORT : 0;
    if (curl_url_get(parts.get(), part, &text, flags) != CURLUE_OK) return {};
    out += lower(text) + " ";
    curl_free(text);
  }
  return out.starts_with("http ") || out.starts_with("https ") ? out : std::string();
}

FetchClient::FetchClient(double timeout_s) : impl_(std::make_unique<Impl>()) {
  CHECK(curl_ready(), "libcurl could not be initialised");
  impl_->curl = curl_easy_init();
  CHECK(impl_->curl != nullptr, "libcurl gave no handle");
  impl_->timeout_s = timeout_s;
}

FetchClient::FetchClient(FetchClient&&) noexcept = default;

FetchClient::~FetchClient() {
  if (impl_ && impl_->curl) curl_easy_cleanup(impl_->curl);
}

Result<FetchResponse> FetchClient::perform(const FetchRequest& request) {
  CURL* curl = impl_->curl;
  curl_easy_reset(curl);  // options only: the connection is kept
  Transfer transfer{.curl = curl, .request = &request, .response = {}, .ended_by_caller = false};
  std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(nullptr, curl_slist_free_all);
  for (const std::string& header : request.headers) {
    headers.reset(curl_slist_append(headers.release(), header.c_str()));
  }
  std::string range;
  if (request.range) {
    range = std::to_string(request.range->first) + "-" + std::to_string(request.range->second);
    curl_easy_setopt(curl, CURLOPT_RANGE, range.c_str());
  }
  char message[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, message);
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_NOBODY, request.head ? 1L : 0L);
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "weft");
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, kBufferBytes);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(impl_->timeout_s * 1000));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME,
                   std::max(1L, static_cast<long>(impl_->timeout_s + 0.5)));
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  const CURLcode code = curl_easy_perform(curl);
  if (code != CURLE_OK && !transfer.ended_by_caller) {
    return unavailable(message[0] != '\0' ? message : curl_easy_strerror(code));
  }
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  transfer.response.status = static_cast<int>(status);
  transfer.response.complete = !transfer.ended_by_caller;
  if (char* target = nullptr; status >= 300 && status < 400 &&
                              curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &target) == CURLE_OK &&
                              target != nullptr) {
    transfer.response.headers["location"] = target;  // made absolute
  }
  return std::move(transfer.response);
}

}  // namespace weft
