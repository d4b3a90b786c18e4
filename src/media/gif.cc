// GIF as its specification of 1989 has it and as Pillow reads it. The format is small enough to be
// read here, where every length is checked.

#include "media/gif.h"

#include <algorithm>
#include <array>

#include "media/decoders.h"
#include "media/image_errors.h"
#include "media/processing.h"

namespace weft {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr int kMaxBits = 12;  // of a code
constexpr size_t kHeader = 13, kFrameHeader = 9;
constexpr uint8_t kExtension = 0x21, kControl = 0xF9, kFrame = 0x2C, kEnd = 0x3B;
/// What browsers show a frame that says nothing or next to nothing.
constexpr int kShortMilliseconds = 10, kUsualMilliseconds = 100;

int number(Bytes bytes, size_t at) {
  return bytes[at] | bytes[at + 1] << 8;
}

/// Bytes of the palette that the flags of a screen or a frame announce.
size_t palette_bytes(uint8_t flags) {
  return (flags & 0x80) != 0 ? size_t{3} << ((flags & 7) + 1) : 0;
}

enum class Disposal : uint8_t { kKeep, kClear, kRestore };

struct Frame {
  int left = 0, top = 0, width = 0, height = 0;
  bool interlaced = false;
  Bytes palette;
  int transparent = -1;  // index; -1: none
  Disposal disposal = Disposal::kKeep;
  int milliseconds = 0;
  Bytes codes;  // the bits of a code, then blocks of codes

  /// Indices beyond a short palette are greys, as in Pillow.
  std::array<uint8_t, 3> color(int index) const {
    const size_t at = 3 * static_cast<size_t>(index);
    if (at + 3 <= palette.size()) return {palette[at], palette[at + 1], palette[at + 2]};
    const auto grey = static_cast<uint8_t>(index);
    return {grey, grey, grey};
  }
  /// What lies under the frame where nothing was drawn.
  std::array<uint8_t, 3> ground() const { return color(std::max(transparent, 0)); }
};

/// Walks over the blocks of a file, of which nothing is unpacked.
class Reader {
 public:
  explicit Reader(Bytes file) : file_(file) {}

  /// The first frame; a file without one is damaged.
  Result<Frame> open() {
    if (file_.size() < kHeader) return image_error::damaged();
    at_ = kHeader + palette_bytes(file_[10]);
    if (at_ > file_.size()) return image_error::damaged();
    palette_ = file_.subspan(kHeader, at_ - kHeader);
    const std::optional<Frame> first = TRY(next());
    if (!first) return image_error::damaged();
    return *first;
  }
  /// Of an open file: the screen, which the first frame may enlarge.
  ImageSize canvas(const Frame& first) const {
    return {std::max(number(file_, 6), first.left + first.width),
            std::max(number(file_, 8), first.top + first.height)};
  }

  /// The next frame; none at the end of the animation. Bytes between blocks are passed over.
  Result<std::optional<Frame>> next() {
    Frame frame;
    while (at_ < file_.size() && file_[at_] != kEnd) {
      const uint8_t kind = file_[at_++];
      if (kind == kExtension) {
        if (at_ < file_.size() && file_[at_] == kControl) read_control(frame);
        ++at_;
        if (!skip_blocks()) return image_error::damaged();
      } else if (kind == kFrame) {
        if (!read_frame(frame)) return image_error::damaged();
        return std::optional(frame);
      }
    }
    return std::optional<Frame>();
  }

 private:
  void read_control(Frame& frame) const {
    if (file_.size() - at_ < 6 || file_[at_ + 1] < 4) return;
    const uint8_t flags = file_[at_ + 2];
    const int disposal = flags >> 2 & 7;
    frame.transparent = (flags & 1) != 0 ? file_[at_ + 5] : -1;
    frame.disposal = disposal == 2   ? Disposal::kClear
                     : disposal == 3 ? Disposal::kRestore
                                     : Disposal::kKeep;
    frame.milliseconds = 10 * number(file_, at_ + 3);
  }

  bool read_frame(Frame& frame) {
    if (file_.size() - at_ < kFrameHeader) return false;
    frame.left = number(file_, at_);
    frame.top = number(file_, at_ + 2);
    frame.width = number(file_, at_ + 4);
    frame.height = number(file_, at_ + 6);
    const uint8_t flags = file_[at_ + 8];
    frame.interlaced = (flags & 0x40) != 0;
    at_ += kFrameHeader;
    const size_t own = palette_bytes(flags);
    if (own >= file_.size() - at_) return false;
    frame.palette = own > 0 ? file_.subspan(at_, own) : palette_;
    at_ += own;
    const size_t begin = at_++;
    const bool whole = skip_blocks();
    frame.codes = file_.subspan(begin, at_ - begin);
    return whole && frame.width > 0 && frame.height > 0;
  }

