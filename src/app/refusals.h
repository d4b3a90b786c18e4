#pragma once

#include <span>
#include <string>

#include "app/engine_options.h"
#include "app/serve_options.h"

namespace weft {

/// A combination of options that can't work, refused at load. docs/refusals.md shows this table.
struct Refusal {
  const char* id;
  bool (*applies)(const EngineOptions& options);
  const char* reason;
};

std::span<const Refusal> refusals();

/// The same for what `weft serve` alone can be told.
struct ServeRefusal {
  const char* id;
  bool (*applies)(const ServeOptions& options);
  const char* reason;
};

std::span<const ServeRefusal> serve_refusals();

/// Flags of `vllm serve` that ask for what weft can't do, and that must not be ignored.
struct FlagRefusal {
  const char* id;
  const char* flags;  ///< separated by spaces; refused_flags() has what they take
  const char* reason;
};

std::span<const FlagRefusal> flag_refusals();

/// The first refusal that applies, as an Error that starts with its id in brackets.
Result<void> check_refusals(const EngineOptions& options);

/// check_refusals() for both tables that concern `options`.
Result<void> check_serve_refusals(const ServeOptions& options);

/// docs/refusals.md: all three tables as a page of Markdown.
std::string refusals_page();

/// Why `flag` (one of refused_flags()) is refused.
Error flag_refusal(const std::string& flag);

}  // namespace weft
