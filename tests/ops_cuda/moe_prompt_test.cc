// moe_prompt against the oracle; a token's bits are its own.

#include <algorithm>
#include <numeric>

#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

/// Experts in the bf16 layout of cuda_ops.h, and the same values for the oracle.
struct Experts {
  Experts(int64_t count, int64_t n, int64_t k, uint64_t seed)
      : values(random_bf16(count * n * k, seed, 0.1f)),
        device(DType::kBF16, {count, n * k + kGap}, spaced(count, n * k)) {
    weight.shape = {WeightFormat::kBf16, n, k, count};
    weight.data = static_cast<std::byte*>(device.view.data);
    weight.expert_bytes = (n * k + kGap) * 2;
    oracle.shape = {WeightFormat::kF32, n, k, count};
    oracle.data = reinterpret_cast<std::byte*>(values.data());
    oracle.expert_bytes = n * k * 4;
  }
  std::vector<float> spaced(int64_t count, int64_t size) const {
    std::vector<float> out(static_cast<size_t>(count * (size + kGap)), 1e30f);
    for (int64_t e = 0; e < count; ++e) {
      std::copy_n(values.begin() + e * size, size, out.begin() + e * (size + kGap));
    }
    return out;
  }
  static constexpr int64_t kGap = 64;
  std::vector<float> values;
  DeviceTensor device;
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

void check(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.tokens << " tokens, hidden " << c.hidden << ", inner "
                                  << c.inner << ", " << c.top_k << " of " << c.experts);
  Experts gate_up(c.experts, 2 * c.inner, c.hidden, 1), down(c.experts, c.hidden, c.inner, 2);
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
  cuda::moe_prompt(stream, args);
  stream.sync();
  Stream& native = stream;
  EXPECT_LE(native.scratch().peak(),
            cuda::moe_prompt_scratch(gate_up.weight.shape, c.tokens, c.top_k));

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

TEST(MoePrompt, Small) {
  check({1, 64, 32, 4, 2});
  check({5, 72, 40, 3, 3, true});
  check({130, 64, 72, 5, 2, false, DType::kBF16});
  check({33, 136, 64, 40, 7, true, DType::kBF16});
}

TEST(MoePrompt, Shapes) {
  check({1, 256, 128, 8, 8});
  check({300, 256, 192, 64, 6});
  check({700, 512, 136, 128, 8, true});
  check({512, 256, 128, 4, 1, false, DType::kF32, 2});  // one busy expert, three without tokens
  check({129, 128, 64, 512, 10});
  check({2000, 512, 384, 3, 2, true, DType::kBF16, 0});
}

TEST(MoePrompt, NoTokens) {
  Experts gate_up(2, 64, 32, 1), down(2, 32, 32, 2);
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
  cuda::moe_prompt(stream, args);
  stream.sync();
}

TEST(MoePrompt, BitsDoNotDependOnTokens) {
  const Case c{900, 512, 256, 16, 4};
  Experts gate_up(c.experts, 2 * c.inner, c.hidden, 1), down(c.experts, c.hidden, c.inner, 2);
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
    cuda::moe_prompt(stream, args);
  };
  run(0, c.tokens, together);
  int64_t begin = 0;
  for (const int64_t size : {600, 1, 99, 200}) {
    run(begin, begin + size, pieces);
    begin += size;
  }
  stream.sync();
  EXPECT_TRUE(together.bytes() == pieces.bytes());
}

}  // namespace
}  // namespace weft
