// Filters on sequences and numbers, and the dispatch of all filters.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "text/jinja_interp.h"

namespace weft::jinja {
namespace {

bool flag(const Value* v, bool fallback = false) {
  return v ? truthy(*v) : fallback;
}

/// Strings compare without case unless asked otherwise.
Value case_key(const Value& v, bool case_sensitive) {
  if (case_sensitive || !v.is_string()) return v;
  return Value::string(lower(v.text().str()));
}

}  // namespace

Value Interpreter::filter(const std::string& name, const Value& v, const Args& args) {
  spend(4);
  Value result;
  if (text_filter(name, v, args, &result) || sequence_filter(name, v, args, &result)) return result;
  const std::string where = "filter '" + name + "'";
  if (name == "default" || name == "d") {
    const auto a = bind(args, where, {"default_value", "boolean"});
    if (!v.is_undefined() && !(flag(a[1]) && !truthy(v))) return v;
    return a[0] ? *a[0] : Value::string("");
  }
  if (name == "abs") {
    bind(args, where, {});
    if (v.is_undefined()) fail(undefined_message(v));
    if (!v.is_number()) fail(std::string("bad operand type for abs(): '") + type_name(v) + "'");
    if (v.is(Kind::kFloat)) return Value::real(std::fabs(v.d), v.user);
    return v.i < 0 ? binary('-', Value::integer(0, v.user), v) : Value::integer(v.i, v.user);
  }
  if (name == "int") return to_integer(v, args);
  if (name == "float") return to_float(v, args);
  if (name == "round") return round(v, args);
  if (name == "attr") {
    const auto a = bind(args, where, {"name"});
    if (!a[0] || !a[0]->is_string()) fail("filter 'attr' needs a name");
    if (v.is(Kind::kDict) && !has_method(v, a[0]->text().str())) return missing(v, *a[0]);
    return attribute(v, a[0]->text().str());
  }
  if (name == "tojson") {
    const auto a = bind(args, where, {"ensure_ascii", "indent", "separators", "sort_keys"});
    JsonStyle style;
    style.ensure_ascii = flag(a[0]);
    style.sort_keys = flag(a[3]);
    if (a[1] && !a[1]->is(Kind::kNone)) {
      style.indent = static_cast<int>(std::clamp<int64_t>(integer(*a[1], "indent"), 0, 32));
      style.item_separator.assign(1, ',');
    }
    if (a[2] && !a[2]->is(Kind::kNone)) {
      const std::vector<Value> pair = iterate(*a[2]);
      if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
        fail("separators must be two strings");
      style.item_separator = pair[0].text().str();
      style.key_separator = pair[1].text().str();
    }
    return text(to_json(v, style));
  }
  fail("filter '" + name + "' is not known");
}

Value Interpreter::to_integer(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'int'", {"default", "base"});
  Value fallback = a[0] ? *a[0] : Value::integer(0);
  const int base = a[1] ? static_cast<int>(std::clamp<int64_t>(integer(*a[1], "base"), 0, 99)) : 10;
  if (v.is_undefined()) fail(undefined_message(v));
  double d = 0;
  if (v.is_string()) {
    const std::string& s = v.text().str();
    if (const auto i = parse_int(s, base)) return Value::integer(*i, v.text().any_user());
    const auto real = parse_float(s);
    if (!real) return fallback;
    d = *real;
  } else if (v.is_integral()) {
    return Value::integer(v.i, v.user);
  } else if (v.is(Kind::kFloat)) {
    d = v.d;
  } else {
    return fallback;
  }
  if (!std::isfinite(d)) {
    if (v.is_string() || std::isnan(d)) return fallback;
    fail("cannot convert float infinity to integer");
  }
  if (std::fabs(d) >= 9.2e18) fail("integer beyond 64 bits");
  return Value::integer(static_cast<int64_t>(d), v.user);
}

Value Interpreter::to_float(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'float'", {"default"});
  if (v.is_undefined()) fail(undefined_message(v));
  if (v.is_number()) return Value::real(v.number(), v.user);
  if (v.is_string()) {
    if (const auto d = parse_float(v.text().str())) return Value::real(*d, v.text().any_user());
  }
  return a[0] ? *a[0] : Value::real(0);
}

Value Interpreter::round(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'round'", {"precision", "method"});
  const int64_t precision = a[0] ? integer(*a[0], "precision") : 0;
  const std::string method = a[1] ? to_text(*a[1]).str() : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    fail("method must be common, ceil or floor");
  if (v.is_undefined()) fail(undefined_message(v));
  if (!v.is_number())
    fail(std::string("type ") + type_name(v) + " doesn't define __round__ method");
  if (precision < -300 || precision > 300) fail("precision must be between -300 and 300");
  if (method == "common") {
    if (v.is_integral()) {
      if (precision >= 0) return Value::integer(v.i, v.user);
      if (precision < -18) return Value::integer(0, v.user);
      int64_t unit = 1;
      for (int64_t k = precision; k < 0; ++k) unit *= 10;
      int64_t down = v.i / unit * unit, rest = v.i - down;
      if (rest < 0) rest += unit, down -= unit;
      const bool up = rest * 2 > unit || (rest * 2 == unit && (down / unit) % 2 != 0);
      return Value::integer(up ? down + unit : down, v.user);
    }
    if (!std::isfinite(v.d)) return v;
    if (precision >= 0) {
      // printf rounds the exact binary value, ties to even, as Python does.
      char buffer[700];
      std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(precision), v.d);
      return Value::real(std::strtod(buffer, nullptr), v.user);
    }
    const double unit = std::pow(10.0, static_cast<double>(-precision));
    return Value::real(std::nearbyint(v.d / unit) * unit, v.user);
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  const double scaled = v.number() * unit;
  return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit, v.user);
}

