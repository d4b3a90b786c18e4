#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"

namespace weft {

/// Finds the first stop string in a stream of text, holding back only what could still become one.
/// Which one is found does not depend on how the text is cut: the one that ends first, and of those
/// the longest. Linear time (Aho-Corasick).
class StopStrings {
 public:
  static constexpr size_t kMaxStrings = 64;
  static constexpr size_t kMaxBytes = 4096;  ///< of one string

  /// `include_stop`: give out the stop string too.
  /// Errors: kInvalidArgument for an empty, too long or non-UTF-8 string, or too many.
  static Result<StopStrings> make(const std::vector<std::string>& stops, bool include_stop);

  /// Takes the next characters (valid UTF-8, as the detokenizer gives them) and appends to `out`
  /// what is certain. Returns the index of the stop string once it is complete; then the stream is
  /// over and further text is dropped.
  std::optional<size_t> push(std::string_view text, std::string& out);
  /// The stream ended without a stop string: appends what was held back.
  void finish(std::string& out);
  /// Bytes held back.
  size_t num_held() const { return held_.size(); }

 private:
  struct Node {
    uint32_t fail = 0;
    uint32_t depth = 0;
    int32_t stop = -1;  // longest stop string that ends here
  };
  uint32_t step(uint32_t node, unsigned char byte) const;

  std::vector<Node> nodes_{Node{}};
  std::unordered_map<uint64_t, uint32_t> edges_;  // node << 8 | byte
  std::vector<size_t> sizes_;
  bool include_stop_ = false;
  bool done_ = false;
  uint32_t state_ = 0;
  std::string held_;  // always the path to state_
};

}  // namespace weft
