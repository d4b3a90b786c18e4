// embed, rms_norm, add, add_gated, mul_sigmoid, moe_route, qkv_prepare: CUDA against the oracle.

#include <cmath>

#include "kernels/ref/ref.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr double kBf16 = 4e-3;  // relative L2 of one rounding to bf16

/// Host f32 values with a view, for the oracle.
struct Host {
  std::vector<float> data;
  TensorView view;
  Host(std::initializer_list<int64_t> dims, std::vector<float> values) : data(std::move(values)) {
    data.push_back(0);  // never null
    view = TensorView(data.data(), DType::kF32, dims);
  }
  std::vector<float> values() const { return {data.begin(), data.end() - 1}; }
};

Stream& host_stream() {
  static ThreadPool pool(1);
  static Arena scratch;
  static Stream stream(pool, scratch);
  return stream;
}

class SmallOps : public ::testing::Test {
 protected:
  CudaTestStream stream_;
};

TEST_F(SmallOps, EmbedSmall) {
  const int64_t vocab = 37, width = 136;
  const auto table = random_bf16(vocab * width, 1);
  const std::vector<int32_t> ids = {5, 0, 36, 5, 17};
  const DeviceTensor ids_d(ids);
  using Types = std::pair<DType, DType>;
  for (const auto& [from, to] :
       {Types{DType::kBF16, DType::kF32}, Types{DType::kBF16, DType::kBF16},
        Types{DType::kF32, DType::kF32}}) {
    const DeviceTensor table_d(from, {vocab, width}, table);
    DeviceTensor out(to, {5, width});
    out.poison();
    cuda::embed(stream_, {.ids = ids_d.view, .table = table_d.view, .out = out.view});
    stream_.sync();
    const auto got = out.floats();
    for (size_t t = 0; t < ids.size(); ++t) {
      for (int64_t i = 0; i < width; ++i) {
        ASSERT_EQ(got[t * width + i], table[static_cast<size_t>(ids[t] * width + i)]);
      }
    }
  }
}

TEST_F(SmallOps, RmsNormSmall) {
  for (const int64_t width : {8, 64, 1000, 1024, 4096, 5120, 16384}) {
    for (const bool narrow : {false, true}) {
      for (const bool with_residual : {false, true}) {
        const int64_t rows = 3;
        const auto x = random_bf16(rows * width, 2), weight = random_bf16(width, 3);
        const auto residual = random_bf16(rows * width, 4, 3);
        Host x_h({rows, width}, x), weight_h({width}, weight), residual_h({rows, width}, residual);
        Host out_h({rows, width}, std::vector<float>(x.size()));
        ref_ops().rms_norm(host_stream(),
                           {.x = x_h.view,
                            .residual = with_residual ? residual_h.view : TensorView(),
                            .weight = weight_h.view,
                            .out = out_h.view});
        const DeviceTensor x_d(narrow ? DType::kBF16 : DType::kF32, {rows, width}, x);
        const DeviceTensor weight_d(DType::kF32, {width}, weight);
        const DeviceTensor residual_d(DType::kF32, {rows, width}, residual);
        DeviceTensor out(DType::kBF16, {rows, width}), one(DType::kBF16, {1, width});
        out.poison();
        const DeviceTensor residual_one(
            DType::kF32, {1, width}, {residual.begin() + 2 * width, residual.begin() + 3 * width});
        cuda::rms_norm(stream_, {.x = x_d.view,
                                 .residual = with_residual ? residual_d.view : TensorView(),
                                 .weight = weight_d.view,
                                 .out = out.view});
        cuda::rms_norm(stream_, {.x = x_d.view.rows(2, 3),
                                 .residual = with_residual ? residual_one.view : TensorView(),
                                 .weight = weight_d.view,
                                 .out = one.view});
        stream_.sync();
        EXPECT_LE(relative_l2(out.floats(), out_h.values()), kBf16) << width;
        if (with_residual) {
          EXPECT_EQ(residual_d.floats(), residual_h.values());
        }
        const auto all = out.bytes(), alone = one.bytes();
        EXPECT_EQ(std::memcmp(all.data() + 2 * width * 2, alone.data(), alone.size()), 0) << width;
      }
    }
  }
}

