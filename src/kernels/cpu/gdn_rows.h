#pragma once

// What a worker of the gated delta rule reads and writes of a call: rows, gates, slots, windows.

#include "kernels/cpu/gdn_math.h"
#include "kernels/cpu/limits.h"

namespace weft::WEFT_ISA_NS {

inline constexpr int64_t kChunk = 64;
inline constexpr int kMaxConvWidth = kCpuMaxConvWidth;
inline constexpr int kMaxDim = kCpuMaxDim;  // of K and V
#if defined(WEFT_AVX512)
inline constexpr int kConvColumns = 2;  // vectors of channels convolved together
#else
inline constexpr int kConvColumns = 1;
#endif
inline constexpr int64_t kRowsAhead = 6;  // input rows to prefetch
inline constexpr float kL2Eps = 1e-6f;

/// One segment: rows [begin, end) of the step, its slots (-1: none), its index in the call.
struct Segment {
  int64_t begin, end;
  int64_t read, write;
  int64_t index;
};

/// A run of at most kChunk tokens of a segment.
struct Run {
  const Segment& segment;
  int64_t begin;  ///< row of the step
  int64_t n;      ///< tokens
  int64_t padded() const { return (n + kLanes - 1) / kLanes * kLanes; }
};

/// Value heads [first, first + count) of a key head.
struct HeadGroup {
  int64_t key_head;
  int64_t first, count;
};

/// S [V, K] of a value head, in a slot or in a worker's memory: fp32 or bf16.
struct HeadState {
  void* data;  ///< null: none
  bool half;
  Vec at(int64_t i) const {
    return half ? load_bf16(static_cast<const bf16*>(data) + i)
                : load(static_cast<const float*>(data) + i);
  }
  /// Requests elements [i, i + n) for the second cache; they may lie outside.
  void bring(int64_t i, int64_t n) const {
    const auto first =
        reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(half ? 2 * i : 4 * i);
    for (int64_t at = 0; at < (half ? 2 * n : 4 * n); at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(first + static_cast<uintptr_t>(at)), _MM_HINT_T1);
    }
  }
  void put(int64_t i, Vec x) const {
    if (half) {
      store_bf16(static_cast<bf16*>(data) + i, x);
    } else {
      store(static_cast<float*>(data) + i, x);
    }
  }
};

/// As store_bf16 of what was computed with denormals flushed: it has none.
inline void store_half(bf16* p, Vec x) {
#if WEFT_AVX512_BF16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x.v));
#else
  store_bf16(p, x);
#endif
}

inline Vec round_to_bf16(Vec x) {
  alignas(32) bf16 rounded[kLanes];
  store_bf16(rounded, x);
  return load_bf16(rounded);
}

/// Gates of one value head over a run.
struct Gates {
  alignas(64) float g[kChunk];     ///< log-decay, <= 0
  alignas(64) float beta[kChunk];  ///< write strength, 0 in padding
};

/// The decays of a chunk, from gates that are 0 past its tokens.
struct Decays {
  double cumulative[kChunk];        ///< G_i; it may reach -1000s, and differences count
  alignas(64) float decay[kChunk];  ///< exp(G_i)
  alignas(64) float rest[kChunk];   ///< exp(G_last - G_i)
  float whole;                      ///< exp(G_last)

  void set(const Gates& gates, int64_t rows) {
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
    whole = first_lane(exp(splat(static_cast<float>(sum))));
  }
};

/// Hands out a worker's memory, in pieces of whole cache lines. With a null base it counts.
class Carver {
 public:
  explicit Carver(void* memory) : base_(static_cast<std::byte*>(memory)) {}
  float* floats(int64_t n) { return static_cast<float*>(bytes(n * 4)); }
  void* bytes(int64_t n) {
    std::byte* p = base_ == nullptr ? nullptr : base_ + taken_;
    taken_ += (n + 63) / 64 * 64;
    return p;
  }
  int64_t taken() const { return taken_; }

 private:
  std::byte* base_;
  int64_t taken_ = 0;
};

