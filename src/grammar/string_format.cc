#include "grammar/string_format.h"

#include <algorithm>
#include <string>
#include <vector>

#include "grammar/node_kit.h"

namespace weft {
namespace {

using Node = GrammarRules::Node;

/// Years 0001 to 9999; the leap years among them; days of each month: 29 February only in those.
Node date(const NodeKit& kit) {
  const Node any = kit.set("09");
  const Node year = kit.any_of({kit.all({kit.set("19"), kit.digits(3, 3)}),
                                kit.all({kit.text("0"), kit.set("19"), kit.digits(2, 2)}),
                                kit.all({kit.text("00"), kit.set("19"), any}),
                                kit.all({kit.text("000"), kit.set("19")})});
  // Two digits divisible by 4, but not 00.
  const Node fourth = kit.any_of({kit.all({kit.text("0"), kit.set("4488")}),
                                  kit.all({kit.set("22446688"), kit.set("004488")}),
                                  kit.all({kit.set("1133557799"), kit.set("2266")})});
  const Node leap_year =
      kit.any_of({kit.all({any, any, fourth}), kit.all({fourth, kit.text("00")})});
  const Node to_28 =
      kit.any_of({kit.all({kit.text("0"), kit.set("19")}), kit.all({kit.text("1"), any}),
                  kit.all({kit.text("2"), kit.set("08")})});
  const Node to_30 = kit.any_of({to_28, kit.text("29"), kit.text("30")});
  const Node long_month = kit.any_text({"01", "03", "05", "07", "08", "10", "12"});
  const Node short_month = kit.any_text({"04", "06", "09", "11"});
  const Node day =
      kit.any_of({kit.all({long_month, kit.text("-"), kit.any_of({to_30, kit.text("31")})}),
                  kit.all({short_month, kit.text("-"), to_30}), kit.all({kit.text("02-"), to_28})});
  return kit.any_of(
      {kit.all({year, kit.text("-"), day}), kit.all({leap_year, kit.text("-02-29")})});
}

Node time(const NodeKit& kit) {
  const Node hour = kit.any_of(
      {kit.all({kit.set("01"), kit.set("09")}), kit.all({kit.text("2"), kit.set("03")})});
  const Node sixty = kit.all({kit.set("05"), kit.set("09")});
  const Node fraction = kit.optional(kit.all({kit.text("."), kit.digits(1, 9)}));
  const Node zone =
      kit.any_of({kit.text("Z"), kit.all({kit.set("++--"), hour, kit.text(":"), sixty})});
  return kit.all({hour, kit.text(":"), sixty, kit.text(":"), sixty, fraction, zone});
}

/// P1W, P1Y2M3DT4H5M6S: at least one part, at least one behind the T, and none left out between two
/// (the grammar of RFC 3339, appendix A).
Node duration(const NodeKit& kit) {
  const auto parts = [&](std::string_view units) {
    std::vector<Node> starts;
    Node tail = kit.rules().empty();
    for (size_t i = units.size(); i-- > 0;) {
      const Node part = kit.all({kit.digits(1, 4), kit.text(units.substr(i, 1)), tail});
      starts.push_back(part);
      tail = kit.optional(part);
    }
    return kit.any_of(starts);
  };
  const Node day = parts("YMD");
  const Node clock = kit.all({kit.text("T"), parts("HMS")});
  const Node week = kit.all({kit.digits(1, 4), kit.text("W")});
  return kit.all({kit.text("P"), kit.any_of({week, kit.all({day, kit.optional(clock)}), clock})});
}

/// A label of a host name: letters and digits, hyphens within.
Node label(const NodeKit& kit, int64_t max_len) {
  const Node edge = kit.set("azAZ09");
  return kit.all({edge, kit.times(kit.all({kit.optional(kit.text("-")), edge}), 0, max_len)});
}

Node octet(const NodeKit& kit) {
  return kit.any_of({kit.set("09"), kit.all({kit.set("19"), kit.set("09")}),
                     kit.all({kit.text("1"), kit.digits(2, 2)}),
                     kit.all({kit.text("2"), kit.set("04"), kit.set("09")}),
                     kit.all({kit.text("25"), kit.set("05")})});
}

Node ipv6(const NodeKit& kit) {
  const Node group = kit.times(kit.set("09afAF"), 1, 4);
  const Node before = kit.all({group, kit.text(":")});
  const Node behind = kit.all({kit.text(":"), group});
  std::vector<Node> options = {kit.all({kit.times(before, 7, 7), group})};
  for (int left = 0; left <= 7; ++left) {
    const Node head = left == 0 ? kit.text(":") : kit.times(before, left, left);
    // `::` stands for at least one group.
    const int most = 7 - left;
    options.push_back(
        kit.all({head, most == 0 ? kit.text(":")
                                 : kit.any_of({kit.text(":"), kit.times(behind, 1, most)})}));
  }
  return kit.any_of(options);
}

Node uuid(const NodeKit& kit) {
  const auto hex = [&](int64_t count) { return kit.times(kit.set("09afAF"), count, count); };
  const Node dash = kit.text("-");
  return kit.all({hex(8), dash, hex(4), dash, hex(4), dash, hex(4), dash, hex(12)});
}

constexpr int64_t kHostLen = 4 * 40 + 24;  ///< the longest host() writes

/// A name with dots, or a single label: `localhost`.
Node host(const NodeKit& kit) {
  return kit.any_of({kit.all({kit.times(kit.all({label(kit, 19), kit.text(".")}), 1, 4),
                              kit.times(kit.set("azAZ"), 1, 24)}),
                     label(kit, 19)});
}

Node ipv4(const NodeKit& kit) {
  const Node part = octet(kit);
  const Node dot = kit.text(".");
  return kit.all({part, dot, part, dot, part, dot, part});
}

/// Longest scheme with colon and slashes, host, port, and what opens path, query and fragment.
constexpr int64_t kUriFixedLen = 10 + 3 + kHostLen + 6 + 3;

/// RFC 3986: https://host:port/path?query#fragment, or without an authority as urn: and mailto:.
/// Path, query and fragment (or what stands behind the colon) have max_tail characters each.
Node uri(const NodeKit& kit, int64_t max_tail) {
  const Node scheme =
      kit.all({kit.set("azAZ"), kit.times(kit.set("azAZ09++--.."), 0, 9), kit.text(":")});
  const Node mark = kit.set("azAZ09--..__~~!!$$&&''(())**++,,;;==::@@");
  const Node percent = kit.all({kit.text("%"), kit.times(kit.set("09afAF"), 2, 2)});
  // A percent escape is three characters; it counts as three.
  const int64_t steps = max_tail < 0 ? -1 : max_tail / 3;
  const Node tail =
      kit.rule("uri_tail", kit.times(kit.any_of({mark, kit.set("//"), percent}), 0, steps));
  const auto behind = [&](std::string_view opening) {
    return kit.optional(kit.all({kit.text(opening), tail}));
  };
  const Node port = kit.optional(kit.all({kit.text(":"), kit.digits(1, 5)}));
  const Node authority = kit.all({kit.text("//"), kit.any_of({host(kit), ipv4(kit)}), port,
                                  behind("/"), behind("?"), behind("#")});
  return kit.all({scheme, kit.any_of({authority, kit.all({mark, tail, behind("?")})})});
}

}  // namespace

std::optional<StringFormat> string_format(GrammarRules& rules, std::string_view name,
                                          int64_t max_len) {
  const NodeKit kit(rules);
  if (name == "date") return StringFormat{date(kit), 10, 10};
  if (name == "time") return StringFormat{time(kit), 9, 24};
  if (name == "date-time") {
    return StringFormat{kit.all({date(kit), kit.text("T"), time(kit)}), 20, 35};
  }
  if (name == "duration") return StringFormat{duration(kit), 3, 32};
  if (name == "email" || name == "idn-email") {
    const Node edge = kit.set("azAZ09");
    const Node local =
        kit.all({edge, kit.times(kit.all({kit.optional(kit.set("..__++--%%")), edge}), 0, 30)});
    const Node word = kit.times(kit.set("azAZ09"), 1, 24);
    const Node domain = kit.all(
        {kit.times(kit.all({word, kit.text(".")}), 1, 3), kit.times(kit.set("azAZ"), 2, 12)});
    return StringFormat{kit.all({local, kit.text("@"), domain}), 6, 61 + 1 + 3 * 25 + 12};
  }
  if (name == "hostname") return StringFormat{host(kit), 1, kHostLen};
  if (name == "ipv4") return StringFormat{ipv4(kit), 7, 15};
  if (name == "ipv6") return StringFormat{ipv6(kit), 2, 39};
  if (name == "uuid") return StringFormat{uuid(kit), 36, 36};
  if (name == "uri") {
    const int64_t tail = max_len < 0 ? -1 : std::max<int64_t>(0, (max_len - kUriFixedLen) / 3);
    const int64_t longest = max_len < 0 ? -1 : kUriFixedLen + 3 * tail;
    return StringFormat{uri(kit, tail), 3, longest};
  }
  return std::nullopt;
}

}  // namespace weft
