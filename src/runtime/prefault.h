#pragma once

#include <stop_token>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "kv/store.h"

namespace weft {

/// Makes every page of some memory resident, contents unchanged: what a process was promised at
/// start can't be missing later, and no step pays for page faults.
void prefault(ThreadPool& pool, std::byte* data, int64_t bytes);
void prefault(ThreadPool& pool, Arena& arena);

/// The same for the caches, which may be large, beside steps that already use them: by the kernel
/// (MADV_POPULATE_WRITE, Linux 5.14; older ones leave it to the steps). Returns early on `stop`.
void prefault_caches(const KvStore& kv, int num_layers, const std::stop_token& stop);

}  // namespace weft
