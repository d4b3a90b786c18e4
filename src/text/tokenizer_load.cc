#include <simdjson.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <unordered_map>

#include "text/read_file.h"
#include "text/special_tokens.h"
#include "text/tokenizer.h"
#include "text/tokenizer_parts.h"

namespace weft {
namespace {

namespace json = simdjson::dom;

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr int32_t kMaxTokenId = (1 << 22) - 1;
constexpr size_t kMaxTokenBytes = 1 << 16;
constexpr size_t kMaxVocabBytes = size_t{1} << 30;
constexpr size_t kMaxMerges = size_t{1} << 22;
constexpr size_t kMaxAddedTokens = 1 << 18;
constexpr size_t kMaxSteps = 64;
constexpr int kMaxDepth = 8;

constexpr std::string_view kGpt2Pattern =
    R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)re";

std::string in_quotes(std::string_view s) {
  if (s.size() > 80) return "'" + text::to_valid_utf8(s.substr(0, 77)) + "...'";
  return "'" + std::string(s) + "'";
}

Error wrong_type(const std::string& field, std::string_view allowed) {
  return invalid_argument(field + " must be " + std::string(allowed));
}
Error unknown_kind(const std::string& field, std::string_view kind, std::string_view allowed) {
  return unsupported(field + ".type " + in_quotes(kind) +
                     " is not supported (supported: " + std::string(allowed) + ")");
}

/// A member that may be absent; null counts as absent.
std::optional<json::element> member(const json::element& object, std::string_view key) {
  json::element e;
  if (object[key].get(e) != simdjson::SUCCESS || e.is_null()) return std::nullopt;
  return e;
}
Result<std::string> text_member(const json::element& object, const std::string& where,
                                std::string_view key, std::optional<std::string> fallback = {}) {
  const auto e = member(object, key);
  std::string_view s;
  if (!e && fallback) return *fallback;
  if (!e || e->get(s) != simdjson::SUCCESS)
    return wrong_type(where + "." + std::string(key), "a string");
  return std::string(s);
}
Result<bool> flag_member(const json::element& object, const std::string& where,
                         std::string_view key, bool fallback) {
  const auto e = member(object, key);
  bool b = fallback;
  if (e && e->get(b) != simdjson::SUCCESS) {
    return wrong_type(where + "." + std::string(key), "true or false");
  }
  return b;
}
Result<int32_t> token_id(const json::element& e, const std::string& field) {
  int64_t id = -1;
  if (e.get(id) != simdjson::SUCCESS || id < 0 || id > kMaxTokenId) {
    return wrong_type(field, "an integer between 0 and " + std::to_string(kMaxTokenId));
  }
  return static_cast<int32_t>(id);
}

/// The steps of a component: the members of a Sequence, or the component alone; null gives none.
using Steps = std::vector<std::pair<json::element, std::string>>;  // element, field name
Result<void> flatten(std::optional<json::element> e, const std::string& field,
                     std::string_view list, int depth, Steps& out) {
  if (!e) return {};
  if (depth > kMaxDepth) return invalid_argument(field + ": Sequences nested too deep");
  const std::string type = TRY(text_member(*e, field, "type"));
  if (type != "Sequence") {
    if (out.size() >= kMaxSteps) return invalid_argument(field + ": more than 64 steps");
    out.emplace_back(*e, field);
    return {};
  }
  json::array items;
  if ((*e)[list].get(items) != simdjson::SUCCESS) {
    return wrong_type(field + "." + std::string(list), "an array");
  }
  size_t i = 0;
  for (const json::element item : items) {
    TRY(flatten(item, field + "." + std::string(list) + "[" + std::to_string(i++) + "]", list,
                depth + 1, out));
  }
  return {};
}

/// pattern: {"String": s} or {"Regex": r}.
Result<std::string> pattern_string(const json::element& e, const std::string& field,
                                   bool* is_regex) {
  std::string_view s;
  json::element pattern;
  if (e["pattern"].get(pattern) == simdjson::SUCCESS) {
    *is_regex = pattern["Regex"].get(s) == simdjson::SUCCESS;
    if (*is_regex || pattern["String"].get(s) == simdjson::SUCCESS) {
      if (s.empty()) return invalid_argument(field + ".pattern must not be empty");
      return std::string(s);
    }
  }
  return wrong_type(field + ".pattern", "{\"String\": ...} or {\"Regex\": ...}");
}

Result<json::element> parse(json::parser& parser, std::string_view text) {
  if (text.size() > kMaxFileBytes) return invalid_argument("larger than 256 MiB");
  json::element root;
  // The copy gives simdjson its padding.
  if (const auto error = parser.parse(text.data(), text.size(), true).get(root)) {
    return invalid_argument(std::string("not valid JSON: ") + simdjson::error_message(error));
  }
  if (!root.is_object()) return invalid_argument("must be a JSON object");
  return root;
}

}  // namespace

