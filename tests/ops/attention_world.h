#pragma once

// A paged cache of one backend with sequences in it, and calls of attention over them.

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "support.h"

namespace weft {

inline constexpr KvFormat kQuantisedFormats[] = {KvFormat::kInt8Dynamic, KvFormat::kFp8Block,
                                                 KvFormat::kInt8, KvFormat::kFp8, KvFormat::kInt4};

/// Rows of a call: `rows` tokens of a sequence from position `start` on.
struct Slice {
  int sequence, start, rows;
};

struct World {
  AttnShape shape;
  KvFormat format = KvFormat::kF32;
  int block_size = 64;
  std::vector<int> lengths;  // tokens of each sequence
  bool calibrated = false;   // static scales: each channel's largest value has the largest code
  /// Writes over the random rows [tokens, G, D] before they are stored.
  std::function<void(Floats& k, Floats& v)> change_rows;
};

/// Scales of static formats: a factor of 4 between the channels, and codes that clip now and then.
inline std::vector<float> static_scales(const World& world, uint64_t seed) {
  std::vector<float> out;
  const float largest = world.format == KvFormat::kInt8 ? 127.0f : 448.0f;
  for (int i = 0; i < world.shape.kv_heads * world.shape.head_dim; ++i) {
    const float part = uniform01(philox4x32(seed, static_cast<uint64_t>(i), 9)[0]);
    out.push_back((0.4f + part) / largest);
  }
  return out;
}

/// A cache of one backend holding every sequence of a world; what no token was written to is NaN.
class Cache {
 public:
  Cache(const OpTable& ops, Stream& stream, const World& world, uint64_t seed)
      : ops_(ops), world_(world) {
    const KvShape shape{world.format, world.shape.kv_heads, world.shape.head_dim, world.block_size};
    kv_.shape = shape;
    kv_.block_bytes = ops.kv_block_bytes(shape);
    int longest = 0;
    for (int length : world.lengths) {
      longest = std::max(longest, length);
      kv_.num_blocks += blocks(length) + 1;
    }
    memory_ = Buffer::allocate(DeviceKind::kCpu, kv_.block_bytes * kv_.num_blocks).value();
    kv_.data = memory_.data();
    if (kv_has_static_scales(world.format)) {
      k_scale_ = static_scales(world, seed + 3);
      v_scale_ = static_scales(world, seed + 4);
      kv_.k_scale = k_scale_.data();
      kv_.v_scale = v_scale_.data();
    }
    std::memset(kv_.data, 0xFF, static_cast<size_t>(memory_.bytes()));
    std::vector<int32_t> order(static_cast<size_t>(kv_.num_blocks));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) {
      std::swap(order[i], order[philox4x32(seed, i, 1)[0] % (i + 1)]);
    }
    width_ = blocks(longest) + 1;
    std::vector<int32_t> table;
    size_t next = 0;
    for (int length : world.lengths) {
      for (int b = 0; b < width_; ++b) table.push_back(b < blocks(length) ? order[next++] : -1);
    }
    table_ = Ints(table);
    fill(stream, seed);
  }

  /// With `lse` the slices are prompts.
  Floats attend(Stream& stream, const Floats& q_all, const std::vector<Slice>& slices,
                Floats* lse = nullptr) {
    std::vector<int32_t> cu = {0}, start, table;
    for (const Slice& s : slices) {
      cu.push_back(cu.back() + s.rows);
      start.push_back(s.start);
      const auto row = table_.data.begin() + s.sequence * width_;
      table.insert(table.end(), row, row + width_);
    }
    const int64_t heads = world_.shape.q_heads, d = world_.shape.head_dim;
    Floats q({cu.back(), heads, d}), out({cu.back(), heads, d}, kNaN);
    for (size_t i = 0; i < slices.size(); ++i) {
      const float* from =
          q_all.data.data() + row_of(slices[i].sequence, std::max(slices[i].start, 0)) * heads * d;
      std::copy_n(from, slices[i].rows * heads * d, q.data.data() + cu[i] * heads * d);
    }
    const int num = static_cast<int>(slices.size());
    Ints cu_q(cu), kv_start(start), blocks_of(table);
    SeqMap seqs{cu_q.view, kv_start.view, blocks_of.view, num};
    seqs.block_table = TensorView(blocks_of.data.data(), DType::kI32, {num, width_});
    AttnArgs args{world_.shape, q.view, out.view, kv_, seqs};
    if (lse != nullptr) {
      *lse = Floats({cu.back(), heads}, kNaN);
      args.lse = lse->view;
      args.num_prompt_segments = num;
      args.prompt_rows = cu.back();
      args.seqs.host_cu_q = cu_q.data.data();
      args.seqs.host_kv_start = kv_start.data.data();
    }
    ops_.attention(stream, args);
    if (lse != nullptr) lse->data.pop_back();
    out.data.pop_back();
    return out;
  }

