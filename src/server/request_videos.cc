#include "server/request_videos.h"

#include "server/request_fields.h"

namespace weft {

Result<std::string> read_image_uri(const std::string& field, const JsonValue& part) {
  for (const char* name : {"image_url", "image", "url"}) {
    const JsonValue* value = part.find(name);
    if (!value || value->is_null()) continue;
    const std::string inner = field + "." + name;
    if (value->as<JsonObject>()) {
      const JsonValue* url = value->find("url");
      if (!url) return invalid_argument(inner + ".url: it is missing");
      return read_string(inner + ".url", *url);
    }
    return read_string(inner, *value);
  }
  return invalid_argument(field + ".image_url: it is missing");
}

namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 40;
constexpr double kMaxFps = 1000;
constexpr size_t kMaxFrames = 4096;

Result<double> read_fps(const std::string& field, const JsonValue& value) {
  const double fps = TRY(read_number(field, value));
  if (!(fps > 0 && fps <= kMaxFps)) {
    return invalid_argument(field + ": it must be above 0 and at most 1000 frames a second");
  }
  return fps;
}

/// A URI, or a list of frames: URIs, or objects as they stand for images.
Result<std::vector<std::string>> read_frames(const std::string& field, const JsonValue& value) {
  if (value.as<std::string>()) return std::vector{TRY(read_string(field, value))};
  const auto* items = value.as<JsonArray>();
  if (!items) return wrong_type(field, "a URI or an array of frames", value);
  if (items->empty()) return invalid_argument(field + ": the video has no frames");
  if (items->size() > kMaxFrames) return too_many(field, items->size(), "frames", kMaxFrames);
  std::vector<std::string> out;
  for (size_t i = 0; i < items->size(); ++i) {
    const JsonValue& item = (*items)[i];
    const std::string at = item_of(field, i);
    out.push_back(item.as<JsonObject>() ? TRY(read_image_uri(at, item))
                                        : TRY(read_string(at, item)));
  }
  return out;
}

/// The member `name` of `owner`, where it has one.
Result<void> note_bound(const std::string& field, const JsonValue& owner, const std::string& name,
                        int64_t& out) {
  const JsonValue* value = owner.find(name);
  if (!value || value->is_null()) return {};
  out = TRY(read_int_in(field + "." + name, *value, 1, kMaxPixels));
  return {};
}

/// The member `name` of "mm_processor_kwargs".
Result<void> check_processor_member(const std::string& field, const std::string& name,
                                    const JsonValue& value) {
  for (const char* known : {"fps", "min_pixels", "max_pixels", "size"}) {
    if (name == known) return {};
  }
  if (value.is_null()) return {};
  const auto* flag = value.as<bool>();
  if (name != "do_sample_frames" || !flag || *flag) {
    return unsupported(field +
                       ": only fps, min_pixels, max_pixels and size are supported "
                       "(frames are taken as they are sent)");
  }
  return {};
}

}  // namespace

Result<PixelBounds> read_pixel_bounds(const std::string& field, const JsonValue& owner) {
  PixelBounds out;
  TRY(note_bound(field, owner, "min_pixels", out.min));
  TRY(note_bound(field, owner, "max_pixels", out.max));
  return out;
}

Result<PixelBounds> read_processor_bounds(const std::string& field, const JsonValue& value) {
  PixelBounds out = TRY(read_pixel_bounds(field, value));
  const JsonValue* size = value.find("size");
  if (!size || size->is_null()) return out;
  const std::string inner = field + ".size";
  for (const auto& [name, member] : *TRY(read_object(inner, *size))) {
    if (name != "shortest_edge" && name != "longest_edge" && !member.is_null()) {
      return unsupported(inner + ": only shortest_edge and longest_edge are supported");
    }
  }
  TRY(note_bound(inner, *size, "shortest_edge", out.min));
  TRY(note_bound(inner, *size, "longest_edge", out.max));
  return out;
}

Result<VideoSource> read_video(const std::string& field, const JsonValue& part) {
  VideoSource out{.field = field, .frames = {}};
  const auto note_fps = [&](const std::string& at, const JsonValue& owner) -> Result<void> {
    for (const char* name : {"sample_fps", "fps"}) {
      const JsonValue* fps = owner.find(name);
      if (fps && !fps->is_null()) out.fps = TRY(read_fps(at + "." + name, *fps));
    }
    return {};
  };
  TRY(note_fps(field, part));
  for (const char* name : {"video_url", "video", "url"}) {
    const JsonValue* value = part.find(name);
    if (!value || value->is_null()) continue;
    const std::string inner = field + "." + name;
    if (!value->as<JsonObject>()) {
      out.frames = TRY(read_frames(inner, *value));
      return out;
    }
    const JsonValue* url = value->find("url");
    if (!url) return invalid_argument(inner + ".url: it is missing");
    TRY(note_fps(inner, *value));
    out.frames = TRY(read_frames(inner + ".url", *url));
    return out;
  }
  return invalid_argument(field + ".video_url: it is missing");
}

Result<double> read_video_fps(const std::string& field, const JsonValue& value) {
  const JsonObject& members = *TRY(read_object(field, value));
  if (field == "media_io_kwargs") {
    const JsonValue* video = value.find("video");
    if (!video || video->is_null()) return 0;
    return read_video_fps(field + ".video", *video);
  }
  if (field == "mm_processor_kwargs") {
    for (const auto& [name, member] : members) {
      TRY(check_processor_member(field, name, member));
    }
  }
  const JsonValue* fps = value.find("fps");
  return fps && !fps->is_null() ? read_fps(field + ".fps", *fps) : Result<double>(0);
}

}  // namespace weft
