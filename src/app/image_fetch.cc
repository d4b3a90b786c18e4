#include "app/image_fetch.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "app/media_files.h"

namespace weft {
namespace {

Error bad_web_url() {
  return invalid_argument("the URL is not a plain http or https one");
}
Error forbidden_host() {
  return invalid_argument("this server fetches no images from that host");
}
Error not_fetched() {
  return invalid_argument("the image can't be fetched");
}
Error too_large() {
  return invalid_argument("the image file is too large");
}

struct Network {
  uint32_t address;
  int bits;
};

/// IANA's special-purpose registry of IPv4.
constexpr Network kNotPublic[] = {
    {0x00000000, 8},  {0x0A000000, 8},  {0x64400000, 10}, {0x7F000000, 8},  {0xA9FE0000, 16},
    {0xAC100000, 12}, {0xC0000000, 24}, {0xC0000200, 24}, {0xC0586300, 24}, {0xC0A80000, 16},
    {0xC6120000, 15}, {0xC6336400, 24}, {0xCB007100, 24}, {0xE0000000, 4},  {0xF0000000, 4}};

bool is_public_v4(uint32_t address) {
  return std::none_of(std::begin(kNotPublic), std::end(kNotPublic), [&](const Network& network) {
    return (address ^ network.address) >> (32 - network.bits) == 0;
  });
}

uint32_t v4_at(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

bool is_public_v6(const uint8_t* a) {
  const auto begins = [&](std::initializer_list<uint8_t> prefix) {
    return std::equal(prefix.begin(), prefix.end(), a);
  };
  if (begins({0x00, 0x64, 0xFF, 0x9B, 0, 0, 0, 0, 0, 0, 0, 0})) return is_public_v4(v4_at(a + 12));
  if ((a[0] & 0xE0) != 0x20) return false;  // global unicast is 2000::/3
  if (begins({0x20, 0x01, 0x0D, 0xB8}) || begins({0x3F, 0xFF})) return false;  // documentation
  if (a[0] == 0x20 && a[1] == 0x01 && (a[2] & 0xFE) == 0) return false;        // 2001::/23
  if (begins({0x20, 0x02})) return is_public_v4(v4_at(a + 2));                 // 6to4
  return true;
}

struct Transfer {
  const ImageFetchOptions& options;
  std::vector<uint8_t> body;
  bool forbidden = false, too_large = false;
};

curl_socket_t open_socket(void* user, curlsocktype, curl_sockaddr* address) {
  Transfer& transfer = *static_cast<Transfer*>(user);
  if (!is_public_address(&address->addr)) {
    transfer.forbidden = true;
    return CURL_SOCKET_BAD;
  }
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

size_t take_body(char* data, size_t size, size_t count, void* user) {
  Transfer& transfer = *static_cast<Transfer*>(user);
  const size_t bytes = size * count;
  if (transfer.body.size() + bytes > static_cast<size_t>(transfer.options.max_bytes)) {
    transfer.too_large = true;
    return 0;
  }
  transfer.body.insert(transfer.body.end(), data, data + bytes);
  return bytes;
}

struct FreeUrl {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
struct FreeText {
  void operator()(char* text) const { curl_free(text); }
};
using Url = std::unique_ptr<CURLU, FreeUrl>;

/// A part of the URL; empty where it has none.
std::string part_of(const Url& url, CURLUPart part) {
  char* text = nullptr;
  if (curl_url_get(url.get(), part, &text, 0) != CURLUE_OK) return "";
  const std::unique_ptr<char, FreeText> owner(text);
  return text;
}

/// Checks the URL as curl itself will read it.
Result<void> check_url(const Url& url, const ImageFetchOptions& options) {
  const std::string scheme = part_of(url, CURLUPART_SCHEME);
  const std::string host = part_of(url, CURLUPART_HOST);
  if ((scheme != "http" && scheme != "https") || host.empty()) return bad_web_url();
  if (!part_of(url, CURLUPART_USER).empty() || !part_of(url, CURLUPART_PASSWORD).empty()) {
    return bad_web_url();
  }
  if (!host_is_allowed(host, options.domains)) return forbidden_host();
  return {};
}

void configure(CURL* curl, const Url& url, Transfer& transfer) {
  curl_easy_setopt(curl, CURLOPT_CURLU, url.get());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);  // each hop is checked like the first
  curl_easy_setopt(curl, CURLOPT_PROXY, "");
  curl_easy_setopt(curl, CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_FRESH_CONNECT, 1L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "weft");
  curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, open_socket);
  curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
}

struct FreeCurl {
  void operator()(CURL* curl) const { curl_easy_cleanup(curl); }
};

}  // namespace

bool is_public_address(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, address, sizeof(v4));
    return is_public_v4(ntohl(v4.sin_addr.s_addr));
  }
  if (address->sa_family != AF_INET6) return false;
  sockaddr_in6 v6;
  std::memcpy(&v6, address, sizeof(v6));
  return is_public_v6(v6.sin6_addr.s6_addr);
}

bool host_is_allowed(const std::string& host, const std::vector<std::string>& domains) {
  if (domains.empty()) return true;
  std::string lower;
  for (const char c : host) {
    lower += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return std::any_of(domains.begin(), domains.end(), [&](const std::string& domain) {
    return lower == domain || lower.ends_with("." + domain);
  });
}

Result<std::vector<uint8_t>> fetch_image(const std::string& url, const ImageFetchOptions& options) {
  // What other parsers read in another way is not read at all.
  const bool odd = std::any_of(url.begin(), url.end(), [](char c) {
    return c <= ' ' || c == '\\' || static_cast<unsigned char>(c) >= 0x7F;
  });
  if (odd || url.size() > kMaxUrl) return bad_web_url();
  const Url parsed(curl_url());
  const std::unique_ptr<CURL, FreeCurl> curl(curl_easy_init());
  if (!parsed || !curl) return not_fetched();
  if (curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK) return bad_web_url();
  Transfer transfer{.options = options};
  configure(curl.get(), parsed, transfer);
  int64_t left_ms = int64_t{options.timeout_seconds} * 1000;
  for (int hop = 0; hop <= options.max_redirects; ++hop) {
    TRY(check_url(parsed, options));
    transfer.body.clear();
    curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, static_cast<long>(left_ms));
    const CURLcode code = curl_easy_perform(curl.get());
    if (transfer.forbidden) return forbidden_host();
    if (transfer.too_large) return too_large();
    if (code != CURLE_OK) return not_fetched();
    long status = 0;
    char* next = nullptr;
    curl_off_t spent_us = 0;
    curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(curl.get(), CURLINFO_REDIRECT_URL, &next);
    curl_easy_getinfo(curl.get(), CURLINFO_TOTAL_TIME_T, &spent_us);
    if (status == 200) return std::move(transfer.body);
    left_ms -= spent_us / 1000;
    if (next == nullptr || left_ms <= 0) return not_fetched();
    if (curl_url_set(parsed.get(), CURLUPART_URL, std::string(next).c_str(), 0) != CURLUE_OK) {
      return bad_web_url();
    }
  }
  return not_fetched();
}

std::function<Result<std::vector<uint8_t>>(const std::string& url)> image_fetcher(
    const ImageFetchOptions& options) {
  if (!options.enabled) return {};
  return [options](const std::string& url) { return fetch_image(url, options); };
}

}  // namespace weft
