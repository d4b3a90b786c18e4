#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft {

class ModelDirectory;

/// Bounds on a JSON text, checked while it is read and before a tree is built.
struct ConfigJsonLimits {
  uint64_t max_bytes = uint64_t{16} << 20;
  int max_depth = 32;
  int64_t max_values = 1000000;  ///< keys, scalars, arrays and objects together
  size_t max_key_bytes = 4096;
};

/// A JSON object with typed getters. Every error names the source, the field and what is allowed
/// ("config.json: text_config.head_dim must be an integer of at least 1, got 0"). A null value is
/// an absent one. Copies are cheap and share the parsed tree; const methods are thread-safe.
///
/// Refused while parsing: text over the limits, duplicate keys, invalid UTF-8, NaN and infinity in
/// any spelling, numbers that no double can hold (1e400), a root that is not an object.
class ConfigJson {
 public:
  /// `source` is the name used in messages, usually the file's.
  static Result<ConfigJson> parse(std::string_view text, std::string source,
                                  ConfigJsonLimits limits = {});
  /// Reads and parses the file `name` of a model directory.
  static Result<ConfigJson> load(const ModelDirectory& dir, const std::string& name,
                                 ConfigJsonLimits limits = {});

  bool has(std::string_view name) const;
  /// The names of the fields that are not null, sorted (of the object itself, not its fallback).
  std::vector<std::string> names() const;
  /// "source: name", as messages print it. For errors that callers make up themselves.
  std::string field(std::string_view name) const;

  Result<int64_t> integer(std::string_view name) const;
  Result<int64_t> integer_or(std::string_view name, int64_t fallback) const;
  /// An integer in [low, high].
  Result<int64_t> integer_in(std::string_view name, int64_t low, int64_t high) const;
  /// As integer_in; `fallback` (not checked) when absent.
  Result<int64_t> integer_in_or(std::string_view name, int64_t low, int64_t high,
                                int64_t fallback) const;
  /// A finite number; an integer is one too.
  Result<double> number(std::string_view name) const;
  Result<double> number_or(std::string_view name, double fallback) const;
  /// A number in [low, high].
  Result<double> number_in(std::string_view name, double low, double high) const;
  Result<double> number_in_or(std::string_view name, double low, double high,
                              double fallback) const;
  Result<bool> flag(std::string_view name) const;
  Result<bool> flag_or(std::string_view name, bool fallback) const;
  Result<std::string> string(std::string_view name) const;
  Result<std::string> string_or(std::string_view name, std::string fallback) const;

  Result<std::vector<int64_t>> integers(std::string_view name) const;
  Result<std::vector<double>> numbers(std::string_view name) const;
  Result<std::vector<std::string>> strings(std::string_view name) const;
  Result<std::vector<ConfigJson>> objects(std::string_view name) const;

  Result<ConfigJson> object(std::string_view name) const;
  bool is_object(std::string_view name) const;
  bool is_array(std::string_view name) const;
  bool is_string(std::string_view name) const;

  /// The view of a nested configuration: a field is looked up in object `name` first and then at
  /// this level (so `tie_word_embeddings` is found in either place). Without such an object the
  /// view is this object itself.
  Result<ConfigJson> nested(std::string_view name) const;
  /// nested("text_config").
  Result<ConfigJson> text_config() const { return nested("text_config"); }

  /// The value as compact JSON text; "null" when absent.
  std::string dump(std::string_view name) const;

 private:
  struct Node;
  explicit ConfigJson(std::shared_ptr<const Node> node) : node_(std::move(node)) {}
  template <class T, class Convert>
  Result<std::vector<T>> array(std::string_view name, const char* what, Convert convert) const;

  std::shared_ptr<const Node> node_;
};

/// Sampling defaults of generation_config.json. Absent fields stay empty: the caller decides.
struct GenerationConfig {
  std::vector<int64_t> eos_token_ids;  ///< stop at any of these; from config.json when absent here
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
  std::optional<bool> do_sample;
  std::optional<double> temperature;
  std::optional<int64_t> top_k;  ///< 0 or -1: off
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
};

struct ModelConfig {
  ConfigJson config;  ///< config.json
  GenerationConfig generation;
};

/// Reads config.json (required) and generation_config.json (optional) of the model directory `dir`.
Result<ModelConfig> load_config(const std::string& dir);

/// The generation settings of a parsed generation_config.json.
Result<GenerationConfig> parse_generation_config(const ConfigJson& json);

}  // namespace weft
