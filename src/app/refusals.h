#pragma once

#include <span>

#include "app/engine_options.h"

namespace weft {

/// A combination of options that can't work, refused at load. docs/refusals.md shows this table.
struct Refusal {
  const char* id;
  bool (*applies)(const EngineOptions& options);
  const char* reason;
};

std::span<const Refusal> refusals();

/// The first refusal that applies, as an Error that starts with its id in brackets.
Result<void> check_refusals(const EngineOptions& options);

}  // namespace weft