  int64_t total() const { return std::accumulate(world_.lengths.begin(), world_.lengths.end(), 0); }
  int64_t row_of(int sequence, int position) const {
    return std::accumulate(world_.lengths.begin(), world_.lengths.begin() + sequence, position);
  }

 private:
  void calibrate(const Floats& rows, std::vector<float>& scales) const {
    const float largest = world_.format == KvFormat::kInt8 ? 127.0f : 448.0f;
    for (size_t c = 0; c < scales.size(); ++c) {
      float top = 1e-20f;
      for (int64_t t = 0; t < total(); ++t) {
        const size_t at = static_cast<size_t>(t) * scales.size() + c;
        top = std::max(top, std::abs(rows.data[at]));
      }
      scales[c] = top / largest;
    }
  }
  int blocks(int length) const { return (length + world_.block_size - 1) / world_.block_size; }

  void fill(Stream& stream, uint64_t seed) {
    const int64_t heads = world_.shape.kv_heads, d = world_.shape.head_dim;
    Floats k = random_floats({total(), heads, d}, seed + 1), q({total(), 1, d}), norm;
    Floats v = random_floats({total(), heads, d}, seed + 2);
    Ints positions(std::vector<int32_t>(static_cast<size_t>(total()), 0));
    std::vector<int64_t> slots;
    for (size_t s = 0; s < world_.lengths.size(); ++s) {
      for (int p = 0; p < world_.lengths[s]; ++p) {
        const int64_t block =
            table_
                .data[s * static_cast<size_t>(width_) + static_cast<size_t>(p / world_.block_size)];
        slots.push_back(block * world_.block_size + p % world_.block_size);
      }
    }
    slots.push_back(0);
    if (world_.change_rows) world_.change_rows(k, v);
    if (world_.calibrated && kv_has_static_scales(world_.format)) {
      calibrate(k, k_scale_);
      calibrate(v, v_scale_);
    }
    QkvPrepareArgs args{.q = q.view, .k = k.view, .v = v.view, .kv = kv_};
    args.positions.index = TensorView(positions.data.data(), DType::kI32, {total()});
    uint8_t axis = 0;
    args.rope.axis = TensorView(&axis, DType::kU8, {0});
    args.kv_slot = TensorView(slots.data(), DType::kI64, {total()});
    ops_.qkv_prepare(stream, args);
  }

  const OpTable& ops_;
  World world_;
  PagedKv kv_;
  Buffer memory_;
  Ints table_;
  int width_ = 0;
  std::vector<float> k_scale_, v_scale_;
};

inline Floats queries(const World& world, uint64_t seed, float scale = 1) {
  const int64_t total = std::accumulate(world.lengths.begin(), world.lengths.end(), 0);
  return random_floats({total, world.shape.q_heads, world.shape.head_dim}, seed, scale);
}

inline std::vector<Slice> whole(const World& world) {
  std::vector<Slice> slices;
  for (size_t s = 0; s < world.lengths.size(); ++s) {
    slices.push_back({static_cast<int>(s), 0, world.lengths[s]});
  }
  return slices;
}

}  // namespace weft
