#include <algorithm>

#include "base/check.h"
#include "grammar/trie.h"

namespace weft {

TokenTrie TokenTrie::build(std::vector<std::pair<std::string_view, int32_t>> items) {
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
  TokenTrie trie;
  std::vector<size_t> path;  // nodes from the root to the last one
  std::string_view before;
  const auto close_to = [&](size_t depth) {
    while (path.size() > depth) {
      trie.nodes[path.back()].end = static_cast<uint32_t>(trie.nodes.size());
      path.pop_back();
    }
  };
  for (const auto& [bytes, token] : items) {
    CHECK(!bytes.empty() && bytes.size() <= kMaxTokenBytes);
    size_t common = 0;
    while (common < bytes.size() && common < before.size() && bytes[common] == before[common]) {
      ++common;
    }
    close_to(common);
    for (size_t i = common; i < bytes.size(); ++i) {
      path.push_back(trie.nodes.size());
      trie.nodes.push_back({.end = 0,
                            .tokens = static_cast<uint32_t>(trie.tokens.size()),
                            .depth = static_cast<uint16_t>(i + 1),
                            .byte = static_cast<uint8_t>(bytes[i])});
    }
    trie.tokens.push_back(token);
    before = bytes;
  }
  close_to(0);
  trie.nodes.push_back({.end = 0, .tokens = static_cast<uint32_t>(trie.tokens.size())});
  return trie;
}

std::shared_ptr<const GrammarVocab> GrammarVocab::build(
    int32_t vocab_size, const std::function<std::string_view(int32_t)>& bytes_of) {
  auto parts = std::make_unique<Parts>();
  parts->size = vocab_size;
  for (int32_t id = 0; id < vocab_size; ++id) {
    const std::string_view bytes = bytes_of(id);
    parts->begin.push_back(static_cast<uint32_t>(parts->bytes.size()));
    parts->bytes.insert(parts->bytes.end(), bytes.begin(), bytes.end());
  }
  parts->begin.push_back(static_cast<uint32_t>(parts->bytes.size()));
  std::vector<std::pair<std::string_view, int32_t>> items;
  for (int32_t id = 0; id < vocab_size; ++id) {
    const std::string_view bytes = parts->bytes_of(id);
    if (!bytes.empty() && bytes.size() <= kMaxTokenBytes) items.emplace_back(bytes, id);
  }
  parts->trie = TokenTrie::build(std::move(items));
  return std::make_shared<const GrammarVocab>(std::move(parts));
}

GrammarVocab::GrammarVocab(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
GrammarVocab::~GrammarVocab() = default;

int32_t GrammarVocab::size() const {
  return parts_->size;
}

}  // namespace weft
