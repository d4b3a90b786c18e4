#include "kernels/choose.h"

#include <algorithm>

namespace weft {

std::string choices_table(std::span<const KernelChoice> choices) {
  size_t width = 0;
  for (const KernelChoice& choice : choices) width = std::max(width, choice.op.size());
  std::string out;
  for (const KernelChoice& choice : choices) {
    out += "  " + choice.op + std::string(width + 2 - choice.op.size(), ' ');
    out += choice.name.empty() ? "none" : choice.name;
    for (const KernelChoice::Other& other : choice.others) {
      out += "; not " + other.name + ": " + other.why_not;
    }
    out += '\n';
  }
  return out;
}

}  // namespace weft
