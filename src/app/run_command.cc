// weft run: chat in the terminal, or one answer with -p.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "api/answer.h"
#include "api/chat.h"
#include "app/cli.h"
#include "app/local_engine.h"
#include "text/unicode.h"

namespace weft {
namespace {

using OrderedJson = nlohmann::ordered_json;

/// Set by Ctrl-C, taken by whoever waits: the one global, for a signal handler reaches nothing
/// else.
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(int) {
  interrupted = 1;
}

/// Ctrl-C sets the flag and breaks a blocking read.
void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

bool take_interrupt() {
  const bool was = interrupted != 0;
  interrupted = 0;
  return was;
}

constexpr const char* kFileUrl = "file://";

/// The file behind kFileUrl: whatever the user who runs this names, a pipe too.
Result<std::vector<uint8_t>> read_file_url(const std::string& url) {
  std::ifstream file(url.substr(std::strlen(kFileUrl)), std::ios::binary);
  if (!file) return not_found("can't be opened");
  const int64_t most = ImageLimits().max_bytes;
  std::vector<uint8_t> bytes;
  std::array<char, 1 << 16> piece;
  while (file.read(piece.data(), std::ssize(piece)) || file.gcount() > 0) {
    bytes.insert(bytes.end(), piece.begin(), piece.begin() + file.gcount());
    if (std::ssize(bytes) > most) {
      return exhausted("has more than " + std::to_string(most) + " bytes");
    }
  }
  return bytes;
}

/// The files in a directory by their names, or the path itself.
std::vector<std::string> files_of(const std::string& path) {
  std::error_code error;
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.is_regular_file(error)) out.push_back(entry.path().string());
  }
  std::sort(out.begin(), out.end());
  return out.empty() ? std::vector{path} : out;
}

/// The words of a line.
std::vector<std::string> words_of(const std::string& line) {
  std::istringstream words(line);
  return {std::istream_iterator<std::string>(words), {}};
}

/// Templates and tokenizers take UTF-8 alone; a terminal or a shell may send anything.
Result<void> check_utf8(const std::string& field, const std::string& text) {
  if (text::is_valid_utf8(text)) return {};
  return invalid_argument(field + ": the text is not valid UTF-8");
}

class ChatSession {
 public:
  ChatSession(const RunOptions& options, LocalEngine& local, ChatFrontend chat)
      : options_(options),
        local_(local),
        chat_(std::move(chat)),
        reader_(image_reader_of(local.plan(), {}, read_file_url)) {
    reset();
  }

  /// The picture in a file goes along with the next message.
  Result<void> attach(const std::string& path) {
    if (!reader_) return takes_none("images");
    auto image = reader_->read({path, kFileUrl + path});
    if (!image) return std::move(image).error();
    attached_.images.push_back(*image);
    return {};
  }

  /// So does a video: its frames (a directory stands for the files in it), or an animation.
  Result<void> attach_video(const std::vector<std::string>& paths, double fps) {
    if (!reader_ || !reader_->config().video) return takes_none("videos");
    VideoSource source{.field = "video", .frames = {}, .fps = fps};
    for (const std::string& path : paths) {
      for (const std::string& file : files_of(path)) {
        if (!std::ifstream(file)) return not_found(file + ": can't be opened");
        source.frames.push_back(kFileUrl + file);
      }
    }
    attached_.videos.push_back(TRY(reader_->read_video(source)));
    return {};
  }

  void reset() {
    media_ = attached_ = {};
    messages_ = OrderedJson::array();
    if (!options_.system.empty())
      messages_.push_back({{"role", "system"}, {"content", options_.system}});
  }

  /// Answers on standard output while the tokens come; Ctrl-C ends the answer. The turn is kept in
  /// the conversation, also an interrupted one.
  Result<void> turn(const std::string& text) {
    TRY(check_utf8("message", text));
    OrderedJson content = text;
    if (attached_.size() > 0) {
      content = OrderedJson::array();
      for (size_t i = 0; i < attached_.images.size(); ++i) content.push_back({{"type", "image"}});
      for (size_t i = 0; i < attached_.videos.size(); ++i) content.push_back({{"type", "video"}});
      content.push_back({{"type", "text"}, {"text", text}});
    }
    messages_.push_back({{"role", "user"}, {"content", content}});
    const Media before = media_;
    media_.append(attached_);
    const Result<std::string> answer = generate(text);
    if (!answer) {
      media_ = before;
      messages_.erase(messages_.size() - 1);
      return answer.error();
    }
    attached_ = {};
    messages_.push_back({{"role", "assistant"}, {"content", *answer}});
    return {};
  }

