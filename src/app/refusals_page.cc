// docs/refusals.md, written from the tables (`make docs`).
#include "app/refusals.h"

namespace weft {
namespace {

constexpr const char* kHead = R"(# What weft refuses at load

Every combination of features works or is refused with its reason before weights are loaded; nothing falls back
silently. Here is what flags alone decide. What a model or a machine lacks (fp8 weights without a Hopper GPU, drafts by
a missing MTP module, int4 KV with odd heads) is refused when its config.json is read. `weft doctor --refusals` writes
this page from the tables in `src/app/refusals.cc` (`make docs`); a test compares the two byte for byte and holds each
row to an example. Model architectures, rope types and tensor types that weft does not know are refused by name where
they are read (docs/models.md).

| id | reason |
| --- | --- |
)";

constexpr const char* kFlags = R"(
## Flags of vLLM

`weft serve` takes the flags of `vllm serve`. Those without a meaning here are accepted with a warning (docs/server.md);
these are refused, because ignoring them would break what they promise. A value that asks for what weft does anyway
(`--tensor-parallel-size 1`) is accepted.

| id | flags | reason |
| --- | --- | --- |
)";

}  // namespace

std::string refusals_page() {
  std::string out = kHead;
  const auto cell = [&out](const std::string& text) { out += "| " + text + " "; };
  const auto code = [](const char* text) { return "`" + std::string(text) + "`"; };
  const auto add = [&](const auto& row) {
    cell(code(row.id));
    cell(row.reason);
    out += "|\n";
  };
  for (const Refusal& row : refusals()) add(row);
  for (const ServeRefusal& row : serve_refusals()) add(row);
  out += kFlags;
  for (const FlagRefusal& row : flag_refusals()) {
    cell(code(row.id));
    cell(code(row.flags));
    cell(row.reason);
    out += "|\n";
  }
  return out;
}

}  // namespace weft
