#include <algorithm>
#include <cmath>

#include "support.h"

namespace weft {
namespace {

/// embed, norms, elementwise ops and routing: rows of every width, strided views, no rows at all.
class Pointwise : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;

  /// Calls `op` with the tables of both backends on copies of `x`; the outputs must agree.
  template <class Call>
  void compare(const Floats& start, double tolerance, Call&& call) {
    Floats got = start, want = start;
    call(ops_, got);
    call(ref_ops(), want);
    EXPECT_LT(relative_l2(got.data, want.data), tolerance);
    // One thread gives the same bits.
    TestStream one(1);
    Floats alone = start;
    current_ = &static_cast<Stream&>(one);
    call(ops_, alone);
    current_ = nullptr;
    EXPECT_TRUE(alone.same_bits(got));
  }
  Stream& stream() { return current_ != nullptr ? *current_ : static_cast<Stream&>(stream_); }

 private:
  Stream* current_ = nullptr;
};
WEFT_FOR_EACH_ISA(Pointwise);

constexpr double kTolerance = 1e-6;
const int64_t kRows[] = {0, 1, 7, 97};
const int64_t kWidths[] = {1, 15, 16, 17, 64, 1000};

/// Columns [3, 3 + width) of a wider matrix: rows that are not packed.
Floats strided(int64_t rows, int64_t width, uint64_t seed) {
  Floats wide = random_floats({rows, width + 5}, seed, 4);
  wide.view = wide.view.columns(3, 3 + width);
  return wide;
}
TensorView view_of(Floats& x, int64_t rows, int64_t width) {
  TensorView v(x.data.data(), DType::kF32, {rows, width + 5});
  return v.columns(3, 3 + width);
}

TEST_P(Pointwise, RmsNorm) {
  for (const int64_t rows : kRows) {
    for (const int64_t width : kWidths) {
      const Floats x = strided(rows, width, 1), weight = random_floats({width}, 2);
      for (const bool with_residual : {false, true}) {
        compare(strided(rows, width, 3), kTolerance, [&](const OpTable& ops, Floats& residual) {
          Floats out({rows, width});
          RmsNormArgs args{.x = x.view, .weight = weight.view, .out = out.view};
          if (with_residual) args.residual = view_of(residual, rows, width);
          ops.rms_norm(stream(), args);
          residual.data.insert(residual.data.end(), out.data.begin(), out.data.end());
        });
      }
    }
  }
}

TEST_P(Pointwise, RmsNormInPlace) {
  const Floats weight = random_floats({100}, 2);
  compare(strided(5, 100, 3), kTolerance, [&](const OpTable& ops, Floats& x) {
    const TensorView v = view_of(x, 5, 100);
    ops.rms_norm(stream(), {.x = v, .weight = weight.view, .out = v});
  });
}

TEST_P(Pointwise, GatedNorm) {
  for (const int64_t rows : kRows) {
    for (const int64_t width : {16, 48, 128}) {
      const Floats x = random_floats({rows, 3, width}, 1, 4), weight = random_floats({width}, 2);
      Floats z = random_floats({rows, 3 * width + 7}, 3, 20);
      z.view = z.view.columns(7, 7 + 3 * width).split_last(3, width);
      for (const GateActivation act : {GateActivation::kSilu, GateActivation::kSigmoid}) {
        compare(x, kTolerance, [&](const OpTable& ops, Floats& out) {
          ops.gated_norm(stream(), {.x = x.view,
                                    .z = z.view,
                                    .weight = weight.view,
                                    .out = out.view,
                                    .eps = 1e-5f,
                                    .activation = act});
        });
      }
    }
  }
}

TEST_P(Pointwise, AddAndGates) {
  for (const int64_t rows : kRows) {
    for (const int64_t width : kWidths) {
      const Floats x = strided(rows, width, 1);
      compare(strided(rows, width, 2), kTolerance, [&](const OpTable& ops, Floats& out) {
        ops.add(stream(), {x.view, view_of(out, rows, width)});
      });
      const Floats gate = random_floats({rows, 1}, 4, 30);
      compare(strided(rows, width, 2), kTolerance, [&](const OpTable& ops, Floats& out) {
        ops.add_gated(stream(), {x.view, gate.view, view_of(out, rows, width)});
      });
      Floats wide = random_floats({rows, 2, 2 * width}, 5, 30);  // [query | gate] a head
      wide.view = wide.view.columns(width, 2 * width);
      compare(random_floats({rows, 2, width}, 6), kTolerance, [&](const OpTable& ops, Floats& out) {
        ops.mul_sigmoid(stream(), {out.view, wide.view});
      });
    }
  }
}

TEST_P(Pointwise, SigmoidOfExtremes) {
  Floats x({1, 1, 4}, 1), gate({1, 1, 4});
  const float values[] = {-1e30f, -100, 100, 1e30f};
  std::copy_n(values, 4, gate.data.begin());
  ops_.mul_sigmoid(stream_, {x.view, gate.view});
  EXPECT_EQ(x.data[0], 0);
  EXPECT_NEAR(x.data[1], 0, 1e-40);
  EXPECT_EQ(x.data[2], 1);
  EXPECT_EQ(x.data[3], 1);
}

TEST_P(Pointwise, EmbedIsExact) {
  for (const int64_t width : kWidths) {
    const Floats table = random_floats({50, width}, 1);
    std::vector<bf16> rounded(table.data.size());
    std::transform(table.data.begin(), table.data.end(), rounded.begin(), float_to_bf16);
    const TensorView tables[] = {table.view, {rounded.data(), DType::kBF16, {50, width}}};
    for (const TensorView& t : tables) {
      // The head's weight, where it is read as a table too.
      Weight head{
          .shape = {t.dtype == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBf16, 50, width}};
      std::vector<std::byte> storage(static_cast<size_t>(ops_.weight_bytes(head.shape)) + 64);
      head.data = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64);
      ops_.pack_weight(stream_, head, 0, {&t, 1});
      const TensorView packed = ops_.weight_rows(head);
      for (const int64_t rows : kRows) {
        std::vector<int32_t> ids(static_cast<size_t>(rows));
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 31) % 50);
        Ints id_view(ids);
        Floats got({rows, width}), want({rows, width});
        ops_.embed(stream_, {id_view.view, t, got.view});
        ref_ops().embed(stream_, {id_view.view, t, want.view});
        EXPECT_TRUE(got.same_bits(want));
        if (packed.rank == 0) continue;
        Floats again({rows, width});
        ops_.embed(stream_, {id_view.view, packed, again.view});
        EXPECT_TRUE(again.same_bits(want));
      }
    }
  }
}

