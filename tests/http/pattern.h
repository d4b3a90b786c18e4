#pragma once

#include <map>
#include <string>

#include "server/json.h"

namespace weft {

/// Values that a script remembers: the name and the JSON text.
using ScriptMemory = std::map<std::string, std::string>;

/// Compares `value` with `pattern`; "" when it fits, else where and why not. Objects of the pattern
/// are subsets, arrays and everything else must be equal; instead of a value stand
///   "<any>" "<null>" "<bool>" "<number>" "<integer>" "<string>" "<array>" "<object>"
///   "<absent>"              no such member
///   "<has:TEXT>" "<begins:TEXT>" "<lacks:TEXT>"   a string with, that begins with, without TEXT
///   "<len:N>"               an array or string (bytes) of N
///   "<range:LO..HI>"        a number
///   "<keep:NAME>"           anything; remembered
///   "<same:NAME>"           what was remembered
///   "<more>"                last in an array: further elements may follow
std::string mismatch(const JsonValue& pattern, const JsonValue& value, ScriptMemory& memory);

/// The value at a path of names and indices ("choices.0.delta.content"), or nullptr.
const JsonValue* value_at(const JsonValue& value, const std::string& path);

}  // namespace weft
