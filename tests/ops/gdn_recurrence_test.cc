#include "gdn_world.h"

namespace weft {
namespace {

class GdnRecurrence : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(GdnRecurrence);

/// The recurrence of docs/kernels/gated_delta.md in double, apart from the oracle's code.
struct Recurrence {
  std::vector<double> out, state;  // [rows, HV, V]; [HV, V, K]
};
Recurrence recurrence(const World& w, int64_t slot) {
  const GdnShape& s = w.shape;
  const int64_t kd = s.key_dim, vd = s.value_dim, c = w.channels(), taps = s.conv_width;
  const auto x = [&](int64_t t, int64_t channel) -> double {
    if (t >= 0) return w.qkv.data[static_cast<size_t>(t * c + channel)];
    return w.windows.data[static_cast<size_t>((slot * (taps - 1) + taps - 1 + t) * c + channel)];
  };
  const auto convolved = [&](int64_t t, int64_t channel) {
    double y = 0;
    for (int64_t j = 0; j < taps; ++j) {
      y += w.conv.data[static_cast<size_t>(channel * taps + j)] * x(t - taps + 1 + j, channel);
    }
    return y / (1 + std::exp(-y));
  };
  const auto unit = [&](int64_t t, int64_t channel, double scale) {
    std::vector<double> y;
    double sum = 1e-6;
    for (int64_t i = 0; i < kd; ++i) y.push_back(convolved(t, channel + i));
    for (const double e : y) sum += e * e;
    for (double& e : y) e *= scale / std::sqrt(sum);
    return y;
  };
  Recurrence r;
  const size_t states = static_cast<size_t>(s.value_heads * vd * kd);
  r.state.assign(w.states.data.begin() + static_cast<int64_t>(states) * slot,
                 w.states.data.begin() + static_cast<int64_t>(states) * (slot + 1));
  for (int64_t t = 0; t < w.rows; ++t) {
    for (int64_t hv = 0; hv < s.value_heads; ++hv) {
      const int64_t hk = hv / (s.value_heads / s.key_heads);
      const auto q = unit(t, hk * kd, 1 / std::sqrt(static_cast<double>(kd)));
      const auto k = unit(t, (s.key_heads + hk) * kd, 1);
      const size_t gate = static_cast<size_t>(t * s.value_heads + hv),
                   head = static_cast<size_t>(hv);
      const double beta = 1 / (1 + std::exp(-double{w.b.data[gate]}));
      const double decay =
          std::exp(-std::exp(double{w.a_log.data[head]}) *
                   std::log1p(std::exp(double{w.a.data[gate]} + double{w.dt_bias.data[head]})));
      for (int64_t i = 0; i < vd; ++i) {
        double* row = r.state.data() + (hv * vd + i) * kd;
        double predicted = 0, out = 0;
        for (int64_t j = 0; j < kd; ++j) predicted += (row[j] *= decay) * k[static_cast<size_t>(j)];
        const double u = beta * (convolved(t, 2 * s.key_heads * kd + hv * vd + i) - predicted);
        for (int64_t j = 0; j < kd; ++j) {
          row[j] += u * k[static_cast<size_t>(j)];
          out += row[j] * q[static_cast<size_t>(j)];
        }
        r.out.push_back(out);
      }
    }
  }
  return r;
}

TEST_P(GdnRecurrence, MatchesARecurrenceInDouble) {
  for (const GdnShape& shape : {GdnShape{2, 4, 64, 32, 4}, {1, 2, 32, 48, 4}, {2, 2, 16, 32, 3}}) {
    for (const int prompt : {1, 0}) {
      World w(shape, 200, 61);
      for (float& a_log : w.a_log.data) a_log = -3;  // long memory
      const Recurrence want = recurrence(w, 6);
      const Floats got = run(ops_, stream_, w, 0, {{200, 6, 2}}, prompt);
      const std::vector<float> out(want.out.begin(), want.out.end());
      EXPECT_LT(relative_l2(got.data, out), kTolerance) << prompt;
      const int64_t n = w.states.view.stride[0];
      EXPECT_LT(relative_l2({w.states.data.begin() + 2 * n, w.states.data.begin() + 3 * n},
                            {want.state.begin(), want.state.end()}),
                kTolerance)
          << prompt;
    }
  }
}

/// Values far beyond what 16-bit floats hold, and states of that size carried on.
TEST_P(GdnRecurrence, LargeValuesStayExact) {
  const GdnShape shape{1, 2, 64, 32, 4};
  for (const int prompt : {1, 0}) {
    World ours(shape, 130, 71);
    for (float& x : ours.states.data) x *= 1e7f;
    for (size_t i = 0; i < ours.qkv.data.size(); ++i) {
      if (i % 192 >= 128) ours.qkv.data[i] *= 1e7f;
    }
    World oracle = ours;
    const Floats got = run(ops_, stream_, ours, 0, {{130, 2, 0}}, prompt);
    const Floats want = run(ref_ops(), stream_, oracle, 0, {{130, 2, 0}}, prompt);
    EXPECT_GT(*std::max_element(got.data.begin(), got.data.end()), 65504.0f);
    EXPECT_LT(relative_l2(got.data, want.data), kTolerance);
    EXPECT_LT(relative_l2(ours.slot_of(0), oracle.slot_of(0)), kTolerance);
  }
}

}  // namespace
}  // namespace weft