/// a.b.0: each part looked up as an item, then as an attribute.
Value Interpreter::attribute_path(const Value& v, const Value& path, const Value* fallback) {
  if (path.is(Kind::kNone)) return v;
  if (!path.is_string()) return item(v, path);
  Value at = v;
  const std::string& s = path.text().str();
  for (size_t begin = 0; begin <= s.size();) {
    const size_t end = std::min(s.find('.', begin), s.size());
    const std::string part = s.substr(begin, end - begin);
    const bool number =
        !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == part.npos;
    at = item(at, number ? Value::integer(std::stol(part)) : Value::string(part));
    if (fallback && at.is_undefined()) at = *fallback;
    begin = end + 1;
  }
  return at;
}

Value Interpreter::select_or_reject(const std::string& name, const Value& v, const Args& args) {
  if (!truthy(v)) return make_iterator({});  // even none, even with missing arguments
  const bool by_attribute = name.ends_with("attr");
  const bool wanted = name.starts_with("select");
  Args rest = args;
  Value path = Value::none();
  const auto take = [&] {
    Value first = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
    return first;
  };
  if (by_attribute) {
    if (rest.positional.empty()) fail("Missing parameter for attribute name");
    path = take();
  }
  std::string test_name;
  if (!rest.positional.empty()) test_name = to_text(take()).str();
  std::vector<Value> kept;
  for (Value& item : iterate(v)) {
    const Value subject = by_attribute ? attribute_path(item, path, nullptr) : item;
    const bool yes = test_name.empty() ? truthy(subject) : test(test_name, subject, rest);
    if (yes == wanted) kept.push_back(std::move(item));
  }
  return make_iterator(std::move(kept));
}

Value Interpreter::map(const Value& v, const Args& args) {
  std::vector<Value> out;
  if (!truthy(v)) return make_iterator({});
  if (args.positional.empty() && !args.keyword.empty()) {
    const auto a = bind(args, "filter 'map'", {"attribute", "default"});
    if (!a[0]) fail("map requires a filter argument");
    const Value* fallback = a[1] && !a[1]->is(Kind::kNone) ? a[1] : nullptr;
    for (const Value& item : iterate(v)) out.push_back(attribute_path(item, *a[0], fallback));
  } else {
    if (args.positional.empty()) fail("map requires a filter argument");
    Args rest = args;
    rest.positional.erase(rest.positional.begin());
    const std::string name = to_text(args.positional[0]).str();
    for (const Value& item : iterate(v)) out.push_back(filter(name, item, rest));
  }
  return make_iterator(std::move(out));
}

Value Interpreter::sort(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'sort'", {"reverse", "case_sensitive", "attribute"});
  const bool case_sensitive = flag(a[1]);
  std::vector<Value> paths;
  if (a[2] && a[2]->is_string()) {
    const Value comma = Value::string(",");
    paths = split(a[2]->text(), &comma, -1, false);
  } else if (a[2] && !a[2]->is(Kind::kNone)) {
    paths.push_back(*a[2]);
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : iterate(v)) {
    std::vector<Value> keys;
    for (const Value& path : paths)
      keys.push_back(case_key(attribute_path(item, path, nullptr), case_sensitive));
    Value key = paths.empty()       ? case_key(item, case_sensitive)
                : paths.size() == 1 ? keys[0]
                                    : Value::list(keys);
    keyed.emplace_back(std::move(key), item);
  }
  spend(keyed.size() * 16);
  const bool reverse = flag(a[0]);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) {
    return reverse ? compare(y.first, x.first) < 0 : compare(x.first, y.first) < 0;
  });
  std::vector<Value> out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return make_list(std::move(out));
}