TEST_F(SmallOps, SumsAndGatesSmall) {
  const int64_t rows = 5, width = 264;
  const auto x = random_bf16(rows * width, 5), out = random_bf16(rows * width, 6);
  const auto gate = random_bf16(rows, 7, 4);
  Host x_h({rows, width}, x), gate_h({rows, 1}, gate), out_h({rows, width}, out);
  const DeviceTensor x_d(DType::kBF16, {rows, width}, x), gate_d(DType::kF32, {rows, 1}, gate);
  ref_ops().add_gated(host_stream(), {.x = x_h.view, .gate = gate_h.view, .out = out_h.view});
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const DeviceTensor out_d(dtype, {rows, width}, out);
    cuda::add_gated(stream_, {.x = x_d.view, .gate = gate_d.view, .out = out_d.view});
    stream_.sync();
    EXPECT_LE(relative_l2(out_d.floats(), out_h.values()), dtype == DType::kF32 ? 1e-6 : kBf16);
  }

  Host sum_h({rows, width}, out);
  const DeviceTensor sum_d(DType::kBF16, {rows, width}, out);
  ref_ops().add(host_stream(), {.x = x_h.view, .out = sum_h.view});
  cuda::add(stream_, {.x = x_d.view, .out = sum_d.view});
  stream_.sync();
  EXPECT_LE(relative_l2(sum_d.floats(), sum_h.values()), kBf16);
}

TEST_F(SmallOps, MulSigmoidOfStridedGatesSmall) {
  const int64_t rows = 3, heads = 5, dim = 64;
  const auto x = random_bf16(rows * heads * dim, 8);
  const auto both = random_bf16(rows * heads * 2 * dim, 9, 5);
  Host x_h({rows, heads * dim}, x), both_h({rows, heads * 2 * dim}, both);
  const DeviceTensor x_d(DType::kBF16, {rows, heads * dim}, x);
  const DeviceTensor both_d(DType::kBF16, {rows, heads * 2 * dim}, both);
  const auto args = [&](const TensorView& values, const TensorView& gates) {
    return MulSigmoidArgs{.x = values.split_last(heads, dim),
                          .gate = gates.split_last(heads, 2 * dim).columns(dim, 2 * dim)};
  };
  ref_ops().mul_sigmoid(host_stream(), args(x_h.view, both_h.view));
  cuda::mul_sigmoid(stream_, args(x_d.view, both_d.view));
  stream_.sync();
  EXPECT_LE(relative_l2(x_d.floats(), x_h.values()), kBf16);
}

TEST_F(SmallOps, MoeRouteSmall) {
  for (const int64_t experts : {4, 60, 128, 512}) {
    for (const bool corrected : {false, true}) {
      const int64_t rows = 7;
      const int top_k = experts < 8 ? 2 : 8;
      auto logits = random_bf16(rows * experts, 10, 3);
      std::fill_n(logits.begin(), experts, 0.5f);  // ties: the lower ids
      const auto correction = random_bf16(experts, 11, 0.01f);
      const RoutingRule rule{
          .top_k = top_k, .renormalize = corrected, .norm_min = 1e-12f, .scale = 1.5f};
      Host logits_h({rows, experts}, logits), correction_h({experts}, correction);
      Host weights_h({rows, top_k}, std::vector<float>(static_cast<size_t>(rows * top_k)));
      std::vector<int32_t> ids_h(static_cast<size_t>(rows * top_k));
      ref_ops().moe_route(host_stream(),
                          {.logits = logits_h.view,
                           .correction = corrected ? correction_h.view : TensorView(),
                           .rule = rule,
                           .ids = {ids_h.data(), DType::kI32, {rows, top_k}},
                           .weights = weights_h.view});
      const DeviceTensor logits_d(DType::kF32, {rows, experts}, logits);
      const DeviceTensor correction_d(DType::kF32, {experts}, correction);
      const DeviceTensor ids_d(DType::kI32, {rows, top_k}), weights_d(DType::kF32, {rows, top_k});
      cuda::moe_route(stream_, {.logits = logits_d.view,
                                .correction = corrected ? correction_d.view : TensorView(),
                                .rule = rule,
                                .ids = ids_d.view,
                                .weights = weights_d.view});
      stream_.sync();
      const auto raw = ids_d.bytes();
      EXPECT_EQ(std::memcmp(raw.data(), ids_h.data(), raw.size()), 0) << experts;
      EXPECT_LE(relative_l2(weights_d.floats(), weights_h.values()), 1e-5);
    }
  }
}

