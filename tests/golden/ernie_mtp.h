#pragma once

#include <string>

namespace weft::testing {

/// A folder with the oracle's tiny checkpoint `name`, ernie4_5 or ernie4_5_moe, and an MTP module,
/// which transformers leaves out of what it saves: its layer is the checkpoint's first, the rest of
/// it noise. Made once a process.
const std::string& ernie_mtp_dir(const std::string& name);

}  // namespace weft::testing
