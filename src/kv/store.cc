#include "kv/store.h"

#include <string>

#include "base/align.h"
#include "device/gpu.h"
#include "kernels/gdn_slots.h"

namespace weft {
namespace {

int64_t conv_channels(const GdnShape& s) {
  return int64_t{2} * s.key_heads * s.key_dim + int64_t{s.value_heads} * s.value_dim;
}

int64_t window_rows(const GdnShape& s, int64_t kept_rows) {
  return s.conv_width - 1 + kept_window_rows(conv_channels(s), s.value_heads, kept_rows);
}
/// Bytes of one slot of one layer: the convolution's window with kept rows, and the recurrent
/// state. Each plane of a layer starts at a multiple of 64 bytes.
int64_t conv_bytes(const GdnShape& s, int64_t kept_rows) {
  return window_rows(s, kept_rows) * conv_channels(s) * 4;
}
int64_t recurrent_bytes(const StateSpec& spec) {
  const GdnShape& s = spec.shape;
  return int64_t{s.value_heads} * s.value_dim * s.key_dim * dtype_size(spec.dtype);
}

/// Counts of a cache.
struct Extent {
  int64_t blocks = 0, slots = 0, kept_rows = 0;
};

/// Bytes of a layer's cache.
int64_t layer_bytes(const CacheSpec& spec, const OpTable& ops, const Extent& n) {
  if (const auto* paged = std::get_if<PagedSpec>(&spec)) {
    return n.blocks * ops.kv_block_bytes(*paged) + aligned(n.blocks * paged->planned_heads * 4);
  }
  if (const auto* state = std::get_if<StateSpec>(&spec)) {
    return aligned(n.slots * conv_bytes(state->shape, n.kept_rows)) +
           aligned(n.slots * recurrent_bytes(*state));
  }
  return 0;
}

}  // namespace

int64_t kept_width(const GdnShape& shape) {
  const int64_t keys = int64_t{shape.key_heads} * shape.key_dim;
  const int64_t values = int64_t{shape.value_heads} * shape.value_dim;
  return (2 * keys + values + 2 * int64_t{shape.value_heads} + 15) / 16 * 16;
}

CacheBytes cache_bytes(std::span<const CacheSpec> specs, const OpTable& ops, int64_t kept_rows) {
  CacheBytes out;
  for (const CacheSpec& spec : specs) {
    out.per_block += layer_bytes(spec, ops, {.blocks = 1});
    if (const auto* state = std::get_if<StateSpec>(&spec)) {
      out.per_slot += conv_bytes(state->shape, kept_rows) + recurrent_bytes(*state);
      out.per_kept_row += kept_width(state->shape) * static_cast<int64_t>(sizeof(float));
    }
  }
  return out;
}

Result<KvStore> KvStore::create(std::span<const CacheSpec> specs, const OpTable& ops,
                                int64_t num_blocks, int64_t num_slots, int64_t kept_rows) {
  CHECK(num_blocks >= 0 && num_slots >= 0 && kept_rows >= 0 && kept_rows <= kMostKeptRows);
  CHECK(kept_rows == 0 || ops.device == DeviceKind::kCuda);
  const Extent extent{num_blocks, num_slots, kept_rows};
  int64_t total = 0;
  for (const CacheSpec& spec : specs) total += layer_bytes(spec, ops, extent);
  KvStore out;
  out.device_ = ops.device;
  out.num_blocks_ = num_blocks;
  out.num_slots_ = num_slots;
  auto buffer = Buffer::allocate(ops.device, total);
  if (!buffer.ok()) {
    return with_context(std::move(buffer).error(), "the cache of " + std::to_string(num_blocks) +
                                                       " blocks and " + std::to_string(num_slots) +
                                                       " state slots");
  }
  out.buffer_ = std::move(buffer).value();
  std::byte* at = out.buffer_.data();
  for (const CacheSpec& spec : specs) {
    if (const auto* paged = std::get_if<PagedSpec>(&spec)) {
      PagedKv kv{.shape = *paged,
                 .data = at,
                 .block_bytes = ops.kv_block_bytes(*paged),
                 .num_blocks = num_blocks};
      if (paged->planned_heads > 0) {
        kv.kinds = TensorView(at + num_blocks * kv.block_bytes, DType::kI32,
                              {num_blocks, paged->planned_heads});
      }
      out.layers_.push_back(kv);
    } else if (const auto* state = std::get_if<StateSpec>(&spec)) {
      const GdnShape& s = state->shape;
      StateSlots slots;
      slots.conv =
          TensorView(at, DType::kF32, {num_slots, window_rows(s, kept_rows), conv_channels(s)});
      slots.recurrent = TensorView(at + aligned(num_slots * conv_bytes(s, kept_rows)), state->dtype,
                                   {num_slots, s.value_heads, s.value_dim, s.key_dim});
      out.layers_.push_back(slots);
    } else {
      out.layers_.push_back(std::monostate{});
    }
    at += layer_bytes(spec, ops, extent);
  }
  return out;
}

void KvStore::copy_block(Stream& stream, BlockId from, BlockId to) {
  CHECK(from.valid() && from.value < num_blocks_ && to.valid() && to.value < num_blocks_);
  if (from == to) return;
  for (const LayerCache& layer : layers_) {
    const auto* kv = std::get_if<PagedKv>(&layer);
    if (!kv) continue;
    copy_bytes(stream, kv->data + to.value * kv->block_bytes,
               kv->data + from.value * kv->block_bytes, kv->block_bytes);
    if (!kv->kinds.defined()) continue;
    copy_bytes(stream, kv->kinds.row<int32_t>(to.value), kv->kinds.row<int32_t>(from.value),
               kv->kinds.dim(1) * 4);
  }
}

/// Calls visit(memory, bytes) for all parts of a block, or of the states in a slot.
template <class Visit>
void KvStore::visit_block(int64_t block, Visit&& visit) const {
  for (const LayerCache& layer : layers_) {
    const auto* kv = std::get_if<PagedKv>(&layer);
    if (!kv) continue;
    visit(kv->data + block * kv->block_bytes, kv->block_bytes);
    if (!kv->kinds.defined()) continue;
    visit(reinterpret_cast<std::byte*>(kv->kinds.row<int32_t>(block)), kv->kinds.dim(1) * 4);
  }
}
template <class Visit>
void KvStore::visit_slot(int64_t slot, Visit&& visit) const {
  for (const LayerCache& layer : layers_) {
    const auto* states = std::get_if<StateSlots>(&layer);
    if (!states) continue;
    for (const TensorView* view : {&states->conv, &states->recurrent}) {
      const int64_t bytes = view->bytes() / view->dim(0);
      visit(static_cast<std::byte*>(view->data) + slot * bytes, bytes);
    }
  }
}

Result<void> KvStore::reserve_swap(int64_t num_blocks, int64_t num_slots) {
  CHECK(num_blocks >= 0 && num_slots >= 0);
  swap_block_bytes_ = swap_slot_bytes_ = 0;
  if (num_blocks_ > 0) visit_block(0, [&](std::byte*, int64_t n) { swap_block_bytes_ += n; });
  if (num_slots_ > 0) visit_slot(0, [&](std::byte*, int64_t n) { swap_slot_bytes_ += n; });
  const DeviceKind kind = device_ == DeviceKind::kCpu ? device_ : DeviceKind::kPinned;
  auto buffer =
      Buffer::allocate(kind, num_blocks * swap_block_bytes_ + num_slots * swap_slot_bytes_);
  if (!buffer.ok()) return with_context(std::move(buffer).error(), "the swap space");
  swap_ = std::move(buffer).value();
  swap_blocks_ = num_blocks;
  swap_slots_ = num_slots;
  return {};
}

void KvStore::swap_block(Stream& stream, BlockId block, int64_t host, bool out) {
  CHECK(block.valid() && block.value < num_blocks_ && host >= 0 && host < swap_blocks_);
  std::byte* entry = swap_.data() + host * swap_block_bytes_;
  visit_block(block.value, [&](std::byte* memory, int64_t bytes) {
    copy_bytes(stream, out ? entry : memory, out ? memory : entry, bytes);
    entry += bytes;
  });
}

void KvStore::swap_slot(Stream& stream, int64_t slot, int64_t host, bool out) {
  CHECK(slot >= 0 && slot < num_slots_ && host >= 0 && host < swap_slots_);
  std::byte* entry = swap_.data() + swap_blocks_ * swap_block_bytes_ + host * swap_slot_bytes_;
  visit_slot(slot, [&](std::byte* memory, int64_t bytes) {
    copy_bytes(stream, out ? entry : memory, out ? memory : entry, bytes);
    entry += bytes;
  });
}

}  // namespace weft
