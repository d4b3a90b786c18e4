// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, with convolution, SiLU, l2norm and
// gates in front, a state of [HV, V, K] in slots. docs/kernels/gated_delta.md
//
// Prompt: chunks of 64 tokens in the one-solve form, on AMX tiles (gdn_tiles.h) or in fp32
// multiply-adds (gdn_fma.h). Bound: 2 (3 K V + 64 (K + 1.5 V)) multiply-adds a token and value
// head. Decode: kBlockRows rows of S at a time, read and written once a segment. Bound: bandwidth,
// 2 * 4 * V * K bytes a head.
//
// A unit of work is a chain (segments that continue each other through slots) and a key head, or
// some of its value heads where there are more threads than that. Units share nothing.

#include "kernels/cpu/gdn.h"

#include "kernels/cpu/gdn_fma.h"
#include "kernels/cpu/gdn_tiles.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int kRowsAtOnce = 4;          // of S, token by token; sizes are multiples of 8 at least
constexpr int64_t kBlockRows = kLanes;  // of S, that a token passes before the next one
// Rows of S to prefetch; past a head's end lies the next.
constexpr int64_t kStateRowsAhead = 16;
constexpr int kRowVecs = 8;  // vectors of a row that stays in registers

/// What a worker will likely do behind a unit, if it has heads: threads take turns.
struct NextUnit {
  HeadGroup heads;
  Segment segment;
};

template <class Chunks>
class Worker {
 public:
  Worker(const GdnRows& rows, int64_t count, Carver& memory)
      : rows_(rows),
        kd_(rows.kd()),
        vd_(rows.vd()),
        outputs_(rows.args().out.data != nullptr),
        chunks_(rows, count, memory) {
    k_ = memory.floats(kChunk * kd_);
    q_ = memory.floats(kChunk * kd_);
    v_ = memory.floats(kChunk * vd_);
    u_ = memory.floats(kChunk * vd_);
    state_rows_ = memory.floats(kBlockRows * kd_);
  }

  void run(const HeadGroup& heads, const Segment& segment, const NextUnit& next) {
    if (segment.begin == segment.end) {
      rows_.copy_states(heads, segment);
    } else if (segment.index < rows_.args().num_prompt_segments) {
      run_prompt(heads, segment);
    } else {
      run_decode(heads, segment, next);
    }
  }

 private:
  // --- prompt: chunks ---

  void run_prompt(const HeadGroup& heads, const Segment& segment) {
    for (int64_t r = 0; r < heads.count; ++r) {
      load_transposed(segment.read, heads.first + r, chunks_.state(r));
      chunks_.state_is_set(r);
    }
    for (int64_t begin = segment.begin; begin < segment.end; begin += kChunk) {
      const int64_t left = segment.end - begin;
      const Run run{segment, begin, left < kChunk ? left : kChunk};
      chunks_.load_key_head(run, heads.key_head);
      for (int64_t r = 0; r < heads.count; ++r) chunks_.run_chunk(run, heads.first + r, r);
    }
    if (segment.write < 0) return;
    for (int64_t r = 0; r < heads.count; ++r) {
      store_transposed(segment.write, heads.first + r, chunks_.state(r));
    }
  }

