#include "media/sha256.h"

#include <openssl/evp.h>

#include <memory>

#include "base/check.h"

namespace weft {

Sha256 sha256_of(std::initializer_list<std::span<const uint8_t>> pieces) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free);
  CHECK(context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  for (const std::span<const uint8_t> piece : pieces) {
    const uint64_t size = piece.size();
    CHECK(EVP_DigestUpdate(context.get(), &size, sizeof(size)) == 1);
    CHECK(EVP_DigestUpdate(context.get(), piece.data(), piece.size()) == 1);
  }
  Sha256 out;
  unsigned size = 0;
  CHECK(EVP_DigestFinal_ex(context.get(), out.data(), &size) == 1 && size == out.size());
  return out;
}

}  // namespace weft