 private:
  struct Media {
    std::vector<std::shared_ptr<const ImagePatches>> images;
    std::vector<PromptVideo> videos;

    size_t size() const { return images.size() + videos.size(); }
    void append(const Media& more) {
      images.insert(images.end(), more.images.begin(), more.images.end());
      videos.insert(videos.end(), more.videos.begin(), more.videos.end());
    }
  };

  Error takes_none(const std::string& what) const {
    return unsupported(local_.plan().name + " takes no " + what + " on " +
                       local_.plan().device_name);
  }

  Result<ImagePrompt> prompt(const std::string& text) const {
    if (chat_.chat_template() == nullptr) {  // a base model continues the text
      ImagePrompt plain;
      plain.ids = TRY(chat_.encode_text(text));
      return plain;
    }
    const char* thinking = options_.enable_thinking ? "true" : "false";
    ChatRequest request{.messages = messages_.dump(),
                        .tools = "",
                        .template_kwargs = {{"enable_thinking", thinking}}};
    if (!media_.videos.empty()) {
      request.videos =
          TRY(texts_of_videos(media_.videos, *reader_->config().video, chat_.tokenizer()));
    }
    EncodedChat encoded = TRY(chat_.encode(request));
    if (media_.size() > 0) return reader_->expand(encoded.ids, media_.images, media_.videos);
    ImagePrompt plain;
    plain.ids = std::move(encoded.ids);
    return plain;
  }

  Result<std::string> generate(const std::string& text) {
    Request request;
    ImagePrompt encoded = TRY(prompt(text));
    request.prompt = std::move(encoded.ids);
    request.images = std::move(encoded.images);
    request.positions = std::move(encoded.positions);
    request.rope_delta = encoded.rope_delta;
    request.sampling = TRY(validate_sampling(
        options_.sampling, with_eos_of(chat_.tokenizer(), local_.defaults()), local_.limits(),
        static_cast<int64_t>(request.prompt.size()), options_.engine.seed + num_turns_));
    ++num_turns_;
    TextOptions answer_options{.stop_ids = request.sampling.stop_ids};
    if (!options_.sampling.stop.empty()) {
      answer_options.stops = TRY(StopStrings::make(options_.sampling.stop, /*include_stop=*/false));
    }
    AnswerStream stream(&chat_.tokenizer(), std::move(answer_options));
    const SeqId id = TRY(local_.engine().submit(std::move(request), stream));
    std::string answer, piece;
    bool written = true;
    while (stream.next_text(piece, std::chrono::milliseconds(50))) {
      if (take_interrupt() || !written) local_.engine().abort(id);
      written = written && print(piece);
      answer += piece;
    }
    written = written && print("\n");
    const Answer& done = stream.wait();
    if (done.error) return *done.error;
    if (!written) return unavailable("standard output can't be written");
    if (options_.verbose) print_speed(done);
    return answer;
  }

  static bool print(const std::string& text) {
    return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
           std::fflush(stdout) == 0;
  }

  static void print_speed(const Answer& answer) {
    const Usage& usage = answer.usage;
    std::fprintf(stderr, "[%lld prompt tokens (%lld cached) in %.3f s",
                 static_cast<long long>(usage.prompt_tokens),
                 static_cast<long long>(usage.cached_tokens),
                 seconds_between(answer.started, answer.first_token));
    if (usage.generated_tokens > 1) {
      std::fprintf(stderr, ", then %.1f tokens/s",
                   static_cast<double>(usage.generated_tokens - 1) /
                       seconds_between(answer.first_token, answer.finished));
    }
    std::fprintf(stderr, "]\n");
  }

