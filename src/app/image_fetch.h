#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace weft {

/// Which http(s) URLs of images a server fetches.
struct ImageFetchOptions {
  bool enabled = false;
  std::vector<std::string> domains;  ///< hosts, and what ends in ".host"; empty: all public ones
  int64_t max_bytes = int64_t{32} << 20;
  int timeout_seconds = 10;  ///< of the whole transfer
  int max_redirects = 3;
};

/// Whether an address belongs to the public internet: not this machine, not a private, shared,
/// link-local, documentation, multicast or reserved network, also where IPv6 wraps such an IPv4
/// address.
bool is_public_address(const sockaddr* address);

/// Whether `host` (as it stands in a URL) is one of `domains` or below one; any for none.
bool host_is_allowed(const std::string& host, const std::vector<std::string>& domains);

/// Gets what a URL names. Every connection, also behind a redirect and whatever the name resolved
/// to, is checked by its address before a byte is sent; user names, other schemes and proxies of
/// the environment are not taken. Errors are fixed texts: nothing of the answer is in them.
Result<std::vector<uint8_t>> fetch_image(const std::string& url, const ImageFetchOptions& options);

/// fetch_image() with these options; empty when they say no.
std::function<Result<std::vector<uint8_t>>(const std::string& url)> image_fetcher(
    const ImageFetchOptions& options);

}  // namespace weft
