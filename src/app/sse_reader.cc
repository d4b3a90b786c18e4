#include "app/sse_reader.h"

namespace weft {

bool SseReader::read(std::string_view bytes, const OnData& on_data) {
  while (!broken_ && !bytes.empty()) {
    if (after_cr_ && bytes.front() == '\n') bytes.remove_prefix(1);
    after_cr_ = false;
    const size_t end = bytes.find_first_of("\r\n");
    const std::string_view piece = bytes.substr(0, end);
    if (line_.size() + data_.size() + piece.size() > kMaxEventBytes) {
      broken_ = true;
      break;
    }
    line_.append(piece);
    if (end == std::string_view::npos) break;
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    end_line(on_data);
  }
  return !broken_;
}

void SseReader::finish(const OnData& on_data) {
  if (broken_) return;
  if (!line_.empty()) end_line(on_data);
  dispatch(on_data);
}

void SseReader::end_line(const OnData& on_data) {
  std::string_view line = line_;
  if (first_line_ && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
  first_line_ = false;
  if (line.empty()) {
    dispatch(on_data);
  } else if (line == "data" || line.starts_with("data:")) {
    std::string_view value = line.substr(std::min<size_t>(5, line.size()));
    if (value.starts_with(' ')) value.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_.append(value);
    has_data_ = true;
  }
  line_.clear();
}

void SseReader::dispatch(const OnData& on_data) {
  if (has_data_) on_data(data_);
  data_.clear();
  has_data_ = false;
}

}  // namespace weft
