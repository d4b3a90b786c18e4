// moe_decode against the oracle; a token's bits are its own.

#include <algorithm>
#include <numeric>

#include "tests/ops_cuda/pinned.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

/// Experts packed on the device, and what they hold for the oracle.
struct Experts {
  Experts(WeightFormat format, int64_t count, int64_t n, int64_t k, uint64_t seed)
      : values(static_cast<size_t>(count * n * k)) {
    weight.shape = {format, n, k, count};
    weight.expert_bytes = cuda::weight_bytes(weight.shape);
    memory = DeviceTensor(DType::kU8, {count * weight.expert_bytes});
    memory.poison();
    weight.data = static_cast<std::byte*>(memory.view.data);
    const PinnedTensor pinned(DType::kBF16, {count * n, k}, random_bf16(count * n * k, seed, 0.1f));
    CudaTestStream stream(1 << 20);
    for (int64_t e = 0; e < count; ++e) {
      const std::vector<TensorView> pieces = {pinned.view.rows(e * n, e * n + n)};
      cuda::pack_weight(stream, weight, e, pieces);
    }
    stream.sync();
    for (int64_t e = 0; e < count; ++e) {
      cuda::unpack_weight(weight, e, {values.data() + e * n * k, DType::kF32, {n, k}});
    }
    oracle.shape = {WeightFormat::kF32, n, k, count};
    oracle.data = reinterpret_cast<std::byte*>(values.data());
    oracle.expert_bytes = n * k * 4;
  }
  std::vector<float> values;
  DeviceTensor memory;
  Weight weight, oracle;
};

struct Case {
  int64_t tokens, hidden, inner, experts;
  int top_k;
  bool accumulate = false;
  DType out = DType::kF32;
  int64_t one_expert = -1;  ///< all tokens choose it first
};

std::vector<int32_t> choose(const Case& c) {
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::vector<int32_t> all(static_cast<size_t>(c.experts));
    std::iota(all.begin(), all.end(), 0);
    for (size_t i = 0; i < static_cast<size_t>(c.top_k); ++i) {
      const auto r = philox4x32(11, static_cast<uint64_t>(t), i)[0];
      std::swap(all[i], all[i + r % (all.size() - i)]);
    }
    if (c.one_expert >= 0) {
      const auto at = std::find(all.begin(), all.end(), c.one_expert);
      std::iter_swap(all.begin(), at);
    }
    ids.insert(ids.end(), all.begin(), all.begin() + c.top_k);
  }
  return ids;
}

void check(WeightFormat format, const Case& c) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << ", " << c.tokens
                                  << " tokens, hidden " << c.hidden << ", inner " << c.inner << ", "
                                  << c.top_k << " of " << c.experts);
  Experts gate_up(format, c.experts, 2 * c.inner, c.hidden, 1);
  Experts down(format, c.experts, c.hidden, c.inner, 2);
  std::vector<float> x = random_bf16(c.tokens * c.hidden, 3);
  std::vector<float> weights = random_bf16(c.tokens * c.top_k, 4);
  std::vector<float> out = random_bf16(c.tokens * c.hidden, 5);
  std::vector<int32_t> ids = choose(c);
  const DeviceTensor dx(DType::kBF16, {c.tokens, c.hidden}, x);
  const DeviceTensor dweights(DType::kF32, {c.tokens, c.top_k}, weights);
  const DeviceTensor dids(ids);
  DeviceTensor dout(c.out, {c.tokens, c.hidden}, out);
  if (!c.accumulate) dout.poison();

  CudaTestStream stream;
  MoeArgs args;
  args.x = dx.view;
  args.ids = TensorView(dids.view.data, DType::kI32, {c.tokens, c.top_k});
  args.weights = dweights.view;
  args.gate_up = &gate_up.weight;
  args.down = &down.weight;
  args.out = dout.view;
  args.accumulate = c.accumulate;
  cuda::moe_decode(stream, args);
  stream.sync();
  Stream& native = stream;
  EXPECT_LE(native.scratch().peak(),
            cuda::moe_decode_scratch(gate_up.weight.shape, c.tokens, c.top_k));

  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, 1 << 20).value());
  Stream host(pool, scratch);
  args.x = TensorView(x.data(), DType::kF32, {c.tokens, c.hidden});
  args.ids = TensorView(ids.data(), DType::kI32, {c.tokens, c.top_k});
  args.weights = TensorView(weights.data(), DType::kF32, {c.tokens, c.top_k});
  args.gate_up = &gate_up.oracle;
  args.down = &down.oracle;
  args.out = TensorView(out.data(), DType::kF32, {c.tokens, c.hidden});
  ref_ops().moe(host, args);
  EXPECT_LT(relative_l2(dout.floats(), out), 6e-3);
}

constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kInt8, WeightFormat::kInt4,
                                     WeightFormat::kFp8Block};

TEST(MoeDecode, Small) {
  for (const WeightFormat format : kFormats) {
    check(format, {1, 64, 32, 4, 2});
    check(format, {5, 72, 40, 3, 3, true});
    check(format, {33, 136, 64, 40, 7, true, DType::kBF16});
  }
}

TEST(MoeDecode, Shapes) {
  for (const WeightFormat format : kFormats) {
    check(format, {1, 256, 128, 128, 8});
    check(format, {64, 256, 192, 64, 6});
    check(format, {100, 512, 136, 16, 8, true});
    check(format, {90, 256, 128, 4, 1, false, DType::kF32, 2});  // one busy expert
    check(format, {129, 128, 64, 300, 10, true, DType::kBF16, 0});
  }
}

TEST(MoeDecode, NoTokens) {
  Experts gate_up(WeightFormat::kBf16, 2, 64, 32, 1), down(WeightFormat::kBf16, 2, 32, 32, 2);
  const DeviceTensor x(DType::kBF16, {1, 32}), ids(std::vector<int32_t>{0});
  const DeviceTensor weights(DType::kF32, {1, 1}), out(DType::kF32, {1, 32});
  CudaTestStream stream;
  MoeArgs args;
  args.x = x.view.rows(0, 0);
  args.ids = TensorView(ids.view.data, DType::kI32, {0, 1});
  args.weights = weights.view.rows(0, 0);
  args.gate_up = &gate_up.weight;
  args.down = &down.weight;
  args.out = out.view.rows(0, 0);
  cuda::moe_decode(stream, args);
  stream.sync();
}

void check_pieces(WeightFormat format, const Case& c, const std::vector<int64_t>& sizes) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << " hidden " << c.hidden);
  Experts gate_up(format, c.experts, 2 * c.inner, c.hidden, 1);
  Experts down(format, c.experts, c.hidden, c.inner, 2);
  const DeviceTensor x(DType::kBF16, {c.tokens, c.hidden}, random_bf16(c.tokens * c.hidden, 3));
  const DeviceTensor weights(DType::kF32, {c.tokens, c.top_k}, random_bf16(c.tokens * c.top_k, 4));
  const DeviceTensor ids(choose(c));
  const DeviceTensor together(DType::kF32, {c.tokens, c.hidden});
  const DeviceTensor pieces(DType::kF32, {c.tokens, c.hidden});
  CudaTestStream stream;
  MoeArgs args;
  args.gate_up = &gate_up.weight;
  args.down = &down.weight;
  const TensorView all_ids(ids.view.data, DType::kI32, {c.tokens, c.top_k});
  const auto run = [&](int64_t begin, int64_t end, const DeviceTensor& out) {
    args.x = x.view.rows(begin, end);
    args.ids = all_ids.rows(begin, end);
    args.weights = weights.view.rows(begin, end);
    args.out = out.view.rows(begin, end);
    cuda::moe_decode(stream, args);
  };
  run(0, c.tokens, together);
  int64_t begin = 0;
  for (const int64_t size : sizes) {
    run(begin, begin + size, pieces);
    begin += size;
  }
  ASSERT_EQ(begin, c.tokens);
  stream.sync();
  EXPECT_TRUE(together.bytes() == pieces.bytes());
}

TEST(MoeDecode, BitsDoNotDependOnTokens) {
  for (const WeightFormat format : kFormats) {
    check_pieces(format, {200, 512, 256, 16, 4}, {1, 7, 64, 2, 126});
    check_pieces(format, {40, 64, 64, 8, 3}, std::vector<int64_t>(40, 1));
    check_pieces(format, {90, 64, 96, 8, 3}, {1, 3, 8, 9, 17, 2, 33, 17});
  }
}

}  // namespace
}  // namespace weft
