// DEPS: weft_media
// An arbitrary text as a data: URI, and bytes there and back.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "media/data_uri.h"
#include "media/processing.h"

namespace {

std::string encode(std::string_view bytes, bool pad) {
  constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0u);
    }
    const size_t digits = std::min<size_t>(4, bytes.size() - i + 1);
    for (size_t j = 0; j < digits; ++j) out += kAlphabet[group >> (18 - 6 * j) & 63];
    if (pad) out.append(4 - digits, '=');
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto decoded = weft::decode_data_uri(text, 1000);
  CHECK(!decoded || decoded->size() <= 1000);
  const bool pad = data[0] % 2 == 0;
  const auto back = weft::decode_data_uri("data:;base64," + encode(text, pad), 1 << 20);
  CHECK(back && std::string_view(reinterpret_cast<const char*>(back->data()), size) == text);
  (void)weft::parse_image_processing(text);
  (void)weft::parse_video_processing(text, pad);
  return 0;
}
