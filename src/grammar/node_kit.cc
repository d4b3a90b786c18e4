#include "grammar/node_kit.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace weft {
namespace {

constexpr int64_t kPlainCount = 256;  ///< counts up to this are written out

}  // namespace

NodeKit::Node NodeKit::set(std::string_view bounds) const {
  GrammarRules::CodePoints ranges;
  for (size_t i = 0; i + 1 < bounds.size(); i += 2) {
    ranges.emplace_back(static_cast<unsigned char>(bounds[i]),
                        static_cast<unsigned char>(bounds[i + 1]));
  }
  return rules_.characters(ranges);
}

NodeKit::Node NodeKit::any_of(const std::vector<Node>& options) const {
  if (options.empty()) return rules_.nothing();
  return options.size() == 1 ? options[0] : rules_.choice(options);
}

NodeKit::Node NodeKit::any_text(const std::vector<std::string_view>& options) const {
  std::vector<Node> nodes;
  for (const std::string_view option : options) nodes.push_back(text(option));
  return any_of(nodes);
}

NodeKit::Node NodeKit::rule(std::string name, Node body) const {
  const GrammarRules::Rule rule = rules_.declare(std::move(name));
  rules_.define(rule, body);
  return rules_.reference(rule);
}

NodeKit::Node NodeKit::exactly(Node node, Node block, int64_t block_len, int64_t count) const {
  return all({rules_.repeat(block, count / block_len, count / block_len),
              rules_.repeat(node, count % block_len, count % block_len)});
}

NodeKit::Node NodeKit::times(Node node, int64_t min, int64_t max) const {
  const int64_t largest = std::max(min, max);
  if (largest <= kPlainCount) return rules_.repeat(node, min, max);
  const Node item = rule("item", node);
  const auto block_len =
      static_cast<int64_t>(std::sqrt(static_cast<double>(std::max(min, max - min)))) + 1;
  const Node block = rule("block", rules_.repeat(item, block_len, block_len));
  const Node head = exactly(item, block, block_len, min);
  if (max < 0) return all({head, rules_.repeat(item, 0, -1)});
  const int64_t rest = max - min;
  if (rest == 0) return head;
  // Fewer than all whole blocks and a tail shorter than a block, or all blocks and what is left.
  const int64_t blocks = rest / block_len;
  std::vector<Node> options;
  if (blocks > 0) {
    options.push_back(
        all({rules_.repeat(block, 0, blocks - 1), rules_.repeat(item, 0, block_len - 1)}));
  }
  options.push_back(
      all({rules_.repeat(block, blocks, blocks), rules_.repeat(item, 0, rest % block_len)}));
  return all({head, any_of(options)});
}

}  // namespace weft
