#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft {

/// What a flag of `vllm serve` takes.
enum class FlagArity : uint8_t {
  kSwitch,    ///< nothing; also --no-NAME
  kValue,     ///< one value
  kOptional,  ///< one value or none
  kMany,      ///< one or more values
};

/// A flag of `vllm serve` that `weft serve` knows and has no use for: scripts written for vLLM
/// must start.
struct KnownFlag {
  std::string_view name;  ///< with its dashes
  FlagArity arity = FlagArity::kValue;
  /// Values, separated by spaces, that ask for what weft does anyway: accepted in silence.
  std::string_view harmless;
};

/// Those that are taken with a warning: weft works well without them.
std::span<const KnownFlag> ignored_flags();
/// Those that are refused (flag_refusals() says why): ignoring them would break a promise.
std::span<const KnownFlag> refused_flags();

/// Whether `values` ask for what weft does anyway.
bool is_harmless(const KnownFlag& flag, const std::vector<std::string>& values);

/// Brings the words behind `weft serve` into the one form that the parser knows: aliases of vLLM,
/// SGLang and llama.cpp become the flag's name, underscores in flag names become dashes, dotted
/// JSON flags (--speculative-config.method x) become JSON (--speculative-config {"method":"x"}),
/// lists behind --served-model-name and --api-key become repeated flags. Errors name the flag.
Result<std::vector<std::string>> expand_serve_words(const std::vector<std::string>& words);
/// The same behind any other command, of --speculative-config (-sc) alone.
Result<std::vector<std::string>> expand_engine_words(const std::vector<std::string>& words);

}  // namespace weft
