#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/op_table.h"
#include "kernels/quantize.h"

namespace weft {
namespace {

/// The op table of an instruction set, with its name for messages.
struct Isa {
  CpuIsa isa;
  const OpTable& ops;
};

std::vector<Isa> isas() {
  std::vector<Isa> some;
  for (const CpuIsa isa : cpu_isas()) some.push_back({isa, cpu_ops(isa)});
  return some;
}

std::vector<float> random_values(int64_t count, uint64_t seed, float scale = 1.0f) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(engine);
  return values;
}

TensorView view2(std::vector<float>& v, int64_t rows, int64_t cols) {
  return TensorView(v.data(), DType::kF32, {rows, cols});
}

/// A pool with its stream.
struct Machine {
  explicit Machine(int threads)
      : pool(threads),
        arena(Buffer::allocate(DeviceKind::kCpu, int64_t{256} << 20).value()),
        stream(pool, arena) {}
  ThreadPool pool;
  Arena arena;
  Stream stream;
};

struct Packed {
  Packed(const Isa& isa, Stream& stream, WeightFormat format, std::vector<float>& w, int64_t n,
         int64_t k) {
    weight.shape = {format, n, k, 1};
    weight.expert_bytes = isa.ops.weight_bytes(weight.shape);
    buffer = Buffer::allocate(DeviceKind::kCpu, weight.expert_bytes).value();
    weight.data = buffer.data();
    const TensorView piece = view2(w, n, k);
    const std::vector<TensorView> pieces = {piece.rows(0, n / 3), piece.rows(n / 3, n)};
    isa.ops.pack_weight(stream, weight, 0, pieces);
    dense.resize(static_cast<size_t>(n * k));
    isa.ops.unpack_weight(weight, 0, view2(dense, n, k));
  }
  Weight weight;
  Buffer buffer;
  std::vector<float> dense;
};

constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kBf16, WeightFormat::kInt8,
                                     WeightFormat::kInt4};

float rounded(float x) {
  return bf16_to_float(float_to_bf16(x));
}

TEST(Pack, HoldsTheCodesOfTheSharedDefinition) {
  Machine machine(2);
  for (const Isa& isa : isas()) {
    for (const auto& [n, k] : std::vector<std::pair<int, int>>{{1, 64}, {21, 96}, {100, 1000}}) {
      std::vector<float> w = random_values(int64_t{n} * k, 7, 0.02f);
      w[0] = 1e-9f;
      for (WeightFormat format : kFormats) {
        const Packed packed(isa, machine.stream, format, w, n, k);
        for (int64_t row = 0; row < n; ++row) {
          for (int64_t k0 = 0; k0 < k; k0 += kWeightGroup) {
            const int count = static_cast<int>(std::min<int64_t>(kWeightGroup, k - k0));
            const float* group = w.data() + row * k + k0;
            int8_t codes[kWeightGroup];
            f16 scale = 0;
            if (format == WeightFormat::kInt8) scale = quantize_group_int8(group, count, codes);
            if (format == WeightFormat::kInt4) scale = quantize_group_int4(group, count, codes);
            for (int i = 0; i < count; ++i) {
              float want = static_cast<float>(codes[i]) * f16_to_float(scale);
              if (format == WeightFormat::kF32) want = group[i];
              if (format == WeightFormat::kBf16) want = rounded(group[i]);
              ASSERT_EQ(packed.dense[static_cast<size_t>(row * k + k0 + i)], want)
                  << cpu_isa_name(isa.isa) << " " << weight_format_name(format) << " row " << row;
            }
          }
        }
      }
    }
  }
}

TEST(Pack, TakesEveryCheckpointType) {
  Machine machine(1);
  const int64_t n = 20, k = 40;
  std::vector<float> w = random_values(n * k, 3);
  std::vector<bf16> as_bf16;
  std::vector<f16> as_f16;
  for (float& v : w) {
    v = rounded(v);  // exact in bf16, and in f16 at this size
    as_bf16.push_back(float_to_bf16(v));
    as_f16.push_back(float_to_f16(v));
  }
  for (const Isa& isa : isas()) {
    const Packed packed(isa, machine.stream, WeightFormat::kF32, w, n, k);
    std::vector<float> out(w.size());
    for (const TensorView& piece : {TensorView(as_bf16.data(), DType::kBF16, {n, k}),
                                    TensorView(as_f16.data(), DType::kF16, {n, k})}) {
      isa.ops.pack_weight(machine.stream, packed.weight, 0, std::span<const TensorView>(&piece, 1));
      isa.ops.unpack_weight(packed.weight, 0, view2(out, n, k));
      for (size_t i = 0; i < w.size(); ++i) ASSERT_NEAR(out[i], w[i], 1e-7f);
    }
  }
}

