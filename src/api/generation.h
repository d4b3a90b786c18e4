#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "api/images.h"
#include "api/validate.h"

namespace weft {

/// What shape the answer must have.
struct OutputFormat {
  enum class Kind : uint8_t { kText, kJsonObject, kJsonSchema, kRegex, kChoice, kGrammar };
  Kind kind = Kind::kText;
  std::string text;                  ///< JSON schema (its JSON text), regex or EBNF grammar
  std::vector<std::string> choices;  ///< of kChoice
  std::string field;                 ///< where the user wrote it, for errors
};

enum class ToolChoice : uint8_t { kNone, kAuto, kRequired, kNamed };

/// One request as a user writes it (OpenAI's and vLLM's names), its JSON checked for types but not
/// for meaning: ranges, lengths and combinations are prepare()'s to check.
struct GenerationRequest {
  std::string model;  ///< empty: the served one

  // Chat: a conversation for the template.
  bool is_chat = false;
  std::string messages;             ///< JSON array
  std::vector<ImageSource> images;  ///< in the order of messages
  std::vector<VideoSource> videos;  ///< likewise
  PixelBounds image_bounds;         ///< of the images that don't say theirs
  double video_fps = 0;             ///< of the videos that don't say theirs; 0: not said
  std::string tools;                ///< JSON array; empty: none
  std::string documents;            ///< JSON array; empty: none
  std::vector<std::pair<std::string, std::string>> template_kwargs;  ///< name, JSON
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  ToolChoice tool_choice = ToolChoice::kAuto;
  std::string tool_name;  ///< of kNamed
  bool parallel_tool_calls = true;
  bool include_reasoning = true;

  // Completions: texts or token ids.
  std::vector<std::variant<std::string, std::vector<int64_t>>> prompts;
  bool echo = false;
  bool add_special_tokens = true;

  SamplingRequest sampling;
  int64_t n = 1;  ///< choices a prompt; choice i is drawn with seed + i
  OutputFormat format;
  std::vector<std::string> bad_words;  ///< at most 64 texts of 1 to 256 bytes, never to be written
  std::optional<int64_t> truncate_prompt_tokens;  ///< keep the last so many
  int64_t priority = 0;
  std::string cache_salt;

  // The form of the answer.
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage_stats = false;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  bool return_token_ids = false;
  bool return_tokens_as_token_ids = false;
};

}  // namespace weft
