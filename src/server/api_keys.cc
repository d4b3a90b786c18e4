#include "server/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <fstream>

#include "base/ascii.h"
#include "base/hex.h"

namespace weft {
namespace {

constexpr size_t kMaxKeyLength = 512;

bool visible_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < '\x7f'; });
}

std::array<uint8_t, 32> sha256(std::string_view text) {
  std::array<uint8_t, 32> digest;
  CHECK(SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), digest.data()));
  return digest;
}

/// The first 128 bits of HMAC-SHA256(key, data), in hex.
std::string keyed_id(const std::array<uint8_t, 32>& key, const std::array<uint8_t, 32>& data) {
  std::array<uint8_t, 32> mac;
  unsigned int len = mac.size();
  CHECK(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), data.data(), data.size(),
             mac.data(), &len));
  std::string id;
  for (size_t i = 0; i < 16; ++i) append_hex(id, mac[i]);
  return id;
}

}  // namespace

Result<ApiKeys> ApiKeys::make(const std::vector<std::string>& keys) {
  Digest process_key;
  CHECK(RAND_bytes(process_key.data(), static_cast<int>(process_key.size())) == 1,
        "no random bytes");
  ApiKeys made;
  for (const std::string& key : keys) {
    if (key.empty() || key.size() > kMaxKeyLength || !visible_ascii(key)) {
      // The key itself must not end in a log.
      return invalid_argument("api_key: key " + std::to_string(&key - keys.data() + 1) + " has " +
                              std::to_string(key.size()) +
                              " bytes; allowed: 1 to 512 visible ASCII characters without spaces");
    }
    const Digest digest = sha256(key);
    const auto same = [&digest](const Entry& e) { return e.digest == digest; };
    if (std::any_of(made.entries_.begin(), made.entries_.end(), same)) continue;
    made.entries_.push_back({digest, keyed_id(process_key, digest)});
  }
  return made;
}

const ApiKeys::Entry* ApiKeys::find(std::string_view key) const {
  const Digest digest = sha256(key);
  // All of them, and without a branch on the outcome: the time tells nothing about which keys
  // there are. What an attacker could learn from a comparison is about digests anyway.
  size_t found = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const int differs = CRYPTO_memcmp(entries_[i].digest.data(), digest.data(), digest.size());
    const size_t mask = size_t{0} - static_cast<size_t>(differs == 0);
    found |= mask & (i + 1);
  }
  return found == 0 ? nullptr : &entries_[found - 1];
}

std::optional<KeyScope> ApiKeys::check(std::string_view authorization,
                                       std::string_view x_api_key) const {
  if (!required()) return KeyScope{};
  const Entry* entry = nullptr;
  if (!authorization.empty()) {
    const std::optional<std::string_view> key = parse_bearer(authorization);
    entry = key ? find(*key) : nullptr;
    if (!entry) return std::nullopt;
  }
  if (!x_api_key.empty()) {
    const Entry* other = x_api_key.size() <= kMaxKeyLength ? find(x_api_key) : nullptr;
    if (!other || (entry && entry != other)) return std::nullopt;
    entry = other;
  }
  if (!entry) return std::nullopt;
  return KeyScope{entry->scope};
}

std::optional<std::string_view> parse_bearer(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer";
  if (authorization.size() <= kScheme.size()) return std::nullopt;
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if (ascii_lower(authorization[i]) != kScheme[i]) return std::nullopt;
  }
  std::string_view key = authorization.substr(kScheme.size());
  const size_t begin = key.find_first_not_of(' ');
  if (begin == 0 || begin == std::string_view::npos) return std::nullopt;
  key.remove_prefix(begin);
  if (key.size() > kMaxKeyLength || !visible_ascii(key)) return std::nullopt;
  return key;
}

Result<std::vector<std::string>> read_api_key_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return not_found("api_key_file: cannot read '" + path + "'");
  std::vector<std::string> keys;
  std::string line;
  while (std::getline(file, line)) {
    const size_t end = line.find_last_not_of(" \t\r");
    const size_t begin = line.find_first_not_of(" \t");
    if (end == std::string::npos || line[begin] == '#') continue;
    keys.push_back(line.substr(begin, end + 1 - begin));
  }
  if (file.bad()) return data_loss("api_key_file: cannot read '" + path + "' to its end");
  // An empty file must not open the server to everybody.
  if (keys.empty()) return invalid_argument("api_key_file: '" + path + "' holds no key");
  return keys;
}

}  // namespace weft
