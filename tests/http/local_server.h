#pragma once

#include <memory>

#include "http/script.h"

namespace weft {

/// The whole server in this process: transport, service, front end with the demo model's tokenizer
/// and template, the fake device. Settings (all optional):
///   rate=N            tokens a second of each sequence; 0: as fast as it goes
///   keys=A,B          API keys
///   names=A,B         names of the model; "demo"
///   origins=A,B       CORS
///   root=/x           a prefix of every route
///   max_len=N         max_model_len
///   max_sequences=N   running and waiting
///   max_n=N
///   max_body=N        bytes
///   header_timeout=MS body_timeout=MS
///   loading=yes       the model is not there until `DO load`
/// Commands: load, drain, stop-engine. Null when a setting is unknown or the server can't start.
std::unique_ptr<ScriptServer> start_local_server(const ScriptSettings& settings);

}  // namespace weft
