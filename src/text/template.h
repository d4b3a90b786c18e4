#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

namespace weft {

/// What a chat template is rendered with. All JSON comes from the request and counts as the user's.
struct ChatInput {
  std::string messages_json = "[]";  ///< JSON array
  std::string tools_json;            ///< JSON array; empty: the template sees none
  std::string documents_json;        ///< the same
  bool add_generation_prompt = false;
  /// Further variables as name and JSON (enable_thinking, ...). They can't replace the ones above
  /// nor the template's functions.
  std::vector<std::pair<std::string, std::string>> extra;
  std::optional<std::tm> now;  ///< for strftime_now; the local time if absent
};

struct RenderLimits {
  uint64_t max_ops = 50'000'000;
  size_t max_output_bytes = size_t{64} << 20;
  size_t max_input_bytes = size_t{64} << 20;  ///< of each JSON text
};

/// A part of the rendered prompt: bytes [begin, end).
struct RenderedSpan {
  size_t begin = 0, end = 0;
  bool user = false;  ///< came from the request; else from the template or the bos/eos token
};

struct Rendered {
  std::string text;
  std::vector<RenderedSpan> spans;  ///< in order, without gaps

  /// The parts for Tokenizer::encode_segments: special tokens in the template's own parts only.
  std::vector<TextSegment> segments() const;
};

/// A chat template in Jinja, with the semantics of transformers' apply_chat_template. Immutable;
/// any number of threads may render at once.
class ChatTemplate {
 public:
  /// chat_template.jinja of a model directory (with additional_chat_templates/tool_use.jinja where
  /// tools are given), else chat_template of its tokenizer_config.json or chat_template.json: a
  /// string, or a list of {name, template} of which "default" is taken, and "tool_use" where tools
  /// are given. bos_token, eos_token and the like come from tokenizer_config.json, or from
  /// special_tokens_map.json where they are not in it.
  /// `replacement`: a file that takes the place of the model's own template.
  /// Errors: kNotFound without a template; kInvalidArgument "file:line:column: ..." for its syntax.
  static Result<ChatTemplate> load(const std::filesystem::path& dir,
                                   const std::filesystem::path& replacement = {});
  /// A template by its source; `tokens`: names and texts of special tokens it may use.
  static Result<ChatTemplate> parse(std::string_view source,
                                    std::vector<std::pair<std::string, std::string>> tokens = {},
                                    std::string name = "chat template");
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// Source of the template, of all of them where the model has several.
  const std::string& source() const;

  /// Errors: kInvalidArgument "name:line:column: ..." for what the template refuses
  /// (raise_exception too), with only the message for bad JSON; kExhausted where a limit is met.
  Result<Rendered> render(const ChatInput& input, const RenderLimits& limits = {}) const;

 private:
  struct Parts;
  explicit ChatTemplate(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

}  // namespace weft
