#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::text {

/// The special tokens that transformers knows by name: pairs of a name ("bos_token", ...) and the
/// token's text.
using SpecialTokens = std::vector<std::pair<std::string, std::string>>;

/// Those that `files` name: the JSON of tokenizer_config.json, then special_tokens_map.json, empty
/// where there is none. The first file with a name counts; null there, as in transformers, means
/// that there is no such token. A file that is no JSON names none.
SpecialTokens special_tokens(std::span<const std::string_view> files);

}  // namespace weft::text
