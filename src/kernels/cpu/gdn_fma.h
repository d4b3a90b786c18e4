#pragma once

// A chunk of the gated delta rule in fp32 multiply-adds, for any K and V that are multiples of 16.

#include "kernels/cpu/gdn_rows.h"
#include "kernels/cpu/norm.h"

namespace weft::WEFT_ISA_NS {

class FmaChunks {
 public:
  /// `memory` as large as taken() of a carver that passed through here.
  FmaChunks(const GdnRows& rows, int64_t count, Carver& memory) : rows_(rows) {
    const int64_t kd = rows.kd(), vd = rows.vd();
    state_ = memory.floats(count * kd * vd);
    k_ = memory.floats(kChunk * kd);
    q_ = memory.floats(kChunk * kd);
    kt_ = memory.floats(kChunk * kd);
    kk_ = memory.floats(kChunk * kChunk);
    qk_ = memory.floats(kChunk * kChunk);
    a_ = memory.floats(kChunk * kChunk);
    p_ = memory.floats(kChunk * kChunk);
    v_ = memory.floats(kChunk * vd);
    u_ = memory.floats(kChunk * vd);
    o_ = memory.floats(kChunk * vd);
  }

  /// Head `r` of the worker: its S^T, [K, V].
  float* state(int64_t r) { return state_ + r * rows_.kd() * rows_.vd(); }
  void state_is_set(int64_t) {}

  /// What the value heads of a key head share.
  void load_key_head(const Run& run, int64_t hk) {
    const int64_t kd = rows_.kd();
    rows_.load_qk(run, hk, run.padded(), q_, k_);
    transpose({k_, kd}, run.padded(), kd, {kt_, kChunk});
    for (int64_t i = 0; i < run.padded(); i += kLanes) {  // the lower triangle, in blocks
      product({k_ + i * kd, kd, 1}, {kt_, kChunk}, {kk_ + i * kChunk, kChunk},
              {kLanes, i + kLanes, kd}, FromZero{});
      product({q_ + i * kd, kd, 1}, {kt_, kChunk}, {qk_ + i * kChunk, kChunk},
              {kLanes, i + kLanes, kd}, FromZero{});
    }
  }

  /// One chunk of one value head; state is S^T, [K, V].
  void run_chunk(const Run& run, int64_t hv, int64_t r) {
    const int64_t rows = run.padded(), kd = rows_.kd(), vd = rows_.vd();
    float* state = this->state(r);
    for (int64_t i = 0; i < run.n; ++i) {
      GdnRows::prefetch(rows_.out_row(run.begin + i, hv), vd);
      if (rows_.args().norm.z.data != nullptr) {
        GdnRows::prefetch(rows_.gate_row(run.begin + i, hv), vd);
      }
    }
    Gates gates;
    rows_.load_gates(run, hv, rows, gates);
    Decays d;
    d.set(gates, rows);
    triangles(gates, d, rows);

    // u = k S, o = q S; both [rows, V].
    product({k_, kd, 1}, {state, vd}, {u_, vd}, {rows, vd, kd}, FromZero{});
    product({q_, kd, 1}, {state, vd}, {o_, vd}, {rows, vd, kd}, FromZero{});
    rows_.convolve(run, rows_.v_channel(hv), vd, rows, v_);
    for (int64_t i = 0; i < rows; ++i) {
      const Vec decay = splat(d.decay[i]), beta = splat(gates.beta[i]);
      for (int64_t c = 0; c < vd; c += kLanes) {
        float* u = u_ + i * vd + c;
        store(u, beta * fnma(decay, load(u), load(v_ + i * vd + c)));
      }
    }
    solve(rows);
    for (int64_t i = 0; i < rows; i += kLanes) {  // o = exp(G) o + p u
      product({p_ + i * kChunk, kChunk, 1}, {u_, vd}, {o_ + i * vd, vd}, {kLanes, vd, i + kLanes},
              [&](int64_t row, const float* c) { return load(c) * splat(d.decay[i + row]); });
    }
    const GdnNorm& norm = rows_.args().norm;
    for (int64_t i = 0; i < run.n; ++i) {
      float* out = rows_.out_row(run.begin + i, hv);
      if (norm.z.data != nullptr) {
        gated_norm_row({static_cast<const float*>(norm.weight.data), norm.eps, norm.activation},
                       o_ + i * vd, rows_.gate_row(run.begin + i, hv), vd, out);
        continue;
      }
      for (int64_t c = 0; c < vd; c += kLanes) store(out + c, load(o_ + i * vd + c));
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < vd; c += kLanes) {
        store(u_ + i * vd + c, load(u_ + i * vd + c) * splat(d.rest[i]));
      }
    }
    product({kt_, kChunk, 1}, {u_, vd}, {state, vd}, {kd, vd, rows},
            [&](int64_t, const float* c) { return load(c) * splat(d.whole); });
    if (!rows_.half()) return;
    for (int64_t i = 0; i < kd * vd; i += kLanes) {
      store(state + i, round_to_bf16(load(state + i)));
    }
  }

 private:
  /// Fills a_ = -beta_i exp(G_i - G_j) k_i.k_j (i > j), p_ = exp(G_i - G_j) q_i.k_j (i >= j), both
  /// 0 elsewhere.
  void triangles(const Gates& gates, const Decays& all, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      const Vec beta = splat(-gates.beta[i]);
      for (int64_t j = 0; j < i / kLanes * kLanes + kLanes; j += kLanes) {
        alignas(64) float difference[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
          difference[l] = static_cast<float>(all.cumulative[i] - all.cumulative[j + l]);
        }
        // Above the diagonal the difference is positive: cut before exp, then masked.
        const Vec d = exp(min(load(difference), splat(0)));
        const int64_t at = i * kChunk + j;
        store(a_ + at, keep_first(beta * d * load(kk_ + at), i - j, 0));
        store(p_ + at, keep_first(d * load(qk_ + at), i - j + 1, 0));
      }
    }
  }

  /// u <- (I - a)^-1 u by forward substitution, in blocks of 16 rows.
  void solve(int64_t rows) {
    const int64_t vd = rows_.vd();
    for (int64_t block = 0; block < rows; block += kLanes) {
      if (block > 0) {
        product({a_ + block * kChunk, kChunk, 1}, {u_, vd}, {u_ + block * vd, vd},
                {kLanes, vd, block}, FromC{});
      }
      for (int64_t c = 0; c < vd; c += kLanes) {
        for (int64_t i = block + 1; i < block + kLanes; ++i) {
          Vec sum = load(u_ + i * vd + c);
          for (int64_t j = block; j < i; ++j) {
            sum = fma(splat(a_[i * kChunk + j]), load(u_ + j * vd + c), sum);
          }
          store(u_ + i * vd + c, sum);
        }
      }
    }
  }

  const GdnRows& rows_;
  float* state_;               // [count][K][V]
  float *q_, *k_;              // [64][K]
  float* kt_;                  // [K][64]
  float *kk_, *qk_, *a_, *p_;  // [64][64]
  float *v_, *u_, *o_;         // [64][V]
};

}  // namespace weft::WEFT_ISA_NS
