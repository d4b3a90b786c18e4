#include "grammar/json_text.h"

#include <algorithm>
#include <utility>

#include "grammar/json_number.h"

namespace weft {
namespace {

using Node = GrammarRules::Node;
using CodePoints = GrammarRules::CodePoints;

constexpr size_t kGroup = 16;  // optional members side by side in one automaton

struct Escape {
  char32_t point;
  std::string_view text;
};
constexpr Escape kEscapes[] = {{'"', "\\\""}, {'\\', "\\\\"}, {'\b', "\\b"}, {'\f', "\\f"},
                               {'\n', "\\n"}, {'\r', "\\r"},  {'\t', "\\t"}};

bool contains(const CodePoints& ranges, char32_t point) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const auto& range) {
    return range.first <= point && point <= range.second;
  });
}

/// Sorted, disjoint ranges of what is in `ranges` (or, negated, of what is not).
CodePoints normalized(CodePoints ranges, bool negated) {
  std::sort(ranges.begin(), ranges.end());
  CodePoints merged;
  for (const auto& range : ranges) {
    if (!merged.empty() && range.first <= merged.back().second + 1) {
      merged.back().second = std::max(merged.back().second, range.second);
    } else {
      merged.push_back(range);
    }
  }
  if (!negated) return merged;
  CodePoints outside;
  char32_t next = 0;
  for (const auto& [first, last] : merged) {
    if (first > next) outside.emplace_back(next, first - 1);
    next = last + 1;
  }
  if (next <= kLastCodePoint) outside.emplace_back(next, kLastCodePoint);
  return outside;
}

CodePoints without(const CodePoints& ranges, const CodePoints& removed) {
  CodePoints outside = normalized(ranges, true);
  outside.insert(outside.end(), removed.begin(), removed.end());
  return normalized(outside, true);
}

}  // namespace

template <class Body>
Node JsonText::once(const std::string& name, Body body) {
  const auto found = made_.find(name);
  if (found != made_.end()) return found->second;
  const Node node = kit_.rule(name, body());
  made_[name] = node;
  return node;
}

Node JsonText::gap() {
  if (!style_.spaces && !style_.line_breaks) return kit_.rules().empty();
  return kit_.optional(once("gap", [&] {
    std::vector<Node> options;
    if (style_.spaces) options.push_back(kit_.text(" "));
    if (style_.line_breaks) {
      options.push_back(kit_.all(
          {kit_.text("\n"),
           kit_.any_of({kit_.times(kit_.text(" "), 0, style_.max_indent),
                        kit_.times(kit_.text("\t"), 1, std::max(1, style_.max_indent / 8))})}));
    }
    return kit_.any_of(options);
  }));
}

Node JsonText::colon() {
  return style_.spaces ? kit_.all({kit_.text(":"), kit_.optional(kit_.text(" "))}) : kit_.text(":");
}

Node JsonText::comma() {
  return kit_.all({kit_.text(","), gap()});
}

Node JsonText::boolean() {
  return kit_.any_text({"true", "false"});
}

Node JsonText::integer() {
  return once("integer", [&] {
    return kit_.any_of({kit_.text("0"), kit_.all({kit_.optional(kit_.text("-")), kit_.set("19"),
                                                  kit_.digits(0, 17)})});
  });
}

Node JsonText::number() {
  return once("number", [&] { return number_node(kit_.rules(), {}).value(); });
}

Node JsonText::string_char() {
  return once("char", [&] {
    const Node hex = kit_.set("09AFaf");
    // Surrogates only in pairs: a strict reader refuses half a character.
    const Node plain = kit_.any_of({kit_.all({kit_.set("09ACEFacef"), hex, hex, hex}),
                                    kit_.all({kit_.set("DDdd"), kit_.set("07"), hex, hex})});
    const Node pair = kit_.all({kit_.set("DDdd"), kit_.set("89ABab"), hex, hex, kit_.text("\\u"),
                                kit_.set("DDdd"), kit_.set("CFcf"), hex, hex});
    return kit_.any_of(
        {kit_.rules().characters({{0, 0x1f}, {'"', '"'}, {'\\', '\\'}}, true),
         kit_.all({kit_.text("\\"),
                   kit_.any_of({kit_.set("\"\"\\\\//bbffnnrrtt"),
                                kit_.all({kit_.text("u"), kit_.any_of({plain, pair})})})})});
  });
}

