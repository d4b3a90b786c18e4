#include "grammar/rules.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "base/check.h"
#include "grammar/automaton.h"
#include "grammar/nfa.h"

namespace weft {

namespace {

enum class Kind : uint8_t {
  kEmpty,
  kNothing,
  kLiteral,
  kCharacters,
  kSequence,
  kChoice,
  kRepeat,
  kReference
};

struct Expression {
  Kind kind = Kind::kEmpty;
  std::string bytes;                   // kLiteral
  std::vector<ByteRanges> characters;  // kCharacters
  std::vector<int32_t> parts;          // kSequence, kChoice, kRepeat (one)
  int64_t min = 0, max = 0;            // kRepeat; max -1: without end
  int32_t rule = -1;                   // kReference
};

struct RuleBody {
  std::string name;
  int32_t body = -1;
};

constexpr int64_t kInlineCost = 20;  // states of a rule that is copied to where it is used
constexpr int kInlinePasses = 3;     // small rules of small rules of small rules
constexpr int64_t kNever = int64_t{1} << 40;

}  // namespace

struct GrammarRules::Parts {
  GrammarLimits limits;
  std::vector<Expression> expressions;
  std::vector<RuleBody> rules;

  Node add(Expression e) {
    expressions.push_back(std::move(e));
    return {static_cast<int32_t>(expressions.size()) - 1};
  }
  int32_t check(Node node) const {
    CHECK(node.id >= 0 && static_cast<size_t>(node.id) < expressions.size(), "a foreign node");
    return node.id;
  }
  std::vector<bool> inlined() const;
  Result<RuleAutomaton> build(int32_t rule, const std::vector<bool>& inlined, int64_t& nodes) const;
};

GrammarRules::GrammarRules(GrammarLimits limits) : parts_(std::make_unique<Parts>()) {
  parts_->limits = limits;
}
GrammarRules::~GrammarRules() = default;
GrammarRules::GrammarRules(GrammarRules&&) noexcept = default;

const GrammarLimits& GrammarRules::limits() const {
  return parts_->limits;
}

GrammarRules::Node GrammarRules::empty() {
  return parts_->add({.kind = Kind::kEmpty});
}

GrammarRules::Node GrammarRules::nothing() {
  return parts_->add({.kind = Kind::kNothing});
}

GrammarRules::Node GrammarRules::literal(std::string_view bytes) {
  return parts_->add({.kind = Kind::kLiteral, .bytes = std::string(bytes)});
}

GrammarRules::CodePoints complement(GrammarRules::CodePoints ranges) {
  std::sort(ranges.begin(), ranges.end());
  GrammarRules::CodePoints out;
  char32_t next = 0;
  for (const auto& [low, high] : ranges) {
    if (low > next) out.emplace_back(next, low - 1);
    next = std::max<char32_t>(next, high + 1);
  }
  if (next <= kLastCodePoint) out.emplace_back(next, kLastCodePoint);
  return out;
}

GrammarRules::Node GrammarRules::characters(const CodePoints& ranges, bool negated) {
  CodePoints sorted = ranges;
  std::sort(sorted.begin(), sorted.end());
  CodePoints merged;
  for (auto [low, high] : sorted) {
    high = std::min(high, kLastCodePoint);
    if (low > high) continue;
    if (!merged.empty() && low <= merged.back().second + 1) {
      merged.back().second = std::max(merged.back().second, high);
    } else {
      merged.emplace_back(low, high);
    }
  }
  if (negated) merged = complement(std::move(merged));
  CodePoints valid;  // without the surrogates
  for (const auto& [low, high] : merged) {
    if (low < 0xD800) valid.emplace_back(low, std::min<char32_t>(high, 0xD7FF));
    if (high > 0xDFFF) valid.emplace_back(std::max<char32_t>(low, 0xE000), high);
  }
  return parts_->add({.kind = Kind::kCharacters, .characters = utf8_ranges(valid)});
}

GrammarRules::Node GrammarRules::sequence(const std::vector<Node>& parts) {
  if (parts.size() == 1) return parts.front();
  Expression e{.kind = parts.empty() ? Kind::kEmpty : Kind::kSequence};
  for (const Node part : parts) e.parts.push_back(parts_->check(part));
  return parts_->add(std::move(e));
}

GrammarRules::Node GrammarRules::choice(const std::vector<Node>& options) {
  if (options.size() == 1) return options.front();
  Expression e{.kind = options.empty() ? Kind::kNothing : Kind::kChoice};
  for (const Node option : options) e.parts.push_back(parts_->check(option));
  return parts_->add(std::move(e));
}

GrammarRules::Node GrammarRules::repeat(Node node, int64_t min, int64_t max) {
  CHECK(min >= 0 && max >= -1, "repeat: bad bounds");
  if (max >= 0 && max < min) return nothing();
  return parts_->add(
      {.kind = Kind::kRepeat, .parts = {parts_->check(node)}, .min = min, .max = max});
}

GrammarRules::Rule GrammarRules::declare(std::string name) {
  parts_->rules.push_back({.name = std::move(name)});
  return {static_cast<int32_t>(parts_->rules.size()) - 1};
}

void GrammarRules::define(Rule rule, Node body) {
  auto& r = parts_->rules.at(static_cast<size_t>(rule.id));
  CHECK(r.body < 0, "rule " + r.name + " is defined twice");
  r.body = parts_->check(body);
}

GrammarRules::Node GrammarRules::reference(Rule rule) {
  CHECK(rule.id >= 0 && static_cast<size_t>(rule.id) < parts_->rules.size(), "a foreign rule");
  return parts_->add({.kind = Kind::kReference, .rule = rule.id});
}

/// Rules without recursion that are so small that a copy is cheaper than a call.
std::vector<bool> GrammarRules::Parts::inlined() const {
  std::vector<bool> small(rules.size(), false);
  std::vector<int64_t> cost(expressions.size());
  for (int pass = 0; pass < kInlinePasses; ++pass) {
    std::vector<int64_t> rule_cost(rules.size(), kNever);
    for (size_t r = 0; r < rules.size(); ++r) {
      if (small[r]) rule_cost[r] = cost[static_cast<size_t>(rules[r].body)];
    }
    for (size_t i = 0; i < expressions.size(); ++i) {  // parts stand before what they are parts of
      const Expression& e = expressions[i];
      int64_t sum = 1;
      for (const int32_t part : e.parts) sum += cost[static_cast<size_t>(part)];
      for (const auto& sequence : e.characters) sum += static_cast<int64_t>(sequence.size()) - 1;
      if (e.kind == Kind::kLiteral) sum = static_cast<int64_t>(e.bytes.size());
      const int64_t copies = std::clamp<int64_t>(std::max(e.min, e.max), 1, kNever);
      if (e.kind == Kind::kRepeat) sum = sum > kNever / copies ? kNever : sum * copies;
      if (e.kind == Kind::kReference) sum = rule_cost[static_cast<size_t>(e.rule)];
      cost[i] = std::min(sum, kNever);
    }
    for (size_t r = 0; r < rules.size(); ++r) {
      small[r] = small[r] ||
                 (rules[r].body >= 0 && cost[static_cast<size_t>(rules[r].body)] <= kInlineCost);
    }
  }
  return small;
}

/// Thompson's construction with a worklist: a task adds the paths from one state to another that
/// spell an expression.
Result<RuleAutomaton> GrammarRules::Parts::build(int32_t rule, const std::vector<bool>& inlined,
                                                 int64_t& nodes) const {
  struct Task {
    int32_t expression, from, to;
  };
  RuleAutomaton nfa;
  const auto fresh = [&] {
    nfa.states.emplace_back();
    return static_cast<int32_t>(nfa.states.size()) - 1;
  };
  const auto at = [&](int32_t s) -> RuleAutomaton::State& {
    return nfa.states[static_cast<size_t>(s)];
  };
  const int32_t start = fresh(), end = fresh();
  at(end).accepting = true;
  std::vector<Task> tasks = {{rules[static_cast<size_t>(rule)].body, start, end}};
  while (!tasks.empty()) {
    if (++nodes > static_cast<int64_t>(limits.max_nodes)) {
      return exhausted("more than " + std::to_string(limits.max_nodes) +
                       " expressions once repetitions are written out");
    }
    if (nfa.states.size() > limits.max_states) {
      return exhausted("more than " + std::to_string(limits.max_states) + " states");
    }
    const Task task = tasks.back();
    tasks.pop_back();
    const Expression& e = expressions[static_cast<size_t>(task.expression)];
    switch (e.kind) {
      case Kind::kEmpty: at(task.from).epsilons.push_back(task.to); break;
      case Kind::kNothing: break;
      case Kind::kLiteral: {
        int32_t from = task.from;
        for (size_t i = 0; i < e.bytes.size(); ++i) {
          const int32_t to = i + 1 == e.bytes.size() ? task.to : fresh();
          const auto byte = static_cast<uint8_t>(e.bytes[i]);
          at(from).edges.push_back({byte, byte, to});
          from = to;
        }
        if (e.bytes.empty()) at(task.from).epsilons.push_back(task.to);
        break;
      }
      case Kind::kCharacters: {
        std::map<std::tuple<uint8_t, uint8_t, int32_t>, int32_t> before;  // shared ends
        for (const ByteRanges& sequence : e.characters) {
          int32_t to = task.to;
          for (size_t i = sequence.size(); i-- > 1;) {
            const auto [low, high] = sequence[i];
            const auto [it, added] = before.try_emplace({low, high, to}, -1);
            if (added) {
              it->second = fresh();
              at(it->second).edges.push_back({low, high, to});
            }
            to = it->second;
          }
          at(task.from).edges.push_back({sequence[0].first, sequence[0].second, to});
        }
        break;
      }
      case Kind::kSequence: {
        int32_t from = task.from;
        for (size_t i = 0; i < e.parts.size(); ++i) {
          const int32_t to = i + 1 == e.parts.size() ? task.to : fresh();
          tasks.push_back({e.parts[i], from, to});
          from = to;
        }
        break;
      }
      case Kind::kChoice:
        for (const int32_t part : e.parts) tasks.push_back({part, task.from, task.to});
        break;
      case Kind::kRepeat: {
        int32_t from = task.from;
        const int64_t copies = std::max(e.min, e.max);
        if (nodes + static_cast<int64_t>(tasks.size()) + copies >
            static_cast<int64_t>(limits.max_nodes)) {
          return exhausted("more than " + std::to_string(limits.max_nodes) +
                           " expressions once repetitions are written out");
        }
        for (int64_t i = 0; i < copies; ++i) {
          if (i >= e.min) at(from).epsilons.push_back(task.to);
          const int32_t to = fresh();
          tasks.push_back({e.parts[0], from, to});
          from = to;
        }
        if (e.max < 0) {
          const int32_t loop = fresh();
          at(from).epsilons.push_back(loop);
          tasks.push_back({e.parts[0], loop, loop});
          from = loop;
        }
        at(from).epsilons.push_back(task.to);
        break;
      }
      case Kind::kReference: {
        const auto& called = rules[static_cast<size_t>(e.rule)];
        if (called.body < 0) return invalid_argument("rule '" + called.name + "' is not defined");
        if (inlined[static_cast<size_t>(e.rule)]) {
          tasks.push_back({called.body, task.from, task.to});
        } else {
          at(task.from).calls.push_back({e.rule, task.to});
        }
        break;
      }
    }
  }
  return nfa;
}

Result<std::shared_ptr<const Grammar>> GrammarRules::compile(Rule root) const {
  const auto& rules = parts_->rules;
  CHECK(root.id >= 0 && static_cast<size_t>(root.id) < rules.size(), "a foreign rule");
  if (parts_->expressions.size() > parts_->limits.max_nodes) {
    return exhausted("more than " + std::to_string(parts_->limits.max_nodes) + " expressions");
  }
  if (rules[static_cast<size_t>(root.id)].body < 0) {
    return invalid_argument("rule '" + rules[static_cast<size_t>(root.id)].name +
                            "' is not defined");
  }
  const std::vector<bool> inlined = parts_->inlined();
  CompileBudget budget{.states = static_cast<int64_t>(parts_->limits.max_states)};
  std::vector<RuleAutomaton> automata(rules.size());
  std::vector<std::string> names;
  for (const RuleBody& rule : rules) names.push_back(rule.name);
  std::vector<bool> seen(rules.size(), false);
  std::vector<int32_t> work = {root.id};
  seen[static_cast<size_t>(root.id)] = true;
  int64_t nodes = 0;
  while (!work.empty()) {
    const int32_t rule = work.back();
    work.pop_back();
    const RuleAutomaton nfa = TRY(parts_->build(rule, inlined, nodes));
    automata[static_cast<size_t>(rule)] = TRY(determinise(nfa, budget));
    for (const auto& state : automata[static_cast<size_t>(rule)].states) {
      for (const auto& call : state.calls) {
        if (seen[static_cast<size_t>(call.rule)]) continue;
        seen[static_cast<size_t>(call.rule)] = true;
        work.push_back(call.rule);
      }
    }
  }
  return std::shared_ptr<const Grammar>(
      std::make_shared<Grammar>(TRY(link(automata, root.id, names))));
}

}  // namespace weft
