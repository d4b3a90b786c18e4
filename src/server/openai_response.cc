#include "server/openai_response.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "base/json_text.h"
#include "base/utf8.h"
#include "server/json.h"

namespace weft {
namespace {

void append_number(std::string& out, int64_t value) {
  char text[24];
  out.append(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

/// The shortest text that reads back as the same float; what has no probability is -9999 (JSON has
/// no infinity; OpenAI's value).
void append_logprob(std::string& out, float value) {
  if (!std::isfinite(value)) value = -9999.0F;
  char text[32];
  const char* end = std::to_chars(text, text + sizeof(text), value).ptr;
  const std::string_view written(text, static_cast<size_t>(end - text));
  out += written;
  if (written.find_first_of(".e") == std::string_view::npos) out += ".0";
}

/// The shortest text that reads back as the same number, always with a point or an exponent.
void append_double(std::string& out, double value) {
  char text[32];
  const char* end = std::to_chars(text, text + sizeof(text), value).ptr;
  const std::string_view written(text, static_cast<size_t>(end - text));
  out += written;
  if (written.find_first_of(".e") == std::string_view::npos) out += ".0";
}

void append_bytes(std::string& out, std::string_view bytes) {
  out += '[';
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    append_number(out, static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

void append_or_null(std::string& out, std::string_view json) {
  out += json.empty() ? std::string_view("null") : json;
}

/// ,"name":json unless it is empty.
void append_field(std::string& out, std::string_view name, std::string_view json) {
  if (json.empty()) return;
  out += ",\"";
  out += name;
  out += "\":";
  out += json;
}

void append_head(std::string& out, const ResponseHead& head, bool chunk) {
  out += "{\"id\":";
  append_json_quoted(head.id, out);
  out += ",\"object\":\"";
  if (head.is_chat) {
    out += chunk ? "chat.completion.chunk" : "chat.completion";
  } else {
    out += "text_completion";
  }
  out += "\",\"created\":";
  append_number(out, head.created);
  out += ",\"model\":";
  append_json_quoted(head.model, out);
}

void append_reasoning(std::string& out, std::string_view text) {
  std::string json;
  append_json_quoted(text, json);
  out += "\"reasoning\":" + json + ",\"reasoning_content\":" + json;
}

void append_tool_calls(std::string& out, const std::vector<ToolCallDelta>& calls) {
  out += "\"tool_calls\":[";
  for (size_t i = 0; i < calls.size(); ++i) {
    const ToolCallDelta& call = calls[i];
    if (i > 0) out += ',';
    out += "{\"index\":";
    append_number(out, call.index);
    if (!call.id.empty()) {
      out += ",\"id\":";
      append_json_quoted(call.id, out);
      out += ",\"type\":\"function\"";
    }
    out += ",\"function\":{";
    if (!call.name.empty()) {
      out += "\"name\":";
      append_json_quoted(call.name, out);
      out += ',';
    }
    out += "\"arguments\":";
    append_json_quoted(call.arguments, out);
    out += "}}";
  }
  out += ']';
}

void append_delta(std::string& out, const ChunkChoice& choice) {
  static const ChatDelta kNothing;
  const ChatDelta& delta = choice.delta != nullptr ? *choice.delta : kNothing;
  out += "\"delta\":{";
  const size_t begin = out.size();
  const auto separate = [&] {
    if (out.size() > begin) out += ',';
  };
  if (choice.role) out += "\"role\":\"assistant\"";
  if (!delta.content.empty() || choice.role) {
    separate();
    out += "\"content\":";
    append_json_quoted(delta.content, out);
  }
  if (!delta.reasoning.empty()) {
    separate();
    append_reasoning(out, delta.reasoning);
  }
  if (!delta.tool_calls.empty()) {
    separate();
    append_tool_calls(out, delta.tool_calls);
  }
  out += '}';
}

void append_end(std::string& out, const ChoiceEnd& end) {
  out += ",\"finish_reason\":\"";
  out += end.reason;
  out += "\",\"stop_reason\":";
  append_or_null(out, end.stop_reason);
}

}  // namespace

std::string json_string(std::string_view text) {
  std::string out;
  append_json_quoted(text, out);
  return out;
}

std::string json_ids(const std::vector<int32_t>& ids) {
  std::string out = "[";
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    append_number(out, ids[i]);
  }
  return out + "]";
}

std::string usage_json(const UsageTotals& usage) {
  std::string out = "{\"prompt_tokens\":";
  append_number(out, usage.prompt_tokens);
  out += ",\"completion_tokens\":";
  append_number(out, usage.completion_tokens);
  out += ",\"total_tokens\":";
  append_number(out, usage.prompt_tokens + usage.completion_tokens);
  out += ",\"prompt_tokens_details\":{\"cached_tokens\":";
  append_number(out, usage.cached_tokens);
  out += "},\"completion_tokens_details\":{\"reasoning_tokens\":";
  append_number(out, usage.reasoning_tokens);
  if (usage.accepted_drafts >= 0) {
    out += ",\"accepted_prediction_tokens\":";
    append_number(out, usage.accepted_drafts);
    out += ",\"rejected_prediction_tokens\":";
    append_number(out, usage.rejected_drafts);
  }
  out += "}}";
  return out;
}

std::string speculate_metrics_json(const SpeculationCounts& counts, int num_speculative_tokens) {
  const SpeculateMetrics metrics = speculate_metrics(counts, num_speculative_tokens);
  std::string out = "{\"accepted_tokens\":";
  append_number(out, metrics.accepted_tokens);
  out += ",\"rejected_tokens\":";
  append_number(out, metrics.rejected_tokens);
  out += ",\"accept_ratio\":";
  append_double(out, metrics.accept_ratio);
  out += ",\"average_accept_length\":";
  append_double(out, metrics.average_accept_length);
  std::string_view comma;
  out += ",\"accepted_tokens_per_head\":[";
  for (const int64_t count : metrics.per_head) {
    out += std::exchange(comma, ",");
    append_number(out, count);
  }
  comma = {};
  out += "],\"accept_ratio_per_head\":[";
  for (const double ratio : metrics.ratio_per_head) {
    out += std::exchange(comma, ",");
    append_double(out, ratio);
  }
  out += ']';
  for (const auto& [name, by_source] : {std::pair{"proposed_drafts", &counts.proposed},
                                        std::pair{"accepted_drafts", &counts.accepted}}) {
    comma = {};
    append_field(out, name, "{");
    for (size_t i = 0; i < kNumDraftSources; ++i) {
      out += std::exchange(comma, ",");
      out += '"';
      out += source_name(static_cast<DraftSource>(i));
      out += "\":";
      append_number(out, (*by_source)[i]);
    }
    out += '}';
  }
  return out + "}";
}

std::string stream_frame(const ResponseHead& head, const ChunkChoice& choice,
                         std::string_view usage) {
  std::string out = "data: ";
  out.reserve(320 + choice.text.size() + choice.logprobs.size());
  append_head(out, head, /*chunk=*/true);
  append_field(out, "prompt_token_ids", head.is_chat ? choice.prompt_token_ids : "");
  out += ",\"choices\":[{\"index\":";
  append_number(out, choice.index);
  out += ',';
  if (head.is_chat) {
    append_delta(out, choice);
  } else {
    out += "\"text\":";
    append_json_quoted(choice.text, out);
  }
  out += ",\"logprobs\":";
  append_or_null(out, choice.logprobs);
  if (choice.end != nullptr) {
    append_end(out, *choice.end);
  } else {
    out += ",\"finish_reason\":null";
  }
  append_field(out, "prompt_token_ids", head.is_chat ? "" : choice.prompt_token_ids);
  append_field(out, "token_ids", choice.token_ids);
  append_field(out, "speculate_metrics", choice.speculate_metrics);
  out += "}]";
  append_field(out, "usage", usage);
  out += "}\n\n";
  return out;
}

std::string usage_frame(const ResponseHead& head, std::string_view usage) {
  std::string out = "data: ";
  append_head(out, head, /*chunk=*/true);
  out += ",\"choices\":[]";
  append_field(out, "usage", usage);
  out += "}\n\n";
  return out;
}

namespace {

void append_message(std::string& out, const WholeChoice& choice) {
  out += "\"message\":{\"role\":\"assistant\",\"content\":";
  if (choice.text.empty() && !choice.tool_calls.empty()) {
    out += "null";
  } else {
    append_json_quoted(choice.text, out);
  }
  out += ",\"refusal\":null,";
  if (choice.reasoning) {
    append_reasoning(out, *choice.reasoning);
  } else {
    out += "\"reasoning\":null,\"reasoning_content\":null";
  }
  if (!choice.tool_calls.empty()) {
    out += ",\"tool_calls\":[";
    for (size_t i = 0; i < choice.tool_calls.size(); ++i) {
      const ToolCall& call = choice.tool_calls[i];
      if (i > 0) out += ',';
      out += "{\"id\":" + json_string(call.id) +
             ",\"type\":\"function\",\"function\":{\"name\":" + json_string(call.name) +
             ",\"arguments\":" + json_string(call.arguments) + "}}";
    }
    out += ']';
  }
  out += '}';
}

}  // namespace

std::string whole_body(const ResponseHead& head, const std::vector<WholeChoice>& choices,
                       const UsageTotals& usage) {
  std::string out;
  append_head(out, head, /*chunk=*/false);
  out += ",\"choices\":[";
  for (const WholeChoice& choice : choices) {
    if (&choice != &choices.front()) out += ',';
    out += "{\"index\":";
    append_number(out, choice.index);
    out += ',';
    if (head.is_chat) {
      append_message(out, choice);
    } else {
      out += "\"text\":";
      append_json_quoted(choice.text, out);
    }
    out += ",\"logprobs\":";
    append_or_null(out, choice.logprobs);
    append_end(out, choice.end);
    if (!head.is_chat) {
      append_field(out, "prompt_logprobs", choice.prompt_logprobs);
      append_field(out, "prompt_token_ids", choice.prompt_token_ids);
    }
    append_field(out, "token_ids", choice.token_ids);
    append_field(out, "speculate_metrics", choice.speculate_metrics);
    out += '}';
  }
  out += ']';
  append_field(out, "usage", usage_json(usage));
  if (head.is_chat && !choices.empty()) {
    append_field(out, "prompt_logprobs", choices.front().prompt_logprobs);
    append_field(out, "prompt_token_ids", choices.front().prompt_token_ids);
  }
  out += '}';
  return out;
}

std::string LogprobWriter::token_text(int32_t token) const {
  if (as_ids_) return "token_id:" + std::to_string(token);
  return tokenizer_.decode({&token, 1}, /*skip_special=*/false);
}

void LogprobWriter::append_chat_entry(std::string& out, int32_t token,
                                      const TokenLogprob& logprob) const {
  const auto append_one = [&](int32_t id, float value) {
    out += "{\"token\":";
    append_json_quoted(token_text(id), out);
    out += ",\"logprob\":";
    append_logprob(out, value);
    out += ",\"bytes\":";
    append_bytes(out, tokenizer_.token_bytes(id));
  };
  append_one(token, logprob.logprob);
  out += ",\"top_logprobs\":[";
  for (size_t i = 0; i < logprob.top.size(); ++i) {
    if (i > 0) out += ',';
    append_one(logprob.top[i].token, logprob.top[i].logprob);
    out += '}';
  }
  out += "]}";
}

std::string LogprobWriter::prompt_logprobs(const std::vector<int32_t>& prompt,
                                           const std::vector<TokenLogprob>& logprobs) const {
  std::string out = "[null";
  for (size_t i = 0; i < logprobs.size(); ++i) {
    const int32_t token = prompt[i + 1];
    bool listed = false;
    const auto append_one = [&](int32_t id, float value, size_t rank) {
      append_json_quoted(std::to_string(id), out);
      out += ":{\"logprob\":";
      append_logprob(out, value);
      if (rank > 0) out += ",\"rank\":" + std::to_string(rank);
      out += ",\"decoded_token\":";
      append_json_quoted(token_text(id), out);
      out += '}';
    };
    out += ",{";
    for (size_t k = 0; k < logprobs[i].top.size(); ++k) {
      if (k > 0) out += ',';
      const TopLogprob& top = logprobs[i].top[k];
      listed = listed || top.token == token;
      append_one(top.token, top.logprob, k + 1);
    }
    if (!listed) {
      if (!logprobs[i].top.empty()) out += ',';
      append_one(token, logprobs[i].logprob, 0);
    }
    out += '}';
  }
  return out + "]";
}

void CompletionLogprobs::add(const LogprobWriter& writer, int32_t token,
                             const TokenLogprob* logprob) {
  const auto separate = [this](std::string& list) {
    if (count_ > 0) list += ',';
  };
  const std::string text = writer.token_text(token);
  separate(tokens_);
  append_json_quoted(text, tokens_);
  separate(offsets_);
  append_number(offsets_, offset_);
  offset_ += num_chars(text);
  separate(token_logprobs_);
  separate(top_logprobs_);
  ++count_;
  if (logprob == nullptr) {
    token_logprobs_ += "null";
    top_logprobs_ += "null";
    return;
  }
  append_logprob(token_logprobs_, logprob->logprob);
  top_logprobs_ += '{';
  bool listed = false;
  std::string_view comma;
  const auto append_one = [&](int32_t id, float value) {
    top_logprobs_ += comma;
    comma = ",";
    append_json_quoted(writer.token_text(id), top_logprobs_);
    top_logprobs_ += ':';
    append_logprob(top_logprobs_, value);
  };
  for (const TopLogprob& top : logprob->top) {
    listed = listed || top.token == token;
    append_one(top.token, top.logprob);
  }
  if (!listed) append_one(token, logprob->logprob);
  top_logprobs_ += '}';
}

std::string CompletionLogprobs::take() {
  std::string out = "{\"tokens\":[" + tokens_ + "],\"token_logprobs\":[" + token_logprobs_ +
                    "],\"top_logprobs\":[" + top_logprobs_ + "],\"text_offset\":[" + offsets_ +
                    "]}";
  for (std::string* list : {&tokens_, &token_logprobs_, &top_logprobs_, &offsets_}) list->clear();
  count_ = 0;
  return out;
}

}  // namespace weft
