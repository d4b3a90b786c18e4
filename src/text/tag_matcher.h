#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace weft::text {

/// Matches one of a few tags byte by byte. No tag is the beginning of another, and '<' stands only
/// at their beginning: a byte that does not fit can only be the first of another try.
class TagMatcher {
 public:
  enum class Step : unsigned char { kNo, kMore, kFull };

  /// Takes `c` if the bytes since reset() still begin one of `tags` with it.
  Step step(char c, std::span<const std::string_view> tags) {
    for (size_t i = 0; i < tags.size(); ++i) {
      const std::string_view tag = tags[i];
      const bool same =
          size_ == 0 || (tag.size() > size_ && tag.substr(0, size_) == prefix_.substr(0, size_));
      if (!same || tag[size_] != c) continue;
      prefix_ = tag;
      which_ = i;
      return ++size_ == tag.size() ? Step::kFull : Step::kMore;
    }
    return Step::kNo;
  }
  void reset() { size_ = 0; }
  bool empty() const { return size_ == 0; }
  /// Index of the tag that is full.
  size_t which() const { return which_; }
  /// The bytes taken since reset().
  std::string_view taken() const { return prefix_.substr(0, size_); }

 private:
  std::string_view prefix_;  // a tag that begins with the bytes taken
  size_t size_ = 0, which_ = 0;
};

}  // namespace weft::text