/// x W^T in double; bf16 rounding of x where the format says so.
std::vector<double> reference(const std::vector<float>& x, const std::vector<float>& w, int64_t m,
                              int64_t n, int64_t k, WeightFormat format) {
  std::vector<double> y(static_cast<size_t>(m * n));
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t o = 0; o < n; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) {
        const float v = x[static_cast<size_t>(r * k + i)];
        sum += double{format == WeightFormat::kBf16 ? rounded(v) : v} *
               double{w[static_cast<size_t>(o * k + i)]};
      }
      y[static_cast<size_t>(r * n + o)] = sum;
    }
  }
  return y;
}

/// Largest |got - want| over the standard deviation that k products of x and w have.
double relative_error(const std::vector<float>& got, const std::vector<double>& want, int64_t k,
                      double deviation) {
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::fabs(double{got[i]} - want[i]));
    if (std::isnan(got[i])) return INFINITY;
  }
  return worst / (std::sqrt(static_cast<double>(k)) * deviation);
}

double tolerance(WeightFormat format, bool prompt) {
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kBf16: return 1e-5;  // exact products, fp32 sums
    default: return prompt ? 3e-2 : 2e-4;   // both factors rounded to bf16, or 16-bit integers
  }
}

TEST(Linear, MatchesDoublePrecision) {
  Machine machine(2);
  for (const auto& [n, k] : std::vector<std::pair<int, int>>{
           {1, 64}, {4, 96}, {16, 32}, {100, 1000}, {70, 129}, {272, 2080}}) {
    std::vector<float> w = random_values(int64_t{n} * k, 11, 0.05f);
    for (int64_t m : {1, 3, 17, 40}) {
      std::vector<float> x = random_values(m * k, 13);
      for (const Isa& isa : isas()) {
        for (WeightFormat format : kFormats) {
          const Packed packed(isa, machine.stream, format, w, n, k);
          const std::vector<double> want = reference(x, packed.dense, m, n, k, format);
          for (bool prompt : {false, true}) {
            std::vector<float> y(static_cast<size_t>(m * n), NAN);
            LinearArgs args{.x = view2(x, m, k), .weight = &packed.weight, .out = view2(y, m, n)};
            args.prompt_rows = prompt ? m : 0;
            isa.ops.linear(machine.stream, args);
            EXPECT_LT(relative_error(y, want, k, 0.05), tolerance(format, prompt))
                << cpu_isa_name(isa.isa) << " " << weight_format_name(format) << " m " << m << " n "
                << n << " k " << k << " prompt " << prompt;
          }
        }
      }
    }
  }
}

TEST(Linear, BiasAndEpilogues) {
  Machine machine(2);
  for (const auto& [inner, k] :
       std::vector<std::pair<int, int>>{{48, 96}, {10, 64}, {16, 1000}, {144, 64}}) {
    const int64_t n = 2 * inner;
    std::vector<float> w = random_values(n * k, 17, 0.1f), bias = random_values(n, 19);
    for (int64_t m : {1, 37, 70}) {
      std::vector<float> x = random_values(m * k, 23);
      for (const Isa& isa : isas()) {
        for (WeightFormat format : kFormats) {
          const Packed packed(isa, machine.stream, format, w, n, k);
          std::vector<float> plain(static_cast<size_t>(m * n)), sum(plain.size(), 2.0f);
          LinearArgs args{.x = view2(x, m, k), .weight = &packed.weight};
          args.bias = TensorView(bias.data(), DType::kF32, {n});
          args.out = view2(plain, m, n);
          isa.ops.linear(machine.stream, args);
          args.out = view2(sum, m, n);
          args.epilogue = Epilogue::kAdd;
          isa.ops.linear(machine.stream, args);
          std::vector<float> gated(static_cast<size_t>(m * inner), NAN);
          args.out = view2(gated, m, inner);
          args.epilogue = Epilogue::kSiluMul;
          isa.ops.linear(machine.stream, args);
          const std::vector<double> want = reference(x, packed.dense, m, n, k, format);
          for (int64_t r = 0; r < m; ++r) {
            for (int64_t i = 0; i < n; ++i) {
              const auto at = static_cast<size_t>(r * n + i);
              ASSERT_NEAR(plain[at], want[at] + double{bias[static_cast<size_t>(i)]}, 1e-3);
              ASSERT_EQ(sum[at], 2.0f + plain[at]);
            }
            for (int64_t i = 0; i < inner; ++i) {
              const double g = plain[static_cast<size_t>(r * n + i)];
              const double u = plain[static_cast<size_t>(r * n + inner + i)];
              const double y = g / (1.0 + std::exp(-g)) * u;
              ASSERT_NEAR(gated[static_cast<size_t>(r * inner + i)], y, 1e-6 * (1 + std::fabs(y)));
            }
          }
        }
      }
    }
  }
}

