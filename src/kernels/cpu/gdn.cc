// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, with convolution, SiLU, l2norm and
// gates in front, a state of [HV, V, K] fp32 in slots. docs/kernels/gated_delta.md
//
// Prompt: chunks of 64 tokens in the one-solve form, all fp32. Tile: 64 x 128 x 128 products.
// Bound: multiply-adds, 2 (3 K V + 64 (K + 1.5 V)) a token and value head. Decode: one row of S at
// a time, read and written once a segment. Bound: bandwidth, 2 * 4 * V * K bytes a head.
//
// A worker takes a key head with its HV / HK value heads and goes through the segments in order, so
// segments that continue each other through a slot need no barrier.

#include "kernels/cpu/gdn.h"

#include "kernels/cpu/gdn_math.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kChunk = 64;
constexpr int kMaxConvWidth = 8;
constexpr int kMaxDim = 256;       // of K and V
constexpr int64_t kRowsAhead = 6;  // input rows to prefetch
constexpr float kL2Eps = 1e-6f;

/// Floats of a worker's buffers.
int64_t worker_floats(const GdnShape& s) {
  const int64_t k = s.key_dim, v = s.value_dim, group = s.value_heads / s.key_heads;
  return group * k * v + 3 * kChunk * k + 4 * kChunk * kChunk + 3 * kChunk * v;
}

/// One segment: rows [begin, end) of the step, its slots (-1: none).
struct Segment {
  int64_t begin, end;
  int64_t read, write;
};

/// A run of at most kChunk tokens of a segment.
struct Run {
  const Segment& segment;
  int64_t begin;  ///< row of the step
  int64_t n;      ///< tokens
  int64_t padded() const { return (n + kLanes - 1) / kLanes * kLanes; }
};

/// S [V, K] of a value head, in a slot or in a worker's memory: fp32 or bf16.
struct HeadState {
  void* data;  ///< null: none
  bool half;
  Vec at(int64_t i) const {
    return half ? load_bf16(static_cast<const bf16*>(data) + i)
                : load(static_cast<const float*>(data) + i);
  }
  void put(int64_t i, Vec x) const {
    if (half) {
      store_bf16(static_cast<bf16*>(data) + i, x);
    } else {
      store(static_cast<float*>(data) + i, x);
    }
  }
};

Vec round_to_bf16(Vec x) {
  alignas(32) bf16 rounded[kLanes];
  store_bf16(rounded, x);
  return load_bf16(rounded);
}

/// Gates of one value head over a run.
struct Gates {
  alignas(64) float g[kChunk];     ///< log-decay, <= 0
  alignas(64) float beta[kChunk];  ///< write strength, 0 in padding
};

class Worker {
 public:
  Worker(const GdnArgs& args, float* memory)
      : args_(args),
        kd_(args.shape.key_dim),
        vd_(args.shape.value_dim),
        group_(args.shape.value_heads / args.shape.key_heads),
        half_(args.state.recurrent.dtype == DType::kBF16) {
    const auto take = [&](int64_t floats) {
      float* p = memory;
      memory += floats;
      return p;
    };
    state_ = take(group_ * kd_ * vd_);
    k_ = take(kChunk * kd_);  // k_ and q_ follow each other: products take both at once
    q_ = take(kChunk * kd_);
    kt_ = take(kChunk * kd_);
    kk_ = take(kChunk * kChunk);
    qk_ = take(kChunk * kChunk);
    a_ = take(kChunk * kChunk);
    p_ = take(kChunk * kChunk);
    v_ = take(kChunk * vd_);
    u_ = take(kChunk * vd_);
    o_ = take(kChunk * vd_);
  }

  void run_key_head(int64_t hk) {
    for (int s = 0; s < args_.num_segments; ++s) {
      const Segment segment{at(args_.cu_q, s), at(args_.cu_q, s + 1), at(args_.read_slot, s),
                            at(args_.write_slot, s)};
      if (segment.begin == segment.end) {
        copy_state(hk, segment);
      } else if (s < args_.num_prompt_segments) {
        run_prompt(hk, segment);
      } else {
        run_decode(hk, segment);
      }
      if (segment.write >= 0) store_windows(hk, segment);
    }
  }

