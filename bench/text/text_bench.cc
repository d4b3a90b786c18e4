// Tokenizer and detokenizer speed on one core, as JSON lines: MB/s of text, and t(2n)/t(n), which
// is 2 for linear time. usage: text_bench [MODEL_DIR=models/demo] [MAX_MIB=16] [TEXT_FILE]
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

/// CPU seconds of this thread: a busy machine does not count.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Pseudo-English: 30,000 words with Zipf frequencies and English word lengths, sentences, numbers,
/// quotes and paragraphs.
std::string english(size_t bytes) {
  std::mt19937 random(1);
  static const char* const kSyllables[] = {"the", "an", "re",  "in",  "ti",  "on", "er",   "al",
                                           "st",  "or", "com", "pro", "ing", "ly", "ment", "de",
                                           "un",  "be", "ex",  "ta",  "lo",  "ma", "si",   "ne",
                                           "ra",  "wi", "ho",  "fu",  "ck",  "ble"};
  std::vector<std::string> words(30000);
  for (size_t i = 0; i < words.size(); ++i) {
    const size_t syllables =
        1 + std::min<size_t>(
                4, static_cast<size_t>(std::log10(1.0 + static_cast<double>(i))) * random() % 4);
    for (size_t k = 0; k < syllables; ++k) words[i] += kSyllables[random() % std::size(kSyllables)];
  }
  std::string out;
  std::uniform_real_distribution<double> uniform(0, 1);
  size_t in_sentence = 0;
  while (out.size() < bytes) {
    const double u = uniform(random);
    const auto rank =
        static_cast<size_t>(std::exp(u * std::log(static_cast<double>(words.size()))) - 1);
    std::string word = words[rank];
    if (in_sentence == 0) word[0] = static_cast<char>(word[0] - 32);
    if (random() % 60 == 0) word = std::to_string(random() % 3000);
    if (random() % 80 == 0) word += "'s";
    out += word;
    if (++in_sentence > 6 + random() % 20) {
      out += random() % 5 ? ". " : ".\n\n";
      in_sentence = 0;
    } else {
      out += random() % 12 ? " " : ", ";
    }
  }
  while (out.size() > bytes) out.pop_back();
  return out;
}

std::string repeat(std::u32string_view characters, size_t bytes) {
  std::string out;
  std::mt19937 random(2);
  while (out.size() + 4 <= bytes) {
    weft::text::append_utf8(out, characters[random() % characters.size()]);
  }
  return out;
}

/// A long run of Chinese characters without any punctuation: one pre-token.
std::string cjk(size_t bytes) {
  std::string out;
  std::mt19937 random(3);
  while (out.size() + 4 <= bytes) weft::text::append_utf8(out, 0x4E00 + random() % 5000);
  return out;
}

template <class F>
double best_seconds(int rounds, F&& f) {
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    const double start = cpu_seconds();
    f();
    best = std::min(best, cpu_seconds() - start);
  }
  return best;
}

struct Times {
  double encode, decode;
  size_t ids;
};
Times measure(const weft::Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids;
  Times t{};
  t.encode = best_seconds(5, [&] { ids = tokenizer.encode(text, false).value(); });
  t.ids = ids.size();
  t.decode = best_seconds(5, [&] {
    weft::Detokenizer stream(tokenizer, false);
    std::string out;
    for (const int32_t id : ids) stream.push(id, out);
    stream.finish(out);
  });
  return t;
}

}  // namespace

int main(int argc, char** argv) {
  // Large blocks come fresh from the system at every size, as in a first call; else the sizes below
  // 32 MiB would find their memory warm and those above would not.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  auto tokenizer = weft::Tokenizer::load(argc > 1 ? argv[1] : "models/demo");
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
    return 1;
  }
  const size_t max_bytes = static_cast<size_t>(argc > 2 ? std::atoi(argv[2]) : 16) << 20;
  std::string file_text;
  if (argc > 3) {
    std::ifstream file(argv[3], std::ios::binary);
    file_text.assign(std::istreambuf_iterator<char>(file), {});
    if (file_text.empty()) return std::fprintf(stderr, "%s is empty\n", argv[3]), 1;
  }
  const std::pair<const char*, std::string> texts[] = {
      {"file", file_text},
      {"english", english(max_bytes)},
      {"one_letter", std::string(max_bytes, 'e')},
      {"cjk", cjk(max_bytes)},
      {"combining_marks", repeat(U"\u0300\u0316\u0301\u0323\u0345", max_bytes)}};
  for (const auto& [name, text] : texts) {
    if (text.empty()) continue;
    Times half{};
    const bool scaling = std::string_view(name) != "file";
    for (size_t bytes = scaling ? max_bytes / 8 : text.size(); bytes <= text.size() + 4;
         bytes *= 2) {
      std::string part = text.substr(0, bytes);
      while (!weft::text::is_valid_utf8(part)) part.pop_back();
      const Times t = measure(*tokenizer, part);
      const double mb = static_cast<double>(part.size()) / 1e6;
      std::printf(
          "{\"text\": \"%s\", \"mib\": %.2f, \"ids\": %zu, \"encode_mb_s\": %.1f, \"decode_mb_s\": "
          "%.1f",
          name, static_cast<double>(part.size()) / (1 << 20), t.ids, mb / t.encode, mb / t.decode);
      if (half.encode > 0) {
        std::printf(", \"encode_ratio\": %.2f, \"decode_ratio\": %.2f", t.encode / half.encode,
                    t.decode / half.decode);
      }
      std::printf("}\n");
      std::fflush(stdout);
      half = t;
    }
  }
  return 0;
}
