#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "app/engine_options.h"
#include "base/log.h"

namespace weft {

/// What `weft serve` was asked for. Each field says its flag where the names differ; all flags,
/// their aliases and environment twins are in docs/server.md.
struct ServeOptions {
  EngineOptions engine;

  // Where it listens.
  std::string host = "127.0.0.1";
  uint16_t port = 8000;
  std::string uds;            ///< a path: a unix socket instead of host and port
  std::string root_path;      ///< "" or "/x"
  bool allow_public = false;  ///< listen beyond the loopback without keys

  // Who may come in.
  std::vector<std::string> api_keys;  ///< of --api-key, --api-key-file, WEFT_API_KEY, VLLM_API_KEY
  std::vector<std::string> allowed_origins;  ///< CORS; "*": any; empty: none

  // What it serves.
  std::vector<std::string> served_model_names;  ///< empty: the model's own; first: said in answers
  std::string chat_template;                    ///< a file; empty: the model's
  std::vector<std::pair<std::string, std::string>> default_chat_template_kwargs;  ///< name, JSON
  std::string tool_call_parser = "auto";   ///< auto, none, or a name
  std::string reasoning_parser = "auto";   ///< auto, none, or a name
  std::string generation_config = "auto";  ///< auto: the model's; vllm: none; or a directory
  std::string override_generation_config;  ///< JSON object; empty: none

  // Images by URL; without either, requests send them as data: URIs.
  bool fetch_images = false;               ///< --fetch-images: from all public hosts
  std::vector<std::string> media_domains;  ///< --allowed-media-domains: from these alone
  std::string media_path;                  ///< --allowed-local-media-path: file: URLs below it

  // How much.
  int max_waiting = 1024;        ///< requests beyond the running ones before 429 (--max-waiting)
  int64_t max_n = 128;           ///< choices of a request (--max-n)
  double shutdown_timeout = 30;  ///< seconds for streams to end after SIGTERM

  // What it tells.
  std::string trace_file;
  LogLevel log_level = LogLevel::kInfo;
  bool log_stats = true;      ///< --disable-log-stats
  bool log_requests = false;  ///< --enable-log-requests

  // The test device, --device fake: pretends to compute (docs/server.md).
  double fake_tokens_per_second = 0;  ///< of each sequence; 0: as fast as it can
  int64_t fake_hang_after = -1;       ///< steps after which it hangs; -1: never

  /// Whether the model runs on the test device.
  bool fake() const { return engine.device == "fake"; }
};

/// The body of `weft serve`; returns the exit code.
int serve_command(const ServeOptions& options);

}  // namespace weft
