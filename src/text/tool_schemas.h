#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace weft::text {

/// JSON types as a set of bits.
enum JsonType : uint8_t {
  kJsonNull = 1,
  kJsonBoolean = 2,
  kJsonNumber = 4,
  kJsonString = 8,
  kJsonArray = 16,
  kJsonObject = 32,
};

/// Names and parameter types of a request's tools.
class ToolSchemas {
 public:
  /// `tools_json`: array of {"type": "function", "function": {"name", "parameters"}}. What is not
  /// of that form is passed over: the request has been checked elsewhere.
  explicit ToolSchemas(std::string_view tools_json);

  bool has(std::string_view tool) const { return tools_.find(tool) != tools_.end(); }
  /// Types that the tool's schema allows for a parameter; kJsonString alone where it says nothing.
  uint8_t types(std::string_view tool, std::string_view parameter) const;

 private:
  using Parameters = std::map<std::string, uint8_t, std::less<>>;
  std::map<std::string, Parameters, std::less<>> tools_;
};

}  // namespace weft::text