Node JsonText::plain_char(TextForm form) {
  return form == TextForm::kJson ? string_char() : character({}, true, form);
}

Node JsonText::text_without(const std::vector<std::string>& tags) {
  // Only a '<' begins a tag, and none stands within one: what follows a '<' up to the next decides.
  const Node plain = kit_.rules().characters({{'<', '<'}}, true);
  return once("text without " + tags.front(), [&] {
    return kit_.all({kit_.times(plain, 0, -1),
                     kit_.times(kit_.all({kit_.text("<"), tag_tail(tags, "<")}), 0, -1)});
  });
}

/// What may stand behind `begun`, the beginning of a tag, up to the next '<'.
Node JsonText::tag_tail(const std::vector<std::string>& tags, const std::string& begun) {
  const Node plain = kit_.rules().characters({{'<', '<'}}, true);
  CodePoints next = {{'<', '<'}};
  std::vector<Node> options = {kit_.rules().empty()};
  for (const std::string& tag : tags) {
    if (tag.size() <= begun.size() || !tag.starts_with(begun)) continue;
    const auto c = static_cast<unsigned char>(tag[begun.size()]);
    if (contains(next, c)) continue;
    next.emplace_back(c, c);
    const std::string longer = begun + tag[begun.size()];
    if (std::find(tags.begin(), tags.end(), longer) != tags.end()) continue;
    options.push_back(kit_.all({kit_.text(longer.substr(begun.size())), tag_tail(tags, longer)}));
  }
  options.push_back(kit_.all({kit_.rules().characters(next, true), kit_.times(plain, 0, -1)}));
  return kit_.any_of(options);
}

Node JsonText::string() {
  return once("string", [&] { return string(0, -1); });
}

Node JsonText::string(int64_t min_len, int64_t max_len) {
  return kit_.all({kit_.text("\""), kit_.times(string_char(), min_len, max_len), kit_.text("\"")});
}

Node JsonText::any_value(int depth) {
  return once("any" + std::to_string(depth), [&] {
    std::vector<Node> options = {string(), number(), kit_.any_text({"true", "false", "null"})};
    if (depth > 0) {
      options.push_back(any_object(depth));
      options.push_back(any_array(depth));
    }
    return kit_.any_of(options);
  });
}

Node JsonText::any_object(int depth) {
  return once("object" + std::to_string(depth), [&] {
    ObjectShape out;
    out.further_key = string();
    out.further_value = any_value(depth - 1);
    return object(out);
  });
}

Node JsonText::any_array(int depth) {
  return once("array" + std::to_string(depth), [&] {
    ArrayShape out;
    out.rest = any_value(depth - 1);
    return array(out);
  });
}

Node JsonText::value(const SchemaValue& value) {
  switch (value.kind) {
    case SchemaValue::Kind::kNull: return kit_.text("null");
    case SchemaValue::Kind::kBool: return kit_.text(value.boolean ? "true" : "false");
    case SchemaValue::Kind::kInteger:
    case SchemaValue::Kind::kNumber: return kit_.text(value.text);
    case SchemaValue::Kind::kString: return kit_.text(json_quoted(value.text));
    case SchemaValue::Kind::kArray: {
      ArrayShape out;
      for (const SchemaValue& item : value.items) out.prefix.push_back(this->value(item));
      out.min_items = static_cast<int64_t>(out.prefix.size());
      return array(out);
    }
    case SchemaValue::Kind::kObject: {
      ObjectShape out;
      for (const auto& [name, member] : value.members) {
        out.members.push_back({name, this->value(member), true});
      }
      return object(out);
    }
  }
  return kit_.rules().nothing();
}

Node JsonText::bracketed(char open, Node inner, char close) {
  return kit_.all(
      {kit_.text(std::string(1, open)), gap(), inner, gap(), kit_.text(std::string(1, close))});
}

