#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "grammar/json_value.h"
#include "grammar/rules.h"

namespace weft {

/// A decimal number as written: no leading zeros before the point, no trailing ones behind it.
struct Decimal {
  bool negative = false;
  std::string integer = "0";
  std::string fraction;

  bool is_zero() const { return integer == "0" && fraction.empty(); }
  bool is_integer() const { return fraction.empty(); }
};

/// The shortest decimal that is this JSON number.
Decimal decimal_of(const SchemaValue& number);
/// -1, 0 or 1.
int compare(const Decimal& a, const Decimal& b);

/// minimum, maximum and their exclusive forms, merged to the tightest.
struct NumberBounds {
  std::optional<Decimal> low, high;
  bool low_strict = false, high_strict = false;

  bool bounded() const { return low || high; }
  void raise_low(const Decimal& bound, bool strict);
  void lower_high(const Decimal& bound, bool strict);
  bool accepts(const Decimal& value) const;
  /// No number is within both.
  bool disjoint(const NumberBounds& other) const;
};

/// JSON integers (no fraction, no exponent, no -0) within the bounds: exactly these. Without bounds
/// at most 18 digits, so that 64 bits hold them. Errors: bounds beyond 18 digits.
Result<GrammarRules::Node> integer_node(GrammarRules& rules, const NumberBounds& bounds);

/// JSON numbers within the bounds. Without bounds: at most 16 digits before the point, 16 behind it
/// and 2 of the exponent, so that a double holds them. With bounds no exponent, and no more digits
/// than keep a text that is within a strict bound from being rounded onto it.
/// Errors: bounds with more digits than that.
Result<GrammarRules::Node> number_node(GrammarRules& rules, const NumberBounds& bounds);

}  // namespace weft