TEST(Linear, StridedRowsStayInside) {
  Machine machine(2);
  const int64_t n = 20, k = 64, m = 5;
  std::vector<float> w = random_values(n * k, 29), x = random_values(m * 100, 31);
  std::vector<float> out(static_cast<size_t>(m * 50), 7.0f);
  for (const Isa& isa : isas()) {
    const Packed packed(isa, machine.stream, WeightFormat::kBf16, w, n, k);
    LinearArgs args{.x = view2(x, m, 100).columns(10, 10 + k), .weight = &packed.weight};
    args.out = view2(out, m, 50).columns(3, 3 + n);
    isa.ops.linear(machine.stream, args);
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t i = 0; i < 50; ++i) {
        if (i >= 3 && i < 3 + n) continue;
        ASSERT_EQ(out[static_cast<size_t>(r * 50 + i)], 7.0f);
      }
    }
  }
}

struct InvarianceCase {
  int64_t n, k, most;
};
// Rule 1 of Exactness in docs/architecture.md.
class RowInvariance : public testing::TestWithParam<InvarianceCase> {};

TEST_P(RowInvariance, ABitPatternNeverDependsOnNeighboursOrThreads) {
  const auto [n, k, most] = GetParam();
  Machine machines[] = {Machine(1), Machine(2), Machine(3)};
  std::vector<float> w = random_values(n * k, 37, 0.05f), x = random_values(most * k, 41);
  for (const Isa& isa : isas()) {
    for (WeightFormat format : kFormats) {
      const Packed packed(isa, machines[1].stream, format, w, n, k);
      for (bool prompt : {true, false}) {
        std::vector<float> all(static_cast<size_t>(most * n));
        int turn = 0;
        for (int64_t m : {most, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{5}, int64_t{8},
                          int64_t{15}, int64_t{16}, int64_t{17}, int64_t{31}, int64_t{33},
                          int64_t{64}, int64_t{100}, int64_t{511}, int64_t{512}}) {
          if (m > most) continue;
          // The rows are taken from the end too, so that a row changes its place in the tile.
          for (int64_t first : {int64_t{0}, most - m}) {
            std::vector<float> y(static_cast<size_t>(m * n), NAN);
            LinearArgs args{.x = view2(x, most, k).rows(first, first + m),
                            .weight = &packed.weight,
                            .out = view2(y, m, n)};
            args.prompt_rows = prompt ? m : 0;
            isa.ops.linear(machines[turn++ % 3].stream, args);
            if (m == most) all = y;
            ASSERT_EQ(0, std::memcmp(y.data(), all.data() + first * n, y.size() * 4))
                << cpu_isa_name(isa.isa) << " " << weight_format_name(format) << " m " << m
                << " first " << first << " prompt " << prompt;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RowInvariance,
                         testing::Values(InvarianceCase{1, 64, 100}, InvarianceCase{4, 96, 100},
                                         InvarianceCase{100, 1000, 512},
                                         InvarianceCase{80, 576, 2048},
                                         InvarianceCase{1040, 64, 64}));

TEST(Linear, PromptAndDecodeRowsMix) {
  Machine machine(2);
  const int64_t n = 48, k = 160, m = 50;
  std::vector<float> w = random_values(n * k, 43), x = random_values(m * k, 47);
  for (const Isa& isa : isas()) {
    for (WeightFormat format : kFormats) {
      const Packed packed(isa, machine.stream, format, w, n, k);
      const auto run = [&](int64_t prompt_rows) {
        std::vector<float> y(static_cast<size_t>(m * n), NAN);
        LinearArgs args{.x = view2(x, m, k), .weight = &packed.weight, .out = view2(y, m, n)};
        args.prompt_rows = prompt_rows;
        isa.ops.linear(machine.stream, args);
        return y;
      };
      const std::vector<float> prompt = run(m), decode = run(0), mixed = run(21);
      // NOLINTBEGIN(bugprone-suspicious-memory-comparison): the same bits
      EXPECT_EQ(0, std::memcmp(mixed.data(), prompt.data(), 21 * n * 4));
      EXPECT_EQ(0, std::memcmp(mixed.data() + 21 * n, decode.data() + 21 * n, (m - 21) * n * 4));
      // NOLINTEND(bugprone-suspicious-memory-comparison)
    }
  }
}

TEST(Linear, IntegerDecodeIsTheSameOnEveryInstructionSet) {
  Machine machine(2);
  const int64_t n = 40, k = 320, m = 9;
  std::vector<float> w = random_values(n * k, 53), x = random_values(m * k, 59);
  for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(i)] = 0.0f;  // a zero row
  for (WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    std::vector<float> first;
    for (const Isa& isa : isas()) {
      const Packed packed(isa, machine.stream, format, w, n, k);
      std::vector<float> y(static_cast<size_t>(m * n), NAN);
      LinearArgs args{.x = view2(x, m, k), .weight = &packed.weight, .out = view2(y, m, n)};
      isa.ops.linear(machine.stream, args);
      if (first.empty()) first = y;
      EXPECT_EQ(0, std::memcmp(y.data(), first.data(), y.size() * 4)) << cpu_isa_name(isa.isa);
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(y[static_cast<size_t>(i)], 0.0f);
    }
  }
}

/// E experts of one shape, packed.
struct Experts {
  Experts(const Isa& isa, Stream& stream, const WeightShape& shape, uint64_t seed) {
    const int64_t experts = shape.experts, n = shape.n, k = shape.k;
    weight.shape = shape;
    weight.expert_bytes = isa.ops.weight_bytes(weight.shape);
    buffer = Buffer::allocate(DeviceKind::kCpu, weight.expert_bytes * experts).value();
    weight.data = buffer.data();
    for (int64_t e = 0; e < experts; ++e) {
      std::vector<float> w = random_values(n * k, seed + static_cast<uint64_t>(e), 0.1f);
      const TensorView piece = view2(w, n, k);
      isa.ops.pack_weight(stream, weight, e, std::span<const TensorView>(&piece, 1));
    }
  }
  Weight weight;
  Buffer buffer;
};

/// One token through its experts by way of linear(), added in ascending expert id.
std::vector<float> moe_token(const Isa& isa, Stream& stream, const MoeArgs& args, int64_t t,
                             bool prompt) {
  const int64_t hidden = args.down->shape.n, inner = args.down->shape.k;
  std::vector<std::pair<int32_t, float>> chosen;
  for (int64_t j = 0; j < args.ids.dim(1); ++j)
    chosen.emplace_back(args.ids.row<int32_t>(t)[j], args.weights.row<float>(t)[j]);
  std::sort(chosen.begin(), chosen.end());
  std::vector<float> sum(static_cast<size_t>(hidden)), act(static_cast<size_t>(inner));
  std::vector<float> y(static_cast<size_t>(hidden));
  for (const auto& [expert, factor] : chosen) {
    Weight up = *args.gate_up, down = *args.down;
    up.data += expert * up.expert_bytes;
    down.data += expert * down.expert_bytes;
    LinearArgs linear{.x = args.x.rows(t, t + 1), .weight = &up, .out = view2(act, 1, inner)};
    linear.epilogue = Epilogue::kSiluMul;
    linear.prompt_rows = prompt ? 1 : 0;
    isa.ops.linear(stream, linear);
    linear = {.x = view2(act, 1, inner), .weight = &down, .out = view2(y, 1, hidden)};
    linear.prompt_rows = prompt ? 1 : 0;
    isa.ops.linear(stream, linear);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = std::fma(factor, y[i], sum[i]);
  }
  return sum;
}

TEST(Moe, IsTheSumOfItsExpertsWhateverTheBatch) {
  Machine machine(2), alone(1);
  const int64_t experts = 7, hidden = 72, tokens = 60, top_k = 3;
  for (int64_t inner : {48, 40}) {
    std::vector<float> x = random_values(tokens * hidden, 61);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; ++t) {  // distinct, in no order; expert 4 is hardly used
      for (int64_t j = 0; j < top_k; ++j)
        ids.push_back(static_cast<int32_t>((t * 5 + j * 3 + (t == 7 ? 4 : 0)) % experts));
    }
    std::vector<float> weights = random_values(tokens * top_k, 67);
    for (const Isa& isa : isas()) {
      for (WeightFormat format : kFormats) {
        const Experts up(isa, machine.stream, {format, 2 * inner, hidden, experts}, 71);
        const Experts down(isa, machine.stream, {format, hidden, inner, experts}, 73);
        const int64_t prompt = 33;
        std::vector<float> out(static_cast<size_t>(tokens * hidden), 0.5f);
        MoeArgs args{.x = view2(x, tokens, hidden),
                     .ids = TensorView(ids.data(), DType::kI32, {tokens, top_k}),
                     .weights = view2(weights, tokens, top_k),
                     .gate_up = &up.weight,
                     .down = &down.weight,
                     .out = view2(out, tokens, hidden)};
        args.prompt_rows = prompt;
        for (bool accumulate : {false, true}) {
          std::vector<float> before = out;
          args.accumulate = accumulate;
          isa.ops.moe(machine.stream, args);
          for (int64_t t = 0; t < tokens; ++t) {
            const std::vector<float> want = moe_token(isa, alone.stream, args, t, t < prompt);
            for (int64_t i = 0; i < hidden; ++i) {
              const auto at = static_cast<size_t>(t * hidden + i);
              const float base = accumulate ? before[at] : 0.0f;
              ASSERT_EQ(out[at], accumulate ? base + want[static_cast<size_t>(i)]
                                            : want[static_cast<size_t>(i)])
                  << cpu_isa_name(isa.isa) << " " << weight_format_name(format) << " t " << t;
            }
          }
        }
      }
    }
  }
}

TEST(Moe, ScratchBoundsHold) {
  const int64_t experts = 20, hidden = 96, inner = 40, tokens = 50, top_k = 2;
  std::vector<float> x = random_values(tokens * hidden, 79), weights(tokens * top_k, 0.5f);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens * top_k; ++t) ids.push_back(static_cast<int32_t>(t % experts));
  std::vector<float> out(static_cast<size_t>(tokens * hidden));
  Machine machine(2);
  for (const Isa& isa : isas()) {
    for (WeightFormat format : kFormats) {
      const Experts up(isa, machine.stream, {format, 2 * inner, hidden, experts}, 83);
      const Experts down(isa, machine.stream, {format, hidden, inner, experts}, 89);
      for (int64_t prompt : {int64_t{0}, int64_t{25}, tokens}) {
        const int64_t bound = moe_scratch_bytes(up.weight.shape, tokens, top_k, 2);
        Arena arena(Buffer::allocate(DeviceKind::kCpu, bound).value());
        Stream stream(machine.pool, arena);
        MoeArgs args{.x = view2(x, tokens, hidden),
                     .ids = TensorView(ids.data(), DType::kI32, {tokens, top_k}),
                     .weights = view2(weights, tokens, top_k),
                     .gate_up = &up.weight,
                     .down = &down.weight,
                     .out = view2(out, tokens, hidden)};
        args.prompt_rows = prompt;
        EXPECT_NO_THROW(isa.ops.moe(stream, args));
        Weight one = up.weight;
        one.shape.experts = 1;
        std::vector<float> act(static_cast<size_t>(tokens * inner));
        Arena small(
            Buffer::allocate(DeviceKind::kCpu, linear_scratch_bytes(one.shape, tokens, 2)).value());
        Stream narrow(machine.pool, small);
        LinearArgs linear{.x = args.x, .weight = &one, .out = view2(act, tokens, inner)};
        linear.epilogue = Epilogue::kSiluMul;
        linear.prompt_rows = prompt;
        EXPECT_NO_THROW(isa.ops.linear(narrow, linear));
      }
    }
  }
}

}  // namespace
}  // namespace weft
