#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft {

/// A model on the hub, written ORG/NAME or ORG/NAME@REVISION (a branch, a tag or a commit).
struct ModelName {
  std::string org;
  std::string name;
  std::string revision = "main";

  /// kInvalidArgument for anything that is not of that form.
  static Result<ModelName> parse(std::string_view text);
  std::string repo() const { return org + "/" + name; }
  /// ORG/NAME, with @REVISION unless it is main.
  std::string text() const;
};

/// Which files of a model are wanted.
enum class ModelParts : uint8_t {
  kAll,
  kTokenizer,  ///< the small ones: configuration, tokenizer, template
  kConfig,     ///< config.json and generation_config.json
};

/// How to reach the hub and where to keep what it sends. The meaning of the variables is
/// huggingface_hub's, so that caches and tokens are shared with it.
struct HubOptions {
  std::string cache_dir;  ///< holds models--ORG--NAME folders
  std::string endpoint = "https://huggingface.co";
  std::string token;  ///< empty: anonymous
  bool offline = false;
  ModelParts parts = ModelParts::kAll;
  double timeout_s = 10;  ///< for connecting and for a transfer that stands still
  int num_connections = 8;
  uint64_t range_bytes = uint64_t{8} << 20;  ///< larger files are fetched by ranges of this size
  int num_retries = 5;                       ///< attempts in a row without a new byte
  double first_backoff_s = 0.5;              ///< doubled from attempt to attempt, at most 8 s
  /// Bytes that can still be written under a directory. Empty: statvfs.
  std::function<Result<uint64_t>(const std::string& dir)> free_space;

  /// Reads HF_HUB_CACHE (HUGGINGFACE_HUB_CACHE), HF_HOME, XDG_CACHE_HOME, HOME, HF_ENDPOINT,
  /// HF_TOKEN (HUGGING_FACE_HUB_TOKEN), HF_TOKEN_PATH and HF_HOME/token, HF_HUB_OFFLINE
  /// (TRANSFORMERS_OFFLINE), HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_DISABLE_IMPLICIT_TOKEN through
  /// `get` (the likes of getenv: nullptr when unset). Errors name the variable.
  static Result<HubOptions> from_environment(
      const std::function<const char*(const char* name)>& get);
};

/// What happens to one file. `done` grows to `total`; one event with `finished` ends the file.
struct FileProgress {
  std::string_view file;
  uint64_t done = 0;
  uint64_t total = 0;
  bool finished = false;
};

/// Where progress goes. Calls come from several threads, but never two at once.
struct ProgressSink {
  std::function<void(const FileProgress&)> on_file;
  std::function<void(std::string_view)> on_note;  ///< a line of news: waiting, trying again
};

/// Brings the files of `model` that weft needs (weights in safetensors, configuration, tokenizer,
/// chat template, preprocessor) into the cache and returns the snapshot directory. What is cached
/// already is not fetched again; the hub is always asked which commit the revision means. A broken
/// download is resumed. Offline: as cached_model. Errors, each with its own message: 401 and 403
/// (token, gated model), 404 (model, revision), no network after retries, a wrong SHA-256 (what was
/// fetched is deleted), too little disk space (checked before anything is fetched).
Result<std::string> download_model(const ModelName& model, const HubOptions& options,
                                   const ProgressSink& progress = {});

/// The snapshot directory of a model that is completely in the cache; kNotFound otherwise, with
/// what is missing.
Result<std::string> cached_model(const ModelName& model, const HubOptions& options);

/// A directory for what the user named: an existing directory wins, then a complete cached
/// snapshot (the hub is not asked), then download_model.
Result<std::string> resolve_model(const std::string& name_or_dir, const HubOptions& options,
                                  const ProgressSink& progress = {});

/// True for the files of a repository that weft reads: at the top, and a template for tools.
bool is_needed_model_file(std::string_view file);

}  // namespace weft
