#include "kv/store.h"

#include <gtest/gtest.h>

#include <cstring>

namespace weft {
namespace {

const CacheSpec kPaged =
    PagedSpec{.format = KvFormat::kBf16, .heads = 2, .head_dim = 8, .block_size = 16};
const CacheSpec kState =
    StateSpec{{.key_heads = 1, .value_heads = 3, .key_dim = 4, .value_dim = 2, .conv_width = 4}};

TEST(KvStore, LayersAndSlotsDoNotOverlap) {
  const CacheSpec specs[] = {kState, kPaged, std::monostate{}, kPaged, kState};
  KvStore store = KvStore::create(specs, ref_ops(), 3, 5).value();
  // Write every byte once through the views; what is left over is padding.
  int64_t written = 0;
  for (int i = 0; i < 5; ++i) {
    const LayerCache& layer = store.layer(LayerId{i});
    if (const auto* kv = std::get_if<PagedKv>(&layer)) {
      std::memset(kv->data, i + 1, static_cast<size_t>(kv->block_bytes * kv->num_blocks));
      written += kv->block_bytes * kv->num_blocks;
    } else if (const auto* state = std::get_if<StateSlots>(&layer)) {
      std::memset(state->conv.data, i + 1, static_cast<size_t>(state->conv.bytes()));
      std::memset(state->recurrent.data, i + 1, static_cast<size_t>(state->recurrent.bytes()));
      written += state->conv.bytes() + state->recurrent.bytes();
    }
  }
  EXPECT_LE(written, store.bytes());
  for (int i = 0; i < 5; ++i) {
    const LayerCache& layer = store.layer(LayerId{i});
    const std::byte value = static_cast<std::byte>(i + 1);
    if (const auto* kv = std::get_if<PagedKv>(&layer)) {
      for (int64_t j = 0; j < kv->block_bytes * kv->num_blocks; ++j) ASSERT_EQ(kv->data[j], value);
    } else if (const auto* state = std::get_if<StateSlots>(&layer)) {
      for (const TensorView& view : {state->conv, state->recurrent}) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 64, 0u);
        for (int64_t j = 0; j < view.bytes(); ++j) {
          ASSERT_EQ(static_cast<const std::byte*>(view.data)[j], value);
        }
      }
    }
  }
}

TEST(KvStore, SwapsWholeBlocksAndStatesOutAndBack) {
  CacheSpec planned = kPaged;
  std::get<PagedSpec>(planned).planned_heads = 3;
  const CacheSpec specs[] = {kState, kPaged, planned, kState};
  KvStore store = KvStore::create(specs, ref_ops(), 4, 3).value();
  ThreadPool pool(1);
  Arena arena(Buffer::allocate(DeviceKind::kCpu, 1 << 16).value());
  Stream stream(pool, arena);
  ASSERT_TRUE(store.reserve_swap(2, 2).ok());
  const CacheBytes bytes = cache_bytes(specs, ref_ops());
  EXPECT_LE(store.swap_bytes(), 2 * (bytes.per_block + bytes.per_slot));
  // Every byte of the caches tells its block or slot.
  const auto fill = [&](int64_t index, int64_t count, std::byte* data, int64_t all, int value) {
    std::memset(data + index * (all / count), value, static_cast<size_t>(all / count));
  };
  const auto paint = [&](int64_t block, int64_t slot, int value) {
    for (int i = 0; i < 4; ++i) {
      const LayerCache& layer = store.layer(LayerId{i});
      if (const auto* kv = std::get_if<PagedKv>(&layer); kv && block >= 0) {
        fill(block, 4, kv->data, 4 * kv->block_bytes, value);
        if (kv->kinds.defined()) {
          fill(block, 4, static_cast<std::byte*>(kv->kinds.data), kv->kinds.bytes(), value);
        }
      } else if (const auto* state = std::get_if<StateSlots>(&layer); state && slot >= 0) {
        fill(slot, 3, static_cast<std::byte*>(state->conv.data), state->conv.bytes(), value);
        fill(slot, 3, static_cast<std::byte*>(state->recurrent.data), state->recurrent.bytes(),
             value);
      }
    }
  };
  const auto snapshot = [&] {
    std::vector<std::byte> out(static_cast<size_t>(store.bytes()));
    std::memcpy(out.data(), std::get<StateSlots>(store.layer(LayerId{0})).conv.data, out.size());
    return out;
  };
  for (int i = 0; i < 4; ++i) paint(i, i < 3 ? i : -1, 10 + i);
  const std::vector<std::byte> before = snapshot();
  store.swap_block(stream, BlockId{2}, 1, true);
  store.swap_block(stream, BlockId{0}, 0, true);
  store.swap_slot(stream, 1, 0, true);
  store.swap_slot(stream, 2, 1, true);
  EXPECT_EQ(snapshot(), before) << "a copy out changes nothing";
  for (const int i : {0, 1, 2}) paint(i == 1 ? -1 : i, i == 0 ? -1 : i, 99);
  EXPECT_NE(snapshot(), before);
  store.swap_block(stream, BlockId{0}, 0, false);
  store.swap_block(stream, BlockId{2}, 1, false);
  store.swap_slot(stream, 2, 1, false);
  store.swap_slot(stream, 1, 0, false);
  EXPECT_EQ(snapshot(), before);
  // Into another block.
  store.swap_block(stream, BlockId{3}, 1, false);
  paint(3, -1, 13);
  EXPECT_EQ(snapshot(), before) << "a copy back touches its block alone";
}