 private:
  static int64_t at(const TensorView& v, int64_t i) {
    return static_cast<const int32_t*>(v.data)[i * v.stride[0]];
  }
  HeadState slot_state(int64_t slot, int64_t hv) const {
    const TensorView& r = args_.state.recurrent;
    if (slot < 0) return {nullptr, half_};
    const int64_t at = slot * r.stride[0] + hv * r.stride[1];
    return {static_cast<std::byte*>(r.data) + at * (half_ ? 2 : 4), half_};
  }
  float* conv_row(int64_t slot, int64_t row) const {
    const TensorView& c = args_.state.conv;
    return static_cast<float*>(c.data) + slot * c.stride[0] + row * c.stride[1];
  }
  float* out_row(int64_t t, int64_t hv) const {
    return static_cast<float*>(args_.out.data) + t * args_.out.stride[0] + hv * args_.out.stride[1];
  }
  int64_t q_channel(int64_t hk) const { return hk * kd_; }
  int64_t k_channel(int64_t hk) const { return (args_.shape.key_heads + hk) * kd_; }
  int64_t v_channel(int64_t hv) const { return 2 * args_.shape.key_heads * kd_ + hv * vd_; }

  /// Row `t` of the input (a row of the step) or of the window before the segment; null is zero.
  const float* input_row(const Segment& segment, int64_t t) const {
    if (t >= segment.begin) {
      return static_cast<const float*>(args_.qkv.data) + t * args_.qkv.stride[0];
    }
    if (segment.read < 0) return nullptr;
    return conv_row(segment.read, args_.shape.conv_width - 1 + t - segment.begin);
  }

  /// out[row][i] = silu(conv) of `width` channels from `channel` on; padding rows are 0.
  void convolve(const Run& run, int64_t channel, int64_t width, float* out) const {
    const int taps = args_.shape.conv_width;
    const float* rows[kChunk + kMaxConvWidth];
    for (int64_t i = 0; i < run.n + taps - 1; ++i) {
      rows[i] = input_row(run.segment, run.begin + i - (taps - 1));
    }
    alignas(64) float weights[kMaxConvWidth * kMaxDim];  // [tap][width]
    load_taps(channel, width, weights);
    for (int64_t t = 0; t < run.n; ++t) {
      // Rows lie pages apart, where no hardware prefetcher follows.
      const int64_t ahead = t + taps - 1 + kRowsAhead;
      if (ahead < run.n + taps - 1) prefetch(rows[ahead] + channel, width);
      for (int64_t c = 0; c < width; c += kLanes) {
        Vec sum = splat(0);
        for (int j = 0; j < taps; ++j) {
          if (rows[t + j] == nullptr) continue;
          sum = fma(load(weights + j * width + c), load(rows[t + j] + channel + c), sum);
        }
        store(out + t * width + c, silu(sum));
      }
    }
    for (int64_t i = run.n * width; i < run.padded() * width; ++i) out[i] = 0;
  }

  static void prefetch(const float* row, int64_t width) {
    for (int64_t c = 0; c < width; c += kLanes) {
      _mm_prefetch(reinterpret_cast<const char*>(row + c), _MM_HINT_T0);
    }
  }

  /// Convolution weights of `width` channels as [tap][width].
  void load_taps(int64_t channel, int64_t width, float* out) const {
    const int taps = args_.shape.conv_width;
    float* from = static_cast<float*>(args_.conv.data) + channel * args_.conv.stride[0];
    if (taps == 4) {
      transpose({from, args_.conv.stride[0]}, width, taps, {out, width});
      return;
    }
    for (int64_t i = 0; i < width; ++i) {
      for (int j = 0; j < taps; ++j) out[j * width + i] = from[i * args_.conv.stride[0] + j];
    }
  }

  /// x * rsqrt(sum(x^2) + eps) * scale, row by row.
  void l2_normalise(float* x, int64_t rows, float scale) const {
    for (int64_t t = 0; t < rows; ++t) {
      Vec sum = splat(0);
      float* row = x + t * kd_;
      for (int64_t i = 0; i < kd_; i += kLanes) sum = fma(load(row + i), load(row + i), sum);
      const Vec factor = splat(scale / __builtin_sqrtf(sum_lanes(sum) + kL2Eps));
      for (int64_t i = 0; i < kd_; i += kLanes) store(row + i, load(row + i) * factor);
    }
  }

