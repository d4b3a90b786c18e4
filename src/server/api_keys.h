#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft {

/// Whose request it is. `id` is a keyed hash of the API key, another one in each process, 32 hex
/// digits: it salts the prefix cache and is safe to log. Empty when no keys are set.
struct KeyScope {
  std::string id;
};

/// The keys that open the server. Holds SHA-256 digests, never the keys.
class ApiKeys {
 public:
  /// No keys: everybody may come in. A key is 1 to 512 visible ASCII characters.
  static Result<ApiKeys> make(const std::vector<std::string>& keys);

  /// Whether requests need a key.
  bool required() const { return !entries_.empty(); }
  /// The headers `Authorization` ("Bearer KEY") and `X-Api-Key`, "" when absent. Nothing: no
  /// valid key (401). Compares with every key in constant time. Two keys that differ: refused.
  std::optional<KeyScope> check(std::string_view authorization, std::string_view x_api_key) const;

 private:
  using Digest = std::array<uint8_t, 32>;
  struct Entry {
    Digest digest;
    std::string scope;
  };
  const Entry* find(std::string_view key) const;

  std::vector<Entry> entries_;
};

/// The KEY of "Bearer KEY" (RFC 6750: the scheme in any case, one or more spaces, then visible
/// ASCII without spaces to the end); nothing when it is not that.
std::optional<std::string_view> parse_bearer(std::string_view authorization);

/// Keys of a file: one a line; empty lines and lines that begin with '#' are skipped.
Result<std::vector<std::string>> read_api_key_file(const std::string& path);

}  // namespace weft
