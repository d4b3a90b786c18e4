#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/split.h"

namespace weft::text {
namespace {

constexpr size_t kMaxPatternBytes = 16 << 10;
constexpr uint32_t kFirstLimit = 256;  // match steps tried first: enough for ordinary pre-tokens
constexpr std::string_view kWhiteSpace =
    R"(\x09-\x0d\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// Rewrites \s to Unicode White_Space (PCRE2's own \s also takes U+180E) and refuses what PCRE2
/// reads differently from Oniguruma.
Result<std::string> translate(std::string_view p) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < p.size(); ++i) {
    const char c = p[i];
    if (c == '\\' && i + 1 < p.size()) {
      const char e = p[++i];
      if (e == 's' || (e == 'S' && !in_class)) {
        if (!in_class) out += e == 's' ? "[" : "[^";
        out += kWhiteSpace;
        if (!in_class) out += "]";
        continue;
      }
      if (e == 'h' || e == 'H' || (e == 'S' && in_class)) {
        return unsupported(std::string("\\") + e + (in_class ? " inside a class" : "") +
                           " is not supported");
      }
      out += c;
      out += e;
      continue;
    }
    if (in_class) {
      if (c == '[' && p.substr(i, 2) != "[:")
        return unsupported("nested classes are not supported");
      if (c == '&' && p.substr(i, 2) == "&&") return unsupported("class intersection (&&)");
      if (c == '[') {  // [:alpha:] inside a class
        const size_t end = p.find(":]", i);
        if (end == std::string_view::npos) return invalid_argument("unclosed POSIX class");
        out += p.substr(i, end + 2 - i);
        i = end + 1;
        continue;
      }
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      out += c;
      if (p.substr(i + 1, 1) == "^") out += p[++i];
      if (p.substr(i + 1, 1) == "]") {
        out += "\\]";
        ++i;
      }
      continue;
    }
    out += c;
  }
  return out;
}

std::string pcre_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) return invalid_argument("pattern longer than 16384 bytes");
  const std::string translated = TRY(translate(pattern));
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (!code->code) {
    return invalid_argument("not a regular expression: " + pcre_message(error) + " at offset " +
                            std::to_string(offset));
  }
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);  // without JIT, pcre2_match interprets
  return Regex(std::move(code));
}

Result<void> Regex::split(std::string_view s, std::vector<Piece>& out) const {
  struct State {
    pcre2_match_data* data;
    pcre2_match_context* context = pcre2_match_context_create(nullptr);
    pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 8 << 20, nullptr);
    explicit State(const pcre2_code* code)
        : data(pcre2_match_data_create_from_pattern(code, nullptr)) {
      pcre2_jit_stack_assign(context, nullptr, stack);
    }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() {
      pcre2_jit_stack_free(stack);
      pcre2_match_context_free(context);
      pcre2_match_data_free(data);
    }
  } state(code_->code);
  // Steps allowed over all matches that needed more than kFirstLimit.
  uint64_t budget = 1'000'000 + 64 * static_cast<uint64_t>(s.size());
  size_t done = 0, from = 0;
  uint32_t options = PCRE2_NO_UTF_CHECK;
  while (from <= s.size() && done < s.size()) {
    int rc = PCRE2_ERROR_MATCHLIMIT;
    for (uint64_t limit = kFirstLimit; rc == PCRE2_ERROR_MATCHLIMIT; limit *= 16) {
      if (limit > kFirstLimit) {
        if (limit > budget) return exhausted("the split pattern backtracks too much on this text");
        budget -= limit;
      }
      pcre2_set_match_limit(state.context,
                            static_cast<uint32_t>(std::min<uint64_t>(limit, UINT32_MAX)));
      rc = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(s.data()), s.size(), from, options,
                       state.data, state.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) return exhausted("the split pattern failed on this text: " + pcre_message(rc));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state.data);
    const size_t begin = ends[0], end = ends[1];
    if (end <= begin) {  // an empty match splits nothing: go on one character later
      from = std::max(begin, from);
      if (from >= s.size()) break;
      from += static_cast<size_t>(decode_valid(s.data() + from).length);
      continue;
    }
    if (begin > done) out.push_back({done, begin, false});
    out.push_back({begin, end, true});
    done = from = end;
  }
  if (done < s.size()) out.push_back({done, s.size(), false});
  return {};
}

}  // namespace weft::text