  void load_transposed(int64_t slot, int64_t hv, float* state) {
    const HeadState from = rows_.slot_state(slot, hv);
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
  void store_transposed(int64_t slot, int64_t hv, float* state) {
    const HeadState to = rows_.slot_state(slot, hv);
    if (!to.half) {
      transpose({state, vd_}, kd_, vd_, {static_cast<float*>(to.data), kd_});
      return;
    }
    for (int64_t i = 0; i < vd_; i += kLanes) {
      transpose({state + i, vd_}, kd_, kLanes, {q_, kd_});
      for (int64_t c = 0; c < kLanes * kd_; c += kLanes) to.put(i * kd_ + c, load(q_ + c));
    }
  }

  // --- decode: token by token ---

  void run_decode(const HeadGroup& heads, const Segment& segment, const NextUnit& next) {
    const bool one_run = segment.end - segment.begin <= kChunk;
    for (int64_t begin = segment.begin; begin < segment.end; begin += kChunk) {
      const int64_t left = segment.end - begin;
      const Run run{segment, begin, left < kChunk ? left : kChunk};
      if (outputs_) rows_.load_q(run, heads.key_head, run.n, q_);
      rows_.load_k(run, heads.key_head, run.n, k_);
      for (int64_t r = 0; r < heads.count; ++r) {
        const int64_t hv = heads.first + r;
        request_behind(heads, segment, hv, next);
        // From the read slot (or nothing) to the write slot (or nowhere); runs in between stay in
        // the worker's memory.
        const HeadState own{chunks_.state(r), false};
        const HeadState from = begin > segment.begin ? own : rows_.slot_state(segment.read, hv);
        const HeadState to = one_run || left <= kChunk ? rows_.slot_state(segment.write, hv) : own;
        if (rows_.half()) {
          outputs_ ? run_tokens<true, true>(run, hv, from, to)
                   : run_tokens<true, false>(run, hv, from, to);
        } else {
          outputs_ ? run_tokens<false, true>(run, hv, from, to)
                   : run_tokens<false, false>(run, hv, from, to);
        }
      }
    }
  }

  /// What the value head behind hv reads besides its state is requested beside hv's rows.
  void request_behind(const HeadGroup& heads, const Segment& segment, int64_t hv,
                      const NextUnit& next) {
    if (!single_rows()) return;
    behind_.count = 0;
    if (hv + 1 < heads.first + heads.count) {
      rows_.add_value_pieces(segment, hv + 1, behind_);
    } else if (next.heads.count > 0 && next.segment.begin < next.segment.end) {
      rows_.add_key_pieces(next.segment, next.heads.key_head, behind_);
      rows_.add_value_pieces(next.segment, next.heads.first, behind_);
    }
    for (int64_t i = behind_.count; i < Pieces::kMost; ++i) behind_.at[i] = k_;
  }

  template <bool kRounded, bool kOutputs>
  void run_tokens(const Run& run, int64_t hv, const HeadState& from, const HeadState& to) {
    Gates gates;
    rows_.load_gates(run, hv, run.padded(), gates);
    alignas(64) float decay[kChunk];
    for (int64_t t = 0; t < run.padded(); t += kLanes) store(decay + t, exp(load(gates.g + t)));
    alignas(64) float qk[kChunk];
    for (int64_t t = 0; t < run.n; ++t) {
      qk[t] = kOutputs ? dot(q_ + t * kd_, k_ + t * kd_) : 0;
    }
    rows_.convolve(run, rows_.v_channel(hv), vd_, run.n, v_);
    for (int64_t i = 0; i < vd_; i += kBlockRows) {
      // Rows [i, i + kBlockRows), all by a token before the next one: what a token of four rows
      // waits for is filled by the four beside them.
      const auto steps = [&](const float* first, float* last) {
        for (int64_t t = 0; t < run.n; ++t) {
          const TokenGates token{decay[t], gates.beta[t], qk[t]};
          const float* from = t == 0 ? first : state_rows_;
          float* to = t == run.n - 1 ? last : state_rows_;
          t == 0 && !kRounded ? step_block<kRounded, kOutputs, true>(t, token, i, from, to)
                              : step_block<kRounded, kOutputs, false>(t, token, i, from, to);
        }
      };
      if (!kRounded && from.data != nullptr) {
        steps(static_cast<const float*>(from.data) + i * kd_, rows_to(to, i));
        continue;
      }
      if (kRounded && single_rows() && run.n == 1 && from.data != nullptr && from.half &&
          to.data != nullptr) {
        step_single_rows<true, kOutputs, true>(0, {decay[0], gates.beta[0], qk[0]}, i,
                                               static_cast<const bf16*>(from.data) + i * kd_,
                                               static_cast<bf16*>(to.data) + i * kd_);
        continue;
      }
      if (from.data != nullptr) from.bring((i + kBlockRows) * kd_, kBlockRows * kd_);
      for (int64_t c = 0; c < kBlockRows * kd_; c += kLanes) {
        store(state_rows_ + c, from.data == nullptr ? splat(0) : from.at(i * kd_ + c));
      }
      steps(state_rows_, kRounded ? state_rows_ : rows_to(to, i));
      if (!kRounded || to.data == nullptr) continue;
      for (int64_t c = 0; c < kBlockRows * kd_; c += kLanes) {
        to.put(i * kd_ + c, load(state_rows_ + c));
      }
    }
    for (int64_t t = 0; kOutputs && t < run.n; ++t) store_output(run.begin + t, hv, u_ + t * vd_);
  }

  void store_output(int64_t row, int64_t hv, const float* o) {
    const GdnNorm& norm = rows_.args().norm;
    float* out = rows_.out_row(row, hv);
    if (norm.z.data != nullptr) {
      gated_norm_row({static_cast<const float*>(norm.weight.data), norm.eps, norm.activation}, o,
                     rows_.gate_row(row, hv), vd_, out);
      return;
    }
    for (int64_t c = 0; c < vd_; c += kLanes) store(out + c, load(o + c));
  }

  /// What a token does to every row of S.
  struct TokenGates {
    float decay, beta, qk;
  };

  /// Where rows i, i + 1, ... of an fp32 state go, or the worker's rows if nowhere.
  float* rows_to(const HeadState& to, int64_t i) const {
    return to.data == nullptr ? state_rows_ : static_cast<float*>(to.data) + i * kd_;
  }

  /// Rows of this width stay in registers, beside k and q.
  bool single_rows() const { return kMicroVecs > 1 && kd_ == kRowVecs * kLanes; }

  /// One token on rows [i, i + kBlockRows) of S.
  template <bool kRounded, bool kOutputs, bool kFetch>
  void step_block(int64_t t, const TokenGates& token, int64_t i, const float* from, float* to) {
    if (single_rows()) {
      step_single_rows<kRounded, kOutputs, kFetch>(t, token, i, from, to);
      return;
    }
    const int64_t at = t * vd_ + i;
    for (int64_t r = 0; r < kBlockRows; r += kRowsAtOnce) {
      step_rows<kRounded, kOutputs, kFetch>(t, token, at + r, from + r * kd_, to + r * kd_);
    }
  }

  /// As step_rows, with the same bits, for kBlockRows rows one after the other, of fp32 or bf16:
  /// read once, and while one waits for its sums the CPU is at the next ones.
  template <bool kRounded, bool kOutputs, bool kFetch, class Element>
  void step_single_rows(int64_t t, const TokenGates& token, int64_t i, const Element* from,
                        Element* to) {
    constexpr bool kHalf = sizeof(Element) == 2;
    constexpr int64_t kWidth = kRowVecs * kLanes;
    const int64_t at = t * vd_ + i;
    const Vec decay = splat(token.decay);
    Vec k[kRowVecs], q[kRowVecs];
#pragma GCC unroll 8
    for (int c = 0; c < kRowVecs; ++c) {
      k[c] = load(k_ + t * kWidth + c * kLanes);
      q[c] = load(q_ + t * kWidth + c * kLanes);
    }
    for (int64_t r = 0; r < kBlockRows; ++r, from += kWidth, to += kWidth) {
      const HeadState row{const_cast<Element*>(from), kHalf};
      Vec s[kRowVecs], predicted = splat(0), read = splat(0);
      if (kFetch) {
        const float* piece = behind_.at[(i + r) / 4 % Pieces::kMost] + r % 4 * 2 * kLanes;
        request(piece, 0);
        request(piece, kLanes);
      }
#pragma GCC unroll 8
      for (int c = 0; c < kRowVecs; ++c) {
        if (kFetch && (!kHalf || c % 2 == 0)) request(from, kStateRowsAhead * kWidth + c * kLanes);
        s[c] = row.at(c * kLanes) * decay;
        predicted = fma(s[c], k[c], predicted);
        if (kOutputs) read = fma(s[c], q[c], read);
      }
      const Vec u = splat(token.beta * (v_[at + r] - sum_lanes(predicted)));
      if (kOutputs) {
        u_[at + r] = first_lane(fma(u, splat(token.qk), splat(sum_lanes(read))));
      }
#pragma GCC unroll 8
      for (int c = 0; c < kRowVecs; ++c) {
        const Vec x = fma(u, k[c], s[c]);
        if constexpr (kHalf) {
          store_half(to + c * kLanes, x);
        } else {
          store(to + c * kLanes, kRounded ? round_to_bf16(x) : x);
        }
      }
    }
  }

  /// One token on some rows s of S, whose values are v_[at], v_[at + 1], ...: s <- d s + u k with
  /// u = beta (v - d s.k); u_[at], ... <- s.q, which is d s.q (before the write) + u k.q. The next
  /// token waits for all of that: rows beside each other fill the time.
  /// The rows are read at `from` (kFetch: and those kStateRowsAhead behind them requested, a line
  /// with each that is used) and written to `to`, which may be the same.
  template <bool kRounded, bool kOutputs, bool kFetch>
  void step_rows(int64_t t, const TokenGates& token, int64_t at, const float* from, float* to) {
    const float* k = k_ + t * kd_;
    const float* q = q_ + t * kd_;
    const Vec decay = splat(token.decay);
    Vec predicted[kRowsAtOnce], read[kRowsAtOnce], u[kRowsAtOnce];
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) predicted[r] = read[r] = splat(0);
    for (int64_t c = 0; c < kd_; c += kLanes) {
      const Vec kc = load(k + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (kFetch) request(from, (kStateRowsAhead + r) * kd_ + c);
        const Vec x = load(from + r * kd_ + c) * decay;
        predicted[r] = fma(x, kc, predicted[r]);
        if (kOutputs) read[r] = fma(x, load(q + c), read[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) {
      u[r] = splat(token.beta * (v_[at + r] - sum_lanes(predicted[r])));
      if (!kOutputs) continue;
      u_[at + r] = first_lane(fma(u[r], splat(token.qk), splat(sum_lanes(read[r]))));
    }
    for (int64_t c = 0; c < kd_; c += kLanes) {
      const Vec kc = load(k + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const int64_t s = r * kd_ + c;
        const Vec x = fma(u[r], kc, load(from + s) * decay);
        store(to + s, kRounded ? round_to_bf16(x) : x);
      }
    }
  }

  /// Element i behind `p`, which may lie outside.
  template <class Element>
  static void request(const Element* p, int64_t i) {
    const auto bytes = static_cast<uintptr_t>(i) * sizeof(Element);
    _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + bytes),
                 _MM_HINT_T0);
  }

  float dot(const float* a, const float* b) const {
    Vec sum = splat(0);
    for (int64_t c = 0; c < kd_; c += kLanes) sum = fma(load(a + c), load(b + c), sum);
    return sum_lanes(sum);
  }

  const GdnRows& rows_;
  const int64_t kd_, vd_;
  const bool outputs_;
  Chunks chunks_;
  float *q_, *k_;      // [64][K]
  float *v_, *u_;      // [64][V]
  float* state_rows_;  // [kBlockRows][K], rows of S while their tokens pass
  Pieces behind_;      // a piece is requested beside four rows of S
};

/// Bytes of a worker that takes `count` value heads at once.
template <class Chunks>
int64_t worker_bytes(const GdnRows& rows, int64_t count) {
  Carver counter(nullptr);
  const Worker<Chunks> worker(rows, count, counter);
  return counter.taken();
}

/// How a call is cut: unit u is part u % parts of key head u / parts % HK of chain u / parts / HK.
struct Units {
  int64_t key_heads, group;
  int64_t parts = 1;  ///< of the value heads of a key head