/// Memory to be requested by and by, in pieces of 8 lines.
struct Pieces {
  static constexpr int64_t kMost = 32, kFloats = 8 * kLanes;
  const float* at[kMost];
  int64_t count = 0;
  void add(const float* p, int64_t floats) {
    for (int64_t i = 0; i < floats && count < kMost; i += kFloats) at[count++] = p + i;
  }
};

class GdnRows {
 public:
  /// Segments [first, last). late_windows: convolution windows are written after all units are
  /// done, so that several may read those of one key head; input_row() then looks through the
  /// segments before.
  GdnRows(const GdnArgs& args, int64_t first, int64_t last, bool late_windows)
      : args_(args),
        first_(first),
        last_(last),
        kd_(args.shape.key_dim),
        vd_(args.shape.value_dim),
        group_(args.shape.value_heads / args.shape.key_heads),
        half_(args.state.recurrent.dtype == DType::kBF16),
        late_windows_(late_windows) {}

  int64_t kd() const { return kd_; }
  int64_t vd() const { return vd_; }
  int64_t group() const { return group_; }
  bool half() const { return half_; }
  const GdnArgs& args() const { return args_; }
  int64_t first() const { return first_; }
  int64_t last() const { return last_; }

  Segment segment(int64_t s) const {
    return {at(args_.cu_q, s), at(args_.cu_q, s + 1), at(args_.read_slot, s),
            at(args_.write_slot, s), s};
  }
  /// The end of the chain that begins with segment `first`: what follows and has a slot in common
  /// with one before it that is written. Chains of one arithmetic share
  /// nothing.
  int64_t chain_end(int64_t first) const {
    int64_t s = first + 1;
    while (s < last_ && linked(first, s)) ++s;
    return s;
  }

  HeadState slot_state(int64_t slot, int64_t hv) const {
    const TensorView& r = args_.state.recurrent;
    if (slot < 0) return {nullptr, half_};
    const int64_t at = slot * r.stride[0] + hv * r.stride[1];
    return {static_cast<std::byte*>(r.data) + at * (half_ ? 2 : 4), half_};
  }
  float* out_row(int64_t t, int64_t hv) const {
    return static_cast<float*>(args_.out.data) + t * args_.out.stride[0] + hv * args_.out.stride[1];
  }
  /// Row t of the norm's gate.
  const float* gate_row(int64_t t, int64_t hv) const {
    const TensorView& z = args_.norm.z;
    return static_cast<const float*>(z.data) + t * z.stride[0] + hv * z.stride[1];
  }
  static void prefetch(const float* row, int64_t width) {
    for (int64_t c = 0; c < width; c += kLanes) {
      _mm_prefetch(reinterpret_cast<const char*>(row + c), _MM_HINT_T0);
    }
  }
  int64_t q_channel(int64_t hk) const { return hk * kd_; }
  int64_t k_channel(int64_t hk) const { return (args_.shape.key_heads + hk) * kd_; }
  int64_t v_channel(int64_t hv) const { return 2 * args_.shape.key_heads * kd_ + hv * vd_; }

  const float* input(int64_t t) const {
    return static_cast<const float*>(args_.qkv.data) + t * args_.qkv.stride[0];
  }
  /// Row `t` of the input (a row of the step) or of the window before the segment; null is zero.
  const float* input_row(const Segment& s, int64_t t) const {
    if (t >= s.begin) return input(t);
    if (s.read < 0) return nullptr;
    if (late_windows_) {
      const int64_t p = writer(s);
      if (p >= 0) return input_row(segment(p), segment(p).end + t - s.begin);
    }
    return conv_row(s.read, args_.shape.conv_width - 1 + t - s.begin);
  }

