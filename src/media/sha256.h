#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace weft {

using Sha256 = std::array<uint8_t, 32>;

/// SHA-256 of the pieces, each with its length before it: other cuts give another digest.
Sha256 sha256_of(std::initializer_list<std::span<const uint8_t>> pieces);

}  // namespace weft
