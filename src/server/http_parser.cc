#include "server/http_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/ascii.h"
#include "base/hex.h"

namespace weft {
namespace {

// Framing beyond this much is an attack on the reader, not a body: three megabytes of one-byte
// chunks end here.
constexpr size_t kMaxChunkOverhead = 1 << 20;
constexpr size_t kMaxChunkExtension = 64;
constexpr size_t kMaxChunkDigits = 8;
constexpr size_t kMaxTrailerBytes = 4 << 10;
constexpr int kMaxTrailers = 32;
constexpr size_t kMaxMethod = 16;
constexpr std::string_view kEncodedSlash = HttpRequest::kEncodedSlash;

enum CharClass : uint8_t { kToken = 1, kVisible = 2, kHost = 4, kPath = 8 };

constexpr std::array<uint8_t, 256> make_classes() {
  std::array<uint8_t, 256> classes{};
  const auto add = [&](std::string_view chars, uint8_t bit) {
    for (const char c : chars) classes[static_cast<uint8_t>(c)] |= bit;
  };
  for (int c = 0x21; c <= 0x7e; ++c) classes[c] |= kVisible;
  for (int c = '0'; c <= '9'; ++c) classes[c] |= kToken | kHost | kPath;
  for (int c = 'a'; c <= 'z'; ++c) classes[c] |= kToken | kHost | kPath;
  for (int c = 'A'; c <= 'Z'; ++c) classes[c] |= kToken | kHost | kPath;
  add("!#$%&'*+-.^_`|~", kToken);  // RFC 9110 5.6.2
  add("-._~:[]%", kHost);
  add("-._~!$&'()*+,=:@/%", kPath);  // RFC 3986 pchar without ";"
  return classes;
}
constexpr std::array<uint8_t, 256> kClasses = make_classes();

bool is(char c, uint8_t mask) {
  return (kClasses[static_cast<uint8_t>(c)] & mask) != 0;
}
bool all(std::string_view text, uint8_t mask) {
  return std::all_of(text.begin(), text.end(), [&](char c) { return is(c, mask); });
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool equals_ignoring_case(std::string_view text, std::string_view lower_case) {
  return std::equal(text.begin(), text.end(), lower_case.begin(), lower_case.end(),
                    [](char a, char b) { return ascii_lower(a) == b; });
}
std::string_view trim(std::string_view text, std::string_view blanks) {
  const size_t first = text.find_first_not_of(blanks);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

/// Unicode 15, table 3-7: no overlong forms (a second spelling of "/"), surrogates or values above
/// U+10FFFF.
bool valid_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto byte = [&](size_t k) {
      return i + k < s.size() ? static_cast<uint8_t>(s[i + k]) : 0;
    };
    const uint8_t b = byte(0);
    const size_t n = b < 0x80                ? 1
                     : b >= 0xc2 && b < 0xe0 ? 2
                     : (b & 0xf0) == 0xe0    ? 3
                     : b >= 0xf0 && b < 0xf5 ? 4
                                             : 0;
    if (n == 0) return false;
    for (size_t k = 1; k < n; ++k) {
      if ((byte(k) & 0xc0) != 0x80) return false;
    }
    if ((b == 0xe0 && byte(1) < 0xa0) || (b == 0xed && byte(1) > 0x9f)) return false;
    if ((b == 0xf0 && byte(1) < 0x90) || (b == 0xf4 && byte(1) > 0x8f)) return false;
    i += n;
  }
  return true;
}

Result<std::string> decode_path(std::string_view raw) {
  std::string path;
  path.reserve(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) {
    char c = raw[i];
    if (!is(c, kPath)) return invalid_argument("path: a byte that has no place in a path");
    if (c == '%') {
      const int byte = escaped_byte(raw, i);
      if (byte < 0) return invalid_argument("path: '%' without two hex digits");
      c = static_cast<char>(byte);
      if (c == '\\' || c == ';' || static_cast<uint8_t>(c) < 0x20 || c == 0x7f) {
        return invalid_argument("path: an encoded backslash, semicolon or control byte");
      }
      i += 2;
      if (c == '/') {  // part of a name, never a separator
        path += kEncodedSlash;
        continue;
      }
    }
    path += c;
  }
  return path;
}

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

Result<std::pair<std::string, std::string>> parse_http_target(std::string_view target) {
  if (target.empty() || target[0] != '/') {
    return invalid_argument("path: has to begin with '/' (origin form)");
  }
  if (!all(target, kVisible) || target.find_first_of("#\\") != target.npos) {
    return invalid_argument("path: a byte that has no place in a request target");
  }
  const size_t mark = target.find('?');
  std::string path = TRY(decode_path(target.substr(0, mark)));
  if (!valid_utf8(path)) return invalid_argument("path: not UTF-8");
  // Encoded slashes separate here too: others may read them so.
  for (size_t begin = 1; begin <= path.size();) {
    const size_t slash = path.find('/', begin), encoded = path.find(kEncodedSlash, begin);
    const size_t end = std::min({slash, encoded, path.size()});
    const std::string_view segment = std::string_view(path).substr(begin, end - begin);
    if (segment == "." || segment == "..") return invalid_argument("path: a dot segment");
    if (segment.empty() && end < path.size()) return invalid_argument("path: an empty segment");
    begin = end + (encoded < slash ? kEncodedSlash.size() : 1);
  }
  std::string query(mark == target.npos ? std::string_view() : target.substr(mark + 1));
  return std::pair(std::move(path), std::move(query));
}

void HttpParser::fail(int status, std::string_view code, std::string_view message) {
  if (failed()) return;
  fault_ = {status, code, message};
}

size_t HttpParser::feed(std::string_view bytes) {
  size_t taken = 0;
  while (taken < bytes.size() && !done() && !failed()) {
    begun_ = true;
    const std::string_view rest = bytes.substr(taken);
    const bool data = state_ == State::kBody || state_ == State::kChunk;
    taken += data ? feed_data(rest) : feed_line(rest);
  }
  return taken;
}

bool HttpParser::take_expect_continue() {
  const bool none_yet = state_ == State::kBody ? request_.body.empty()
                                               : state_ == State::kChunkSize &&
                                                     chunk_overhead_ == 0 && line_.empty() && !cr_;
  return std::exchange(framing_.expect, false) && none_yet && !failed();
}

size_t HttpParser::feed_data(std::string_view bytes) {
  const size_t n = std::min(bytes.size(), remaining_);
  request_.body.append(bytes.substr(0, n));
  remaining_ -= n;
  if (remaining_ == 0) state_ = state_ == State::kBody ? State::kDone : State::kChunkEnd;
  return n;
}

// Takes at most one line. A line ends with CRLF and nothing else; its bytes are judged as they
// come, so that what is no HTTP is refused before a line of it is complete.
size_t HttpParser::feed_line(std::string_view bytes) {
  if (cr_) {
    cr_ = false;
    if (bytes[0] != '\n') {
      bad("invalid_line_ending", "Lines have to end with CRLF.");
      return 1;
    }
    const std::string line = std::exchange(line_, {});
    on_line(line);
    return 1;
  }
  const size_t end = std::min(bytes.find_first_of("\r\n"), bytes.size());
  const std::string_view piece = bytes.substr(0, end);
  if (!check_line_bytes(piece)) return end;
  line_.append(piece);
  check_line_length();
  if (end == bytes.size() || failed()) return end;
  if (bytes[end] == '\n') bad("invalid_line_ending", "Lines have to end with CRLF.");
  cr_ = true;
  return end + 1;
}

bool HttpParser::check_line_bytes(std::string_view piece) {
  if (state_ == State::kRequestLine) {
    if (line_.empty() && !piece.empty() && (piece[0] < 'A' || piece[0] > 'Z')) {
      bad("invalid_request_line", "This is not an HTTP/1.1 request.");
    }
    for (const char c : piece) {
      if (!is(c, kVisible) && c != ' ')
        bad("invalid_request_line", "The request line holds an invalid byte.");
    }
  } else {
    for (const char c : piece) {
      const auto byte = static_cast<uint8_t>(c);
      if ((byte < 0x20 && c != '\t') || byte == 0x7f)
        bad("invalid_header", "A header holds a control byte.");
    }
  }
  return !failed();
}

void HttpParser::check_line_length() {
  switch (state_) {
    case State::kRequestLine:
      if (line_.size() > limits_.max_line)
        fail(414, "uri_too_long", "The request line is too long.");
      break;
    case State::kHeaderLine:
      if (header_bytes_ + line_.size() > limits_.max_header_bytes) {
        fail(431, "headers_too_large", "The request headers are too large.");
      }
      break;
    case State::kTrailer:
      if (header_bytes_ + line_.size() > kMaxTrailerBytes) {
        fail(431, "headers_too_large", "The trailers are too large.");
      }
      break;
    case State::kChunkSize:
      if (line_.size() > kMaxChunkDigits + 1 + kMaxChunkExtension) {
        bad("invalid_chunk", "A chunk's size line is too long.");
      }
      break;
    default:
      if (!line_.empty()) bad("invalid_chunk", "A chunk is longer than its size.");
      break;
  }
}

void HttpParser::on_line(std::string_view line) {
  switch (state_) {
    case State::kRequestLine:
      if (line.empty()) {
        // RFC 9112 2.2: an empty line before the request is skipped; one is enough.
        if (empty_line_) bad("invalid_request_line", "Empty lines before the request.");
        empty_line_ = true;
        return;
      }
      return on_request_line(line);
    case State::kHeaderLine:
    case State::kTrailer: {
      const bool trailer = state_ == State::kTrailer;
      if (!line.empty()) return on_header(line, trailer);
      if (trailer) {
        state_ = State::kDone;
        return;
      }
      return on_headers_end();
    }
    case State::kChunkSize: return on_chunk_size(line);
    case State::kChunkEnd: state_ = State::kChunkSize; return;
    default: return;
  }
}

void HttpParser::on_request_line(std::string_view line) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == line.npos || first == last) {
    return bad("invalid_request_line", "The request line has to be METHOD target HTTP/1.1.");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return bad("invalid_version", "The protocol has to be HTTP/1.1 or HTTP/1.0.");
  }
  http10_ = version == "HTTP/1.0";
  const bool upper =
      std::all_of(method.begin(), method.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
  if (!upper || method.empty() || method.size() > kMaxMethod) {
    return bad("invalid_request_line", "The request method is invalid.");
  }
  request_.method = method;
  auto parts = parse_http_target(target);
  if (!parts.ok()) return bad("invalid_path", "The request target is invalid.");
  request_.path = std::move(parts->first);
  request_.query = std::move(parts->second);
  state_ = State::kHeaderLine;
}

void HttpParser::on_header(std::string_view line, bool trailer) {
  header_bytes_ += line.size() + 2;
  if (++num_headers_ > (trailer ? kMaxTrailers : limits_.max_headers)) {
    return fail(431, "too_many_headers", "The request has too many headers.");
  }
  if (line[0] == ' ' || line[0] == '\t') {
    return bad("invalid_header", "A header is folded over several lines.");
  }
  const size_t colon = line.find(':');
  const std::string_view name = line.substr(0, colon);
  if (colon == line.npos || name.empty() || !all(name, kToken)) {
    return bad("invalid_header", "A header's name is invalid.");
  }
  if (trailer) return;  // checked, not used: nothing of ours comes as a trailer
  const std::string_view raw = line.substr(colon + 1);
  const std::string_view value = trim(raw, " \t");
  std::string key(name);
  std::transform(key.begin(), key.end(), key.begin(), ascii_lower);
  on_known_header(key, value, raw);
  if (!failed()) request_.headers.emplace_back(std::move(key), std::string(value));
}

void HttpParser::on_known_header(std::string_view name, std::string_view value,
                                 std::string_view raw) {
  // What stands in a request once or not at all: a second one is read differently by others.
  constexpr std::string_view kSingle[] = {"host",         "content-length", "transfer-encoding",
                                          "content-type", "authorization",  "content-encoding",
                                          "expect"};
  if (std::find(std::begin(kSingle), std::end(kSingle), name) != std::end(kSingle) &&
      std::any_of(request_.headers.begin(), request_.headers.end(),
                  [&](const auto& header) { return header.first == name; })) {
    return bad("repeated_header", "A header that may stand once is repeated.");
  }
  if (name == "host") {
    if (value.empty() || !all(value, kHost))
      return bad("invalid_host", "The Host header is invalid.");
    framing_.has_host = true;
  } else if (name == "content-length") {
    if (framing_.chunked)
      return bad("ambiguous_length", "Content-Length and Transfer-Encoding exclude each other.");
    on_content_length(value);
  } else if (name == "transfer-encoding") {
    if (framing_.has_length)
      return bad("ambiguous_length", "Content-Length and Transfer-Encoding exclude each other.");
    // Letter by letter: every other spelling is one that some proxy reads as no coding at all.
    if (trim(raw, " ") != "chunked" || http10_) {
      return bad("invalid_transfer_encoding", "Transfer-Encoding has to be chunked.");
    }
    framing_.chunked = true;
  } else if (name == "content-encoding") {
    if (!value.empty() && !equals_ignoring_case(value, "identity")) {
      return fail(415, "unsupported_encoding", "Content-Encoding is not supported.");
    }
  } else if (name == "expect") {
    if (!equals_ignoring_case(value, "100-continue")) {
      return fail(417, "expectation_failed", "Expect has to be 100-continue.");
    }
    framing_.expect = !http10_;
  } else if (name == "connection") {
    for (size_t begin = 0; begin <= value.size();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      const std::string_view option = trim(value.substr(begin, end - begin), " \t");
      framing_.close |= equals_ignoring_case(option, "close");
      framing_.persist |= equals_ignoring_case(option, "keep-alive");
      begin = end + 1;
    }
  }
}

void HttpParser::on_content_length(std::string_view value) {
  const bool digits = !value.empty() && std::all_of(value.begin(), value.end(), is_digit);
  // 18 digits fit into 64 bits; whatever has more is refused without being read as a number.
  if (!digits || value.size() > 18 || (value.size() > 1 && value[0] == '0')) {
    return bad("invalid_content_length", "Content-Length is invalid.");
  }
  framing_.has_length = true;
  remaining_ = 0;
  for (const char c : value) remaining_ = remaining_ * 10 + static_cast<size_t>(c - '0');
}

void HttpParser::on_headers_end() {
  if (!framing_.has_host && !http10_) return bad("missing_host", "The Host header is missing.");
  keep_alive_ = http10_ ? framing_.persist && !framing_.close : !framing_.close;
  if (remaining_ > limits_.max_body)
    return fail(413, "body_too_large", "The request body is too large.");
  if (framing_.chunked) {
    state_ = State::kChunkSize;
    header_bytes_ = 0;
    num_headers_ = 0;
  } else {
    state_ = remaining_ > 0 ? State::kBody : State::kDone;
  }
}

void HttpParser::on_chunk_size(std::string_view line) {
  const size_t end = std::min(line.find(';'), line.size());
  const std::string_view digits = line.substr(0, end);
  const std::string_view extension = line.substr(end);
  if (digits.empty() || digits.size() > kMaxChunkDigits || extension.size() > kMaxChunkExtension) {
    return bad("invalid_chunk", "A chunk's size is invalid.");
  }
  remaining_ = 0;
  for (const char c : digits) {
    if (hex_digit(c) < 0) return bad("invalid_chunk", "A chunk's size is invalid.");
    remaining_ = remaining_ * 16 + static_cast<size_t>(hex_digit(c));
  }
  chunk_overhead_ += line.size() + 4;
  if (chunk_overhead_ > kMaxChunkOverhead)
    return bad("too_many_chunks", "The body has too many chunks.");
  if (remaining_ > limits_.max_body - request_.body.size()) {
    return fail(413, "body_too_large", "The request body is too large.");
  }
  state_ = remaining_ > 0 ? State::kChunk : State::kTrailer;
}

}  // namespace weft