struct PrepareCase {
  int q_heads, kv_heads, dim, rotary, block;
  bool norm, interleaved, gated;
};

TEST_F(SmallOps, QkvPrepareSmall) {
  for (const PrepareCase& c : {PrepareCase{4, 2, 64, 64, 64, true, false, false},
                               {3, 1, 128, 64, 16, false, false, true},
                               {2, 2, 256, 64, 64, true, false, true},
                               {5, 5, 128, 128, 64, false, true, false},
                               {2, 1, 16, 16, 64, true, false, false}}) {
    const int64_t tokens = 6, blocks = 5, positions = 50;
    const int64_t q_width = c.q_heads * c.dim * (c.gated ? 2 : 1), kv_width = c.kv_heads * c.dim;
    const auto all = random_bf16(tokens * (q_width + 2 * kv_width), 12);
    const auto norms = random_bf16(2 * c.dim, 13);
    const int64_t half = c.rotary / 2;
    const auto table = random_bf16(positions * half * 2, 14);
    std::vector<std::byte> axes(static_cast<size_t>(half));
    for (size_t i = 0; i < axes.size(); ++i) axes[i] = static_cast<std::byte>(i % 3);
    std::vector<int32_t> position;
    for (int i = 0; i < 3 * tokens; ++i) position.push_back(i * 7 % positions);
    std::fill_n(position.begin() + 6, 3, 9);  // a row with t = h = w among them
    const std::vector<int32_t> index = {40, 3, 19, 22, 0, 9}, delta = {-40, 11, -10, 5, 49, 0};
    const std::vector<int64_t> slots = {0, -1, blocks * c.block - 1, c.block, c.block + 1, 2};

    const auto args = [&](const TensorView& qkv, const TensorView& q_norm, const TensorView& cos,
                          const TensorView& axis, const RopePositions& where,
                          const TensorView& slot, const PagedKv& kv) {
      return QkvPrepareArgs{
          .q = qkv.columns(0, q_width).split_last(c.q_heads, q_width / c.q_heads).columns(0, c.dim),
          .k = qkv.columns(q_width, q_width + kv_width).split_last(c.kv_heads, c.dim),
          .v =
              qkv.columns(q_width + kv_width, q_width + 2 * kv_width).split_last(c.kv_heads, c.dim),
          .q_norm = c.norm ? q_norm.rows(0, c.dim) : TensorView(),
          .k_norm = c.norm ? q_norm.rows(c.dim, 2 * c.dim) : TensorView(),
          .rope = {.cos_sin = cos,
                   .axis = axis,
                   .rotary_dim = c.rotary,
                   .style = c.interleaved ? RopeStyle::kInterleaved : RopeStyle::kNeox},
          .positions = where,
          .kv_slot = slot,
          .kv = kv};
    };
    const KvShape shape{KvFormat::kBf16, c.kv_heads, c.dim, c.block};
    Host qkv_h({tokens, q_width + 2 * kv_width}, all), norm_h({2 * c.dim}, norms);
    Host table_h({positions, half, 2}, table);
    const int64_t ref_bytes = ref_ops().kv_block_bytes(shape);
    std::vector<std::byte> cache_h(static_cast<size_t>(ref_bytes * blocks));
    const PagedKv kv_h{shape, cache_h.data(), ref_bytes, blocks};
    auto position_h = position, index_h = index, delta_h = delta;
    auto slots_h = slots;
    ref_ops().qkv_prepare(host_stream(), args(qkv_h.view, norm_h.view, table_h.view,
                                              {axes.data(), DType::kU8, {half}},
                                              {{index_h.data(), DType::kI32, {tokens}},
                                               {delta_h.data(), DType::kI32, {tokens}},
                                               {position_h.data(), DType::kI32, {tokens, 3}}},
                                              {slots_h.data(), DType::kI64, {tokens}}, kv_h));

    const DeviceTensor qkv_d(DType::kBF16, {tokens, q_width + 2 * kv_width}, all);
    const DeviceTensor norm_d(DType::kF32, {2 * c.dim}, norms);
    const DeviceTensor table_d(DType::kF32, {positions, half, 2}, table);
    // Bytes go up as part of whole i32 values.
    std::vector<int32_t> axis_words(axes.size() / 4 + 1);
    std::memcpy(axis_words.data(), axes.data(), axes.size());
    const DeviceTensor axis_d(axis_words), slots_d(slots), index_d(index), delta_d(delta);
    DeviceTensor position_d(position);
    position_d.view = {position_d.view.data, DType::kI32, {tokens, 3}};
    const int64_t bytes = cuda::kv_block_bytes(shape);
    std::vector<float> zeros(static_cast<size_t>(bytes * blocks / 4));
    DeviceTensor clean(DType::kF32, {bytes * blocks / 4}, zeros);
    const PagedKv kv_clean{shape, static_cast<std::byte*>(clean.view.data), bytes, blocks};
    cuda::qkv_prepare(
        stream_, args(qkv_d.view, norm_d.view, table_d.view, {axis_d.view.data, DType::kU8, {half}},
                      {index_d.view, delta_d.view, position_d.view}, slots_d.view, kv_clean));
    stream_.sync();
    // Of q, k, v in place only q is promised.
    const auto only_q = [&](std::vector<float> rows) {
      const auto width = static_cast<size_t>(q_width + 2 * kv_width);
      for (size_t i = 0; i < rows.size(); ++i) {
        if (i % width >= static_cast<size_t>(q_width)) rows[i] = 0;
      }
      return rows;
    };
    EXPECT_LE(relative_l2(only_q(qkv_d.floats()), only_q(qkv_h.values())), kBf16);
    const int64_t per_block = int64_t{c.block} * c.kv_heads * c.dim;
    for (int64_t b = 0; b < blocks; ++b) {
      for (const bool is_v : {false, true}) {
        Host k_h({c.block, c.kv_heads, c.dim}, std::vector<float>(static_cast<size_t>(per_block)));
        Host v_h = k_h, k_d = k_h, v_d = k_h;
        for (Host* host : {&k_h, &v_h, &k_d, &v_d}) host->view.data = host->data.data();
        ref_ops().kv_read_block(kv_h, b, k_h.view, v_h.view);
        cuda::kv_read_block(kv_clean, b, k_d.view, v_d.view);
        const auto got = is_v ? v_d.values() : k_d.values();
        const auto want = is_v ? v_h.values() : k_h.values();
        EXPECT_LE(relative_l2(got, want), kBf16) << "block " << b;
      }
    }
  }
}