Value Interpreter::group_by(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'groupby'", {"attribute", "default", "case_sensitive"});
  if (!a[0]) fail("filter 'groupby' needs an attribute");
  const bool case_sensitive = flag(a[2]);
  const Value* fallback = a[1] && !a[1]->is(Kind::kNone) ? a[1] : nullptr;
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : iterate(v))
    keyed.emplace_back(attribute_path(item, *a[0], fallback), item);
  spend(keyed.size() * 16);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) {
    return compare(case_key(x.first, case_sensitive), case_key(y.first, case_sensitive)) < 0;
  });
  std::vector<Value> groups;
  for (size_t i = 0; i < keyed.size();) {
    const Value key = keyed[i].first;
    std::vector<Value> members;
    while (i < keyed.size() &&
           equals(case_key(keyed[i].first, case_sensitive), case_key(key, case_sensitive))) {
      members.push_back(keyed[i++].second);
    }
    groups.push_back(Value::tuple({key, make_list(std::move(members))}, true));
  }
  return make_list(std::move(groups));
}

Value Interpreter::unique(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'unique'", {"case_sensitive", "attribute"});
  DictObject seen;
  std::vector<Value> out;
  for (const Value& item : iterate(v)) {
    const Value key = case_key(a[1] ? attribute_path(item, *a[1], nullptr) : item, flag(a[0]));
    if (seen.find(key)) continue;
    if (!key.is_string()) spend(seen.entries.size());
    seen.set(key, Value::none());
    out.push_back(item);
  }
  return make_iterator(std::move(out));
}