  /// out[row][i] = silu(conv) of `width` channels from `channel` on; rows up to `padded` are 0.
  void convolve(const Run& run, int64_t channel, int64_t width, int64_t padded, float* out) const {
    const int taps = args_.shape.conv_width;
    alignas(64) float zeros[kMaxDim];
    const float* rows[kChunk + kMaxConvWidth];
    for (int64_t i = 0; i < run.n + taps - 1; ++i) {
      rows[i] = input_row(run.segment, run.begin + i - (taps - 1));
      if (rows[i] != nullptr) {
        rows[i] += channel;
        continue;
      }
      rows[i] = zeros;
      for (int64_t c = 0; c < width; c += kLanes) store(zeros + c, splat(0));
    }
    alignas(64) float weights[kMaxConvWidth * kMaxDim];  // [tap][width]
    load_taps(channel, width, weights);
    int64_t c = 0;
    if (taps == 4) {
      constexpr int64_t kStep = kConvColumns * kLanes;
      for (; c + kStep <= width; c += kStep) {
        convolve_columns<kConvColumns>(rows, run.n, {weights + c, width}, c, {out + c, width});
      }
      for (; c < width; c += kLanes) {
        convolve_columns<1>(rows, run.n, {weights + c, width}, c, {out + c, width});
      }
    }
    for (; c < width; c += kLanes) {
      for (int64_t t = 0; t < run.n; ++t) {
        Vec sum = load(weights + c) * load(rows[t] + c);
        for (int j = 1; j < taps; ++j) {
          sum = fma(load(weights + j * width + c), load(rows[t + j] + c), sum);
        }
        store(out + t * width + c, quick_silu(sum));
      }
    }
    for (int64_t i = run.n * width; i < padded * width; i += kLanes) store(out + i, splat(0));
  }

  /// What the convolution of a segment's first token reads, of `width` channels.
  void add_conv_pieces(const Segment& s, int64_t channel, int64_t width, Pieces& out) const {
    const int64_t taps = args_.shape.conv_width;
    for (int64_t i = 0; i < taps; ++i) {
      const float* row = input_row(s, s.begin + i - (taps - 1));
      if (row != nullptr) out.add(row + channel, width);
    }
    out.add(static_cast<const float*>(args_.conv.data) + channel * args_.conv.stride[0],
            width * taps);
  }
  void add_key_pieces(const Segment& s, int64_t hk, Pieces& out) const {
    add_conv_pieces(s, q_channel(hk), kd_, out);
    add_conv_pieces(s, k_channel(hk), kd_, out);
  }
  void add_value_pieces(const Segment& s, int64_t hv, Pieces& out) const {
    add_conv_pieces(s, v_channel(hv), vd_, out);
    if (args_.norm.z.data != nullptr) out.add(gate_row(s.begin, hv), vd_);
    if (args_.out.data != nullptr) out.add(out_row(s.begin, hv), vd_);
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

  /// q and k of a run: convolved and normalised; rows up to `padded` are 0.
  void load_qk(const Run& run, int64_t hk, int64_t padded, float* q, float* k) const {
    load_q(run, hk, padded, q);
    load_k(run, hk, padded, k);
  }
  void load_q(const Run& run, int64_t hk, int64_t padded, float* q) const {
    convolve(run, q_channel(hk), kd_, padded, q);
    l2_normalise(q, run.n, 1.0f / __builtin_sqrtf(static_cast<float>(kd_)));
  }
  void load_k(const Run& run, int64_t hk, int64_t padded, float* k) const {
    convolve(run, k_channel(hk), kd_, padded, k);
    l2_normalise(k, run.n, 1.0f);
  }

  /// Gates up to `padded` rows, a multiple of 16.
  void load_gates(const Run& run, int64_t hv, int64_t padded, Gates& gates) const {
    alignas(64) float a[kChunk], b[kChunk];
    for (int64_t t = 0; t < padded; ++t) {
      const int64_t row = run.begin + (t < run.n ? t : run.n - 1);
      a[t] = static_cast<const float*>(args_.a.data)[row * args_.a.stride[0] + hv];
      b[t] = static_cast<const float*>(args_.b.data)[row * args_.b.stride[0] + hv];
    }
    const Vec rate = exp(splat(static_cast<const float*>(args_.a_log.data)[hv]));
    const Vec bias = splat(static_cast<const float*>(args_.dt_bias.data)[hv]);
    for (int64_t t = 0; t < padded; t += kLanes) {
      store(gates.g + t, keep_first(splat(0) - rate * softplus(load(a + t) + bias), run.n - t, 0));
      store(gates.beta + t, keep_first(sigmoid(load(b + t)), run.n - t, 0));
    }
  }

  /// A segment without tokens passes the state on.
  void copy_states(const HeadGroup& heads, const Segment& segment) const {
    if (segment.write < 0 || segment.write == segment.read) return;
    for (int64_t hv = heads.first; hv < heads.first + heads.count; ++hv) {
      const HeadState from = slot_state(segment.read, hv), to = slot_state(segment.write, hv);
      for (int64_t i = 0; i < vd_ * kd_; i += kLanes) {
        to.put(i, from.data == nullptr ? splat(0) : from.at(i));
      }
    }
  }

  void store_windows(int64_t hk, const Segment& segment) const {
    store_window(segment, q_channel(hk), kd_);
    store_window(segment, k_channel(hk), kd_);
    store_window(segment, v_channel(hk * group_), group_ * vd_);
  }

 private:
  /// The last W-1 input rows of these channels. In place this moves rows down, first row first.
  void store_window(const Segment& segment, int64_t channel, int64_t width) const {
    const int64_t rows = args_.shape.conv_width - 1;
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = stored_row(segment, segment.end - rows + i);
      float* to = conv_row(segment.write, i) + channel;
      for (int64_t c = 0; c < width; c += kLanes) {
        store(to + c, from == nullptr ? splat(0) : load(from + channel + c));
      }
    }
  }