  /// To behind the empty block; false: cut off.
  bool skip_blocks() {
    while (at_ < file_.size()) {
      const size_t length = file_[at_++];
      if (length == 0) return true;
      at_ += length;
    }
    at_ = file_.size();
    return false;
  }

  Bytes file_, palette_;
  size_t at_ = 0;
};

/// The codes of a frame, from blocks of up to 255 bytes.
class Codes {
 public:
  explicit Codes(Bytes blocks) : blocks_(blocks) {}

  /// The next code of `size` bits; -1: there is none.
  int next(int size) {
    while (held_ < size) {
      if (left_ == 0) {
        if (at_ == blocks_.size()) return -1;
        left_ = blocks_[at_++];
        if (left_ == 0 || left_ > blocks_.size() - at_) return -1;
      }
      bits_ |= uint32_t{blocks_[at_++]} << held_;
      held_ += 8;
      --left_;
    }
    const int code = static_cast<int>(bits_ & ((1U << size) - 1));
    bits_ >>= size;
    held_ -= size;
    return code;
  }

 private:
  Bytes blocks_;
  size_t at_ = 0, left_ = 0;
  uint32_t bits_ = 0;
  int held_ = 0;
};

/// LZW: strings of indices by their code.
class Strings {
 public:
  explicit Strings(int bits) : first_bits_(bits + 1), clear_(1 << bits) {
    for (int i = 0; i < clear_; ++i) {
      const auto index = static_cast<uint8_t>(i);
      all_[static_cast<size_t>(i)] = {.last = index, .first = index, .length = 1};
    }
    reset();
  }

  int clear_code() const { return clear_; }
  int end_code() const { return clear_ + 1; }
  int code_bits() const { return bits_; }
  void reset() {
    next_ = clear_ + 2;
    bits_ = first_bits_;
    before_ = -1;
  }

  /// Writes what `code` stands for from `at` on, as far as there is room; false: it is no code.
  bool write(int code, std::span<uint8_t> out, size_t& at) {
    if (before_ < 0 ? code >= clear_ : code > next_ || code == clear_ || code == clear_ + 1) {
      return false;
    }
    if (before_ >= 0 && next_ < 1 << kMaxBits) {
      const String& before = all_[static_cast<size_t>(before_)];
      const uint8_t last = code == next_ ? before.first : all_[static_cast<size_t>(code)].first;
      all_[static_cast<size_t>(next_)] = {.before = static_cast<uint16_t>(before_),
                                          .last = last,
                                          .first = before.first,
                                          .length = static_cast<uint16_t>(before.length + 1)};
      if (++next_ == 1 << bits_ && bits_ < kMaxBits) ++bits_;
    } else if (code >= next_) {
      return false;
    }
    before_ = code;
    size_t end = at + all_[static_cast<size_t>(code)].length;
    at = std::min(end, out.size());
    for (int c = code;; c = all_[static_cast<size_t>(c)].before) {
      const String& string = all_[static_cast<size_t>(c)];
      if (--end < out.size()) out[end] = string.last;
      if (string.length == 1) return true;
    }
  }