Value Interpreter::batch(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'batch'", {"linecount", "fill_with"});
  if (!a[0]) fail("filter 'batch' needs a linecount");
  const int64_t size = integer(*a[0], "linecount");
  if (size < 0 || size > 100'000) fail("linecount must be between 0 and 100000");
  std::vector<Value> rows, row;
  for (const Value& item : iterate(v)) {
    if (static_cast<int64_t>(row.size()) == size) {
      rows.push_back(make_list(std::move(row)));
      row.clear();
    }
    row.push_back(item);
  }
  if (!row.empty()) {
    if (a[1] && !a[1]->is(Kind::kNone))
      row.resize(std::max(row.size(), static_cast<size_t>(size)), *a[1]);
    rows.push_back(make_list(std::move(row)));
  }
  return make_iterator(std::move(rows));
}

Value Interpreter::slices(const Value& v, const Args& args) {
  const auto a = bind(args, "filter 'slice'", {"slices", "fill_with"});
  if (!a[0]) fail("filter 'slice' needs a number");
  const int64_t count = integer(*a[0], "slices");
  if (count < 1 || count > 100'000) fail("slices must be between 1 and 100000");
  const std::vector<Value> items = iterate(v);
  const auto n = static_cast<int64_t>(items.size());
  std::vector<Value> columns;
  auto from = items.begin();
  for (int64_t k = 0; k < count; ++k) {
    const auto to = from + n / count + (k < n % count);
    std::vector<Value> column(from, to);
    if (a[1] && !a[1]->is(Kind::kNone) && k >= n % count) column.push_back(*a[1]);
    columns.push_back(make_list(std::move(column)));
    from = to;
  }
  return make_iterator(std::move(columns));
}

bool Interpreter::sequence_filter(const std::string& name, const Value& v, const Args& args,
                                  Value* result) {
  const std::string where = "filter '" + name + "'";
  if (name == "length" || name == "count") {
    bind(args, where, {});
    *result = Value::integer(length(v));
  } else if (name == "list") {
    bind(args, where, {});
    *result = make_list(iterate(v));
  } else if (name == "first") {
    bind(args, where, {});
    std::vector<Value> items;
    if (v.is(Kind::kIterator)) {
      auto& iterator = v.as<IteratorObject>();
      if (iterator.next < iterator.items.size()) items.push_back(iterator.items[iterator.next++]);
    } else {
      items = iterate(v);
    }
    *result =
        items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
  } else if (name == "last") {
    bind(args, where, {});
    if (v.is(Kind::kIterator)) fail("'generator' object is not reversible");
    const std::vector<Value> items = iterate(v);
    *result = items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
  } else if (name == "reverse") {
    bind(args, where, {});
    std::vector<Value> items = iterate(v);
    std::reverse(items.begin(), items.end());
    if (v.is_string()) {
      Tagged out;
      for (const Value& c : items) out.append(c.text());
      *result = text(std::move(out));
    } else {
      *result = make_iterator(std::move(items));
    }
  } else if (name == "join") {
    const auto a = bind(args, where, {"d", "attribute"});
    const Tagged separator = a[0] ? to_text(*a[0]) : Tagged();
    std::vector<Value> parts;
    for (const Value& item : iterate(v)) {
      if (!parts.empty() && !separator.empty()) parts.push_back(Value::string(separator));
      parts.push_back(a[1] && !a[1]->is(Kind::kNone) ? attribute_path(item, *a[1], nullptr) : item);
      if (parts.back().is_undefined()) parts.back() = Value::string("");
    }
    *result = join_texts(parts, /*markup=*/false);
  } else if (name == "items") {
    bind(args, where, {});
    if (v.is_undefined()) {
      *result = make_iterator({});
      return true;
    }
    if (!v.is(Kind::kDict)) fail("Can only get item pairs from a mapping.");
    std::vector<Value> pairs;
    for (const auto& [key, value] : v.as<DictObject>().entries)
      pairs.push_back(Value::tuple({key, value}));
    *result = make_iterator(std::move(pairs));
  } else if (name == "dictsort") {
    const auto a = bind(args, where, {"case_sensitive", "by", "reverse"});
    if (!v.is(Kind::kDict)) fail("filter 'dictsort' needs a dict");
    const std::string by = a[1] ? to_text(*a[1]).str() : "key";
    if (by != "key" && by != "value") fail("You can only sort by either 'key' or 'value'");
    auto entries = v.as<DictObject>().entries;
    spend(entries.size() * 16);
    const auto key = [&](const auto& e) {
      return case_key(by == "key" ? e.first : e.second, flag(a[0]));
    };
    const bool reverse = flag(a[2]);
    std::stable_sort(entries.begin(), entries.end(), [&](const auto& x, const auto& y) {
      return reverse ? compare(key(y), key(x)) < 0 : compare(key(x), key(y)) < 0;
    });
    std::vector<Value> pairs;
    for (const auto& [k, value] : entries) pairs.push_back(Value::tuple({k, value}));
    *result = make_list(std::move(pairs));
  } else if (name == "max" || name == "min") {
    const auto a = bind(args, where, {"case_sensitive", "attribute"});
    const std::vector<Value> items = iterate(v);
    const Value* best = nullptr;
    Value best_key;
    for (const Value& item : items) {
      const Value key = case_key(a[1] ? attribute_path(item, *a[1], nullptr) : item, flag(a[0]));
      if (!best || (name == "max" ? compare(key, best_key, ">") > 0 : compare(key, best_key) < 0)) {
        best = &item;
        best_key = key;
      }
    }
    *result = best ? *best : Value::undefined("No aggregated item, sequence was empty.");
  } else if (name == "sum") {
    const auto a = bind(args, where, {"attribute", "start"});
    Value total = a[1] ? *a[1] : Value::integer(0);
    for (const Value& item : iterate(v)) {
      const Value part =
          a[0] && !a[0]->is(Kind::kNone) ? attribute_path(item, *a[0], nullptr) : item;
      if (total.is_string()) fail("sum() can't sum strings [use ''.join(seq) instead]");
      if (total.is_number() != part.is_number() && !part.is_undefined()) {
        fail(std::string("unsupported operand type(s) for +: '") + type_name(total) + "' and '" +
             type_name(part) + "'");
      }
      total = binary('+', total, part);
    }
    *result = total;
  } else if (name == "map") {
    *result = map(v, args);
  } else if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") {
    *result = select_or_reject(name, v, args);
  } else if (name == "sort") {
    *result = sort(v, args);
  } else if (name == "unique") {
    *result = unique(v, args);
  } else if (name == "groupby") {
    *result = group_by(v, args);
  } else if (name == "batch") {
    *result = batch(v, args);
  } else if (name == "slice") {
    *result = slices(v, args);
  } else {
    return false;
  }
  return true;
}

}  // namespace weft::jinja