  static int64_t at(const TensorView& v, int64_t i) {
    return static_cast<const int32_t*>(v.data)[i * v.stride[0]];
  }
  bool linked(int64_t first, int64_t s) const {
    const int64_t read = at(args_.read_slot, s), write = at(args_.write_slot, s);
    for (int64_t p = first; p < s; ++p) {
      const int64_t written = at(args_.write_slot, p);
      if (written >= 0 && (written == read || written == write)) return true;
      if (write >= 0 && write == at(args_.read_slot, p)) return true;
    }
    return false;
  }
  /// The last segment before that wrote the slot which `s` reads, or -1. Looks as far as segments
  /// of one chain may lie.
  int64_t writer(const Segment& s) const {
    for (int64_t p = s.index - 1; p >= first_; --p) {
      if (at(args_.write_slot, p) == s.read) return p;
    }
    return -1;
  }
  /// As input_row, but of a segment whose slots are up to date.
  const float* stored_row(const Segment& s, int64_t t) const {
    if (t >= s.begin || s.read < 0) return input_row(s, t);
    return conv_row(s.read, args_.shape.conv_width - 1 + t - s.begin);
  }
  float* conv_row(int64_t slot, int64_t row) const {
    const TensorView& c = args_.state.conv;
    return static_cast<float*>(c.data) + slot * c.stride[0] + row * c.stride[1];
  }
  /// `C` times 16 channels of four taps over all rows: each input is read once.
  template <int C>
  static void convolve_columns(const float* const* rows, int64_t n, const RowMatrix& weights,
                               int64_t channel, const RowMatrix& out) {
    Vec w[4][C], x[4][C];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 2
      for (int i = 0; i < C; ++i) w[j][i] = load(weights.row(j) + i * kLanes);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 3; ++j) {
#pragma GCC unroll 2
      for (int i = 0; i < C; ++i) x[j][i] = load(rows[j] + channel + i * kLanes);
    }
    for (int64_t t = 0; t < n; ++t) {
      // Rows lie pages apart, where no hardware prefetcher follows.
      if (t + kRowsAhead < n) {
        for (int i = 0; i < C; ++i) {
          _mm_prefetch(
              reinterpret_cast<const char*>(rows[t + 3 + kRowsAhead] + channel + i * kLanes),
              _MM_HINT_T0);
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < C; ++i) {
        x[3][i] = load(rows[t + 3] + channel + i * kLanes);
        const Vec sum =
            fma(w[3][i], x[3][i], fma(w[2][i], x[2][i], fma(w[1][i], x[1][i], w[0][i] * x[0][i])));
        store(out.row(t) + i * kLanes, quick_silu(sum));
#pragma GCC unroll 4
        for (int j = 0; j < 3; ++j) x[j][i] = x[j + 1][i];
      }
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

  const GdnArgs& args_;
  int64_t first_, last_;
  const int64_t kd_, vd_, group_;  // K, V, HV / HK
  const bool half_;                // states are bf16
  const bool late_windows_;
};

}  // namespace weft::WEFT_ISA_NS
