#include "grammar/nfa.h"

namespace weft {

namespace {

struct Encoded {
  uint8_t bytes[4] = {};
  int size = 0;
};

Encoded encode(char32_t c) {
  const auto u = static_cast<uint32_t>(c);
  Encoded e;
  const auto put = [&](uint32_t byte) { e.bytes[e.size++] = static_cast<uint8_t>(byte); };
  if (u < 0x80) {
    put(u);
  } else if (u < 0x800) {
    put(0xC0 | (u >> 6));
    put(0x80 | (u & 0x3F));
  } else if (u < 0x10000) {
    put(0xE0 | (u >> 12));
    put(0x80 | ((u >> 6) & 0x3F));
    put(0x80 | (u & 0x3F));
  } else {
    put(0xF0 | (u >> 18));
    put(0x80 | ((u >> 12) & 0x3F));
    put(0x80 | ((u >> 6) & 0x3F));
    put(0x80 | (u & 0x3F));
  }
  return e;
}

/// [low, high] of one encoded length: cut until only the last differing byte and full
/// continuations after it are ranges.
void split(uint32_t low, uint32_t high, std::vector<ByteRanges>& out) {
  // At most 2 * 3 + 1 pieces: a plain worklist, last in first out, keeps them sorted.
  std::vector<std::pair<uint32_t, uint32_t>> work = {{low, high}};
  while (!work.empty()) {
    const auto [a, b] = work.back();
    work.pop_back();
    bool cut = false;
    for (int i = 1; i < encode(a).size && !cut; ++i) {
      const uint32_t m = (1u << (6 * i)) - 1;
      if ((a & ~m) == (b & ~m)) continue;
      if ((a & m) != 0) {
        work.emplace_back((a | m) + 1, b);
        work.emplace_back(a, a | m);
        cut = true;
      } else if ((b & m) != m) {
        work.emplace_back(b & ~m, b);
        work.emplace_back(a, (b & ~m) - 1);
        cut = true;
      }
    }
    if (cut) continue;
    const Encoded first = encode(a), last = encode(b);
    ByteRanges sequence;
    for (int i = 0; i < first.size; ++i) sequence.emplace_back(first.bytes[i], last.bytes[i]);
    out.push_back(std::move(sequence));
  }
}

}  // namespace

std::vector<ByteRanges> utf8_ranges(const std::vector<std::pair<char32_t, char32_t>>& ranges) {
  constexpr uint32_t kEnds[] = {0x7F, 0x7FF, 0xFFFF, 0x10FFFF};  // of the encoded lengths
  std::vector<ByteRanges> out;
  for (const auto& [first, last] : ranges) {
    auto low = static_cast<uint32_t>(first);
    const auto high = static_cast<uint32_t>(last);
    for (const uint32_t end : kEnds) {
      if (low > high) break;
      if (low > end) continue;
      split(low, std::min(high, end), out);
      low = end + 1;
    }
  }
  return out;
}

}  // namespace weft
