#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "checkpoint/http_client.h"
#include "checkpoint/hub.h"
#include "checkpoint/model_file.h"

namespace weft {
namespace {

using Getter = std::function<const char*(const char*)>;

constexpr uint64_t kMaxTokenFile = 4096;

/// The first of the variables that is set and not empty.
std::string first_of(const Getter& get, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* value = get(name);
    if (value != nullptr && *value != '\0') return value;
  }
  return {};
}

/// huggingface_hub's truth: 1, ON, YES, TRUE in any case.
bool is_true(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

std::string expand_home(const std::string& path, const Getter& get) {
  if (path != "~" && !path.starts_with("~/")) return path;
  return first_of(get, {"HOME"}) + path.substr(1);
}

/// A token goes into a header line: what could end the line is refused.
Result<std::string> checked_token(std::string token, const std::string& source) {
  while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back()))) token.pop_back();
  size_t begin = 0;
  while (begin < token.size() && std::isspace(static_cast<unsigned char>(token[begin]))) ++begin;
  token.erase(0, begin);
  for (const char c : token) {
    if (c <= ' ' || c > '~') {
      return invalid_argument(source + ": the token has a character that no token can have");
    }
  }
  return token;
}

Result<std::string> find_token(const Getter& get, const std::string& home) {
  const std::string given = first_of(get, {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"});
  if (!given.empty()) return checked_token(given, "HF_TOKEN");
  if (is_true(first_of(get, {"HF_HUB_DISABLE_IMPLICIT_TOKEN"}))) return std::string();
  std::string path = expand_home(first_of(get, {"HF_TOKEN_PATH"}), get);
  if (path.empty()) path = home + "/token";
  const auto file = ModelFile::open(path);
  if (!file.ok()) return std::string();  // not logged in
  return checked_token(TRY(file->read_text(kMaxTokenFile)), path);
}

bool is_name_part(std::string_view text) {
  return is_plain_file_name(text) && text.size() <= 96 && text.find("..") == text.npos &&
         text.find("--") == text.npos && text.back() != '.' && text.back() != '-' &&
         text.front() != '-';
}

bool is_revision(std::string_view text) {
  if (text.empty() || text.size() > 255 || text.find("..") != text.npos) return false;
  if (text.front() == '/' || text.back() == '/' || text.find("//") != text.npos) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-' ||
           c == '/';
  });
}

}  // namespace

Result<ModelName> ModelName::parse(std::string_view text) {
  const size_t at = text.find('@');
  const std::string_view repo = text.substr(0, at);
  const size_t slash = repo.find('/');
  if (slash == repo.npos || !is_name_part(repo.substr(0, slash)) ||
      !is_name_part(repo.substr(slash + 1))) {
    return invalid_argument("model " + in_quotes(text) +
                            " is neither a directory nor a hub name of the form ORG/NAME or "
                            "ORG/NAME@REVISION");
  }
  ModelName out{.org = std::string(repo.substr(0, slash)),
                .name = std::string(repo.substr(slash + 1))};
  if (at != text.npos) {
    if (!is_revision(text.substr(at + 1))) {
      return invalid_argument("model " + in_quotes(text) +
                              ": the revision after '@' must be a branch, a tag or a commit");
    }
    out.revision = text.substr(at + 1);
  }
  return out;
}

std::string ModelName::text() const {
  return revision == "main" ? repo() : repo() + "@" + revision;
}

Result<HubOptions> HubOptions::from_environment(const Getter& get) {
  HubOptions out;
  std::string home = expand_home(first_of(get, {"HF_HOME"}), get);
  if (home.empty()) {
    std::string base = expand_home(first_of(get, {"XDG_CACHE_HOME"}), get);
    if (base.empty()) base = expand_home("~/.cache", get);
    home = base + "/huggingface";
  }
  out.cache_dir = expand_home(first_of(get, {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}), get);
  if (out.cache_dir.empty()) out.cache_dir = home + "/hub";

  if (std::string url = first_of(get, {"HF_ENDPOINT"}); !url.empty()) {
    while (url.ends_with('/')) url.pop_back();
    if (url_origin(url).empty()) {
      return invalid_argument(
          "HF_ENDPOINT must be a URL that begins with https:// or http://, got " + in_quotes(url));
    }
    out.endpoint = url;
  }
  if (const std::string text = first_of(get, {"HF_HUB_DOWNLOAD_TIMEOUT"}); !text.empty()) {
    char* end = nullptr;
    out.timeout_s = std::strtod(text.c_str(), &end);
    if (*end != '\0' || !(out.timeout_s > 0 && out.timeout_s <= 86400)) {
      return invalid_argument(
          "HF_HUB_DOWNLOAD_TIMEOUT must be a number of seconds over 0 and up to 86400, got " +
          in_quotes(text));
    }
  }
  out.offline = is_true(first_of(get, {"HF_HUB_OFFLINE"})) ||
                is_true(first_of(get, {"TRANSFORMERS_OFFLINE"}));
  out.token = TRY(find_token(get, home));
  return out;
}

bool is_needed_model_file(std::string_view file) {
  if (file == "additional_chat_templates/tool_use.jinja") return true;
  if (!is_plain_file_name(file)) return false;  // other files in folders too
  static constexpr std::string_view kExact[] = {"config.json",
                                                "generation_config.json",
                                                "model.safetensors.index.json",
                                                "vocab.json",
                                                "merges.txt",
                                                "special_tokens_map.json",
                                                "added_tokens.json",
                                                "preprocessor_config.json",
                                                "processor_config.json",
                                                "chat_template.json",
                                                "chat_template.jinja",
                                                "video_preprocessor_config.json"};
  if (std::find(std::begin(kExact), std::end(kExact), file) != std::end(kExact)) return true;
  if (file.starts_with("tokenizer") && file.ends_with(".json")) return true;
  // Beside the shards some repositories keep a second copy of the weights in another layout.
  return file.ends_with(".safetensors") && !file.starts_with("consolidated");
}

}  // namespace weft
