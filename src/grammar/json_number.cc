#include "grammar/json_number.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "grammar/node_kit.h"

namespace weft {
namespace {

using Node = GrammarRules::Node;

constexpr int kIntegerDigits = 18;
/// Two decimals of at most 15 significant digits are never the same double.
constexpr size_t kExactDigits = 15;
constexpr size_t kMaxFraction = 30;

/// a < b, a == b, a > b as -1, 0, 1; both without a sign.
int compare_magnitudes(const Decimal& a, const Decimal& b) {
  if (a.integer.size() != b.integer.size()) return a.integer.size() < b.integer.size() ? -1 : 1;
  const int order =
      a.integer != b.integer ? a.integer.compare(b.integer) : a.fraction.compare(b.fraction);
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

/// The integer one above or below; `text` > 0 for below.
std::string plus_one(std::string text) {
  for (size_t i = text.size(); i-- > 0;) {
    if (text[i] != '9') {
      ++text[i];
      return text;
    }
    text[i] = '0';
  }
  return "1" + text;
}

std::string minus_one(std::string text) {
  for (size_t i = text.size(); i-- > 0;) {
    if (text[i] != '0') {
      --text[i];
      break;
    }
    text[i] = '9';
  }
  return text.size() > 1 && text[0] == '0' ? text.substr(1) : text;
}

/// A bound of a magnitude; digits behind the last are zeros.
struct Edge {
  Decimal value;
  bool strict = false;
};

/// Writes the texts of magnitudes (>= 0, no sign) between two edges, digit by digit.
class Magnitudes {
 public:
  Magnitudes(GrammarRules& rules, Edge low, Edge high, int fraction_len)
      : kit_(rules), low_(std::move(low)), high_(std::move(high)), fraction_len_(fraction_len) {}

  Node node() {
    const std::string& low = low_.value.integer;
    const std::string& high = high_.value.integer;
    if (compare_magnitudes(low_.value, high_.value) > 0) return kit_.rules().nothing();
    if (low == high) return kit_.all({kit_.text(low), fraction(true, true)});
    std::vector<Node> options = {kit_.all({kit_.text(low), fraction(true, false)}),
                                 kit_.all({kit_.text(high), fraction(false, true)})};
    const std::string first = plus_one(low);
    const std::string last = minus_one(high);
    if (compare_magnitudes({false, first, {}}, {false, last, {}}) <= 0) {
      options.push_back(kit_.all({integers(first, last), fraction(false, false)}));
    }
    return kit_.any_of(options);
  }

 private:
  Node digit(char first, char last) const { return kit_.rules().characters({{first, last}}); }

  /// Integers from low to high, any lengths.
  Node integers(const std::string& low, const std::string& high) {
    std::vector<Node> options;
    if (low.size() == high.size()) return same_len(low, high, 0, true, true);
    options.push_back(same_len(low, low, 0, true, false));
    const auto shorter = static_cast<int64_t>(low.size());
    const auto longer = static_cast<int64_t>(high.size());
    if (longer - shorter > 1) {
      options.push_back(kit_.all({digit('1', '9'), kit_.digits(shorter, longer - 2)}));
    }
    options.push_back(same_len(high, high, 0, false, true));
    return kit_.any_of(options);
  }

  /// The digits from `at` on of integers as long as `low` and `high`; tight: the digits before were
  /// those of the bound.
  Node same_len(const std::string& low, const std::string& high, size_t at, bool tight_low,
                bool tight_high) {
    if (at == low.size()) return kit_.rules().empty();
    const auto rest = static_cast<int64_t>(low.size() - at - 1);
    const char first = tight_low ? low[at] : at == 0 && low.size() > 1 ? '1' : '0';
    const char last = tight_high ? high[at] : '9';
    if (first > last) return kit_.rules().nothing();
    if (!tight_low && !tight_high) return kit_.all({digit(first, last), kit_.digits(rest, rest)});
    std::vector<Node> options;
    const auto add = [&](char a, char b, bool low_stays, bool high_stays) {
      if (a > b) return;
      const Node tail = low_stays || high_stays ? same_len(low, high, at + 1, low_stays, high_stays)
                                                : kit_.digits(rest, rest);
      options.push_back(kit_.all({digit(a, b), tail}));
    };
    if (tight_low && tight_high && first == last) {
      add(first, first, true, true);
    } else {
      if (tight_low) add(first, first, true, false);
      add(static_cast<char>(first + (tight_low ? 1 : 0)),
          static_cast<char>(last - (tight_high ? 1 : 0)), false, false);
      if (tight_high) add(last, last, false, true);
    }
    return kit_.any_of(options);
  }

  static char digit_of(const Edge& edge, size_t at) {
    return at < edge.value.fraction.size() ? edge.value.fraction[at] : '0';
  }
  /// Only zeros follow from `at` on: are the bounds that still bind met?
  bool ends_well(size_t at, bool tight_low, bool tight_high) const {
    if (tight_low && (low_.strict || at < low_.value.fraction.size())) return false;
    return !tight_high || !high_.strict || at < high_.value.fraction.size();
  }

  /// The fraction with its point, or no fraction.
  Node fraction(bool tight_low, bool tight_high) {
    std::vector<Node> options;
    if (ends_well(0, tight_low, tight_high)) options.push_back(kit_.rules().empty());
    if (fraction_len_ > 0) {
      options.push_back(kit_.all({kit_.text("."), fraction_digits(0, tight_low, tight_high)}));
    }
    return kit_.any_of(options);
  }

  Node fraction_digits(size_t at, bool tight_low, bool tight_high) {
    if (tight_low && !low_.strict && at >= low_.value.fraction.size()) tight_low = false;
    const auto rest = static_cast<int64_t>(fraction_len_) - static_cast<int64_t>(at);
    if (!tight_low && !tight_high) return kit_.digits(at == 0 ? 1 : 0, rest);
    std::vector<Node> options;
    if (at > 0 && ends_well(at, tight_low, tight_high)) options.push_back(kit_.rules().empty());
    if (rest > 0) {
      const char first = tight_low ? digit_of(low_, at) : '0';
      const char last = tight_high ? digit_of(high_, at) : '9';
      const auto add = [&](char a, char b, bool low_stays, bool high_stays) {
        if (a > b) return;
        options.push_back(kit_.all({digit(a, b), fraction_digits(at + 1, low_stays, high_stays)}));
      };
      if (tight_low && tight_high && first == last) {
        add(first, first, true, true);
      } else if (first <= last) {
        if (tight_low) add(first, first, true, false);
        add(static_cast<char>(first + (tight_low ? 1 : 0)),
            static_cast<char>(last - (tight_high ? 1 : 0)), false, false);
        if (tight_high) add(last, last, false, true);
      }
    }
    return kit_.any_of(options);
  }

  NodeKit kit_;
  Edge low_;
  Edge high_;
  int fraction_len_;
};

Decimal magnitude(Decimal value) {
  value.negative = false;
  return value;
}

/// All numbers between two signed edges; -0 is never written.
Node between(GrammarRules& rules, const Edge& low, const Edge& high, int fraction_len) {
  const NodeKit kit(rules);
  std::vector<Node> options;
  if (low.value.negative && !low.value.is_zero()) {
    const bool all_negative = high.value.negative && !high.value.is_zero();
    const Edge smallest = all_negative ? Edge{magnitude(high.value), high.strict} : Edge{{}, true};
    const Edge largest{magnitude(low.value), low.strict};
    // Without a fraction the smallest magnitude above zero is one.
    const bool from_one = fraction_len == 0 && !all_negative;
    options.push_back(kit.all(
        {kit.text("-"), Magnitudes(rules, from_one ? Edge{{false, "1", {}}, false} : smallest,
                                   largest, fraction_len)
                            .node()}));
  }
  if (!high.value.negative || high.value.is_zero()) {
    const bool from_zero = low.value.negative && !low.value.is_zero();
    options.push_back(Magnitudes(rules, from_zero ? Edge{} : low,
                                 {magnitude(high.value), high.strict}, fraction_len)
                          .node());
  }
  return kit.any_of(options);
}

/// The integer next to a bound, on the allowed side; `up`: at or above it.
Decimal round_to_integer(const Decimal& bound, bool strict, bool up) {
  Decimal out{bound.negative, bound.integer, {}};
  const bool away = up != bound.negative;  // whether the allowed side has the larger magnitude
  if (bound.is_integer()) {
    if (!strict) return out;
    if (bound.is_zero()) return {!up, "1", {}};
    out.integer = away ? plus_one(out.integer) : minus_one(out.integer);
  } else if (away) {
    out.integer = plus_one(out.integer);
  }
  if (out.is_zero()) out.negative = false;
  return out;
}

/// Whether no text with that many digits behind the point, other than the bound itself, becomes the
/// same double as a strict bound.
bool stays_apart(const Edge& edge, size_t fraction_len) {
  if (!edge.strict || edge.value.is_zero()) return true;
  if (edge.value.integer != "0") return edge.value.integer.size() + fraction_len <= kExactDigits;
  return fraction_len <= kExactDigits + edge.value.fraction.find_first_not_of('0');
}

}  // namespace

Decimal decimal_of(const SchemaValue& number) {
  Decimal out;
  std::string_view text = number.text;
  if (!text.empty() && text[0] == '-') {
    out.negative = true;
    text.remove_prefix(1);
  }
  int exponent = 0;
  if (const size_t e = text.find('e'); e != text.npos) {
    exponent = std::stoi(std::string(text.substr(e + 1)));
    text = text.substr(0, e);
  }
  const size_t point = std::min(text.find('.'), text.size());
  std::string digits(text.substr(0, point));
  int integer_len = static_cast<int>(digits.size()) + exponent;
  if (point < text.size()) digits += text.substr(point + 1);
  if (integer_len < 0) {
    digits.insert(0, static_cast<size_t>(-integer_len), '0');
    integer_len = 0;
  }
  if (static_cast<size_t>(integer_len) > digits.size()) {
    digits.append(static_cast<size_t>(integer_len) - digits.size(), '0');
  }
  out.integer = digits.substr(0, static_cast<size_t>(integer_len));
  out.fraction = digits.substr(static_cast<size_t>(integer_len));
  const size_t first = out.integer.find_first_not_of('0');
  out.integer = first == out.integer.npos ? "0" : out.integer.substr(first);
  out.fraction.erase(out.fraction.find_last_not_of('0') + 1);
  if (out.is_zero()) out.negative = false;
  return out;
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  const int order = compare_magnitudes(a, b);
  return a.negative ? -order : order;
}

void NumberBounds::raise_low(const Decimal& bound, bool strict) {
  const int order = low ? compare(bound, *low) : 1;
  if (order < 0) return;
  low_strict = order == 0 ? low_strict || strict : strict;
  low = bound;
}

void NumberBounds::lower_high(const Decimal& bound, bool strict) {
  const int order = high ? compare(bound, *high) : -1;
  if (order > 0) return;
  high_strict = order == 0 ? high_strict || strict : strict;
  high = bound;
}

bool NumberBounds::accepts(const Decimal& value) const {
  if (low && compare(value, *low) < (low_strict ? 1 : 0)) return false;
  return !high || compare(value, *high) <= (high_strict ? -1 : 0);
}

bool NumberBounds::disjoint(const NumberBounds& other) const {
  const auto below = [](const NumberBounds& a, const NumberBounds& b) {
    if (!a.high || !b.low) return false;
    const int order = compare(*a.high, *b.low);
    return order < 0 || (order == 0 && (a.high_strict || b.low_strict));
  };
  return below(*this, other) || below(other, *this);
}

Result<Node> integer_node(GrammarRules& rules, const NumberBounds& bounds) {
  const std::string most(kIntegerDigits, '9');
  const Decimal low =
      bounds.low ? round_to_integer(*bounds.low, bounds.low_strict, true) : Decimal{true, most, {}};
  const Decimal high = bounds.high ? round_to_integer(*bounds.high, bounds.high_strict, false)
                                   : Decimal{false, most, {}};
  // A bound beyond what is written anyway excludes nothing, or everything.
  const Decimal lowest{true, most, {}};
  const Decimal highest{false, most, {}};
  if (compare(low, highest) > 0 || compare(high, lowest) < 0) {
    return unsupported("integers of more than " + std::to_string(kIntegerDigits) +
                       " digits are not supported");
  }
  const Decimal& from = compare(low, lowest) < 0 ? lowest : low;
  const Decimal& to = compare(high, highest) > 0 ? highest : high;
  if (compare(from, to) > 0) return rules.nothing();
  return between(rules, {from, false}, {to, false}, 0);
}

Result<Node> number_node(GrammarRules& rules, const NumberBounds& bounds) {
  const NodeKit kit(rules);
  if (!bounds.bounded()) {
    return kit.all({kit.optional(kit.text("-")),
                    kit.any_of({kit.text("0"), kit.all({kit.set("19"), kit.digits(0, 15)})}),
                    kit.optional(kit.all({kit.text("."), kit.digits(1, 16)})),
                    kit.optional(kit.all(
                        {kit.set("eeEE"), kit.optional(kit.set("++--")), kit.digits(1, 2)}))});
  }
  const std::string most(kExactDigits, '9');
  Edge low{{true, most, {}}, false};
  Edge high{{false, most, {}}, false};
  size_t integer_len = 1;
  size_t fraction_len = 0;
  for (const bool lower : {true, false}) {
    const auto& bound = lower ? bounds.low : bounds.high;
    if (!bound) continue;
    if (bound->integer.size() > kExactDigits) {
      // Beyond what is written: it excludes nothing, or everything.
      if (bound->negative == lower) continue;
      return unsupported("numbers of more than " + std::to_string(kExactDigits) +
                         " digits are not supported");
    }
    (lower ? low : high) = Edge{*bound, lower ? bounds.low_strict : bounds.high_strict};
    integer_len = std::max(integer_len, bound->integer.size());
    fraction_len = std::max(fraction_len, bound->fraction.size());
  }
  fraction_len = std::max(fraction_len, kExactDigits - integer_len);
  if (fraction_len > kMaxFraction || !stays_apart(low, fraction_len) ||
      !stays_apart(high, fraction_len)) {
    return unsupported("a bound has more digits than are supported");
  }
  if (compare(low.value, high.value) > 0) return rules.nothing();
  return between(rules, low, high, static_cast<int>(fraction_len));
}

}  // namespace weft