 private:
  struct String {
    uint16_t before = 0;  // code of all but the last
    uint8_t last = 0, first = 0;
    uint16_t length = 0;
  };
  std::array<String, 1 << kMaxBits> all_{};
  int first_bits_, clear_, next_ = 0, bits_ = 0, before_ = -1;
};

/// The indices of a frame in the order of the file.
Result<std::vector<uint8_t>> unpack(const Frame& frame) {
  const int bits = frame.codes[0];
  if (bits < 1 || bits > 8) return image_error::damaged();
  std::vector<uint8_t> out(static_cast<size_t>(frame.width) * static_cast<size_t>(frame.height));
  Codes codes(frame.codes.subspan(1));
  Strings strings(bits);
  for (size_t at = 0; at < out.size();) {
    const int code = codes.next(strings.code_bits());
    if (code == strings.clear_code()) {
      strings.reset();
    } else if (code < 0 || code == strings.end_code() || !strings.write(code, out, at)) {
      return image_error::damaged();
    }
  }
  return out;
}

/// Draws the rows of `frame`; over what is there already transparent pixels change nothing.
Result<void> draw(const Frame& frame, bool over, Image& canvas) {
  const std::vector<uint8_t> indices = TRY(unpack(frame));
  const uint8_t* from = indices.data();
  const auto draw_row = [&](int y) {
    uint8_t* to =
        canvas.rgb.data() + 3 * (static_cast<int64_t>(frame.top + y) * canvas.width + frame.left);
    for (int x = 0; x < frame.width; ++x, ++from, to += 3) {
      if (over && *from == frame.transparent) continue;
      const std::array<uint8_t, 3> color = frame.color(*from);
      std::copy(color.begin(), color.end(), to);
    }
  };
  struct Pass {
    int first, step;
  };
  constexpr Pass kInterlaced[] = {{0, 8}, {4, 8}, {2, 4}, {1, 2}}, kWhole[] = {{0, 1}};
  const std::span<const Pass> passes =
      frame.interlaced ? std::span<const Pass>(kInterlaced) : std::span<const Pass>(kWhole);
  for (const Pass& pass : passes) {
    for (int y = pass.first; y < frame.height; y += pass.step) draw_row(y);
  }
  return {};
}

void fill(const Frame& frame, std::array<uint8_t, 3> color, Image& canvas) {
  for (int y = frame.top; y < frame.top + frame.height; ++y) {
    uint8_t* to = canvas.rgb.data() + 3 * (static_cast<int64_t>(y) * canvas.width + frame.left);
    for (int x = 0; x < frame.width; ++x, to += 3) std::copy(color.begin(), color.end(), to);
  }
}

/// Frames drawn over each other.
class Player {
 public:
  explicit Player(Bytes file) : reader_(file) {}

  /// An empty canvas; nothing is unpacked.
  Result<void> open(const ImageLimits& limits) {
    first_ = TRY(reader_.open());
    const ImageSize size = reader_.canvas(*first_);
    canvas_ = TRY(allocate_image(size.width, size.height, limits));
    return {};
  }

  /// The next frame; null: there is none.
  Result<const Image*> next() {
    const bool is_first = first_.has_value();
    const std::optional<Frame> frame = is_first ? first_ : TRY(reader_.next());
    first_.reset();
    if (!frame) return static_cast<const Image*>(nullptr);
    if (frame->left + frame->width > canvas_.width || frame->top + frame->height > canvas_.height) {
      return image_error::damaged();
    }
    if (is_first) {
      const Frame all{.width = canvas_.width, .height = canvas_.height};
      fill(all, frame->ground(), canvas_);
    } else {
      dispose();
    }
    if (frame->disposal == Disposal::kRestore) saved_ = canvas_;
    TRY(draw(*frame, !is_first, canvas_));
    shown_ = *frame;
    return &canvas_;
  }

 private:
  void dispose() {
    if (shown_.disposal == Disposal::kClear) fill(shown_, shown_.ground(), canvas_);
    if (shown_.disposal == Disposal::kRestore) canvas_ = saved_;
  }

  Reader reader_;
  std::optional<Frame> first_;
  Frame shown_;
  Image canvas_, saved_;
};

}  // namespace

bool is_gif(Bytes file) {
  constexpr std::array<uint8_t, 4> kGif = {'G', 'I', 'F', '8'};
  return file.size() >= 6 && std::equal(kGif.begin(), kGif.end(), file.begin()) &&
         (file[4] == '7' || file[4] == '9') && file[5] == 'a';
}

Result<Image> decode_gif(Bytes file, const ImageLimits& limits) {
  Player player(file);
  TRY(player.open(limits));
  return *TRY(player.next());
}

Result<std::optional<Animation>> find_gif_animation(Bytes file, const ImageLimits& limits) {
  Reader reader(file);
  const Frame first = TRY(reader.open());
  const ImageSize size = reader.canvas(first);
  TRY(check_size(size.width, size.height, limits));
  Animation out{.width = size.width, .height = size.height};
  int64_t milliseconds = 0;
  for (std::optional<Frame> frame = first; frame; frame = TRY(reader.next())) {
    ++out.num_frames;
    milliseconds +=
        frame->milliseconds > kShortMilliseconds ? frame->milliseconds : kUsualMilliseconds;
  }
  if (out.num_frames < 2) return std::optional<Animation>();
  out.seconds = static_cast<double>(milliseconds) / 1000;
  return std::optional(out);
}

Result<void> decode_gif_animation(Bytes file, std::span<const int64_t> wanted,
                                  const ImageLimits& limits,
                                  const std::function<Result<void>(Image)>& take) {
  Player player(file);
  TRY(player.open(limits));
  const Image* shown = nullptr;
  int64_t decoded = 0;
  for (const int64_t index : wanted) {
    for (; decoded <= index; ++decoded) {
      shown = TRY(player.next());
      if (shown == nullptr) return image_error::damaged();
    }
    TRY(take(*shown));
  }
  return {};
}

}  // namespace weft