Node JsonText::member(const MemberShape& member) {
  return kit_.all({kit_.text(json_quoted(member.name)), colon(), member.value});
}

/// At least one of the members [begin, end), in order. A choice of what comes first with all that
/// may follow would be quadratic; halving makes it n log n.
Node JsonText::some_optional(const std::vector<Node>& members, size_t begin, size_t end) {
  if (end - begin == 1) return members[begin];
  const size_t middle = begin + (end - begin) / 2;
  std::vector<Node> first = {some_optional(members, begin, middle)};
  for (size_t i = middle; i < end; ++i) {
    first.push_back(kit_.optional(kit_.all({comma(), members[i]})));
  }
  return kit_.any_of({kit_.all(first), some_optional(members, middle, end)});
}

/// The same for any number of members: what may follow a member is the rest of its group and the
/// groups behind it, which are rules in a binary tree. An automaton of all of them side by side
/// would be quadratic: its states behind a member are those of all the names that may still come.
Node JsonText::optional_run(const std::vector<Node>& members, size_t begin, size_t end) {
  if (end - begin <= kGroup) return some_optional(members, begin, end);
  const size_t middle = begin + (end - begin) / 2;
  const Node first = kit_.rule("members", optional_run(members, begin, middle));
  const Node second = kit_.rule("members", optional_run(members, middle, end));
  return kit_.any_of({kit_.all({first, kit_.optional(kit_.all({comma(), second}))}), second});
}

Node JsonText::object(const ObjectShape& object) {
  std::vector<Node> members;
  std::vector<bool> required;
  size_t pivot = object.members.size();  // the first required member: commas stand on either side
  for (size_t i = 0; i < object.members.size(); ++i) {
    if (object.members[i].required) pivot = std::min(pivot, i);
    members.push_back(member(object.members[i]));
    required.push_back(object.members[i].required);
  }
  std::optional<Node> further;  // one or more of them
  std::optional<Node> more;     // none or more of them behind another member
  if (object.further_key && object.max_further != 0) {
    const Node one = kit_.all({*object.further_key, colon(), object.further_value});
    const Node next = kit_.all({comma(), one});
    const int64_t most = object.max_further;
    more = kit_.times(next, 0, most);
    further = kit_.all({one, kit_.times(next, 0, most < 0 ? -1 : most - 1)});
  }
  if (pivot < members.size()) {
    std::vector<Node> parts;
    for (size_t i = 0; i < members.size();) {
      size_t run = i;  // behind the optional ones from here on
      while (run < members.size() && !required[run]) ++run;
      if (run - i > kGroup) {
        const Node some = optional_run(members, i, run);
        parts.push_back(
            kit_.optional(i < pivot ? kit_.all({some, comma()}) : kit_.all({comma(), some})));
        i = run;
        continue;
      }
      if (i < pivot) {
        parts.push_back(kit_.optional(kit_.all({members[i], comma()})));
      } else if (i == pivot) {
        parts.push_back(members[i]);
      } else {
        const Node next = kit_.all({comma(), members[i]});
        parts.push_back(required[i] ? next : kit_.optional(next));
      }
      ++i;
    }
    if (more) parts.push_back(*more);
    return bracketed('{', kit_.all(parts), '}');
  }
  std::vector<Node> options;
  if (!members.empty()) {
    // Each member stands in the grammar log n times: as a rule it costs one reference there.
    if (members.size() > 2 && members.size() <= kGroup) {
      for (size_t i = 0; i < members.size(); ++i) members[i] = kit_.rule("member", members[i]);
    }
    Node some = optional_run(members, 0, members.size());
    if (more) some = kit_.all({some, *more});
    options.push_back(some);
  }
  if (further) options.push_back(*further);
  if (options.empty()) return object.non_empty ? kit_.rules().nothing() : kit_.text("{}");
  const Node inner = kit_.all({gap(), kit_.any_of(options), gap(), kit_.text("}")});
  return kit_.all(
      {kit_.text("{"), object.non_empty ? inner : kit_.any_of({kit_.text("}"), inner})});
}

