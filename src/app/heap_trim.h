#pragma once

#include <cstddef>

namespace weft {

/// Gives free pages of the heap back to the system: what a crowd of connections or a few huge
/// bodies needed is not kept for ever. For one thread that is otherwise idle.
class HeapTrim {
 public:
  /// To be called about once a second. `idle`: nothing is being answered, so that a moment's lock
  /// on the heap (about 1 ms for 100 MiB) costs nobody.
  void look(bool idle);

 private:
  size_t kept_ = 0;  // free bytes that stayed the last time: they lie between others in use
};

}  // namespace weft