struct Routed {
  std::vector<int32_t> ids;
  Floats weights;
};
Routed route(const OpTable& ops, Stream& stream, const Floats& logits, const Floats* correction,
             const RoutingRule& rule) {
  const int64_t rows = logits.view.dim(0);
  Routed out{std::vector<int32_t>(static_cast<size_t>(rows * rule.top_k) + 1),
             Floats({rows, rule.top_k})};
  MoeRouteArgs args{.logits = logits.view, .rule = rule, .weights = out.weights.view};
  if (correction != nullptr) args.correction = correction->view;
  args.ids = TensorView(out.ids.data(), DType::kI32, {rows, rule.top_k});
  ops.moe_route(stream, args);
  return out;
}

TEST_P(Pointwise, MoeRoute) {
  for (const int64_t rows : kRows) {
    for (const int64_t experts : {1, 2, 8, 60, 128, 512}) {
      for (const bool corrected : {false, true}) {
        const Floats logits = random_floats({rows, experts}, 1, 4);
        const Floats correction = random_floats({experts}, 2, 0.1f);
        const RoutingRule rule{.top_k = static_cast<int>(std::min<int64_t>(experts, 10)),
                               .renormalize = corrected,
                               .norm_min = 1e-12f,
                               .scale = 1.5f};
        const Floats* c = corrected ? &correction : nullptr;
        const Routed got = route(ops_, stream_, logits, c, rule);
        const Routed want = route(ref_ops(), stream_, logits, c, rule);
        EXPECT_EQ(got.ids, want.ids);
        EXPECT_LT(relative_l2(got.weights.data, want.weights.data), kTolerance);
      }
    }
  }
}

TEST_P(Pointwise, MoeRouteTiesGoToTheLowerId) {
  const Floats logits({1, 40}, 2.5f);
  const Routed got = route(ops_, stream_, logits, nullptr, {.top_k = 4});
  EXPECT_EQ(std::vector<int32_t>(got.ids.begin(), got.ids.begin() + 4),
            (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_FLOAT_EQ(got.weights.data[3], 0.25f);
}

TEST_P(Pointwise, MoeRouteOfNaNChoosesDistinctExperts) {
  const Floats logits({1, 20}, kNaN);
  Routed got = route(ops_, stream_, logits, nullptr, {.top_k = 8});
  got.ids.pop_back();
  std::sort(got.ids.begin(), got.ids.end());
  EXPECT_EQ(std::unique(got.ids.begin(), got.ids.end()), got.ids.end());
  EXPECT_GE(got.ids.front(), 0);
  EXPECT_LT(got.ids.back(), 20);
}

}  // namespace
}  // namespace weft
