#pragma once

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "kv/store.h"

namespace weft {

/// Makes every page of some memory resident, contents unchanged: what a process was promised at
/// start can't be missing later, and no step pays for page faults.
void prefault(ThreadPool& pool, std::byte* data, int64_t bytes);
void prefault(ThreadPool& pool, Arena& arena);
void prefault(ThreadPool& pool, const KvStore& kv, int num_layers);

}  // namespace weft