  HeadGroup heads(int64_t unit) const {
    const int64_t hk = unit / parts % key_heads, part = unit % parts;
    const int64_t first = group * part / parts, last = group * (part + 1) / parts;
    return {hk, hk * group + first, last - first};
  }
  int64_t chain(int64_t unit) const { return unit / parts / key_heads; }
};

/// Goes through the chains of a call, in order.
class ChainCursor {
 public:
  explicit ChainCursor(const GdnRows& rows)
      : rows_(rows), begin_(rows.first()), end_(rows.chain_end(rows.first())) {}
  /// Chain `index`, not before the last one asked for; false: there is none.
  bool seek(int64_t index) {
    for (; index_ < index && begin_ < rows_.last(); ++index_) {
      begin_ = end_;
      end_ = rows_.chain_end(begin_);
    }
    return begin_ < rows_.last();
  }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }

 private:
  const GdnRows& rows_;
  int64_t index_ = 0, begin_, end_;
};

/// Segments [first, last), all of the same arithmetic.
template <class Chunks>
void run_units(Stream& stream, const GdnArgs& args, int64_t first, int64_t last) {
  const GdnShape& shape = args.shape;
  const int threads = stream.pool().num_threads();
  Units units{shape.key_heads, shape.value_heads / shape.key_heads};
  {
    const GdnRows rows(args, first, last, false);
    ChainCursor chains(rows);
    int64_t n = 0;
    while (n * shape.key_heads < threads && chains.seek(n)) ++n;
    if (n == 0) return;
    if (n * shape.key_heads < threads) {
      const int64_t wanted = (threads + n * shape.key_heads - 1) / (n * shape.key_heads);
      units.parts = wanted < units.group ? wanted : units.group;
    }
  }
  const GdnRows rows(args, first, last, units.parts > 1);
  ScratchScope scratch(stream);
  const int64_t bytes = worker_bytes<Chunks>(rows, units.group);
  auto* memory = static_cast<std::byte*>(scratch.take(threads * bytes));
  int64_t next = 0, next_windows = 0;  // who takes which unit doesn't matter
  stream.pool().parallel([&](int thread) {
    {
      const FlushDenormals scope;
      Carver carver(memory + thread * bytes);
      Worker<Chunks> worker(rows, units.group, carver);
      ChainCursor chains(rows);
      for (;;) {
        const int64_t unit = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (!chains.seek(units.chain(unit))) break;
        const HeadGroup heads = units.heads(unit);
        NextUnit then{{}, rows.segment(chains.begin())};
        ChainCursor behind = chains;
        if (behind.seek(units.chain(unit + threads))) {
          then = {units.heads(unit + threads), rows.segment(behind.begin())};
        }
        for (int64_t s = chains.begin(); s < chains.end(); ++s) {
          const Segment segment = rows.segment(s);
          worker.run(heads, segment, then);
          if (units.parts == 1 && segment.write >= 0) rows.store_windows(heads.key_head, segment);
        }
      }
    }
    if (units.parts == 1) return;
    stream.pool().barrier();
    ChainCursor chains(rows);
    for (;;) {
      const int64_t unit = __atomic_fetch_add(&next_windows, 1, __ATOMIC_RELAXED);
      if (!chains.seek(unit / shape.key_heads)) return;
      for (int64_t s = chains.begin(); s < chains.end(); ++s) {
        const Segment segment = rows.segment(s);
        if (segment.write >= 0) rows.store_windows(unit % shape.key_heads, segment);
      }
    }
  });
}

