// Flags of `weft serve`, and what they mean together.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "app/flags.h"
#include "app/refusals.h"
#include "app/vllm_flags.h"
#include "server/api_keys.h"

namespace weft {
namespace {

void add_known_flag(CLI::App& app, const KnownFlag& flag, std::vector<std::string>& values) {
  const std::string name(flag.name);
  CLI::Option* option = nullptr;
  if (flag.arity == FlagArity::kSwitch) {
    // As a flag that hands on whether it was negated; --flag=false as well.
    const std::string negative = ",!--no-" + name.substr(2);
    option = app.add_flag_function(name + negative, [&values](int64_t count) {
      values.emplace_back(count > 0 ? "true" : "false");
    });
  } else {
    option = app.add_option(name, values);
    if (flag.arity == FlagArity::kValue) option->allow_extra_args(false);
    if (flag.arity == FlagArity::kOptional) option->expected(0, 1);
  }
  option->group("");
}

template <class Flags>
void add_known_flags(CLI::App& app, const Flags& flags, std::vector<ServeArguments::Known>& known) {
  known.reserve(flags.size());  // the parser holds references to the elements
  for (const KnownFlag& flag : flags) {
    known.push_back({std::string(flag.name), {}});
    add_known_flag(app, flag, known.back().values);
  }
}

void add_address_flags(CLI::App& app, ServeArguments& a) {
  ServeOptions& o = a.options;
  app.add_option("--host", o.host, "Address to listen on")->capture_default_str();
  app.add_option("--port", o.port, "Port to listen on; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--uds", o.uds, "Path of a unix socket to listen on, instead of host and port");
  app.add_option("--root-path", o.root_path, "Prefix of every route, for a proxy that keeps it");
  app.add_flag("--allow-public", o.allow_public,
               "Listen beyond the loopback though there is no API key");
  app.add_option("--api-key", o.api_keys, "A key that clients must show; may be repeated")
      ->allow_extra_args(false);
  app.add_option("--api-key-file", a.api_key_files,
                 "A file of keys, one a line, # begins a comment; may be repeated")
      ->allow_extra_args(false);
  app.add_option("--allowed-origins", a.allowed_origins,
                 "Origins whose pages may call (CORS): a list or a JSON array; \"*\": any")
      ->allow_extra_args(false);
}

void add_model_flags(CLI::App& app, ServeArguments& a) {
  ServeOptions& o = a.options;
  app.add_option("--revision", a.revision, "Branch, tag or commit of a MODEL from the hub");
  app.add_option("--served-model-name", o.served_model_names,
                 "Name of the model in the API; may be repeated, the first is what answers say")
      ->allow_extra_args(false);
  app.add_option("--chat-template", o.chat_template,
                 "A file with a Jinja chat template, instead of the model's");
  app.add_option("--default-chat-template-kwargs", a.chat_template_kwargs,
                 "JSON object of template variables that requests may override")
      ->allow_extra_args(false);
  app.add_option("--tool-call-parser", o.tool_call_parser,
                 "How tool calls are read: auto (by the template), none, or a format's name")
      ->capture_default_str();
  app.add_option("--reasoning-parser", o.reasoning_parser,
                 "How thinking is told from the answer: auto, none, or a format's name")
      ->capture_default_str();
  app.add_option("--generation-config", o.generation_config,
                 "Sampling defaults: auto (the model's), vllm (none), or a directory")
      ->capture_default_str();
  app.add_option("--override-generation-config", a.generation_overrides,
                 "JSON object of sampling defaults that go before those")
      ->allow_extra_args(false);
}

void add_running_flags(CLI::App& app, ServeArguments& a) {
  ServeOptions& o = a.options;
  app.add_flag("--fetch-images", o.fetch_images,
               "Fetch images that requests name by http(s) URLs, from public hosts alone");
  app.add_option("--allowed-media-domains", o.media_domains,
                 "Fetch such images from these domains and their subdomains alone");
  app.add_option("--allowed-local-media-path", o.media_path,
                 "Read images and frames that requests name by file: URLs, from below this "
                 "directory alone")
      ->check(CLI::ExistingDirectory);
  app.add_option("--max-waiting", o.max_waiting,
                 "Requests that may wait beyond the running ones; more are refused with 429")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-n", o.max_n, "Largest n (choices) of a request")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--shutdown-timeout", o.shutdown_timeout,
                 "Seconds that streams may take to end after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_option("--trace-file", o.trace_file, "Write a Chrome trace of steps and requests there");
  app.add_option("--log-level", a.log_level, "What is logged on standard error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "critical", "off"}))
      ->capture_default_str();
  app.add_flag("--disable-log-stats", a.log_stats_off, "No line of figures every ten seconds");
  app.add_flag("--enable-log-requests", o.log_requests, "Log each request (never its text)");
  app.add_option("--fake-tokens-per-second", o.fake_tokens_per_second,
                 "With --device fake: speed of each sequence; 0: as fast as it can")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--fake-hang-after", o.fake_hang_after,
                 "With --device fake: steps after which it hangs, for tests; -1: never")
      ->check(CLI::Range(int64_t{-1}, int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--config", a.config_file,
                 "YAML file of flags without their dashes; command line and environment go first");
}

LogLevel to_log_level(const std::string& name) {
  if (name == "trace" || name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  return name == "off" ? LogLevel::kOff : LogLevel::kError;
}

/// Several values in one, as an environment variable has to write them.
std::vector<std::string> split_words(const std::vector<std::string>& values) {
  std::vector<std::string> words;
  for (const std::string& value : values) {
    std::istringstream stream(value);
    const size_t before = words.size();
    for (std::string word; stream >> word;) words.push_back(word);
    // An empty value stays, to be refused: no key at all would let everybody in.
    if (words.size() == before) words.emplace_back();
  }
  return words;
}

Result<std::vector<std::string>> parse_origins(const std::vector<std::string>& values) {
  std::vector<std::string> origins;
  for (const std::string& value : values) {
    const nlohmann::json json = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
    if (!json.is_array()) {
      std::istringstream stream(value);
      for (std::string word; std::getline(stream, word, ',');) origins.push_back(word);
      continue;
    }
    for (const nlohmann::json& item : json) {
      if (!item.is_string()) {
        return invalid_argument("--allowed-origins: an array of strings is expected, not " + value);
      }
      origins.push_back(item.get<std::string>());
    }
  }
  for (const std::string& origin : origins) {
    const size_t scheme = origin.find("://");
    const bool bare = scheme != std::string::npos && scheme > 0 &&
                      origin.find_first_of("/?# ", scheme + 3) == std::string::npos;
    if (origin == "*" || bare) continue;
    return invalid_argument("--allowed-origins: '" + origin +
                            "' is not an origin; allowed: \"*\" or SCHEME://HOST[:PORT] without a "
                            "path");
  }
  return origins;
}

Result<nlohmann::json> merge_objects(const std::string& flag,
                                     const std::vector<std::string>& values) {
  nlohmann::json merged = nlohmann::json::object();
  for (const std::string& value : values) {
    const nlohmann::json json = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) {
      return invalid_argument(flag + ": '" + value + "' is not a JSON object");
    }
    merged.merge_patch(json);
  }
  return merged;
}

Result<std::string> check_root_path(std::string path) {
  while (!path.empty() && path.back() == '/') path.pop_back();
  if (!path.empty() && (path.front() != '/' || path.find("//") != std::string::npos ||
                        path.find_first_of("?#% ") != std::string::npos)) {
    return invalid_argument("--root-path: '" + path +
                            "' is not a path; allowed: /NAME or /NAME/NAME, without ?, #, %");
  }
  return path;
}

const KnownFlag& find_flag(std::span<const KnownFlag> flags, const std::string& name) {
  const auto at = std::find_if(flags.begin(), flags.end(),
                               [&name](const KnownFlag& flag) { return flag.name == name; });
  CHECK(at != flags.end());
  return *at;
}

Result<void> check_known(const ServeArguments& arguments, std::vector<std::string>& warnings) {
  for (const ServeArguments::Known& given : arguments.refused) {
    if (given.values.empty()) continue;
    if (is_harmless(find_flag(refused_flags(), given.name), given.values)) continue;
    // Off is what it is anyway.
    if (given.values == std::vector<std::string>{"false"}) continue;
    if (given.name == "--tokenizer" && given.values[0] == arguments.options.engine.model) continue;
    return flag_refusal(given.name);
  }
  for (const ServeArguments::Known& given : arguments.ignored) {
    if (given.values.empty()) continue;
    if (is_harmless(find_flag(ignored_flags(), given.name), given.values)) continue;
    if (given.name == "--trust-remote-code") {
      warnings.push_back("--trust-remote-code is ignored: weft runs no code of a model");
    } else {
      warnings.push_back(given.name + " has no meaning in weft and is ignored");
    }
  }
  return {};
}

Result<std::vector<std::string>> collect_keys(const ServeArguments& arguments,
                                              const char* vllm_api_key) {
  std::vector<std::string> keys = split_words(arguments.options.api_keys);
  for (const std::string& path : arguments.api_key_files) {
    const std::vector<std::string> more = TRY(read_api_key_file(path));
    keys.insert(keys.end(), more.begin(), more.end());
  }
  if (keys.empty() && vllm_api_key && *vllm_api_key != '\0') keys.emplace_back(vllm_api_key);
  TRY(ApiKeys::make(keys));
  return keys;
}

}  // namespace

void add_serve_options(CLI::App& app, ServeArguments& arguments) {
  add_engine_options(app, arguments.options.engine, true, /*fake=*/true);
  add_address_flags(app, arguments);
  add_model_flags(app, arguments);
  add_running_flags(app, arguments);
  add_known_flags(app, ignored_flags(), arguments.ignored);
  add_known_flags(app, refused_flags(), arguments.refused);
}

Result<FinishedServe> finish_serve(const ServeArguments& arguments, const char* vllm_api_key) {
  FinishedServe out{arguments.options, {}};
  ServeOptions& o = out.options;
  TRY(check_known(arguments, out.warnings));
  if (!arguments.revision.empty() && std::filesystem::is_directory(o.engine.model)) {
    out.warnings.push_back("--revision is ignored: the model is a directory");
  } else if (!arguments.revision.empty()) {
    if (o.engine.model.empty() || o.engine.model.find('@') != std::string::npos) {
      return invalid_argument("--revision: needs a MODEL of the hub without an '@' in its name");
    }
    o.engine.model += "@" + arguments.revision;
  }
  o.api_keys = TRY(collect_keys(arguments, vllm_api_key));
  o.allowed_origins = TRY(parse_origins(arguments.allowed_origins));
  o.root_path = TRY(check_root_path(o.root_path));
  o.served_model_names = split_words(o.served_model_names);
  if (std::count(o.served_model_names.begin(), o.served_model_names.end(), "") > 0) {
    return invalid_argument("--served-model-name: a name is empty");
  }
  const nlohmann::json kwargs =
      TRY(merge_objects("--default-chat-template-kwargs", arguments.chat_template_kwargs));
  for (const auto& [name, value] : kwargs.items()) {
    o.default_chat_template_kwargs.emplace_back(name, value.dump());
  }
  if (!arguments.generation_overrides.empty()) {
    o.override_generation_config =
        TRY(merge_objects("--override-generation-config", arguments.generation_overrides)).dump();
  }
  o.log_level = to_log_level(arguments.log_level);
  o.log_stats = !arguments.log_stats_off;
  TRY(check_serve_refusals(o));
  return out;
}

}  // namespace weft