TEST(KvStore, CountsBytesOfABlockAndOfASlot) {
  const CacheSpec specs[] = {kPaged, kState, kPaged};
  const CacheBytes bytes = cache_bytes(specs, ref_ops());
  EXPECT_EQ(bytes.per_block, 2 * (2 * 16 * 2 * 8 * 2));
  EXPECT_EQ(bytes.per_slot, 4 * (3 * (2 * 4 + 3 * 2) + 3 * 2 * 4));
  // Two kept rows of 52 bytes take two rows of the window's 14 values.
  EXPECT_EQ(cache_bytes(specs, ref_ops(), 2).per_slot, bytes.per_slot + 2 * 14 * 4);
  CacheSpec half = kState;
  std::get<StateSpec>(half).dtype = DType::kBF16;
  EXPECT_EQ(cache_bytes(std::span(&half, 1), ref_ops()).per_slot,
            4 * 3 * (2 * 4 + 3 * 2) + 2 * 3 * 2 * 4);
  const KvStore store = KvStore::create(std::span(&half, 1), ref_ops(), 0, 2).value();
  EXPECT_EQ(std::get<StateSlots>(store.layer(LayerId{0})).recurrent.dtype, DType::kBF16);
}

TEST(KvStore, CopiesABlockOfEveryLayer) {
  const CacheSpec specs[] = {kPaged, kPaged};
  KvStore store = KvStore::create(specs, ref_ops(), 4, 0).value();
  for (int i = 0; i < 2; ++i) {
    const auto& kv = std::get<PagedKv>(store.layer(LayerId{i}));
    std::memset(kv.data + kv.block_bytes, 7 + i, static_cast<size_t>(kv.block_bytes));
  }
  ThreadPool pool(1);
  Arena scratch;
  Stream stream(pool, scratch);
  store.copy_block(stream, BlockId{1}, BlockId{3});
  for (int i = 0; i < 2; ++i) {
    const auto& kv = std::get<PagedKv>(store.layer(LayerId{i}));
    EXPECT_EQ(kv.data[4 * kv.block_bytes - 1], static_cast<std::byte>(7 + i));
    EXPECT_EQ(kv.data[3 * kv.block_bytes - 1], std::byte{0});
  }
  EXPECT_THROW(store.copy_block(stream, BlockId{0}, BlockId{4}), Panic);
}

TEST(KvStore, TooMuchMemoryIsAnErrorThatSaysWhatFor) {
  const CacheSpec specs[] = {kPaged};
  const auto store = KvStore::create(specs, ref_ops(), int64_t{1} << 45, 0);
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.error().kind, ErrorKind::kExhausted);
  EXPECT_NE(store.error().message.find("blocks"), std::string::npos);
}

}  // namespace
}  // namespace weft
