#include "api/constraints.h"

#include <utility>

#include "grammar/banned.h"
#include "grammar/json_schema.h"
#include "grammar/tool_grammar.h"

namespace weft {
namespace {

constexpr size_t kMaxKept = 64;
constexpr size_t kMaxBadWords = 64;
constexpr size_t kMaxBadWordBytes = 256;
constexpr size_t kMaxSchemaBytes = size_t{256} << 10;  // of some thousands of properties

bool forces_tool_call(const GenerationRequest& request) {
  return !request.tools.empty() && (request.tool_choice == ToolChoice::kRequired ||
                                    request.tool_choice == ToolChoice::kNamed);
}

/// What tells one grammar from another.
std::string key_of(const GenerationRequest& request, bool after_thinking) {
  std::string key = after_thinking ? "t" : "-";
  const auto add = [&key](const std::string& part) {
    key += std::to_string(part.size()) + ":" + part;
  };
  if (forces_tool_call(request)) {
    key += request.parallel_tool_calls ? "T" : "t";
    add(request.tool_choice == ToolChoice::kNamed ? request.tool_name : "");
    add(request.tools);
    return key;
  }
  key += std::to_string(static_cast<int>(request.format.kind));
  add(request.format.text);
  for (const std::string& choice : request.format.choices) add(choice);
  return key;
}

using GrammarResult = Result<std::shared_ptr<const Grammar>>;

/// The grammar of `node`, with the blank line that models write after a thought if asked for.
GrammarResult compile_node(GrammarRules& rules, GrammarRules::Node node, bool after_thinking,
                           const std::string& field) {
  if (after_thinking) {
    node = rules.sequence({rules.choice({rules.literal("\n\n"), rules.empty()}), node});
  }
  const GrammarRules::Rule root = rules.declare("root");
  rules.define(root, node);
  GrammarResult grammar = rules.compile(root);
  if (!grammar) return with_context(grammar.error(), field);
  return grammar;
}

Result<GrammarRules::Node> tool_node(GrammarRules& rules, const GenerationRequest& request,
                                     ChatFormat::Tools format) {
  if (format != ChatFormat::Tools::kHermesJson && format != ChatFormat::Tools::kQwenXml) {
    return unsupported(
        "tool_choice: this model's format of tool calls can't be forced; use auto or none");
  }
  const ToolGrammarOptions options{
      .markup =
          format == ChatFormat::Tools::kQwenXml ? ToolMarkup::kQwenXml : ToolMarkup::kHermesJson,
      .name = request.tool_name,
      .parallel = request.parallel_tool_calls && request.tool_choice == ToolChoice::kRequired};
  return tool_call_node(rules, request.tools, options);
}

Result<GrammarRules::Node> format_node(GrammarRules& rules, const OutputFormat& wanted) {
  using Kind = OutputFormat::Kind;
  switch (wanted.kind) {
    case Kind::kJsonSchema: return json_schema_node(rules, wanted.text, wanted.field);
    case Kind::kRegex: return regex_node(rules, wanted.text, wanted.field);
    case Kind::kChoice: return choices_node(rules, wanted.choices, wanted.field);
    case Kind::kGrammar: return rules.reference(TRY(ebnf_rule(rules, wanted.text, wanted.field)));
    case Kind::kJsonObject:
    case Kind::kText: break;
  }
  // Any object: what a schema that says nothing else stands for.
  return json_schema_node(rules, R"({"type":"object"})", wanted.field);
}

GrammarResult compile(const GenerationRequest& request, const ChatFormat& format,
                      bool after_thinking) {
  GrammarLimits limits;
  if (forces_tool_call(request) || request.format.kind == OutputFormat::Kind::kJsonSchema) {
    limits.max_source_bytes = kMaxSchemaBytes;
  }
  GrammarRules rules(limits);
  if (forces_tool_call(request)) {
    const GrammarRules::Node node = TRY(tool_node(rules, request, format.tools));
    return compile_node(rules, node, after_thinking, "tools");
  }
  const GrammarRules::Node node = TRY(format_node(rules, request.format));
  return compile_node(rules, node, after_thinking, request.format.field);
}

}  // namespace

ConstraintFactory::ConstraintFactory(const Tokenizer& tokenizer, int64_t vocab_size,
                                     const ChatFormat& format)
    : tokenizer_(tokenizer),
      vocab_size_(static_cast<int32_t>(vocab_size)),
      format_(format),
      think_begin_(tokenizer.token_to_id("<think>").value_or(-1)),
      think_end_(tokenizer.token_to_id("</think>").value_or(-1)) {}

Result<std::shared_ptr<const OutputConstraint>> ConstraintFactory::make(
    const GenerationRequest& request, Thinking thinking) {
  const bool wanted = forces_tool_call(request) || request.format.kind != OutputFormat::Kind::kText;
  auto banned = TRY(sequences_of(request.bad_words));
  if (!wanted && banned.empty()) return std::shared_ptr<const OutputConstraint>();
  auto out = std::make_shared<OutputConstraint>();
  if (!wanted) {
    out->grammar = without_sequences(nullptr, vocab(), std::move(banned));
    return std::shared_ptr<const OutputConstraint>(std::move(out));
  }
  if (think_end_ < 0) thinking = Thinking::kNone;
  out->grammar = TRY(find_or_compile(request, thinking != Thinking::kNone));
  if (!banned.empty()) {
    out->grammar = without_sequences(out->grammar, vocab(), std::move(banned));
  }
  if (thinking != Thinking::kNone) out->begins_after = think_end_;
  if (thinking == Thinking::kMayOpen) out->opened_by = think_begin_;
  return std::shared_ptr<const OutputConstraint>(std::move(out));
}

/// The tokens of each text, as it stands at the beginning and behind a space: as in vLLM.
Result<std::vector<std::vector<int32_t>>> ConstraintFactory::sequences_of(
    const std::vector<std::string>& words) const {
  if (words.size() > kMaxBadWords) {
    return invalid_argument("bad_words: " + std::to_string(words.size()) + " texts are more than " +
                            std::to_string(kMaxBadWords));
  }
  std::vector<std::vector<int32_t>> out;
  for (const std::string& word : words) {
    const size_t begin = std::min(word.find_first_not_of(" \t\n\r"), word.size());
    if (begin == word.size() || word.size() > kMaxBadWordBytes) {
      return invalid_argument("bad_words: each text must have 1 to " +
                              std::to_string(kMaxBadWordBytes) +
                              " bytes, and not only white space");
    }
    for (const char* front : {"", " "}) {
      auto ids = TRY(tokenizer_.encode(front + word.substr(begin), /*add_special_tokens=*/false));
      if (!ids.empty() && (out.empty() || out.back() != ids)) out.push_back(std::move(ids));
    }
  }
  return out;
}

std::shared_ptr<const GrammarVocab> ConstraintFactory::vocab() {
  const std::lock_guard lock(mutex_);
  if (!vocab_) {
    vocab_ = GrammarVocab::build(vocab_size_, [this](int32_t id) {
      return tokenizer_.is_special(id) ? std::string_view() : tokenizer_.token_bytes(id);
    });
  }
  return vocab_;
}

ConstraintFactory::GrammarPtr ConstraintFactory::keep(const std::string& key, GrammarPtr grammar) {
  const std::lock_guard lock(mutex_);
  if (const auto it = index_.find(key); it != index_.end()) return it->second->grammar;
  entries_.push_front({key, grammar});
  index_[key] = entries_.begin();
  if (entries_.size() > kMaxKept) {
    index_.erase(entries_.back().key);
    entries_.pop_back();
  }
  return grammar;
}

Result<ConstraintFactory::GrammarPtr> ConstraintFactory::find_or_compile(
    const GenerationRequest& request, bool after_thinking) {
  const std::string key = key_of(request, after_thinking);
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = index_.find(key); it != index_.end()) {
      entries_.splice(entries_.begin(), entries_, it->second);
      return it->second->grammar;
    }
  }
  // Not under the lock: it may take a second. Two requests at once compile twice.
  const auto grammar = TRY(compile(request, format_, after_thinking));
  return keep(key, TokenGrammar::make(grammar, vocab()));
}

}  // namespace weft