  void load_qk(const Run& run, int64_t hk) {
    convolve(run, q_channel(hk), kd_, q_);
    convolve(run, k_channel(hk), kd_, k_);
    l2_normalise(q_, run.n, 1.0f / __builtin_sqrtf(static_cast<float>(kd_)));
    l2_normalise(k_, run.n, 1.0f);
  }

  void load_gates(const Run& run, int64_t hv, Gates& gates) const {
    alignas(64) float a[kChunk], b[kChunk];
    for (int64_t t = 0; t < run.padded(); ++t) {
      const int64_t row = run.begin + (t < run.n ? t : run.n - 1);
      a[t] = static_cast<const float*>(args_.a.data)[row * args_.a.stride[0] + hv];
      b[t] = static_cast<const float*>(args_.b.data)[row * args_.b.stride[0] + hv];
    }
    const Vec rate = exp(splat(static_cast<const float*>(args_.a_log.data)[hv]));
    const Vec bias = splat(static_cast<const float*>(args_.dt_bias.data)[hv]);
    for (int64_t t = 0; t < run.padded(); t += kLanes) {
      store(gates.g + t, keep_first(splat(0) - rate * softplus(load(a + t) + bias), run.n - t, 0));
      store(gates.beta + t, keep_first(sigmoid(load(b + t)), run.n - t, 0));
    }
  }

  // --- prompt: chunks ---

  void run_prompt(int64_t hk, const Segment& segment) {
    for (int64_t r = 0; r < group_; ++r) load_transposed(segment.read, hk * group_ + r, r);
    for (int64_t begin = segment.begin; begin < segment.end; begin += kChunk) {
      const int64_t left = segment.end - begin;
      const Run run{segment, begin, left < kChunk ? left : kChunk};
      load_qk(run, hk);
      transpose({k_, kd_}, run.padded(), kd_, {kt_, kChunk});
      for (int64_t i = 0; i < run.padded(); i += kLanes) {  // the lower triangle, in blocks
        product({k_ + i * kd_, kd_, 1}, {kt_, kChunk}, {kk_ + i * kChunk, kChunk},
                {kLanes, i + kLanes, kd_}, FromZero{});
        product({q_ + i * kd_, kd_, 1}, {kt_, kChunk}, {qk_ + i * kChunk, kChunk},
                {kLanes, i + kLanes, kd_}, FromZero{});
      }
      for (int64_t r = 0; r < group_; ++r) run_chunk(run, hk * group_ + r, state_ + r * kd_ * vd_);
    }
    if (segment.write < 0) return;
    for (int64_t r = 0; r < group_; ++r) store_transposed(segment.write, hk * group_ + r, r);
  }

  void load_transposed(int64_t slot, int64_t hv, int64_t r) {
    float* state = state_ + r * kd_ * vd_;
    const HeadState from = slot_state(slot, hv);
    if (from.data == nullptr) {
      for (int64_t i = 0; i < kd_ * vd_; ++i) state[i] = 0;
    } else if (!from.half) {
      transpose({static_cast<float*>(from.data), kd_}, vd_, kd_, {state, vd_});
    } else {
      for (int64_t i = 0; i < vd_; i += kLanes) {  // rows of S, by way of q_
        for (int64_t c = 0; c < kLanes * kd_; c += kLanes) store(q_ + c, from.at(i * kd_ + c));
        transpose({q_, kd_}, kLanes, kd_, {state + i, vd_});
      }
    }
  }
  void store_transposed(int64_t slot, int64_t hv, int64_t r) {
    float* state = state_ + r * kd_ * vd_;
    const HeadState to = slot_state(slot, hv);
    if (!to.half) {
      transpose({state, vd_}, kd_, vd_, {static_cast<float*>(to.data), kd_});
      return;
    }
    for (int64_t i = 0; i < vd_; i += kLanes) {
      transpose({state + i, vd_}, kd_, kLanes, {q_, kd_});
      for (int64_t c = 0; c < kLanes * kd_; c += kLanes) to.put(i * kd_ + c, load(q_ + c));
    }
  }

