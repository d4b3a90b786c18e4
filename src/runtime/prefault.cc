#include "runtime/prefault.h"

#include <sys/mman.h>

#include <algorithm>

namespace weft {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kPiece = int64_t{2} << 20;  // one huge page at a time a thread

}  // namespace

void prefault(ThreadPool& pool, std::byte* data, int64_t bytes) {
  pool.for_each(bytes, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kPage) {
      volatile std::byte* page = data + at;
      *page = *page;
    }
  });
}

void prefault(ThreadPool& pool, Arena& arena) {
  const ArenaScope scope(arena);
  const int64_t bytes = (arena.capacity() - arena.mark()) / 64 * 64;
  prefault(pool, static_cast<std::byte*>(arena.take(bytes)), bytes);
}

void prefault_caches(const KvStore& kv, int num_layers, const std::stop_token& stop) {
  const auto populate = [&](void* data, int64_t bytes) {
    auto* const first = static_cast<std::byte*>(data);
    const int64_t skip =
        (kPage - static_cast<int64_t>(reinterpret_cast<uintptr_t>(first) % kPage)) % kPage;
    for (int64_t at = skip; at + kPage <= bytes && !stop.stop_requested(); at += kPiece) {
      const int64_t length = std::min(kPiece, bytes - at) / kPage * kPage;
      if (madvise(first + at, static_cast<size_t>(length), MADV_POPULATE_WRITE) != 0) return;
    }
  };
  for (int32_t i = 0; i < num_layers; ++i) {
    const LayerCache& layer = kv.layer(LayerId{i});
    if (const auto* paged = std::get_if<PagedKv>(&layer)) {
      populate(paged->data, paged->num_blocks * paged->block_bytes);
    } else if (const auto* state = std::get_if<StateSlots>(&layer)) {
      for (const TensorView& plane : {state->conv, state->recurrent}) {
        populate(plane.data, plane.bytes());
      }
    }
  }
}

}  // namespace weft
