#pragma once

#include <string>

namespace weft {

/// The folder of the reference data (`models/<name>/`, `text/<name>/`; its README says what each
/// file is), without a trailing slash: the environment variable WEFT_ORACLE_DIR if it is set, else
/// ../shared/oracle beside the checkout if it is there (all of the data), else what the build
/// unpacked from tests/data/oracle (every family once).
std::string oracle_dir();

/// True where `folder` ("models/qwen3", "text/llama3") is part of oracle_dir(). For the few folders
/// that are not packed in tests/data/oracle; anything else has to be there.
bool oracle_has(const std::string& folder);

/// All of a file; empty where it can't be read.
std::string file_text(const std::string& path);

}  // namespace weft
