#pragma once

namespace weft {

/// Takes what the hard limit on open files allows: a shell's 1,024 would hold fewer connections
/// than a server or a benchmark has to.
void raise_descriptor_limit();

}  // namespace weft
