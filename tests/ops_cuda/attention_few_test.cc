// attention_decode of a few pairs in one kernel, with and without qkv_prepare in it: the bits of
// qkv_prepare, the persistent kernel and the merge.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/cuda/attention_prepared.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr int64_t kDim = 128;

struct Case {
  int q_heads, kv_heads;
  std::vector<int64_t> keys;  ///< of each sequence, the newest included; 0: an empty segment
  int block_size = 64;
  bool norm = true, interleaved = false, written = true;
  int rotary = 128;
  int extra_rows = 0;
};

/// One row a sequence, in the order of the sequences.
class FewTest : public testing::Test {
 protected:
  struct Out {
    std::vector<float> rows;       ///< [T, H, D]
    std::vector<std::byte> cache;  ///< after it
  };

  /// The rows of `c` `copies` times beside each other; `together`: in one op, if it can.
  Out run(const Case& c, int copies, bool together) {
    const int64_t width = (c.q_heads + 2 * c.kv_heads) * kDim, q_width = c.q_heads * kDim,
                  kv_width = c.kv_heads * kDim, b = c.block_size;
    std::vector<int32_t> cu_q{0}, start, index, table;
    std::vector<int64_t> slots;
    int64_t blocks = 1, table_width = 1, positions = 1;
    for (const int64_t keys : c.keys) {
      table_width = std::max(table_width, (keys + b - 1) / b);
      blocks += (keys + b - 1) / b;
      positions = std::max(positions, keys);
    }
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      std::swap(ids[i], ids[i + philox4x32(7, i, 3)[0] % (ids.size() - i)]);
    }
    std::vector<float> rows;
    for (int copy = 0; copy < copies; ++copy) {
      size_t next = 0;
      for (size_t s = 0; s < c.keys.size(); ++s) {
        const int64_t keys = c.keys[s];
        cu_q.push_back(cu_q.back() + (keys > 0 ? 1 : 0));
        start.push_back(static_cast<int32_t>(std::max<int64_t>(keys - 1, 0)));
        for (int64_t i = 0; i < table_width; ++i) {
          table.push_back(i * b < keys ? ids[next + static_cast<size_t>(i)] : -1);
        }
        if (keys == 0) continue;
        const int64_t block = ids[next + static_cast<size_t>((keys - 1) / b)];
        next += static_cast<size_t>((keys + b - 1) / b);
        index.push_back(static_cast<int32_t>(keys - 1));
        slots.push_back(c.written ? block * b + (keys - 1) % b : -1);
        const std::vector<float> row = random_bf16(width, 31 + s, 2);
        rows.insert(rows.end(), row.begin(), row.end());
      }
    }
    const int64_t covered = cu_q.back(), all = covered + c.extra_rows;
    rows.resize(static_cast<size_t>(all * width), 1.0f);
    index.resize(static_cast<size_t>(all), 0);
    slots.resize(static_cast<size_t>(all), -1);

    const KvShape shape{KvFormat::kBf16, c.kv_heads, kDim, c.block_size};
    const int64_t block_bytes = cuda::kv_block_bytes(shape);
    if (static_cast<int64_t>(random_.size()) != blocks * block_bytes / 2) {
      random_ = random_bf16(blocks * block_bytes / 2, 5);
    }
    std::vector<float> stored = random_;
    size_t segment = 0;
    for (const int64_t keys : c.keys) {  // What lies behind a context must not be seen.
      const int64_t last = keys == 0 ? -1
                                     : table[segment * static_cast<size_t>(table_width) +
                                             static_cast<size_t>((keys - 1) / b)];
      ++segment;
      for (int64_t head = 0; last >= 0 && head < 2 * c.kv_heads; ++head) {
        const auto first = stored.begin() + (last * 2 * c.kv_heads + head) * b * kDim;
        std::fill(first + ((keys - 1) % b + 1) * kDim, first + b * kDim, std::nanf(""));
      }
    }
    if (c.written) {  // What the newest rows take the place of must not be seen.
      for (int64_t i = 0; i < covered; ++i) {
        for (int64_t head = 0; head < 2 * c.kv_heads; ++head) {
          const int64_t slot = slots[static_cast<size_t>(i)];
          const auto row =
              stored.begin() + (slot / b * 2 * c.kv_heads * b + head * b + slot % b) * kDim;
          std::fill(row, row + kDim, std::nanf(""));
        }
      }
    }
    const DeviceTensor pool(DType::kBF16, {blocks * block_bytes / 2}, stored);
    const DeviceTensor qkv(DType::kBF16, {all, width}, rows);
    DeviceTensor out(DType::kBF16, {all, q_width});
    out.poison();
    std::vector<float> norms = random_bf16(2 * kDim, 9),
                       angles(static_cast<size_t>(positions * 128));
    for (size_t i = 0; i < angles.size(); ++i) {
      const double angle =
          static_cast<double>(i / 128) / std::pow(1e4, static_cast<double>(i % 128 / 2) / 64);
      angles[i] = static_cast<float>(i % 2 == 0 ? std::cos(angle) : std::sin(angle));
    }
    angles.resize(static_cast<size_t>(positions * c.rotary));
    const DeviceTensor norm(DType::kF32, {2 * kDim}, norms);
    const DeviceTensor cos_sin(DType::kF32, {positions, c.rotary / 2, 2}, angles);
    const DeviceTensor axis(std::vector<int32_t>(static_cast<size_t>(c.rotary / 8)));
    const DeviceTensor cu_q_d(cu_q), start_d(start), index_d(index), slots_d(slots);
    DeviceTensor table_d(table);
    const auto segments = static_cast<int64_t>(start.size());
    table_d.view = {table_d.view.data, DType::kI32, {segments, table_width}};

