#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::text {

/// The special tokens that transformers knows by name: pairs of a name ("bos_token", ...) and the
/// token's text.
using SpecialTokens = std::vector<std::pair<std::string, std::string>>;

/// Those that tokenizer_config.json and special_tokens_map.json (their JSON, "" where there is
/// none) name. As in transformers 4 the map goes before a config without `added_tokens_decoder`;
/// behind one with it counts where the config is silent. Null in the file that counts: there is no
/// such token.
SpecialTokens special_tokens(std::string_view config, std::string_view map);

}  // namespace weft::text
