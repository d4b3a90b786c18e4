#include "text/stop_strings.h"

#include <algorithm>

#include "text/unicode.h"

namespace weft {

Result<StopStrings> StopStrings::make(const std::vector<std::string>& stops, bool include_stop) {
  if (stops.size() > kMaxStrings) {
    return invalid_argument("stop: at most " + std::to_string(kMaxStrings) +
                            " strings are allowed, got " + std::to_string(stops.size()));
  }
  StopStrings out;
  out.include_stop_ = include_stop;
  std::vector<uint32_t> order{0};
  for (size_t k = 0; k < stops.size(); ++k) {
    const std::string& s = stops[k];
    if (s.empty() || s.size() > kMaxBytes || !text::is_valid_utf8(s)) {
      return invalid_argument("stop[" + std::to_string(k) + "] must be UTF-8 of 1 to " +
                              std::to_string(kMaxBytes) + " bytes");
    }
    uint32_t node = 0;
    for (const char c : s) {
      const uint64_t key = uint64_t{node} << 8 | static_cast<unsigned char>(c);
      const auto [it, added] =
          out.edges_.try_emplace(key, static_cast<uint32_t>(out.nodes_.size()));
      if (added) out.nodes_.push_back({0, out.nodes_[node].depth + 1, -1});
      node = it->second;
    }
    if (out.nodes_[node].stop < 0) out.nodes_[node].stop = static_cast<int32_t>(k);
    out.sizes_.push_back(s.size());
  }
  // Failure links, shorter prefixes first.
  std::vector<std::pair<uint64_t, uint32_t>> edges(out.edges_.begin(), out.edges_.end());
  std::sort(edges.begin(), edges.end(), [&](const auto& a, const auto& b) {
    return out.nodes_[a.second].depth < out.nodes_[b.second].depth;
  });
  for (const auto& [key, child] : edges) {
    const auto parent = static_cast<uint32_t>(key >> 8);
    Node& node = out.nodes_[child];
    if (parent != 0)
      node.fail = out.step(out.nodes_[parent].fail, static_cast<unsigned char>(key & 255));
    if (node.stop < 0) node.stop = out.nodes_[node.fail].stop;
  }
  return out;
}

uint32_t StopStrings::step(uint32_t node, unsigned char byte) const {
  while (true) {
    const auto it = edges_.find(uint64_t{node} << 8 | byte);
    if (it != edges_.end()) return it->second;
    if (node == 0) return 0;
    node = nodes_[node].fail;
  }
}

std::optional<size_t> StopStrings::push(std::string_view text, std::string& out) {
  if (done_) return std::nullopt;
  if (edges_.empty()) {
    out.append(text);
    return std::nullopt;
  }
  held_.append(text);
  const size_t before = held_.size() - text.size();
  for (size_t i = 0; i < text.size(); ++i) {
    state_ = step(state_, static_cast<unsigned char>(text[i]));
    const int32_t stop = nodes_[state_].stop;
    if (stop < 0) continue;
    const size_t end = before + i + 1, size = sizes_[static_cast<size_t>(stop)];
    out.append(held_, 0, include_stop_ ? end : end - size);
    held_.clear();
    done_ = true;
    return static_cast<size_t>(stop);
  }
  const size_t keep = nodes_[state_].depth;
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return std::nullopt;
}

void StopStrings::finish(std::string& out) {
  out.append(held_);
  held_.clear();
  state_ = 0;
}

}  // namespace weft
