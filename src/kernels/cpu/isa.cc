#include "kernels/cpu/isa.h"

#include <string>

#include "base/check.h"

namespace weft {

void isa_check_failed(const char* condition, const char* file, int line) {
  panic(condition, std::string("in ") + file + ":" + std::to_string(line));
}

}  // namespace weft
