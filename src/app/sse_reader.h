#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace weft {

/// Server-sent events out of a byte stream that may be cut anywhere (WHATWG HTML, section 9.2.6).
/// Lines end with LF, CR or CRLF; comments and all fields but `data` are passed over.
class SseReader {
 public:
  /// Called with the data of each event: its data lines joined by LF.
  using OnData = std::function<void(std::string_view data)>;
  static constexpr size_t kMaxEventBytes = size_t{64} << 20;

  /// False when an event is longer than kMaxEventBytes; nothing more is read then.
  bool read(std::string_view bytes, const OnData& on_data);
  /// The stream has ended: an event without its closing blank line still counts, since some
  /// servers leave the last one out.
  void finish(const OnData& on_data);

 private:
  void end_line(const OnData& on_data);
  void dispatch(const OnData& on_data);

  std::string line_, data_;
  bool has_data_ = false;
  bool after_cr_ = false;  // an LF now belongs to the CR before it
  bool first_line_ = true;
  bool broken_ = false;
};

}  // namespace weft
