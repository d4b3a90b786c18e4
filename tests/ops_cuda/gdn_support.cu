#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/ops_cuda/gdn_support.h"

namespace weft {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kPad = 24;  // columns between rows: views are strided

std::vector<float> random_f32(int64_t count, uint64_t seed, float scale) {
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = (2 * uniform01(philox4x32(seed, i, 0)[0]) - 1) * scale;
  }
  return out;
}

std::vector<float> padded(const std::vector<float>& x, int64_t rows, int64_t width) {
  std::vector<float> out(static_cast<size_t>(rows * (width + kPad)), kNaN);
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(x.begin() + i * width, width, out.begin() + i * (width + kPad));
  }
  return out;
}

/// The recurrence of one head in double.
class Head {
 public:
  Head(const GdnWorld& w, int hv, GdnMistake mistake = GdnMistake::kNone)
      : w_(w), hv_(hv), kd_(w.shape.key_dim), vd_(w.shape.value_dim), mistake_(mistake) {}

  double input(const GdnPart& part, int64_t begin, int64_t t, int64_t c) const {
    const int64_t taps = w_.shape.conv_width;
    if (t >= begin) return w_.qkv[static_cast<size_t>(t * w_.channels() + c)];
    if (part.read < 0) return 0;
    return w_.windows[static_cast<size_t>(part.read * w_.window_size() +
                                          (taps - 1 + t - begin) * w_.channels() + c)];
  }
  double convolved(const GdnPart& part, int64_t begin, int64_t t, int64_t c) const {
    const int taps = w_.shape.conv_width;
    double sum = 0;
    for (int j = 0; j < taps; ++j) {
      sum += w_.conv[static_cast<size_t>(c * taps + j)] * input(part, begin, t - taps + 1 + j, c);
    }
    return sum / (1 + std::exp(-sum));
  }
  std::vector<double> normalised(const GdnPart& part, int64_t begin, int64_t t, int64_t c) const {
    std::vector<double> x(static_cast<size_t>(kd_));
    double sum = 1e-6;
    for (int64_t i = 0; i < kd_; ++i) {
      const double y = convolved(part, begin, t, c + i);
      x[static_cast<size_t>(i)] = y;
      sum += y * y;
    }
    for (double& y : x) y /= std::sqrt(sum);
    return x;
  }

  /// The segment's rows; `states` is written, the windows aren't.
  void run(const GdnPart& part, int64_t begin, std::vector<float>& states,
           std::vector<float>& out) {
    const GdnShape& s = w_.shape;
    std::vector<double> state(static_cast<size_t>(vd_ * kd_), 0.0);
    const int64_t at = hv_ * vd_ * kd_;
    if (part.read >= 0 && mistake_ != GdnMistake::kZeroedState) {
      for (int64_t i = 0; i < vd_ * kd_; ++i) {
        const int64_t from = mistake_ == GdnMistake::kTransposedState ? i % kd_ * vd_ + i / kd_ : i;
        state[static_cast<size_t>(i)] =
            states[static_cast<size_t>(part.read * w_.state_size() + at + from)];
      }
    }
    const int64_t hk = mistake_ == GdnMistake::kTiledHeads ? hv_ % s.key_heads
                                                           : hv_ / (s.value_heads / s.key_heads);
    for (int64_t t = begin; t < begin + part.rows; ++t) {
      const std::vector<double> q = normalised(part, begin, t, hk * kd_);
      const std::vector<double> k = normalised(part, begin, t, (s.key_heads + hk) * kd_);
      const int64_t row = mistake_ == GdnMistake::kSqueezedGates ? 0 : t;
      const auto gate = static_cast<size_t>(row * s.value_heads + hv_);
      const double x = double{w_.a[gate]} + w_.dt_bias[static_cast<size_t>(hv_)];
      const double g = -std::exp(double{w_.a_log[static_cast<size_t>(hv_)]}) *
                       (x > 20 ? x : std::log1p(std::exp(x)));
      const double decay = std::exp(g), beta = 1 / (1 + std::exp(-double{w_.b[gate]}));
      for (int64_t i = 0; i < vd_; ++i) {
        double* row = state.data() + i * kd_;
        const double v = convolved(part, begin, t, 2 * s.key_heads * kd_ + hv_ * vd_ + i);
        double predicted = 0, sum = 0;
        for (int64_t j = 0; j < kd_; ++j) {
          row[j] *= decay;
          predicted += row[j] * k[static_cast<size_t>(j)];
        }
        const double u = beta * (v - predicted);
        for (int64_t j = 0; j < kd_; ++j) {
          row[j] += u * k[static_cast<size_t>(j)];
          sum += row[j] * q[static_cast<size_t>(j)];
        }
        out[static_cast<size_t>(t * w_.out_width() + hv_ * vd_ + i)] =
            static_cast<float>(sum / std::sqrt(static_cast<double>(kd_)));
      }
    }
    if (part.write < 0) return;
    for (size_t i = 0; i < state.size(); ++i) {
      states[static_cast<size_t>(part.write * w_.state_size() + at) + i] =
          static_cast<float>(state[i]);
    }
  }