/// A sequence may be in both: its prompt's last chunk, and behind it generated tokens that are
/// computed again.
template <class Chunks>
void run_arithmetics(Stream& stream, const GdnArgs& args) {
  run_units<Chunks>(stream, args, 0, args.num_prompt_segments);
  run_units<Chunks>(stream, args, args.num_prompt_segments, args.num_segments);
}

}  // namespace

int64_t gdn_scratch_bytes(const GdnShape& shape, int threads) {
  GdnArgs args;
  args.shape = shape;
  const GdnRows rows(args, 0, 0, false);
#if WEFT_AMX
  if (TileChunks::takes(shape)) return threads * worker_bytes<TileChunks>(rows, rows.group());
#endif
  return threads * worker_bytes<FmaChunks>(rows, rows.group());
}

void gdn(Stream& stream, const GdnArgs& args) {
  const GdnShape& shape = args.shape;
  ISA_CHECK(shape.key_dim % kLanes == 0 && shape.value_dim % kLanes == 0);
  ISA_CHECK(shape.key_dim <= kMaxDim && shape.value_dim <= kMaxDim);
  ISA_CHECK(shape.key_heads > 0 && shape.value_heads % shape.key_heads == 0);
  ISA_CHECK(args.state.recurrent.dtype == DType::kF32 ||
            args.state.recurrent.dtype == DType::kBF16);
  ISA_CHECK(shape.conv_width >= 1 && shape.conv_width <= kMaxConvWidth);
#if WEFT_AMX
  if (TileChunks::takes(shape)) {
    run_arithmetics<TileChunks>(stream, args);
    return;
  }
#endif
  run_arithmetics<FmaChunks>(stream, args);
}

}  // namespace weft::WEFT_ISA_NS
