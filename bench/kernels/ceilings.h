#pragma once

// What this machine can do, measured in the process of the benchmark that quotes it.

#include "base/thread_pool.h"
#include "device/cpu_info.h"

namespace weft::bench {

/// GB/s that all threads read together from `bytes` of huge pages at `data`, plain loads, the best
/// of `samples` passes and of a few ways to cut the memory into streams.
double read_bandwidth(ThreadPool& pool, const std::byte* data, int64_t bytes, int samples);

/// GB/s, read and written counted, at which all threads together change `bytes` at `data` in place
/// (x <- x + 1, plain loads and stores); the best of `samples` passes and of a few ways to cut the
/// memory into streams.
double update_bandwidth(ThreadPool& pool, std::byte* data, int64_t bytes, int samples);

/// GFLOP/s of the multiply unit that `isa` uses for bf16 (AMX tiles, vdpbf16ps, fp32 FMA), all
/// threads, operands in registers; the best of `samples`.
double bf16_peak(ThreadPool& pool, CpuIsa isa, int samples);

/// Seconds since an arbitrary start.
double now();

}  // namespace weft::bench