/// Builds Tokenizer::Parts from the two JSON files, field by field.
class TokenizerLoader {
 public:
  Result<Tokenizer> load(std::string_view tokenizer_json, std::string_view config_json,
                         std::string_view map_json) {
    json::parser parser, config_parser, map_parser;
    auto root = parse(parser, tokenizer_json);
    if (!root.ok()) return with_context(root.error(), "tokenizer.json");
    if (auto r = read_tokenizer(*root); !r.ok()) return with_context(r.error(), "tokenizer.json");
    if (!config_json.empty()) {
      auto config = parse(config_parser, config_json);
      if (!config.ok()) return with_context(config.error(), "tokenizer_config.json");
      if (auto r = read_config_tokens(*config); !r.ok()) {
        return with_context(r.error(), "tokenizer_config.json");
      }
    }
    if (!map_json.empty()) {
      auto map = parse(map_parser, map_json);
      if (!map.ok()) return with_context(map.error(), "special_tokens_map.json");
    }
    name_tokens(text::special_tokens(config_json, map_json));
    if (auto r = parts_->build(tables_); !r.ok()) return with_context(r.error(), "tokenizer.json");
    return Tokenizer(std::move(parts_));
  }

 private:
  Result<void> read_tokenizer(const json::element& root) {
    TRY(read_normalizer(root));
    TRY(read_pre_tokenizer(root));
    TRY(read_decoder(root));
    if (tables_.byte_level != (parts_->decode.kind == DecodeRules::kByteLevel)) {
      return unsupported("pre_tokenizer and decoder must both be ByteLevel or neither");
    }
    const auto model = member(root, "model");
    if (!model) return wrong_type("model", "an object");
    TRY(read_model(*model));
    if (const auto added = member(root, "added_tokens")) {
      json::array tokens;
      if (added->get(tokens) != simdjson::SUCCESS) return wrong_type("added_tokens", "an array");
      size_t i = 0;
      for (const json::element e : tokens) {
        const std::string field = "added_tokens[" + std::to_string(i++) + "]";
        json::element id;
        if (e["id"].get(id) != simdjson::SUCCESS) return wrong_type(field + ".id", "an integer");
        TRY(add_token(e, TRY(token_id(id, field + ".id")), field));
      }
    }
    return read_post_processor(root);
  }

  Result<void> read_normalizer(const json::element& root) {
    Steps steps;
    TRY(flatten(member(root, "normalizer"), "normalizer", "normalizers", 0, steps));
    for (const auto& [e, field] : steps) {
      const std::string type = TRY(text_member(e, field, "type"));
      if (type == "NFC") {
        parts_->normalizers.emplace_back(text::NfcNormalizer{});
      } else if (type == "Prepend") {
        parts_->normalizers.emplace_back(
            text::PrependNormalizer{TRY(text_member(e, field, "prepend"))});
      } else if (type == "Replace") {
        bool is_regex = false;
        std::string pattern = TRY(pattern_string(e, field, &is_regex));
        if (is_regex)
          return unsupported(field + ".pattern: only {\"String\": ...} is supported here");
        parts_->normalizers.emplace_back(
            text::ReplaceNormalizer{std::move(pattern), TRY(text_member(e, field, "content"))});
      } else {
        return unknown_kind(field, type, "NFC, Prepend, Replace, Sequence");
      }
    }
    return {};
  }

