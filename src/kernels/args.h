#pragma once

// Arguments of the ops, one struct of roles an op. Letters: T tokens of the step, S segments,
// H query heads, G kv heads, D head dim, B block size, V vocabulary, E experts.
// Activations are f32 on the CPU. On CUDA they are bf16, but for the residual stream, logits and
// the gates a, b and router logits, which are f32. Unless said otherwise the last dimension is
// contiguous and the outer strides are free. T may be 0: nothing happens.

#include <cstdint>

#include "kernels/kv_view.h"
#include "kernels/sparse_args.h"
#include "kernels/weight.h"
#include "tensor/view.h"

namespace weft {

/// out[t] = table[ids[t]].
struct EmbedArgs {
  TensorView ids;    ///< [T] i32, each in [0, V)
  TensorView table;  ///< [V, hidden] bf16 or f32, or what OpTable::weight_rows() gave
  TensorView out;    ///< [T, hidden]
};

/// y = x * rsqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019); with `residual`:
/// residual += x first, and the norm is taken of the sum. Zero-centred weights are stored as 1 + w.
struct RmsNormArgs {
  TensorView x;         ///< [T, hidden]
  TensorView residual;  ///< [T, hidden] updated in place, or undefined
  TensorView weight;    ///< [hidden] f32
  TensorView out;       ///< [T, hidden]; may be x
  float eps = 1e-6f;
};

enum class Epilogue : uint8_t {
  kStore,    ///< out = x W^T + bias
  kAdd,      ///< out += x W^T + bias
  kSiluMul,  ///< W = [gate; up] of 2I rows: out[T, I] = silu(x gate^T) * (x up^T)
};

/// The K order of a row's sum depends on (N, K) alone, never on T (docs/architecture.md, rule 1).
struct LinearArgs {
  TensorView x;  ///< [T, K]
  const Weight* weight = nullptr;
  TensorView bias;  ///< [N] f32 or undefined
  TensorView out;   ///< [T, N], or [T, N/2] for kSiluMul
  Epilogue epilogue = Epilogue::kStore;
  int64_t prompt_rows = 0;  ///< rows [0, prompt_rows) use prompt arithmetic, the others decode
  /// Where its weight is defined: x is norm.out (all rows of it) and rms_norm() of this comes
  /// first. norm.out may be left unwritten: nobody else reads it.
  RmsNormArgs norm;
};

/// How a router turns logits into expert weights.
struct RoutingRule {
  int top_k = 1;
  bool renormalize = true;  ///< divide the chosen weights by their sum
  float norm_min = 0.0f;    ///< the sum is at least this (ERNIE: moe_norm_min)
  float scale = 1.0f;       ///< factor on the weights
};

/// Softmax over all E in fp32; choose top_k by probability + correction (ties: lower id first);
/// weights are the probabilities without the correction.
struct MoeRouteArgs {
  TensorView logits;      ///< [T, E]
  TensorView correction;  ///< [E] f32 or undefined (ERNIE: e_score_correction_bias)
  RoutingRule rule;
  TensorView ids;      ///< [T, top_k] i32, by descending choice
  TensorView weights;  ///< [T, top_k] f32
};

/// out[t] (+)= sum_j weights[t,j] * down_e( silu(gate_e x_t) * up_e x_t ), e = ids[t,j], added in
/// the order of ascending expert id.
struct MoeArgs {
  TensorView x;                     ///< [T, hidden]
  TensorView ids;                   ///< [T, top_k] i32
  TensorView weights;               ///< [T, top_k] f32
  const Weight* gate_up = nullptr;  ///< experts E, n = 2I ([gate; up]), k = hidden
  const Weight* down = nullptr;     ///< experts E, n = hidden, k = I
  TensorView out;                   ///< [T, hidden]
  bool accumulate = false;
  int64_t prompt_rows = 0;
};

/// out[t] += sigmoid(gate[t]) * x[t] (shared expert), gate [T, 1].
struct AddGatedArgs {
  TensorView x, gate, out;
};

/// x[t] *= sigmoid(gate[t]) elementwise; x, gate [T, H, D] (gate strided).
struct MulSigmoidArgs {
  TensorView x, gate;
};

/// out += x, [T, hidden].
struct AddArgs {
  TensorView x, out;
};

enum class RopeStyle : uint8_t {
  kNeox,         ///< pairs (i, i + R/2) of the first R dims
  kInterleaved,  ///< pairs (2i, 2i + 1)
};

/// The one shared 1-D table: cos and sin of position p and frequency i.
struct RopeTable {
  TensorView cos_sin;  ///< [positions, R/2, 2] f32: (cos, sin), attention factor (YaRN) included
  TensorView axis;     ///< [R/2] u8: which of (t, h, w) turns frequency i; 0 for plain rope
  int rotary_dim = 0;  ///< R <= D; dims R.. pass through
  RopeStyle style = RopeStyle::kNeox;
};

/// Where the rows of a step stand. A row with t = h = w (text, generated tokens, drafts) turns by
/// one position, p = index + delta, whatever its sequence saw before: the 3-d position as a 1-d
/// one. Only rows inside an image take each frequency's position from the frequency's axis. Both
/// ways read one table, so where t = h = w they give the same bits. Checked on the host against the
/// table.
struct RopePositions {
  TensorView index;    ///< [T] i32: of the row in its sequence
  TensorView delta;    ///< [T] i32: p - index, negative behind images; undefined: 0 everywhere
  TensorView triples;  ///< [T, 3] i32 (t, h, w); undefined: no row of the step has axes apart
};

/// q and k: optional per-head RMS norm, then rope; q in place; K and V rows are written to the
/// paged cache (rounded or quantised to its format).
struct QkvPrepareArgs {
  TensorView q;               ///< [T, H, D] in place
  TensorView k, v;            ///< [T, G, D]; k may be overwritten
  TensorView q_norm, k_norm;  ///< [D] f32 or undefined
  float eps = 1e-6f;
  RopeTable rope;
  RopePositions positions;
  TensorView kv_slot;  ///< [T] i64: block * B + offset in the block; -1: don't write
  PagedKv kv;
};

/// Whose rows these are: segment s owns rows cu_q[s] .. cu_q[s+1] of q, at positions
/// kv_start[s] + (0 .. q_len), and sees keys 0 .. its own position.
struct SeqMap {
  TensorView cu_q;         ///< [S+1] i32
  TensorView kv_start;     ///< [S] i32
  TensorView block_table;  ///< [S, max_blocks] i32
  int num_segments = 0;
  // The same numbers on the host, valid during the call, for ops that plan prompt tiles there.
  // Null in a step without prompt segments (which may be a captured graph).
  const int32_t* host_cu_q = nullptr;
  const int32_t* host_kv_start = nullptr;
  const int32_t* host_block_table = nullptr;  ///< rows as far apart as those of block_table
};

struct AttnShape {
  int q_heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1.0f;
  KvFormat kv_format = KvFormat::kBf16;  ///< for scratch memory and choices; an op goes by its kv
};

/// Decode segments of a step that a GPU takes.
inline constexpr int64_t kMaxDecodeSegments = 1024;

/// Causal attention over the paged cache, which already holds this step's K and V. Query head h
/// reads kv head h / (H/G). Softmax in fp32; keys are cut at absolute multiples of a constant, so a
/// row's bits depend on its position and its keys alone. A row without keys gives 0. Segments
/// [0, num_prompt_segments) own rows [0, prompt_rows) and use prompt arithmetic, the others decode
/// (on the CPU both are one).
struct AttnArgs {
  AttnShape shape;
  TensorView q;    ///< [T, H, D]
  TensorView out;  ///< [T, H, D]
  PagedKv kv;
  SeqMap seqs;
  int64_t prompt_rows = 0;
  int num_prompt_segments = 0;
  int max_decode_len = 1;           ///< rows of the longest decode segment, at most
  const HeadPlan* heads = nullptr;  ///< of the prompt segments; null: every head sees all keys
  TensorView lse;  ///< [T, H] f32: ln of the sum of exp(scale q k) of prompt rows; or undefined
};

enum class GateActivation : uint8_t { kSilu, kSigmoid };

struct GdnShape {
  int key_heads = 0, value_heads = 0;  ///< HK, HV; value head hv reads key head hv / (HV/HK)
  int key_dim = 0, value_dim = 0;      ///< K, V
  int conv_width = 4;                  ///< W
};

/// The layer's norm of the outputs: o <- weight * o * rsqrt(mean_V(o^2) + eps) * act(z), per head.
struct GdnNorm {
  TensorView z;       ///< [T, HV, V]; undefined: no norm
  TensorView weight;  ///< [V] f32
  float eps = 1e-6f;
  GateActivation activation = GateActivation::kSilu;
};

/// Causal depthwise convolution + SiLU over [q | k | v], gating, l2norm and the gated delta rule
/// (Yang et al. 2024, arXiv 2412.06464; formulas: docs/kernels/gated_delta.md). Segments
/// [0, num_prompt_segments) run the chunked form (C = 64 from the start of the segment, which lies
/// at a multiple of 64), the others the recurrent form token by token. Segments that continue one
/// sequence follow each other and are computed in order. An invalid read slot (-1) is the zero
/// state; write slot -1 stores nothing. read and write may be the same slot.
struct GdnArgs {
  GdnShape shape;
  TensorView qkv;      ///< [T, C] before the convolution, C = 2 HK K + HV V
  TensorView a, b;     ///< [T, HV]
  TensorView conv;     ///< [C, W] f32
  TensorView a_log;    ///< [HV] f32
  TensorView dt_bias;  ///< [HV] f32
  StateSlots state;
  TensorView cu_q;        ///< [S+1] i32
  TensorView read_slot;   ///< [S] i32; of decode segments on a GPU also what gdn_slots.h says
  TensorView write_slot;  ///< [S] i32; likewise
  int num_segments = 0, num_prompt_segments = 0;
  /// [chains + 1] i32: chain c is the segments chains[c] .. chains[c + 1] of one sequence, all of
  /// the same arithmetic; prompt chains first. Undefined on the CPU, which goes by the slots.
  TensorView chains;
  int num_chains = 0, num_prompt_chains = 0;
  const int32_t* host_cu_q = nullptr;  ///< as in SeqMap
  TensorView out;  ///< [T, HV, V]; decode rows on the CPU: or undefined, then only states are made
  GdnNorm norm;    ///< of `out`
};

/// out = weight * x * rsqrt(mean_V(x^2) + eps) * act(z), per head.
struct GatedNormArgs {
  TensorView x, z;    ///< [T, HV, V]; z strided
  TensorView weight;  ///< [V] f32
  TensorView out;     ///< [T, HV, V]; may be x
  float eps = 1e-6f;
  GateActivation activation = GateActivation::kSilu;
};

}  // namespace weft
