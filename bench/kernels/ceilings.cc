#include "bench/kernels/ceilings.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>

namespace weft::bench {
namespace {

constexpr int64_t kRounds = 40000;

// 256 bytes a step from each of `streams` places; with each line, one `ahead` bytes on is
// requested.
template <int Streams, _mm_hint Hint>
[[gnu::target("avx2")]] int64_t read_streams(const std::byte* data, int64_t bytes, int ahead) {
  const int64_t length = bytes / Streams / 256 * 256;
  __m256i sum[4] = {};
  for (int64_t i = 0; i < length; i += 256) {
    for (int s = 0; s < Streams; ++s) {
      const auto* p = reinterpret_cast<const __m256i*>(data + s * length + i);
      for (int k = 0; k < 8; ++k) {
        if (ahead > 0 && k % 2 == 0) {
          _mm_prefetch(reinterpret_cast<const char*>(p + k) + ahead, Hint);
        }
        sum[k % 4] = _mm256_xor_si256(sum[k % 4], _mm256_load_si256(p + k));
      }
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return _mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 3);
}

struct ReadWay {
  int64_t (*read)(const std::byte* data, int64_t bytes, int ahead);
  int ahead;  // bytes; 0: nothing is requested
};
constexpr ReadWay kReadWays[] = {
    {read_streams<1, _MM_HINT_T1>, 0},    {read_streams<1, _MM_HINT_T1>, 1024},
    {read_streams<1, _MM_HINT_T1>, 2048}, {read_streams<2, _MM_HINT_T1>, 0},
    {read_streams<2, _MM_HINT_T1>, 1024}, {read_streams<2, _MM_HINT_T1>, 2048},
    {read_streams<4, _MM_HINT_T1>, 0},    {read_streams<4, _MM_HINT_T1>, 1024},
    {read_streams<4, _MM_HINT_T1>, 2048}, {read_streams<4, _MM_HINT_T0>, 1024},
    {read_streams<8, _MM_HINT_T0>, 1024}, {read_streams<16, _MM_HINT_T0>, 1024},
};

template <int Streams>
[[gnu::target("avx2")]] void update_streams(std::byte* data, int64_t bytes, int ahead) {
  const int64_t length = bytes / Streams / 256 * 256;
  const __m256i one = _mm256_set1_epi32(1);
  for (int64_t i = 0; i < length; i += 256) {
    for (int s = 0; s < Streams; ++s) {
      auto* p = reinterpret_cast<__m256i*>(data + s * length + i);
      for (int k = 0; k < 8; ++k) {
        if (ahead > 0 && k % 2 == 0) {
          _mm_prefetch(reinterpret_cast<const char*>(p + k) + ahead, _MM_HINT_T1);
        }
        _mm256_store_si256(p + k, _mm256_add_epi32(_mm256_load_si256(p + k), one));
      }
    }
  }
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

[[gnu::target("amx-tile,amx-bf16")]] double amx_flops() {
  TileConfig config;
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  for (int64_t i = 0; i < kRounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(kRounds) * 4 * 2 * 16 * 16 * 32;
}

[[gnu::target("avx512f,avx512bf16")]] double dot_flops() {
  __m512 acc[12] = {};
  __m512i x = _mm512_set1_epi32(0x3c003c01);
  for (int64_t i = 0; i < kRounds; ++i) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] = _mm512_dpbf16_ps(acc[j], (__m512bh)x, (__m512bh)x);
  }
  for (auto& a : acc) asm volatile("" : : "v"(a));
  return static_cast<double>(kRounds) * 12 * 64;
}

[[gnu::target("avx512f")]] double fma512_flops() {
  __m512 acc[12] = {}, x = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < kRounds; ++i) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] = _mm512_fmadd_ps(acc[j], x, x);
  }
  for (auto& a : acc) asm volatile("" : : "v"(a));
  return static_cast<double>(kRounds) * 12 * 32;
}

[[gnu::target("avx2,fma")]] double fma256_flops() {
  __m256 acc[12] = {}, x = _mm256_set1_ps(0.5f);
  for (int64_t i = 0; i < kRounds; ++i) {
    asm volatile("" : "+x"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] = _mm256_fmadd_ps(acc[j], x, x);
  }
  for (auto& a : acc) asm volatile("" : : "x"(a));
  return static_cast<double>(kRounds) * 12 * 16;
}

}  // namespace

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double read_bandwidth(ThreadPool& pool, const std::byte* data, int64_t bytes, int samples) {
  std::atomic<int64_t> sink{0};
  double best = 0;
  for (int sample = 0; sample < samples; ++sample) {
    for (const ReadWay& way : kReadWays) {
      const double start = now();
      pool.parallel([&](int worker) {
        const int64_t part = bytes / pool.num_threads() / 4096 * 4096;
        sink += way.read(data + worker * part, part, way.ahead);
      });
      best = std::max(best, static_cast<double>(bytes) / 1e9 / (now() - start));
    }
  }
  return best;
}

double update_bandwidth(ThreadPool& pool, std::byte* data, int64_t bytes, int samples) {
  double best = 0;
  for (int sample = 0; sample < samples; ++sample) {
    for (int streams : {1, 2, 4}) {
      for (int ahead : {0, 1024, 2048}) {
        const double start = now();
        pool.parallel([&](int worker) {
          const int64_t part = bytes / pool.num_threads() / 4096 * 4096;
          std::byte* p = data + worker * part;
          if (streams == 1) update_streams<1>(p, part, ahead);
          if (streams == 2) update_streams<2>(p, part, ahead);
          if (streams == 4) update_streams<4>(p, part, ahead);
        });
        best = std::max(best, 2 * static_cast<double>(bytes) / 1e9 / (now() - start));
      }
    }
  }
  return best;
}

double bf16_peak(ThreadPool& pool, CpuIsa isa, int samples) {
  double best = 0;
  for (int sample = 0; sample < samples; ++sample) {
    std::atomic<int64_t> flops{0};
    const double start = now();
    pool.parallel([&](int) {
      const double done = isa == CpuIsa::kAmx          ? amx_flops()
                          : isa == CpuIsa::kAvx512Bf16 ? dot_flops()
                          : isa == CpuIsa::kAvx512     ? fma512_flops()
                                                       : fma256_flops();
      flops += static_cast<int64_t>(done);
    });
    best = std::max(best, static_cast<double>(flops.load()) / 1e9 / (now() - start));
  }
  return best;
}

}  // namespace weft::bench
