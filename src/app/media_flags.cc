#include "app/media_flags.h"

#include <nlohmann/json.hpp>
#include <sstream>

namespace weft {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxPerPrompt = 1024;
constexpr int64_t kMaxPixels = int64_t{1} << 40;

Result<int64_t> integer_in(const std::string& name, const Json& value, int64_t low, int64_t high) {
  const bool whole = value.is_number_integer() &&
                     (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t(high));
  if (!whole || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    return invalid_argument(name + ": " + value.dump().substr(0, 40) + " is no integer in [" +
                            std::to_string(low) + ", " + std::to_string(high) + "]");
  }
  return value.get<int64_t>();
}

/// "image=4,video=1" as an object; discarded when it is neither this nor JSON.
Json limits_object(const std::string& text) {
  Json out = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!out.is_discarded()) return out;
  out = Json::object();
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    const size_t equals = item.find('=');
    if (equals == std::string::npos) return Json(Json::value_t::discarded);
    Json count = Json::parse(item.substr(equals + 1), nullptr, /*allow_exceptions=*/false);
    if (count.is_discarded()) return count;
    out[item.substr(0, equals)] = std::move(count);
  }
  return out;
}

}  // namespace

Result<void> read_media_limits(const std::string& text, EngineOptions& options) {
  const std::string flag = "--limit-mm-per-prompt";
  const Json limits = limits_object(text);
  if (!limits.is_object()) {
    return invalid_argument(flag + ": it must be an object such as {\"image\": 4, \"video\": 1}");
  }
  for (const auto& [kind, value] : limits.items()) {
    const std::string name = flag + "." + kind;
    if (kind != "image" && kind != "video" && kind != "audio") {
      return invalid_argument(name + ": allowed: image, video, audio");
    }
    const bool counted = value.is_object();
    if (counted && !value.contains("count")) continue;  // sizes that vLLM profiles with
    const int64_t count =
        TRY(integer_in(name, counted ? value.at("count") : value, 0, kMaxPerPrompt));
    if (kind == "image") options.max_images = static_cast<int>(count);
    if (kind == "video") options.max_videos = static_cast<int>(count);
  }
  if (options.max_images == 0 && options.max_videos == 0) options.max_image_tokens = 0;
  return {};
}

Result<std::string> read_processor_kwargs(const std::string& text, EngineOptions& options) {
  const std::string flag = "--mm-processor-kwargs";
  const Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return invalid_argument(flag + ": it must be a JSON object such as {\"max_pixels\": 1003520}");
  }
  std::string others;
  const auto read = [&](const Json& owner, const std::string& path) -> Result<void> {
    for (const auto& [key, value] : owner.items()) {
      const std::string name = path + "." + key;
      if (key == "min_pixels" || key == "shortest_edge") {
        options.min_image_pixels = TRY(integer_in(name, value, 1, kMaxPixels));
      } else if (key == "max_pixels" || key == "longest_edge") {
        options.max_image_pixels = TRY(integer_in(name, value, 1, kMaxPixels));
      } else if (key != "size" || !value.is_object()) {
        others += (others.empty() ? "" : ", ") + name;
      }
    }
    return {};
  };
  TRY(read(object, flag));
  if (object.contains("size") && object.at("size").is_object()) {
    TRY(read(object.at("size"), flag + ".size"));
  }
  if (options.max_image_pixels > 0 && options.min_image_pixels > options.max_image_pixels) {
    return invalid_argument(flag + ": min_pixels must not exceed max_pixels");
  }
  if (others.empty()) return std::string();
  return others + " change nothing in weft; min_pixels, max_pixels and size do";
}

}  // namespace weft