Node JsonText::array(const ArrayShape& array) {
  const auto num_prefix = static_cast<int64_t>(array.prefix.size());
  const int64_t max_items = array.rest            ? array.max_items
                            : array.max_items < 0 ? num_prefix
                                                  : std::min(num_prefix, array.max_items);
  if (max_items >= 0 && array.min_items > max_items) return kit_.rules().nothing();
  if (max_items == 0) return kit_.text("[]");
  // From the back: what may stand behind item i.
  Node tail = kit_.rules().empty();
  if (array.rest && (max_items < 0 || max_items > num_prefix)) {
    const int64_t min = std::max<int64_t>(0, array.min_items - num_prefix);
    const int64_t max = max_items < 0 ? -1 : max_items - num_prefix;
    const Node next = kit_.all({comma(), *array.rest});
    if (num_prefix > 0) {
      tail = kit_.times(next, min, max);
    } else {
      tail = kit_.all(
          {*array.rest, kit_.times(next, std::max<int64_t>(0, min - 1), max < 0 ? -1 : max - 1)});
    }
  }
  // Items that have to be there are written side by side; only those that may be absent nest.
  int64_t i = max_items < 0 ? num_prefix : std::min(num_prefix, max_items);
  for (; i > std::max<int64_t>(array.min_items, 1); --i) {
    tail = kit_.optional(kit_.all({comma(), array.prefix[static_cast<size_t>(i - 1)], tail}));
  }
  std::vector<Node> parts;
  for (int64_t k = 0; k < i; ++k) {
    if (k > 0) parts.push_back(comma());
    parts.push_back(array.prefix[static_cast<size_t>(k)]);
  }
  parts.push_back(tail);
  const Node inner = kit_.all({gap(), kit_.all(parts), gap(), kit_.text("]")});
  return kit_.all(
      {kit_.text("["), array.min_items > 0 ? inner : kit_.any_of({kit_.text("]"), inner})});
}

Node JsonText::key_tail(const std::vector<std::u32string>& names, size_t begin, size_t end,
                        size_t at) {
  std::vector<Node> options;
  CodePoints taken;
  bool is_name = false;
  for (size_t i = begin; i < end;) {
    if (names[i].size() == at) {
      is_name = true;
      ++i;
      continue;
    }
    const char32_t point = names[i][at];
    size_t behind = i;
    while (behind < end && names[behind][at] == point) ++behind;
    taken.emplace_back(point, point);
    options.push_back(kit_.all(
        {character({{point, point}}, false, TextForm::kJson), key_tail(names, i, behind, at + 1)}));
    i = behind;
  }
  if (!is_name) options.push_back(kit_.text("\""));
  const Node rest = once("key", [&] {
    return kit_.all({kit_.times(character({}, true, TextForm::kJson), 0, -1), kit_.text("\"")});
  });
  options.push_back(kit_.all({character(taken, true, TextForm::kJson), rest}));
  return kit_.any_of(options);
}

Node JsonText::other_key(const std::vector<std::string>& names) {
  if (names.empty()) return string();
  std::vector<std::u32string> points;
  points.reserve(names.size());
  for (const std::string& name : names) points.push_back(code_points_of(name));
  std::sort(points.begin(), points.end());
  points.erase(std::unique(points.begin(), points.end()), points.end());
  return kit_.all({kit_.text("\""), key_tail(points, 0, points.size(), 0)});
}

Node JsonText::character(const CodePoints& ranges, bool negated, TextForm form) {
  const CodePoints wanted = normalized(ranges, negated);
  if (form == TextForm::kRaw) {
    const CodePoints plain = without(wanted, {{'<', '<'}});
    return plain.empty() ? kit_.rules().nothing() : kit_.rules().characters(plain);
  }
  const CodePoints plain = without(wanted, {{0, 0x1f}, {'"', '"'}, {'\\', '\\'}});
  std::vector<Node> options;
  if (!plain.empty()) options.push_back(kit_.rules().characters(plain));
  for (const Escape& escape : kEscapes) {
    if (contains(wanted, escape.point)) options.push_back(kit_.text(escape.text));
  }
  return kit_.any_of(options);
}

}  // namespace weft