  Result<void> read_pre_tokenizer(const json::element& root) {
    Steps steps;
    TRY(flatten(member(root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers", 0, steps));
    for (const auto& [e, field] : steps) {
      const std::string type = TRY(text_member(e, field, "type"));
      if (tables_.byte_level) return unsupported(field + ": nothing may follow ByteLevel");
      if (type == "Split") {
        TRY(read_split(e, field));
      } else if (type == "Digits") {  // SmolLM, DeepSeek LLM: \p{N} is Rust's char::is_numeric
        const bool single = TRY(flag_member(e, field, "individual_digits", false));
        text::SplitStep split;
        split.regex = TRY(text::Regex::compile(single ? "\\p{N}" : "\\p{N}+"));
        parts_->pre_tokenizers.emplace_back(std::move(split));
      } else if (type == "ByteLevel") {
        tables_.byte_level = true;
        if (TRY(flag_member(e, field, "add_prefix_space", true))) {
          parts_->pre_tokenizers.emplace_back(text::PrependStep{text::PrependStep::kAlways, " "});
        }
        if (TRY(flag_member(e, field, "use_regex", true))) {
          text::SplitStep split;
          split.regex = TRY(text::Regex::compile(kGpt2Pattern));
          parts_->pre_tokenizers.emplace_back(std::move(split));
        }
      } else if (type == "Metaspace") {
        TRY(read_metaspace(e, field));
      } else {
        return unknown_kind(field, type, "Split, Digits, ByteLevel, Metaspace, Sequence");
      }
    }
    if (parts_->pre_tokenizers.size() == 1) {
      if (const auto* split = std::get_if<text::SplitStep>(&parts_->pre_tokenizers[0])) {
        // Every character is in a match of the known patterns: of the behaviours only these differ
        // from kIsolated.
        if (split->behavior == text::SplitBehavior::kIsolated) parts_->only_pattern = split->known;
      }
    }
    return {};
  }

  Result<void> read_split(const json::element& e, const std::string& field) {
    text::SplitStep split;
    bool is_regex = false;
    const std::string pattern = TRY(pattern_string(e, field, &is_regex));
    if (!is_regex) {
      split.literal = pattern;
    } else if (split.known = text::known_pattern(pattern);
               split.known == text::KnownPattern::kNone) {
      auto regex = text::Regex::compile(pattern);
      if (!regex.ok()) return with_context(regex.error(), field + ".pattern.Regex");
      split.regex = std::move(*regex);
    }
    const std::string behavior = TRY(text_member(e, field, "behavior"));
    using enum text::SplitBehavior;
    if (behavior == "Isolated") {
      split.behavior = kIsolated;
    } else if (behavior == "Removed") {
      split.behavior = kRemoved;
    } else if (behavior == "MergedWithPrevious") {
      split.behavior = kMergedWithPrevious;
    } else if (behavior == "MergedWithNext") {
      split.behavior = kMergedWithNext;
    } else if (behavior == "Contiguous") {
      split.behavior = kContiguous;
    } else {
      return invalid_argument(field + ".behavior " + in_quotes(behavior) +
                              " is unknown (allowed: Isolated, Removed, MergedWithPrevious, "
                              "MergedWithNext, Contiguous)");
    }
    split.invert = TRY(flag_member(e, field, "invert", false));
    parts_->pre_tokenizers.emplace_back(std::move(split));
    return {};
  }

  Result<void> read_metaspace(const json::element& e, const std::string& field) {
    const std::string replacement = TRY(text_member(e, field, "replacement"));
    if (replacement != "\xE2\x96\x81") {
      return unsupported(field + ".replacement: only U+2581 is supported");
    }
    const bool legacy_prefix = TRY(flag_member(e, field, "add_prefix_space", true));
    const std::string scheme =
        TRY(text_member(e, field, "prepend_scheme", legacy_prefix ? "always" : "never"));
    parts_->pre_tokenizers.emplace_back(text::ReplaceStep{" ", replacement});
    if (scheme == "always" || scheme == "first") {
      const auto when = scheme == "first" ? text::PrependStep::kFirst : text::PrependStep::kAlways;
      parts_->pre_tokenizers.emplace_back(text::PrependStep{when, replacement});
    } else if (scheme != "never") {
      return invalid_argument(field + ".prepend_scheme " + in_quotes(scheme) +
                              " is unknown (allowed: always, first, never)");
    }
    if (TRY(flag_member(e, field, "split", true))) {
      parts_->pre_tokenizers.emplace_back(text::MetaspaceSplitStep{});
    }
    return {};
  }

  Result<void> read_decoder(const json::element& root) {
    const auto decoder = member(root, "decoder");
    constexpr std::string_view kAllowed =
        "ByteLevel, or Replace, ByteFallback, Fuse, Strip in this order";
    if (!decoder)
      return unsupported("decoder: null is not supported (supported: " + std::string(kAllowed) +
                         ")");
    Steps steps;
    TRY(flatten(decoder, "decoder", "decoders", 0, steps));
    int stage = 0;  // 1 Replace, 2 ByteFallback, 3 Fuse, 4 Strip
    parts_->decode.kind = DecodeRules::kByteFallback;
    for (const auto& [e, field] : steps) {
      const std::string type = TRY(text_member(e, field, "type"));
      if (type == "ByteLevel" && steps.size() == 1) {
        parts_->decode.kind = DecodeRules::kByteLevel;
        return {};
      }
      const int now = type == "Replace"        ? 1
                      : type == "ByteFallback" ? 2
                      : type == "Fuse"         ? 3
                      : type == "Strip"        ? 4
                                               : 0;
      if (now == 0) return unknown_kind(field, type, kAllowed);
      if (now < stage || (now == stage && now > 1) || (now == 4 && stage != 3)) {
        return unsupported(field + ": " + type + " is not supported at this place (supported: " +
                           std::string(kAllowed) + ")");
      }
      stage = now;
      if (now == 1) {
        bool is_regex = false;
        std::string pattern = TRY(pattern_string(e, field, &is_regex));
        if (is_regex)
          return unsupported(field + ".pattern: only {\"String\": ...} is supported here");
        tables_.replaces.emplace_back(
            text::ReplaceNormalizer{std::move(pattern), TRY(text_member(e, field, "content"))});
      } else if (now == 2) {
        tables_.byte_tokens = true;
      } else if (now == 4) {
        const std::string content = TRY(text_member(e, field, "content"));
        int64_t start = 0, stop = 0;
        if (e["start"].get(start) != simdjson::SUCCESS ||
            e["stop"].get(stop) != simdjson::SUCCESS || start < 0 || stop != 0 || content.empty() ||
            content.size() != static_cast<size_t>(text::decode_valid(content.data()).length)) {
          return unsupported(field + ": content must be one character, start >= 0 and stop 0");
        }
        parts_->decode.strip = text::decode_valid(content.data()).code;
        parts_->decode.strip_start = static_cast<size_t>(start);
      }
    }
    return {};
  }

  Result<void> read_model(const json::element& model) {
    const std::string type = TRY(text_member(model, "model", "type", "BPE"));
    if (type != "BPE") return unknown_kind("model", type, "BPE");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!TRY(text_member(model, "model", key, "")).empty()) {
        return unsupported(std::string("model.") + key + " is not supported");
      }
    }
    double dropout = 0;
    if (const auto e = member(model, "dropout");
        e && (e->get(dropout) != simdjson::SUCCESS || dropout != 0)) {
      return unsupported("model.dropout is not supported");
    }
    text::BpeOptions options;
    options.byte_level = tables_.byte_level;
    options.byte_fallback = TRY(flag_member(model, "model", "byte_fallback", false));
    options.fuse_unk = TRY(flag_member(model, "model", "fuse_unk", false));
    options.ignore_merges = TRY(flag_member(model, "model", "ignore_merges", false));
    text::Vocab vocab = TRY(read_vocab(model));
    if (const std::string unk = TRY(text_member(model, "model", "unk_token", "")); !unk.empty()) {
      options.unk_id = parts_->names.find(unk);
      if (options.unk_id == text::kNoToken) {
        return invalid_argument("model.unk_token " + in_quotes(unk) + " is not in model.vocab");
      }
    }
    auto merges = TRY(read_merges(model));
    parts_->bpe = TRY(text::Bpe::make(std::move(vocab), std::move(merges), options));
    return {};
  }

  /// Fills parts_->names; returns the encode-side vocabulary.
  Result<text::Vocab> read_vocab(const json::element& model) {
    json::object entries;
    if (model["vocab"].get(entries) != simdjson::SUCCESS)
      return wrong_type("model.vocab", "an object");
    const text::ByteAlphabet alphabet;
    text::Vocab vocab(entries.size());
    parts_->names = text::Vocab(entries.size());
    size_t total = 0;
    for (const auto [key, value] : entries) {
      const int32_t id = TRY(token_id(value, "model.vocab[" + in_quotes(key) + "]"));
      total += key.size();
      if (key.size() > kMaxTokenBytes || total > kMaxVocabBytes) {
        return invalid_argument("model.vocab: a token over 64 KiB, or over 1 GiB in all");
      }
      if (!parts_->names.add(key, id)) {
        return invalid_argument("model.vocab: token " + in_quotes(key) + " or its id " +
                                std::to_string(id) + " appears twice");
      }
      if (!tables_.byte_level) {
        vocab.add(key, id);
      } else if (const auto bytes = alphabet.spelled(key)) {
        vocab.add(*bytes, id);
      }
    }
    return vocab;
  }

  Result<std::vector<text::Merge>> read_merges(const json::element& model) {
    json::array entries;
    if (model["merges"].get(entries) != simdjson::SUCCESS)
      return wrong_type("model.merges", "an array");
    std::vector<text::Merge> merges;
    std::string joined;
    for (const json::element e : entries) {
      const auto field = [&] { return "model.merges[" + std::to_string(merges.size()) + "]"; };
      if (merges.size() >= kMaxMerges) return invalid_argument("model.merges: more than 4194304");
      std::string_view left, right;
      json::array pair;
      if (e.get(left) == simdjson::SUCCESS) {
        const size_t space = left.find(' ');
        if (space == std::string_view::npos ||
            left.find(' ', space + 1) != std::string_view::npos) {
          return wrong_type(field(), "two tokens with one space between them");
        }
        right = left.substr(space + 1);
        left = left.substr(0, space);
      } else if (e.get(pair) != simdjson::SUCCESS || pair.size() != 2 ||
                 pair.at(0).get(left) != simdjson::SUCCESS ||
                 pair.at(1).get(right) != simdjson::SUCCESS) {
        return wrong_type(field(), "a string or an array of two strings");
      }
      if (left.empty() || right.empty())
        return wrong_type(field(), "two tokens that are not empty");
      joined.assign(left).append(right);
      const text::Merge merge{parts_->names.find(left), parts_->names.find(right),
                              parts_->names.find(joined)};
      for (const auto& [id, name] :
           {std::pair{merge.left, left}, {merge.right, right}, {merge.result, joined}}) {
        if (id == text::kNoToken) {
          return invalid_argument(field() + ": token " + in_quotes(name) +
                                  " is not in model.vocab");
        }
      }
      merges.push_back(merge);
    }
    return merges;
  }

  Result<void> add_token(const json::element& e, int32_t id, const std::string& field) {
    text::AddedToken token;
    token.id = id;
    token.content = TRY(text_member(e, field, "content"));
    token.special = TRY(flag_member(e, field, "special", false));
    token.single_word = TRY(flag_member(e, field, "single_word", false));
    token.lstrip = TRY(flag_member(e, field, "lstrip", false));
    token.rstrip = TRY(flag_member(e, field, "rstrip", false));
    token.normalized = TRY(flag_member(e, field, "normalized", !token.special));
    if (token.content.size() > text::AddedTokenMatcher::kMaxTokenBytes) {
      return invalid_argument(field + ".content: longer than 512 bytes");
    }
    if (tables_.added.size() >= kMaxAddedTokens)
      return invalid_argument("added_tokens: more than 262144");
    if (token.content.empty()) return {};  // `tokenizers` ignores them
    const int32_t known = parts_->names.find(token.content);
    if (known == text::kNoToken && !parts_->names.add(token.content, id)) {
      return invalid_argument(field + ".id " + std::to_string(id) + " already belongs to token " +
                              in_quotes(parts_->names.token(id)));
    }
    if (known != text::kNoToken && known != id) {
      return invalid_argument(field + ": token " + in_quotes(token.content) + " already has id " +
                              std::to_string(known));
    }
    tables_.added.push_back(std::move(token));
    return {};
  }

  Result<void> read_post_processor(const json::element& root) {
    Steps steps;
    TRY(flatten(member(root, "post_processor"), "post_processor", "processors", 0, steps));
    for (const auto& [e, field] : steps) {
      const std::string type = TRY(text_member(e, field, "type"));
      if (type == "ByteLevel") continue;  // only moves offsets
      if (type != "TemplateProcessing") {
        return unknown_kind(field, type, "TemplateProcessing, ByteLevel, Sequence");
      }
      json::array single;
      if (e["single"].get(single) != simdjson::SUCCESS)
        return wrong_type(field + ".single", "an array");
      std::vector<int32_t> before, after;
      int sequences = 0;
      for (const json::element piece : single) {
        json::element special;
        if (piece["Sequence"].error() == simdjson::SUCCESS) {
          ++sequences;
          continue;
        }
        if (piece["SpecialToken"].get(special) != simdjson::SUCCESS) {
          return wrong_type(field + ".single", "an array of Sequence and SpecialToken");
        }
        const std::string name = TRY(text_member(special, field + ".single", "id"));
        json::array ids;
        if (e["special_tokens"][name]["ids"].get(ids) != simdjson::SUCCESS) {
          return invalid_argument(field + ".special_tokens has no ids for " + in_quotes(name));
        }
        for (const json::element id : ids) {
          (sequences ? after : before).push_back(TRY(token_id(id, field + ".special_tokens.ids")));
          if (!parts_->names.has((sequences ? after : before).back())) {
            return invalid_argument(field + ".special_tokens: no token has the id of " +
                                    in_quotes(name));
          }
        }
      }
      if (sequences != 1) return unsupported(field + ".single must hold the sequence exactly once");
      if (before.size() + after.size() > 1024)
        return invalid_argument(field + ".single: too many tokens");
      parts_->prefix.insert(parts_->prefix.begin(), before.begin(), before.end());
      parts_->suffix.insert(parts_->suffix.end(), after.begin(), after.end());
    }
    return {};
  }

  /// added_tokens_decoder may know tokens that tokenizer.json does not.
  Result<void> read_config_tokens(const json::element& config) {
    json::object tokens;
    if (config["added_tokens_decoder"].get(tokens) != simdjson::SUCCESS) return {};
    for (const auto [key, value] : tokens) {
      const std::string field = "added_tokens_decoder[" + in_quotes(key) + "]";
      if (key.empty() || key.size() > 9 || key.find_first_not_of("0123456789") != key.npos ||
          std::stol(std::string(key)) > kMaxTokenId) {
        return invalid_argument(field + ": the key must be a token id");
      }
      const std::string content = TRY(text_member(value, field, "content"));
      const bool known = std::any_of(tables_.added.begin(), tables_.added.end(),
                                     [&](const auto& t) { return t.content == content; });
      if (!known) TRY(add_token(value, static_cast<int32_t>(std::stol(std::string(key))), field));
    }
    return {};
  }

  void name_tokens(const text::SpecialTokens& tokens) {
    const std::map<std::string_view, decltype(&parts_->bos)> ids{{"bos_token", &parts_->bos},
                                                                 {"eos_token", &parts_->eos},
                                                                 {"pad_token", &parts_->pad},
                                                                 {"unk_token", &parts_->unk}};
    for (const auto& [name, text] : tokens) {
      const auto id = ids.find(name);
      const int32_t found = parts_->names.find(text);
      if (id != ids.end() && found != text::kNoToken) *id->second = found;
    }
  }

  std::unique_ptr<Tokenizer::Parts> parts_ = std::make_unique<Tokenizer::Parts>();
  text::TokenTables tables_;
};

Result<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json,
                                       std::string_view tokenizer_config_json,
                                       std::string_view special_tokens_map_json) {
  return TokenizerLoader().load(tokenizer_json, tokenizer_config_json, special_tokens_map_json);
}

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& dir) {
  const std::string tokenizer = TRY(text::read_file(dir / "tokenizer.json", kMaxFileBytes));
  std::string config, map;
  std::error_code error;
  for (const auto& [name, content] :
       {std::pair{"tokenizer_config.json", &config}, {"special_tokens_map.json", &map}}) {
    if (!std::filesystem::exists(dir / name, error)) continue;
    *content = TRY(text::read_file(dir / name, kMaxFileBytes));
  }
  auto loaded = from_json(tokenizer, config, map);
  if (!loaded.ok()) return with_context(loaded.error(), dir.string());
  return loaded;
}

}  // namespace weft
