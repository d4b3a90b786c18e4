#pragma once

#include <string>
#include <vector>

#include "api/chat.h"
#include "api/text_output.h"
#include "app/local_engine.h"

namespace weft {

/// A request and what is special about it.
struct LosslessRequest {
  Request request;
  TextOptions text;
  std::vector<std::string> features;  ///< rows of the table that it belongs to
};

/// Chats of many tasks, with every kind of sampling and of constraint by turns; other seeds and
/// other combinations for every `round`. Request i has a seed of its own.
Result<std::vector<LosslessRequest>> make_lossless_requests(const LocalEngine& local,
                                                            const ChatFrontend& chat, int round);

}  // namespace weft