    QkvPrepareArgs prepare;
    prepare.q = qkv.view.columns(0, q_width).split_last(c.q_heads, kDim);
    prepare.k = qkv.view.columns(q_width, q_width + kv_width).split_last(c.kv_heads, kDim);
    prepare.v = qkv.view.columns(q_width + kv_width, width).split_last(c.kv_heads, kDim);
    if (c.norm) {
      prepare.q_norm = norm.view.rows(0, kDim);
      prepare.k_norm = norm.view.rows(kDim, 2 * kDim);
    }
    prepare.rope = {.cos_sin = cos_sin.view,
                    .axis = {axis.view.data, DType::kU8, {c.rotary / 2}},
                    .rotary_dim = c.rotary,
                    .style = c.interleaved ? RopeStyle::kInterleaved : RopeStyle::kNeox};
    prepare.positions.index = index_d.view;
    prepare.kv_slot = slots_d.view;
    prepare.kv = {shape, static_cast<std::byte*>(pool.view.data), block_bytes, blocks};
    AttnArgs args;
    args.shape = {c.q_heads, c.kv_heads, static_cast<int>(kDim), 0.088f};
    args.q = prepare.q;
    args.out = out.view.split_last(c.q_heads, kDim);
    args.kv = prepare.kv;
    args.seqs.cu_q = cu_q_d.view;
    args.seqs.kv_start = start_d.view;
    args.seqs.block_table = table_d.view;
    args.seqs.num_segments = static_cast<int>(segments);
    CudaTestStream stream;
    const bool one = together && cuda::attention_prepared(stream, prepare, args);
    EXPECT_EQ(one, together && c.q_heads <= 16);
    if (!one) {
      cuda::qkv_prepare(stream, prepare);
      cuda::attention_decode(stream, args);
    }
    stream.sync();
    return {out.floats(), pool.bytes()};
  }

  void expect_same(const Case& c) {
    SCOPED_TRACE(testing::Message()
                 << c.q_heads << "/" << c.kv_heads << " heads, " << testing::PrintToString(c.keys)
                 << " keys in blocks of " << c.block_size);
    const Out many = run(c, 17, false), apart = run(c, 1, false), together = run(c, 1, true);
    const auto covered = static_cast<size_t>(
        (static_cast<int64_t>(apart.rows.size()) / (c.q_heads * kDim) - c.extra_rows) * c.q_heads *
        kDim);
    for (const Out* out : {&apart, &together}) {
      EXPECT_EQ(std::memcmp(out->rows.data(), many.rows.data(), covered * 4), 0)
          << (out == &apart ? "prepared apart" : "prepared in it");
      for (size_t i = covered; i < out->rows.size(); ++i) ASSERT_EQ(out->rows[i], 0);
      EXPECT_EQ(out->cache, many.cache);
    }
    for (size_t i = 0; i < covered; ++i) ASSERT_FALSE(std::isnan(many.rows[i])) << i;
  }

 private:
  std::vector<float> random_;  ///< of the cache of the last case
};

TEST_F(FewTest, Lengths) {
  expect_same({2, 1, {1, 2, 16, 17, 63, 64, 65, 127}});
  expect_same({4, 1, {128, 129, 300, 895, 896, 897, 1023, 1024}});
  expect_same({2, 1, {1025, 1152, 1153, 2048, 2049, 3000, 3072, 3073}});
  expect_same({2, 1, {5000, 8191, 8192, 8193, 9216, 9217, 10000, 17000}});
  expect_same({2, 1, {66000, 1, 7000, 64, 128, 256, 512, 1024}});
}

TEST_F(FewTest, Shapes) {
  for (const int64_t keys : {1, 100, 1030, 2500}) {
    expect_same({8, 8, {keys}});
    expect_same({24, 8, {keys}, 16});
    expect_same({32, 8, {keys}, 48});
    expect_same({64, 8, {keys}, 128});
    expect_same({40, 10, {keys}, 16, false});
    expect_same({36, 12, {keys}, 64, true, true});
    expect_same({16, 8, {keys}, 64, true, false, true, 64});
    expect_same({16, 8, {keys}, 64, true, false, false});
    expect_same({16, 2, {keys, 1, 129, 700}});
    expect_same({15, 5, {keys, 64}, 16, false});
  }
}

TEST_F(FewTest, SeveralSequencesAndNone) {
  expect_same({24, 6, {1024, 17}});
  expect_same({16, 4, {4100, 129, 1024}});
  expect_same({16, 4, {5, 2000, 0}, 64, true, false, true, 128, 3});
  expect_same({16, 4, {700, 0}, 16, true, false, true, 128, 1});
}

}  // namespace
}  // namespace weft
