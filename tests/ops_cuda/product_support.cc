#include "tests/ops_cuda/product_support.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ops_cuda/pinned.h"

namespace weft {

PackedWeight::PackedWeight(const WeightShape& shape, uint64_t seed, const Options& options) {
  const int64_t n = shape.n, k = shape.k, experts = shape.experts;
  weight.shape = shape;
  weight.expert_bytes = cuda::weight_bytes(shape);
  memory_ = DeviceTensor(DType::kU8, {experts * weight.expert_bytes});
  memory_.poison();
  weight.data = static_cast<std::byte*>(memory_.view.data);
  const PinnedTensor pinned(DType::kBF16, {experts * n, k},
                            random_bf16(experts * n * k, seed, options.scale));
  CudaTestStream stream(1 << 20);
  for (int64_t e = 0; e < experts; ++e) {
    const std::vector<TensorView> pieces = {pinned.view.rows(e * n, e * n + n)};
    cuda::pack_weight(stream, weight, e, pieces);
  }
  stream.sync();
  if (!options.unpack) return;
  values_.resize(static_cast<size_t>(experts * n * k));
  for (int64_t e = 0; e < experts; ++e) {
    cuda::unpack_weight(weight, e, {values_.data() + e * n * k, DType::kF32, {n, k}});
  }
  oracle.shape = {WeightFormat::kF32, n, k, experts};
  oracle.data = reinterpret_cast<std::byte*>(values_.data());
  oracle.expert_bytes = n * k * 4;
}

void check_linear(const LinearCheck& check, const WeightPair& w, const LinearCase& c) {
  SCOPED_TRACE(testing::Message() << weight_format_name(w.weight.shape.format) << " " << c.m
                                  << " x " << c.n << " x " << c.k << " epilogue "
                                  << static_cast<int>(c.epilogue));
  const int64_t columns = c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
  const int64_t x_stride = (c.k + 7) / 8 * 8 + c.x_gap;
  std::vector<float> x = random_bf16(c.m * c.k, 8, check.x_scale);
  std::vector<float> x_buffer(static_cast<size_t>(c.m * x_stride), NAN);
  for (int64_t i = 0; i < c.m; ++i) {
    std::copy_n(x.begin() + i * c.k, c.k, x_buffer.begin() + i * x_stride + c.x_gap / 2);
  }
  const DeviceTensor dx(DType::kBF16, {c.m, x_stride}, x_buffer);
  std::vector<float> bias = random_bf16(c.n, 9);
  const DeviceTensor dbias(DType::kF32, {c.n}, bias);
  std::vector<float> expected(static_cast<size_t>(c.m * columns), NAN);
  if (c.epilogue == Epilogue::kAdd) expected = random_bf16(c.m * columns, 10);
  const int64_t out_stride = columns + c.out_gap;
  std::vector<float> out_buffer(static_cast<size_t>(c.m * out_stride), 77.0f);
  for (int64_t i = 0; i < c.m; ++i) {
    std::copy_n(expected.begin() + i * columns, columns,
                out_buffer.begin() + i * out_stride + c.out_gap / 2);
  }
  const DeviceTensor dout(c.out, {c.m, out_stride}, out_buffer);

  CudaTestStream stream;
  LinearArgs args;
  args.x = dx.view.columns(c.x_gap / 2, c.x_gap / 2 + c.k);
  args.weight = &w.weight;
  if (c.bias) args.bias = dbias.view;
  args.out = dout.view.columns(c.out_gap / 2, c.out_gap / 2 + columns);
  args.epilogue = c.epilogue;
  check.op(stream, args);
  stream.sync();
  Stream& native = stream;
  EXPECT_LE(native.scratch().peak(), check.scratch_bytes.value_or(INT64_MAX));

  if (c.epilogue != Epilogue::kAdd) std::fill(expected.begin(), expected.end(), 0.0f);
  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, 1 << 20).value());
  Stream host(pool, scratch);
  args.x = TensorView(x.data(), DType::kF32, {c.m, c.k});
  args.weight = &w.oracle;
  if (c.bias) args.bias = TensorView(bias.data(), DType::kF32, {c.n});
  args.out = TensorView(expected.data(), DType::kF32, {c.m, columns});
  ref_ops().linear(host, args);

  const std::vector<float> all = dout.floats();
  std::vector<float> got(expected.size());
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < out_stride; ++j) {
      const float value = all[static_cast<size_t>(i * out_stride + j)];
      const int64_t at = j - c.out_gap / 2;
      if (at >= 0 && at < columns) {
        got[static_cast<size_t>(i * columns + at)] = value;
      } else {
        ASSERT_EQ(value, 77.0f) << "wrote beside its columns";
      }
    }
  }
  EXPECT_LT(relative_l2(got, expected), check.tolerance);
}