  /// One chunk of one value head; state is S^T, [K, V].
  void run_chunk(const Run& run, int64_t hv, float* state) {
    const int64_t rows = run.padded();
    for (int64_t i = 0; i < run.n; ++i) prefetch(out_row(run.begin + i, hv), vd_);
    Gates gates;
    load_gates(run, hv, gates);
    alignas(64) float decay[kChunk];  // exp(G_i)
    alignas(64) float rest[kChunk];   // exp(G_last - G_i)
    const float whole = decays(run, gates, decay, rest);

    // u = k S, o = q S; both [rows, V].
    product({k_, kd_, 1}, {state, vd_}, {u_, vd_}, {rows, vd_, kd_}, FromZero{});
    product({q_, kd_, 1}, {state, vd_}, {o_, vd_}, {rows, vd_, kd_}, FromZero{});
    convolve(run, v_channel(hv), vd_, v_);
    for (int64_t i = 0; i < rows; ++i) {
      const Vec d = splat(decay[i]), beta = splat(gates.beta[i]);
      for (int64_t c = 0; c < vd_; c += kLanes) {
        float* u = u_ + i * vd_ + c;
        store(u, beta * fnma(d, load(u), load(v_ + i * vd_ + c)));
      }
    }
    solve(rows);
    for (int64_t i = 0; i < rows; i += kLanes) {  // o = exp(G) o + p u
      product({p_ + i * kChunk, kChunk, 1}, {u_, vd_}, {o_ + i * vd_, vd_},
              {kLanes, vd_, i + kLanes},
              [&](int64_t row, const float* c) { return load(c) * splat(decay[i + row]); });
    }
    for (int64_t i = 0; i < run.n; ++i) {
      float* out = out_row(run.begin + i, hv);
      for (int64_t c = 0; c < vd_; c += kLanes) store(out + c, load(o_ + i * vd_ + c));
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < vd_; c += kLanes) {
        store(u_ + i * vd_ + c, load(u_ + i * vd_ + c) * splat(rest[i]));
      }
    }
    product({kt_, kChunk, 1}, {u_, vd_}, {state, vd_}, {kd_, vd_, rows},
            [&](int64_t, const float* c) { return load(c) * splat(whole); });
    if (!half_) return;
    for (int64_t i = 0; i < kd_ * vd_; i += kLanes) {
      store(state + i, round_to_bf16(load(state + i)));
    }
  }

  /// Fills a_ = -beta_i exp(G_i - G_j) k_i.k_j (i > j), p_ = exp(G_i - G_j) q_i.k_j (i >= j), both
  /// 0 elsewhere, and the decays to and from the chunk's ends. Returns exp(G_last). G is summed in
  /// double: it may reach -1000s, and differences of neighbours count.
  float decays(const Run& run, const Gates& gates, float* decay, float* rest) {
    const int64_t rows = run.padded();
    double cumulative[kChunk];
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) cumulative[i] = sum += static_cast<double>(gates.g[i]);
    for (int64_t i = 0; i < rows; ++i) {
      decay[i] = static_cast<float>(cumulative[i]);
      rest[i] = static_cast<float>(sum - cumulative[i]);
    }
    for (int64_t i = 0; i < rows; i += kLanes) {
      store(decay + i, exp(load(decay + i)));
      store(rest + i, exp(load(rest + i)));
    }
    for (int64_t i = 0; i < rows; ++i) {
      const Vec beta = splat(-gates.beta[i]);
      for (int64_t j = 0; j < i / kLanes * kLanes + kLanes; j += kLanes) {
        alignas(64) float difference[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
          difference[l] = static_cast<float>(cumulative[i] - cumulative[j + l]);
        }
        // Above the diagonal the difference is positive: cut before exp, then masked.
        const Vec d = exp(min(load(difference), splat(0)));
        const int64_t at = i * kChunk + j;
        store(a_ + at, keep_first(beta * d * load(kk_ + at), i - j, 0));
        store(p_ + at, keep_first(d * load(qk_ + at), i - j + 1, 0));
      }
    }
    return first_lane(exp(splat(static_cast<float>(sum))));
  }

  /// u <- (I - a)^-1 u by forward substitution, in blocks of 16 rows.
  void solve(int64_t rows) {
    for (int64_t block = 0; block < rows; block += kLanes) {
      if (block > 0) {
        product({a_ + block * kChunk, kChunk, 1}, {u_, vd_}, {u_ + block * vd_, vd_},
                {kLanes, vd_, block}, FromC{});
      }
      for (int64_t c = 0; c < vd_; c += kLanes) {
        for (int64_t i = block + 1; i < block + kLanes; ++i) {
          Vec sum = load(u_ + i * vd_ + c);
          for (int64_t j = block; j < i; ++j) {
            sum = fma(splat(a_[i * kChunk + j]), load(u_ + j * vd_ + c), sum);
          }
          store(u_ + i * vd_ + c, sum);
        }
      }
    }
  }

  // --- decode: token by token ---

  void run_decode(int64_t hk, const Segment& segment) {
    const bool one_run = segment.end - segment.begin <= kChunk;
    for (int64_t begin = segment.begin; begin < segment.end; begin += kChunk) {
      const int64_t left = segment.end - begin;
      const Run run{segment, begin, left < kChunk ? left : kChunk};
      load_qk(run, hk);
      for (int64_t r = 0; r < group_; ++r) {
        const int64_t hv = hk * group_ + r;
        // From the read slot (or nothing) to the write slot (or nowhere); runs in between stay in
        // the worker's memory.
        const HeadState own{state_ + r * kd_ * vd_, false};
        const HeadState from = begin > segment.begin ? own : slot_state(segment.read, hv);
        const HeadState to = one_run || left <= kChunk ? slot_state(segment.write, hv) : own;
        if (half_) {
          run_tokens<true>(run, hv, from, to);
        } else {
          run_tokens<false>(run, hv, from, to);
        }
      }
    }
  }

  template <bool kRounded>
  void run_tokens(const Run& run, int64_t hv, const HeadState& from, const HeadState& to) {
    Gates gates;
    load_gates(run, hv, gates);
    alignas(64) float decay[kChunk];
    for (int64_t t = 0; t < run.padded(); t += kLanes) store(decay + t, exp(load(gates.g + t)));
    alignas(64) float qk[kChunk];
    for (int64_t t = 0; t < run.n; ++t) qk[t] = dot(q_ + t * kd_, k_ + t * kd_);
    convolve(run, v_channel(hv), vd_, v_);
    float* row = o_;  // [K], a row of S while its tokens pass
    for (int64_t i = 0; i < vd_; ++i) {
      for (int64_t c = 0; c < kd_; c += kLanes) {
        store(row + c, from.data == nullptr ? splat(0) : from.at(i * kd_ + c));
      }
      for (int64_t t = 0; t < run.n; ++t) {
        const float value =
            step_row<kRounded>(row, t, decay[t], gates.beta[t], v_[t * vd_ + i], qk[t]);
        u_[t * vd_ + i] = value;
      }
      if (to.data == nullptr) continue;
      for (int64_t c = 0; c < kd_; c += kLanes) to.put(i * kd_ + c, load(row + c));
    }
    for (int64_t t = 0; t < run.n; ++t) {
      float* out = out_row(run.begin + t, hv);
      for (int64_t c = 0; c < vd_; c += kLanes) store(out + c, load(u_ + t * vd_ + c));
    }
  }

  /// One token on one row s of S: s <- d s + u k with u = beta (v - d s.k); returns s.q, which is
  /// d s.q (before the write) + u k.q.
  template <bool kRounded>
  float step_row(float* s, int64_t t, float decay, float beta, float v, float qk) const {
    const float* k = k_ + t * kd_;
    const float* q = q_ + t * kd_;
    Vec predicted = splat(0), read = splat(0);
    for (int64_t c = 0; c < kd_; c += kLanes) {
      const Vec x = load(s + c) * splat(decay);
      predicted = fma(x, load(k + c), predicted);
      read = fma(x, load(q + c), read);
    }
    const float u = beta * (v - sum_lanes(predicted));
    for (int64_t c = 0; c < kd_; c += kLanes) {
      const Vec x = fma(splat(u), load(k + c), load(s + c) * splat(decay));
      store(s + c, kRounded ? round_to_bf16(x) : x);
    }
    return first_lane(fma(splat(u), splat(qk), splat(sum_lanes(read))));
  }

  float dot(const float* a, const float* b) const {
    Vec sum = splat(0);
    for (int64_t c = 0; c < kd_; c += kLanes) sum = fma(load(a + c), load(b + c), sum);
    return sum_lanes(sum);
  }

  // --- slots ---

  /// A segment without tokens passes the state on.
  void copy_state(int64_t hk, const Segment& segment) {
    if (segment.write < 0 || segment.write == segment.read) return;
    for (int64_t hv = hk * group_; hv < (hk + 1) * group_; ++hv) {
      const HeadState from = slot_state(segment.read, hv), to = slot_state(segment.write, hv);
      for (int64_t i = 0; i < vd_ * kd_; i += kLanes) {
        to.put(i, from.data == nullptr ? splat(0) : from.at(i));
      }
    }
  }

  void store_windows(int64_t hk, const Segment& segment) {
    store_window(segment, q_channel(hk), kd_);
    store_window(segment, k_channel(hk), kd_);
    store_window(segment, v_channel(hk * group_), group_ * vd_);
  }

  /// The last W-1 input rows of these channels. In place this moves rows down, first row first.
  void store_window(const Segment& segment, int64_t channel, int64_t width) const {
    const int64_t rows = args_.shape.conv_width - 1;
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = input_row(segment, segment.end - rows + i);
      float* to = conv_row(segment.write, i) + channel;
      for (int64_t c = 0; c < width; c += kLanes) {
        store(to + c, from == nullptr ? splat(0) : load(from + channel + c));
      }
    }
  }

  const GdnArgs& args_;
  const int64_t kd_, vd_, group_;  // K, V, HV / HK
  const bool half_;                // states are bf16
  float* state_;                   // [group][K][V]
  float *q_, *k_;                  // [64][K]
  float* kt_;                      // [K][64]
  float *kk_, *qk_, *a_, *p_;      // [64][64]
  float *v_, *u_, *o_;             // [64][V]
};

}  // namespace

