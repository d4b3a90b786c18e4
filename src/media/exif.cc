// Where the formats keep EXIF, and the one number of it that matters here. Every read is bounded;
// what makes no sense counts as absent.

#include <algorithm>
#include <string_view>

#include "media/decoders.h"

namespace weft {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr std::string_view kExifPrefix("Exif\0\0", 6);

bool begins_with(Bytes bytes, std::string_view text) {
  return bytes.size() >= text.size() &&
         std::equal(text.begin(), text.end(), bytes.begin(),
                    [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; });
}

/// An unsigned number of `size` bytes at `at`, which lies inside.
uint32_t number(Bytes bytes, size_t at, size_t size, bool big_endian) {
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value = value << 8 | bytes[at + (big_endian ? i : size - 1 - i)];
  }
  return value;
}

/// The first value of a directory's entry as an orientation; 1: it is none.
int first_value(Bytes exif, size_t entry, bool big) {
  const uint32_t type = number(exif, entry + 2, 2, big);
  const uint32_t count = number(exif, entry + 4, 4, big);
  // Short and long, signed or not; Pillow takes single bytes for text.
  const size_t size = type == 3 || type == 8 ? 2 : type == 4 || type == 9 ? 4 : 0;
  if (size == 0 || count == 0) return 1;
  // Values that fill more than four bytes stand elsewhere.
  const size_t at = size * count > 4 ? number(exif, entry + 8, 4, big) : entry + 8;
  if (at > exif.size() || size * count > exif.size() - at) return 1;
  const uint32_t value = number(exif, at, size, big);
  return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
}

}  // namespace

Bytes find_png_exif(Bytes file) {
  size_t at = 8;
  while (file.size() - at >= 12) {
    const size_t length = number(file, at, 4, true);
    if (length > file.size() - at - 12) return {};
    const Bytes data = file.subspan(at + 8, length);
    if (begins_with(file.subspan(at + 4), "eXIf")) return data;
    if (begins_with(file.subspan(at + 4), "IEND")) return {};
    at += length + 12;
  }
  return {};
}

Bytes find_jpeg_exif(Bytes file) {
  size_t at = 2;
  while (file.size() - at >= 4) {
    if (file[at] != 0xFF) return {};
    const uint8_t marker = file[at + 1];
    if (marker == 0xFF) {  // fill bytes
      ++at;
      continue;
    }
    if (marker == 0xDA || marker == 0xD9) return {};  // the pixels begin, or the end
    const size_t length = number(file, at + 2, 2, true);
    if (length < 2 || length > file.size() - at - 2) return {};
    const Bytes data = file.subspan(at + 4, length - 2);
    if (marker == 0xE1 && begins_with(data, kExifPrefix)) return data;
    at += length + 2;
  }
  return {};
}

Bytes find_webp_exif(Bytes file) {
  size_t at = 12;
  while (at <= file.size() && file.size() - at >= 8) {
    const size_t length = number(file, at + 4, 4, false);
    if (length > file.size() - at - 8) return {};
    const Bytes data = file.subspan(at + 8, length);
    if (begins_with(file.subspan(at), "EXIF")) return data;
    at += 8 + length + length % 2;
  }
  return {};
}

int exif_orientation(Bytes exif) {
  constexpr uint32_t kOrientation = 0x0112;
  while (begins_with(exif, kExifPrefix)) exif = exif.subspan(kExifPrefix.size());
  if (exif.size() < 8) return 1;
  const bool big = begins_with(exif, "MM");
  if (!big && !begins_with(exif, "II")) return 1;
  if (number(exif, 2, 2, big) != 42) return 1;
  const size_t directory = number(exif, 4, 4, big);
  if (directory > exif.size() - 2) return 1;
  const size_t count = number(exif, directory, 2, big);
  for (size_t i = 0; i < count; ++i) {
    const size_t entry = directory + 2 + 12 * i;
    if (entry + 12 > exif.size()) return 1;
    if (number(exif, entry, 2, big) != kOrientation) continue;
    return first_value(exif, entry, big);
  }
  return 1;
}

}  // namespace weft
