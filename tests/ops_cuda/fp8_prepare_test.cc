// q, k and v normed, turned and cached by the product that makes them, beside linear() and
// qkv_prepare(): the same bits of q and of the cache.

#include <cstring>
#include <numeric>

#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

struct HeadsCase {
  int q_heads, kv_heads;
  int64_t rows, prompt_rows;
  int64_t k = 256;
  bool norm = true, bias = false, delta = false;
  int block = 64;
};

constexpr int64_t kDim = 128;

class PreparedHeads {
 public:
  explicit PreparedHeads(const HeadsCase& c)
      : c_(c),
        weight_({WeightFormat::kFp8Block, width(), c.k, 1}, 5, {.scale = 0.1f, .unpack = false}) {}

  struct Out {
    std::vector<float> q;
    std::vector<std::byte> cache;
  };
  /// Expects the one op to say that it did it if `together` and `can`.
  Out run(bool together, bool can = true) const {
    const KvShape shape{KvFormat::kBf16, c_.kv_heads, static_cast<int>(kDim), c_.block};
    const int64_t block_bytes = cuda::kv_block_bytes(shape), blocks = c_.rows / c_.block + 2;
    const int64_t q_width = c_.q_heads * kDim, kv_width = c_.kv_heads * kDim;
    const DeviceTensor x(DType::kBF16, {c_.rows, c_.k}, random_bf16(c_.rows * c_.k, 6));
    const DeviceTensor bias(DType::kF32, {width()}, random_bf16(width(), 7));
    const DeviceTensor norms(DType::kF32, {2 * kDim}, random_bf16(2 * kDim, 8));
    const DeviceTensor table(DType::kF32, {c_.rows, kDim}, random_bf16(c_.rows * kDim, 9));
    const DeviceTensor axis(std::vector<int32_t>(kDim / 8));
    std::vector<int32_t> index(static_cast<size_t>(c_.rows));
    std::iota(index.rbegin(), index.rend(), 0);
    std::vector<int32_t> deltas(index.size());
    for (size_t i = 0; i < deltas.size(); i += 3) deltas[i] = 1 - index[i];
    const DeviceTensor at(index), delta(deltas);
    // Rows of a block in another order, and one that is not kept.
    std::vector<int64_t> slots(index.size());
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int64_t>(i ^ 5);
    slots[slots.size() / 2] = -1;
    const DeviceTensor slot(slots);
    DeviceTensor cache(DType::kF32, {block_bytes * blocks / 4});
    DeviceTensor qkv(DType::kBF16, {c_.rows, width()});
    cache.poison();
    qkv.poison();

    QkvPrepareArgs prepare;
    prepare.q = qkv.view.columns(0, q_width).split_last(c_.q_heads, kDim);
    prepare.k = qkv.view.columns(q_width, q_width + kv_width).split_last(c_.kv_heads, kDim);
    prepare.v = qkv.view.columns(q_width + kv_width, width()).split_last(c_.kv_heads, kDim);
    if (c_.norm) {
      prepare.q_norm = norms.view.rows(0, kDim);
      prepare.k_norm = norms.view.rows(kDim, 2 * kDim);
    }
    prepare.rope = {.cos_sin = table.view,
                    .axis = {axis.view.data, DType::kU8, {kDim / 2}},
                    .rotary_dim = static_cast<int>(kDim)};
    prepare.positions.index = at.view;
    if (c_.delta) prepare.positions.delta = delta.view;
    prepare.kv_slot = slot.view;
    prepare.kv = {shape, static_cast<std::byte*>(cache.view.data), block_bytes, blocks};
    LinearArgs linear{
        .x = x.view, .weight = &weight_.weight, .out = qkv.view, .prompt_rows = c_.prompt_rows};
    if (c_.bias) linear.bias = bias.view;
    const OpTable& ops = *cuda_ops();
    CudaTestStream stream;
    const bool one = together && ops.linear_prepare(stream, linear, prepare);
    EXPECT_EQ(one, together && can);
    if (!one) {
      ops.linear(stream, linear);
      ops.qkv_prepare(stream, prepare);
    }
    stream.sync();
    Out out{qkv.floats(), cache.bytes()};
    for (size_t i = 0; i < out.q.size(); ++i) {
      if (static_cast<int64_t>(i) % width() >= q_width) out.q[i] = 0;
    }
    return out;
  }

 private:
  int64_t width() const { return (c_.q_heads + 2 * c_.kv_heads) * kDim; }
  HeadsCase c_;
  PackedWeight weight_;
};

void expect_same(const HeadsCase& c) {
  SCOPED_TRACE(testing::Message() << c.q_heads << "/" << c.kv_heads << " heads, " << c.rows
                                  << " rows, of prompts " << c.prompt_rows);
  const PreparedHeads heads(c);
  const PreparedHeads::Out apart = heads.run(false), one = heads.run(true);
  EXPECT_EQ(std::memcmp(apart.q.data(), one.q.data(), apart.q.size() * 4), 0);
  EXPECT_TRUE(apart.cache == one.cache);
}

TEST(Fp8Prepare, SameBits) {
  expect_same({4, 2, 2211, 2211});
  expect_same({4, 2, 2300, 2177, 384});
  expect_same({4, 2, 2300, 2177, 136, false, true, true});
  expect_same({14, 1, 1300, 1299, 128, true, true, false, 16});
}

TEST(Fp8Prepare, FewRowsAreLeftToTheOpsApart) {
  PreparedHeads({4, 2, 300, 300}).run(true, /*can=*/false);
  PreparedHeads({4, 2, 2300, 0}).run(true, /*can=*/false);
}

}  // namespace
}  // namespace weft