  const RunOptions& options_;
  LocalEngine& local_;
  ChatFrontend chat_;
  std::shared_ptr<const ImageReader> reader_;  // null: no images
  Media media_, attached_;                     // of messages_; of the next one
  OrderedJson messages_;
  uint64_t num_turns_ = 0;
};

/// A line without its newline; nothing at the end of input or on Ctrl-C.
std::optional<std::string> read_line() {
  char* line = nullptr;
  size_t capacity = 0;
  const ssize_t n = getline(&line, &capacity, stdin);
  std::optional<std::string> text;
  if (n >= 0) text = std::string(line, static_cast<size_t>(n));
  std::free(line);
  while (text && !text->empty() && (text->back() == '\n' || text->back() == '\r')) text->pop_back();
  return text;
}

int chat_loop(ChatSession& session) {
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal)
    std::fputs(
        "Type a message. /image FILE sends a picture along with the next one; /video FILE... a\n"
        "video: an animated GIF or WebP, or its frames in order (a directory: the files in it).\n"
        "/reset forgets the conversation, /quit ends, Ctrl-C stops an answer.\n",
        stderr);
  for (;;) {
    if (terminal) std::fputs("> ", stderr);
    const std::optional<std::string> line = read_line();
    if (!line || *line == "/quit" || *line == "/exit") {
      if (terminal && !line) std::fputs("\n", stderr);
      return kExitOk;
    }
    take_interrupt();
    if (line->empty()) continue;
    if (*line == "/reset") {
      session.reset();
      if (terminal) std::fputs("(a new conversation)\n", stderr);
      continue;
    }
    if (line->starts_with("/image ")) {
      if (const Result<void> done = session.attach(line->substr(7)); !done) {
        std::fprintf(stderr, "weft: error: %s\n", done.error().message.c_str());
      }
      continue;
    }
    if (line->starts_with("/video ")) {
      if (const Result<void> done = session.attach_video(words_of(line->substr(7)), 0); !done) {
        std::fprintf(stderr, "weft: error: %s\n", done.error().message.c_str());
      }
      continue;
    }
    if (line->front() == '/' && line->find(' ') == std::string::npos) {
      std::fprintf(
          stderr, "unknown command '%s'; there are /image FILE, /video FILE..., /reset and /quit\n",
          line->c_str());
      continue;
    }
    if (const Result<void> done = session.turn(*line); !done) {
      std::fprintf(stderr, "weft: error: %s\n", done.error().message.c_str());
      if (std::ferror(stdout) != 0) return kExitRuntime;  // nobody reads the answers
    }
  }
}

Result<int> run(const RunOptions& options) {
  if (options.has_prompt && options.prompt.empty()) {
    return invalid_argument("--prompt: the text is empty; at least one character is needed");
  }
  // Before the weights are read: what is wrong for every model and every prompt.
  TRY(check_utf8("--prompt", options.prompt));
  TRY(check_utf8("--system", options.system));
  constexpr int kAny = std::numeric_limits<int>::max();
  TRY(validate_sampling(options.sampling, {}, {.vocab_size = kAny, .max_model_len = kAny}, 1, 0));
  const std::unique_ptr<LocalEngine> local = TRY(LocalEngine::start(options.engine));
  if (options.verbose) {
    std::fprintf(stderr, "device     %s, %d threads\n%s%s", local->plan().device_name.c_str(),
                 local->plan().threads, choices_table(local->plan().kernels).c_str(),
                 local->plan().memory.table().c_str());
  }
  catch_interrupts();
  ChatSession session(options, *local, TRY(ChatFrontend::load(local->plan().directory)));
  for (const std::string& path : options.images) {
    const Result<void> done = session.attach(path);
    if (!done) return with_context(done.error(), "--image");
  }
  if (!options.video.empty()) {
    const Result<void> done = session.attach_video(options.video, options.video_fps);
    if (!done) return with_context(done.error(), "--video");
  }
  if (!options.has_prompt) return chat_loop(session);
  TRY(session.turn(options.prompt));
  return kExitOk;
}

}  // namespace

int run_command(const RunOptions& options) {
  const Result<int> code = run(options);
  return code ? *code : report_error(code.error());
}

}  // namespace weft