int64_t gdn_scratch_bytes(const GdnShape& shape, int threads) {
  return threads * ((worker_floats(shape) * 4 + 63) / 64 * 64);
}

void gdn(Stream& stream, const GdnArgs& args) {
  const GdnShape& shape = args.shape;
  ISA_CHECK(shape.key_dim % kLanes == 0 && shape.value_dim % kLanes == 0);
  ISA_CHECK(shape.key_dim <= kMaxDim && shape.value_dim <= kMaxDim);
  ISA_CHECK(shape.key_heads > 0 && shape.value_heads % shape.key_heads == 0);
  ISA_CHECK(args.state.recurrent.dtype == DType::kF32 ||
            args.state.recurrent.dtype == DType::kBF16);
  ISA_CHECK(shape.conv_width >= 1 && shape.conv_width <= kMaxConvWidth);
  ScratchScope scratch(stream);
  const int threads = stream.pool().num_threads();
  const int64_t bytes = gdn_scratch_bytes(shape, 1);
  auto* memory = static_cast<std::byte*>(scratch.take(gdn_scratch_bytes(shape, threads)));
  int64_t next = 0;  // which worker takes which head doesn't matter: heads share nothing
  stream.pool().parallel([&](int thread) {
    const FlushDenormals scope;
    Worker worker(args, reinterpret_cast<float*>(memory + thread * bytes));
    for (;;) {
      const int64_t hk = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (hk >= shape.key_heads) return;
      worker.run_key_head(hk);
    }
  });
  if (args.norm.z.defined()) {
    gated_norm(stream, {.x = args.out,
                        .z = args.norm.z,
                        .weight = args.norm.weight,
                        .out = args.out,
                        .eps = args.norm.eps,
                        .activation = args.norm.activation});
  }
}

}  // namespace weft::WEFT_ISA_NS
