#include "app/engine_options.h"

#include <cctype>
#include <limits>

namespace weft {

int batched_tokens(const EngineOptions& options, bool gpu) {
  if (options.max_num_batched_tokens > 0) return options.max_num_batched_tokens;
  return gpu ? 8448 : 2048;
}

Result<int64_t> parse_size(const std::string& flag, const std::string& text) {
  const Error bad =
      invalid_argument(flag + ": '" + text +
                       "' is not a size; give a positive whole number, with k, M or G "
                       "(1024, 1024^2, 1024^3) behind it if you like");
  int64_t value = 0;
  size_t i = 0;
  for (; i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0; ++i) {
    if (value > std::numeric_limits<int64_t>::max() / 16) return bad;
    value = value * 10 + (text[i] - '0');
  }
  if (i == 0 || value == 0) return bad;
  if (i == text.size()) return value;
  int shift = 0;
  switch (std::tolower(static_cast<unsigned char>(text[i]))) {
    case 'k': shift = 10; break;
    case 'm': shift = 20; break;
    case 'g': shift = 30; break;
    default: return bad;
  }
  std::string rest = text.substr(i + 1);
  if (rest == "iB" || rest == "B" || rest == "b" || rest == "ib") rest.clear();
  if (!rest.empty() || value > (std::numeric_limits<int64_t>::max() >> shift)) return bad;
  return value << shift;
}

}  // namespace weft