 private:
  const GdnWorld& w_;
  int64_t hv_, kd_, vd_;
  GdnMistake mistake_;
};

void norm_in_double(const GdnWorld& w, int64_t begin, int64_t end, std::vector<float>& out) {
  const int64_t width = w.shape.value_dim;
  for (int64_t at = begin * w.out_width(); at < end * w.out_width(); at += width) {
    double sum = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double o = out[static_cast<size_t>(at + i)];
      sum += o * o;
    }
    const double factor = 1 / std::sqrt(sum / static_cast<double>(width) + 1e-6);
    for (int64_t i = 0; i < width; ++i) {
      float& o = out[static_cast<size_t>(at + i)];
      const double z = w.z[static_cast<size_t>(at + i)], gate = 1 / (1 + std::exp(-z));
      o = static_cast<float>(w.norm_weight[static_cast<size_t>(i)] * o * factor *
                             (w.activation == GateActivation::kSilu ? z * gate : gate));
    }
  }
}

}  // namespace

int64_t GdnCall::rows() const {
  int64_t n = 0;
  for (const auto* chains : {&prompt, &decode}) {
    for (const GdnChain& chain : *chains) {
      for (const GdnPart& part : chain) n += part.rows;
    }
  }
  return n;
}

GdnWorld::GdnWorld(GdnShape s, int64_t num_rows, uint64_t seed, int64_t num_slots)
    : shape(s), rows(num_rows), slots(num_slots) {
  qkv = random_bf16(rows * channels(), seed, 2);
  a = random_f32(rows * s.value_heads, seed + 1, 3);
  b = random_f32(rows * s.value_heads, seed + 2, 3);
  conv = random_f32(channels() * s.conv_width, seed + 3, 1);
  a_log = random_f32(s.value_heads, seed + 4, 1);
  dt_bias = random_f32(s.value_heads, seed + 5, 1);
  // Slow heads beside fast ones: decays of a token between 0.999 and 0.01.
  for (size_t i = 0; i < a_log.size(); ++i) a_log[i] -= static_cast<float>(i % 3) * 2;
  windows = random_bf16(slots * window_size(), seed + 6, 2);
  states = random_f32(slots * state_size(), seed + 7, 0.3f);
}

std::vector<float> GdnWorld::slot(int64_t slot) const {
  std::vector<float> out = rows_of(windows, window_size(), slot, 1);
  const std::vector<float> state = rows_of(states, state_size(), slot, 1);
  out.insert(out.end(), state.begin(), state.end());
  return out;
}

void GdnWorld::copy_slot(int64_t from, int64_t to) {
  std::copy_n(windows.begin() + from * window_size(), window_size(),
              windows.begin() + to * window_size());
  std::copy_n(states.begin() + from * state_size(), state_size(),
              states.begin() + to * state_size());
}

void GdnWorld::poison(int64_t slot) {
  std::fill_n(windows.begin() + slot * window_size(), window_size(), kNaN);
  std::fill_n(states.begin() + slot * state_size(), state_size(), kNaN);
}

void GdnWorld::add_norm(uint64_t seed) {
  z = random_bf16(rows * out_width(), seed, 3);
  norm_weight = random_f32(shape.value_dim, seed + 1, 1);
}

void GdnWorld::add_kept_rows(int64_t count) {
  const int64_t window_rows = kept_window_rows(channels(), shape.value_heads, count);
  kept.assign(static_cast<size_t>(slots * window_rows * channels()), kNaN);
}

void GdnWorld::halve_states() {
  half_states = true;
  for (float& x : states) x = bf16_to_float(float_to_bf16(x));
}

GdnWorld GdnWorld::cut(int64_t first, int64_t count) const {
  GdnWorld out = *this;
  out.rows = count;
  out.qkv = rows_of(qkv, channels(), first, count);
  out.a = rows_of(a, shape.value_heads, first, count);
  out.b = rows_of(b, shape.value_heads, first, count);
  if (!z.empty()) out.z = rows_of(z, out_width(), first, count);
  return out;
}