/// Many rows are computed by another kernel than few, with the same bits in q and the cache.
TEST_F(SmallOps, QkvPrepareOfManyRowsHasTheBitsOfFew) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kInt8Dynamic, KvFormat::kFp8Block,
                                KvFormat::kInt8, KvFormat::kFp8, KvFormat::kInt4}) {
    for (const PrepareCase& c : {PrepareCase{32, 8, 128, 128, 64, true, false, false},
                                 {11, 1, 128, 128, 64, false, false, true},
                                 {3, 3, 128, 64, 16, true, false, false},
                                 {9, 9, 128, 128, 64, true, true, false},
                                 {8, 2, 64, 64, 64, true, false, false},
                                 {4, 2, 256, 64, 64, true, false, true}}) {
      const int64_t tokens = 701, blocks = tokens / c.block + 1, positions = 800;
      const int64_t q_width = c.q_heads * c.dim * (c.gated ? 2 : 1), kv_width = c.kv_heads * c.dim;
      const int64_t width = q_width + 2 * kv_width, half = c.rotary / 2;
      const auto values = random_bf16(tokens * width, 21);
      std::vector<int32_t> index, triples;
      std::vector<int64_t> slots;
      for (int32_t i = 0; i < tokens; ++i) {
        index.push_back((i * 7 + 1) % static_cast<int32_t>(positions));
        for (int axis = 0; axis < 3; ++axis) triples.push_back(i % 5 == 0 ? i + axis : i);
        slots.push_back(i % 50 == 3 ? -1 : i * 3 % tokens);
      }
      const DeviceTensor norms(DType::kF32, {2 * c.dim}, random_bf16(2 * c.dim, 22));
      const DeviceTensor table(DType::kF32, {positions, half, 2},
                               random_bf16(positions * half * 2, 23));
      std::vector<float> scale = random_bf16(kv_width, 24);
      for (float& x : scale) x = 0.01f + std::fabs(x) * 0.01f;
      const DeviceTensor scales(DType::kF32, {c.kv_heads, c.dim}, scale);
      const DeviceTensor axes(std::vector<int32_t>(static_cast<size_t>(half), 0x02010002));
      const DeviceTensor index_d(index), slots_d(slots);
      DeviceTensor triples_d(triples);
      triples_d.view = {triples_d.view.data, DType::kI32, {tokens, 3}};
      const KvShape shape{format, c.kv_heads, c.dim, c.block};
      const int64_t bytes = cuda::kv_block_bytes(shape);
      const auto prepared = [&](int64_t step) {
        const DeviceTensor qkv(DType::kBF16, {tokens, width}, values);
        DeviceTensor pool(DType::kU8, {blocks, bytes});
        pool.poison();
        for (int64_t row = 0; row < tokens; row += step) {
          const int64_t end = std::min(tokens, row + step);
          const TensorView rows = qkv.view.rows(row, end);
          const TensorView k = rows.columns(q_width, q_width + kv_width);
          const TensorView v = rows.columns(q_width + kv_width, width);
          QkvPrepareArgs args;
          args.q = rows.columns(0, q_width).split_last(c.q_heads, q_width / c.q_heads);
          args.q = args.q.columns(0, c.dim);
          args.k = k.split_last(c.kv_heads, c.dim);
          args.v = v.split_last(c.kv_heads, c.dim);
          if (c.norm) args.q_norm = norms.view.rows(0, c.dim);
          if (c.norm) args.k_norm = norms.view.rows(c.dim, 2 * c.dim);
          args.rope.cos_sin = table.view;
          args.rope.axis = {axes.view.data, DType::kU8, {half}};
          args.rope.rotary_dim = c.rotary;
          args.rope.style = c.interleaved ? RopeStyle::kInterleaved : RopeStyle::kNeox;
          args.positions.index = index_d.view.rows(row, end);
          args.positions.triples = triples_d.view.rows(row, end);
          args.kv_slot = slots_d.view.rows(row, end);
          args.kv = {shape, static_cast<std::byte*>(pool.view.data), bytes, blocks};
          args.kv.k_scale = args.kv.v_scale = scales.view.ptr<float>();
          cuda::qkv_prepare(stream_, args);
        }
        stream_.sync();
        return std::pair(qkv.bytes(), pool.bytes());
      };
      const auto many = prepared(tokens), few = prepared(97);
      EXPECT_TRUE(many.first == few.first) << kv_format_name(format) << " " << c.dim;
      EXPECT_TRUE(many.second == few.second) << kv_format_name(format) << " " << c.dim;
    }
  }
}

}  // namespace
}  // namespace weft
