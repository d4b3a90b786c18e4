// weft calibrate: the range of every channel of K and V over sample texts, as a file of static
// scales for --kv-scales.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "api/chat.h"
#include "app/cli.h"
#include "app/offline_model.h"

namespace weft {
namespace {

using Json = nlohmann::json;

/// Whether a message has parts other than text.
bool has_pictures(const Json& messages) {
  return std::any_of(messages.begin(), messages.end(), [](const Json& message) {
    const Json content = message.is_object() ? message.value("content", Json()) : Json();
    return content.is_array() && std::any_of(content.begin(), content.end(), [](const Json& part) {
             return part.is_object() && part.value("type", Json("text")) != "text";
           });
  });
}

/// The texts of a file: lines of JSON with messages, prompt or text, or of plain text.
Result<std::vector<std::vector<int32_t>>> read_texts(const CalibrateOptions& options,
                                                     const ChatFrontend& chat, int64_t max_len) {
  std::ifstream file(options.data);
  if (!file) return not_found("--data: " + options.data + " can't be opened");
  std::vector<std::vector<int32_t>> out;
  int number = 0, left_out = 0;
  for (std::string line; std::getline(file, line) && std::ssize(out) < options.limit;) {
    ++number;
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) continue;
    const std::string where = options.data + ":" + std::to_string(number);
    std::vector<int32_t> ids;
    const Json row = line[first] == '{' ? Json::parse(line, nullptr, false) : Json(line);
    if (row.is_discarded()) return data_loss(where + ": not valid JSON");
    if (row.is_object() && row.contains("messages")) {
      const Json& messages = row["messages"];
      // Pictures need more than text; their ranges are those of texts nearly.
      if (has_pictures(messages)) {
        ++left_out;
        continue;
      }
      auto encoded = chat.encode(
          {.messages = messages.dump(), .tools = row.contains("tools") ? row["tools"].dump() : ""});
      if (!encoded) return with_context(std::move(encoded).error(), where);
      ids = std::move(encoded->ids);
    } else {
      const Json& text = !row.is_object()         ? row
                         : row.contains("prompt") ? row["prompt"]
                                                  : row.value("text", Json());
      if (!text.is_string()) {
        return invalid_argument(where + ": a line is text, or JSON with messages, prompt or text");
      }
      ids = TRY(chat.encode_text(text.get<std::string>()));
    }
    if (std::ssize(ids) > max_len) ids.resize(static_cast<size_t>(max_len));
    if (!ids.empty()) out.push_back(std::move(ids));
  }
  const std::string pictures = std::to_string(left_out) + " lines with pictures left out";
  if (out.empty()) {
    return invalid_argument("--data: " + options.data + " has no texts" +
                            (left_out > 0 ? " (" + pictures + ")" : ""));
  }
  if (left_out > 0) std::fprintf(stderr, "weft: %s: %s\n", options.data.c_str(), pictures.c_str());
  return out;
}

/// Raises the range of every channel to what the runner's cache holds. False: not all is finite.
bool widen_range(SequenceRunner& runner, KvLayers& range) {
  bool finite = true;
  for (size_t i = 0; i < range.size(); ++i) {
    runner.read_cache(static_cast<int>(i), [&](int64_t, const float* k, const float* v) {
      for (const auto& [values, channels] : {std::pair(k, &range[i].k), {v, &range[i].v}}) {
        for (size_t c = 0; c < channels->size(); ++c) {
          finite = finite && std::isfinite(values[c]);
          (*channels)[c] = std::max((*channels)[c], std::abs(values[c]));
        }
      }
    });
  }
  return finite;
}

/// What hours of work would end in.
Result<void> check_out(const std::string& out) {
  std::error_code ignored;
  const auto parent = std::filesystem::absolute(out, ignored).parent_path();
  if (std::filesystem::is_directory(out, ignored)) return invalid_argument("--out: is a directory");
  if (std::filesystem::is_directory(parent, ignored)) return {};
  return not_found("--out: " + parent.string() + ": no such directory");
}

Result<void> calibrate(const CalibrateOptions& options) {
  TRY(check_out(options.out));
  EngineOptions engine = options.engine;
  engine.load_mtp = true;  // a file serves with and without drafts
  // The format that the scales are for has none yet.
  engine.kv_cache_dtype = "bfloat16";
  engine.kv_scales.clear();
  const auto offline = TRY(OfflineModel::load(engine));
  const ChatFrontend chat = TRY(ChatFrontend::load(offline->plan().directory));
  const auto texts = TRY(read_texts(options, chat, offline->plan().memory.max_model_len));
  int64_t longest = 0, tokens = 0;
  for (const auto& ids : texts) longest = std::max(longest, std::ssize(ids));
  const auto runner = TRY(offline->runner(KvFormat::kF32, longest));
  const ModelSpec& spec = offline->model().spec();
  KvLayers range = unit_kv_scales(spec, KvFormat::kInt8);
  for (KvChannels& layer : range) {
    std::fill(layer.k.begin(), layer.k.end(), 1e-6f);
    std::fill(layer.v.begin(), layer.v.end(), 1e-6f);
  }
  for (const auto& ids : texts) {
    runner->run(ids, {}, true);
    if (!widen_range(*runner, range)) return data_loss("the model's K or V is not finite");
    tokens += std::ssize(ids);
  }
  TRY(write_kv_range(options.out, spec, range));
  std::printf(
      "%s: %lld texts, %lld tokens; use it with --kv-cache-dtype int8 (or fp8) "
      "--kv-scales %s\n",
      options.out.c_str(), static_cast<long long>(texts.size()), static_cast<long long>(tokens),
      options.out.c_str());
  return {};
}

}  // namespace

int calibrate_command(const CalibrateOptions& options) {
  const Result<void> result = calibrate(options);
  return result ? kExitOk : report_error(result.error());
}

}  // namespace weft