std::vector<float> gdn_on_gpu(GdnWorld& w, const GdnCall& call) {
  std::vector<int32_t> cu_q = {0}, read, write, chains = {0};
  GdnArgs args;
  for (const auto* list : {&call.prompt, &call.decode}) {
    for (const GdnChain& chain : *list) {
      for (const GdnPart& part : chain) {
        cu_q.push_back(cu_q.back() + part.rows);
        read.push_back(part.read);
        write.push_back(part.write);
      }
      chains.push_back(static_cast<int32_t>(read.size()));
    }
    if (list == &call.prompt) args.num_prompt_segments = static_cast<int>(read.size());
  }
  args.num_segments = static_cast<int>(read.size());
  args.num_prompt_chains = static_cast<int>(call.prompt.size());
  args.num_chains = static_cast<int>(chains.size()) - 1;
  read.push_back(0);  // never empty
  write.push_back(0);

  const GdnShape& s = w.shape;
  const int64_t c = w.channels(), heads = s.value_heads;
  const DeviceTensor qkv(DType::kBF16, {w.rows, c + kPad}, padded(w.qkv, w.rows, c));
  const DeviceTensor a(DType::kF32, {w.rows, heads + kPad}, padded(w.a, w.rows, heads));
  const DeviceTensor b(DType::kF32, {w.rows, heads + kPad}, padded(w.b, w.rows, heads));
  const DeviceTensor conv(DType::kF32, {c, s.conv_width}, w.conv);
  const DeviceTensor a_log(DType::kF32, {heads}, w.a_log), bias(DType::kF32, {heads}, w.dt_bias);
  const int64_t window = w.window_size(), kept = std::ssize(w.kept) / w.slots;
  std::vector<float> both;  // a slot's window, then its kept rows
  for (int64_t slot = 0; slot < w.slots; ++slot) {
    const auto add = [&](const std::vector<float>& x, int64_t width) {
      both.insert(both.end(), x.begin() + slot * width, x.begin() + (slot + 1) * width);
    };
    add(w.windows, window);
    add(w.kept, kept);
  }
  const DeviceTensor windows(DType::kF32, {w.slots, (window + kept) / c, c}, both);
  const DeviceTensor states(w.half_states ? DType::kBF16 : DType::kF32,
                            {w.slots, heads, s.value_dim, s.key_dim}, w.states);
  const DeviceTensor cu(cu_q), reads(read), writes(write), chain_list(chains);
  DeviceTensor out(DType::kBF16, {w.rows, heads, s.value_dim});
  out.poison();
  args.shape = s;
  args.qkv = qkv.view.columns(0, c);
  args.a = a.view.columns(0, heads);
  args.b = b.view.columns(0, heads);
  args.conv = conv.view;
  args.a_log = a_log.view;
  args.dt_bias = bias.view;
  args.state = {windows.view, states.view};
  args.cu_q = cu.view;
  args.read_slot = reads.view;
  args.write_slot = writes.view;
  args.chains = chain_list.view;
  args.host_cu_q = args.num_prompt_segments > 0 ? cu_q.data() : nullptr;
  args.out = out.view;
  const bool norm = !w.z.empty();
  const DeviceTensor z(
      DType::kBF16, {norm ? w.rows : 1, w.out_width() + kPad},
      norm ? padded(w.z, w.rows, w.out_width())
           : padded(std::vector<float>(static_cast<size_t>(w.out_width())), 1, w.out_width()));
  const DeviceTensor weight(
      DType::kF32, {s.value_dim},
      norm ? w.norm_weight : std::vector<float>(static_cast<size_t>(s.value_dim)));
  if (norm) {
    args.norm = {.z = z.view.columns(0, w.out_width()).split_last(heads, s.value_dim),
                 .weight = weight.view,
                 .activation = w.activation};
  }
  CudaTestStream stream(
      std::max<int64_t>(64, cuda::gdn_scratch(s, w.rows, static_cast<int64_t>(read.size()))));
  cuda::gdn(stream, args);
  stream.sync();
  both = windows.floats();
  for (int64_t slot = 0; slot < w.slots; ++slot) {
    const auto from = both.begin() + slot * (window + kept);
    std::copy_n(from, window, w.windows.begin() + slot * window);
    std::copy_n(from + window, kept, w.kept.begin() + slot * kept);
  }
  w.states = states.floats();
  return out.floats();
}

std::vector<float> gdn_in_double(GdnWorld& w, const GdnCall& call, GdnMistake mistake) {
  std::vector<float> out(static_cast<size_t>(w.rows * w.out_width()), kNaN);
  int64_t begin = 0;
  int sequence = -1;
  for (const auto* list : {&call.prompt, &call.decode}) {
    for (const GdnChain& chain : *list) {
      ++sequence;
      for (GdnPart part : chain) {
        if (mistake == GdnMistake::kSlotOfBlocks) part.read = sequence;
        for (int hv = 0; hv < w.shape.value_heads; ++hv) {
          Head(w, hv, mistake).run(part, begin, w.states, out);
        }
        const int64_t taps = w.shape.conv_width - 1, c = w.channels();
        std::vector<float> window(static_cast<size_t>(w.window_size()));
        const Head head(w, 0);
        for (int64_t i = 0; i < taps * c; ++i) {
          window[static_cast<size_t>(i)] =
              static_cast<float>(head.input(part, begin, begin + part.rows - taps + i / c, i % c));
        }
        if (part.write >= 0) {
          std::copy(window.begin(), window.end(), w.windows.begin() + part.write * w.window_size());
        }
        if (!w.z.empty()) norm_in_double(w, begin, begin + part.rows, out);
        begin += part.rows;
      }
    }
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> rows_of(const std::vector<float>& x, int64_t width, int64_t first,
                           int64_t count) {
  return {x.begin() + first * width, x.begin() + (first + count) * width};
}

}  // namespace weft