void check_linear_pieces(LinearOp op, const Weight& weight, Epilogue epilogue, DType out,
                         const std::vector<std::vector<int64_t>>& cuts) {
  const int64_t n = weight.shape.n, k = weight.shape.k;
  SCOPED_TRACE(testing::Message() << weight_format_name(weight.shape.format) << " " << n << " x "
                                  << k << " epilogue " << static_cast<int>(epilogue));
  const int64_t rows = std::accumulate(cuts[0].begin(), cuts[0].end(), int64_t{0});
  const DeviceTensor x(DType::kBF16, {rows, k}, random_bf16(rows * k, 4));
  const int64_t columns = epilogue == Epilogue::kSiluMul ? n / 2 : n;
  const std::vector<float> ones(static_cast<size_t>(rows * columns), 1.0f);
  const DeviceTensor together(out, {rows, columns}, ones);
  CudaTestStream stream;
  const auto run = [&](int64_t begin, int64_t end, const DeviceTensor& to) {
    LinearArgs args;
    args.weight = &weight;
    args.epilogue = epilogue;
    args.x = x.view.rows(begin, end);
    args.out = to.view.rows(begin, end);
    op(stream, args);
  };
  run(0, rows, together);
  stream.sync();
  for (const std::vector<int64_t>& sizes : cuts) {
    const DeviceTensor pieces(out, {rows, columns}, ones);
    int64_t begin = 0;
    for (const int64_t size : sizes) {
      run(begin, begin + size, pieces);
      begin += size;
    }
    ASSERT_EQ(begin, rows);
    stream.sync();
    EXPECT_TRUE(together.bytes() == pieces.bytes());
  }
}

void check_no_rows(LinearOp op, const Weight& weight) {
  const DeviceTensor x(DType::kBF16, {1, weight.shape.k}), out(DType::kBF16, {1, weight.shape.n});
  CudaTestStream stream;
  LinearArgs args;
  args.x = x.view.rows(0, 0);
  args.weight = &weight;
  args.out = out.view.rows(0, 0);
  op(stream, args);
  stream.sync();
}

std::vector<int32_t> choose_experts(const MoeCase& c) {
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

namespace {

std::string text_of(WeightFormat format, const MoeCase& c) {
  return (testing::Message() << weight_format_name(format) << ", " << c.tokens << " tokens, hidden "
                             << c.hidden << ", inner " << c.inner << ", " << c.top_k << " of "
                             << c.experts)
      .GetString();
}

}  // namespace

void check_moe(const MoeCheck& check, const WeightPair& gate_up, const WeightPair& down,
               const MoeCase& c) {
  SCOPED_TRACE(text_of(gate_up.weight.shape.format, c));
  std::vector<float> x = random_bf16(c.tokens * c.hidden, 3);
  std::vector<float> weights = random_bf16(c.tokens * c.top_k, 4);
  std::vector<float> out = random_bf16(c.tokens * c.hidden, 5);
  std::vector<int32_t> ids = choose_experts(c);
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
  check.op(stream, args);
  stream.sync();
  Stream& native = stream;
  EXPECT_LE(native.scratch().peak(), check.scratch_bytes);

  ThreadPool pool(8);
  Arena scratch(Buffer::allocate(DeviceKind::kCpu, int64_t{64} << 20).value());
  Stream host(pool, scratch);
  args.x = TensorView(x.data(), DType::kF32, {c.tokens, c.hidden});
  args.ids = TensorView(ids.data(), DType::kI32, {c.tokens, c.top_k});
  args.weights = TensorView(weights.data(), DType::kF32, {c.tokens, c.top_k});
  args.gate_up = &gate_up.oracle;
  args.down = &down.oracle;
  args.out = TensorView(out.data(), DType::kF32, {c.tokens, c.hidden});
  ref_ops().moe(host, args);
  EXPECT_LT(relative_l2(dout.floats(), out), check.tolerance);
}

void check_moe_pieces(MoeOp op, const Weight& gate_up, const Weight& down, const MoeCase& c,
                      const std::vector<std::vector<int64_t>>& cuts) {
  SCOPED_TRACE(text_of(gate_up.shape.format, c));
  const DeviceTensor x(DType::kBF16, {c.tokens, c.hidden}, random_bf16(c.tokens * c.hidden, 3));
  const DeviceTensor weights(DType::kF32, {c.tokens, c.top_k}, random_bf16(c.tokens * c.top_k, 4));
  const DeviceTensor ids(choose_experts(c));
  const TensorView all_ids(ids.view.data, DType::kI32, {c.tokens, c.top_k});
  const DeviceTensor together(DType::kF32, {c.tokens, c.hidden});
  CudaTestStream stream;
  const auto run = [&](int64_t begin, int64_t end, const DeviceTensor& out) {
    MoeArgs args;
    args.gate_up = &gate_up;
    args.down = &down;
    args.x = x.view.rows(begin, end);
    args.ids = all_ids.rows(begin, end);
    args.weights = weights.view.rows(begin, end);
    args.out = out.view.rows(begin, end);
    op(stream, args);
  };
  run(0, c.tokens, together);
  stream.sync();
  for (const std::vector<int64_t>& sizes : cuts) {
    const DeviceTensor pieces(DType::kF32, {c.tokens, c.hidden});
    int64_t begin = 0;
    for (const int64_t size : sizes) {
      const int64_t end = std::min(begin + size, c.tokens);
      run(begin, end, pieces);
      begin = end;
    }
    ASSERT_EQ(begin, c.tokens);
    stream.sync();
    EXPECT_TRUE(together.bytes() == pieces.bytes()) << "pieces from " << sizes[0];
  }
}

void check_no_tokens(MoeOp op, const Weight& gate_up, const Weight& down) {
  const int64_t hidden = gate_up.shape.k;
  const DeviceTensor x(DType::kBF16, {1, hidden}), ids(std::vector<int32_t>{0});
  const DeviceTensor weights(DType::kF32, {1, 1}), out(DType::kF32, {1, hidden});
  CudaTestStream stream;
  MoeArgs args;
  args.x = x.view.rows(0, 0);
  args.ids = TensorView(ids.view.data, DType::kI32, {0, 1});
  args.weights = weights.view.rows(0, 0);
  args.gate_up = &gate_up;
  args.down = &down;
  args.out = out.view.rows(0, 0);
  op(stream, args);
  stream.sync();
}

}  // namespace weft
