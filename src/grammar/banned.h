#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "grammar/grammar.h"

namespace weft {

/// `base` (null: any text, ended at will) without the sequences of tokens `banned`, each of one or
/// more: the last token of one is not allowed where the others came just before it. Where nothing
/// else would be left, it is. Shares the masks of `base`.
std::shared_ptr<const TokenGrammar> without_sequences(
    const std::shared_ptr<const TokenGrammar>& base, std::shared_ptr<const GrammarVocab> vocab,
    std::vector<std::vector<int32_t>> banned);

}  // namespace weft
