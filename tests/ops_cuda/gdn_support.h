#pragma once

// Worlds for tests of the gated delta rule on a GPU: inputs, a pool of slots, chains of segments,
// and the recurrence in double.

#include <string>
#include <vector>

#include "kernels/gdn_slots.h"
#include "tests/ops_cuda/support.h"

namespace weft {

struct GdnPart {  // a segment of the call
  int rows;
  int read, write;  // or what gdn_slots.h says
};
using GdnChain = std::vector<GdnPart>;

/// What a call does: prompt chains, then decode chains; rows follow each other in this order.
struct GdnCall {
  std::vector<GdnChain> prompt, decode;
  int64_t rows() const;
};

/// Inputs of `rows` tokens and a pool of slots, on the host; floats are what the GPU gets.
struct GdnWorld {
  GdnShape shape;
  int64_t rows, slots;
  std::vector<float> qkv, a, b, conv, a_log, dt_bias, windows, states;
  std::vector<float> z, norm_weight;  // the layer's norm of the outputs, if not empty
  std::vector<float> kept;            // the slots' kept rows as they lie there, on the GPU alone
  GateActivation activation = GateActivation::kSilu;
  bool half_states = false;  // bf16 on the GPU

  GdnWorld(GdnShape s, int64_t num_rows, uint64_t seed, int64_t num_slots = 8);
  int64_t channels() const {
    return 2 * shape.key_heads * shape.key_dim + shape.value_heads * shape.value_dim;
  }
  int64_t out_width() const { return int64_t{shape.value_heads} * shape.value_dim; }
  int64_t window_size() const { return (shape.conv_width - 1) * channels(); }
  int64_t state_size() const { return out_width() * shape.key_dim; }
  /// Window and state of a slot.
  std::vector<float> slot(int64_t slot) const;
  void copy_slot(int64_t from, int64_t to);
  void poison(int64_t slot);
  void add_norm(uint64_t seed);
  void add_kept_rows(int64_t rows);
  void halve_states();
  /// The rows [first, first + count) as a world of their own, with the same slots.
  GdnWorld cut(int64_t first, int64_t count) const;
};

/// Runs the call on the GPU: the slots of the world change; returns the outputs [rows, HV * V], of
/// bf16 value. Rows that no segment owns stay NaN.
std::vector<float> gdn_on_gpu(GdnWorld& world, const GdnCall& call);
/// What an implementation may get wrong.
enum class GdnMistake {
  kNone,
  kZeroedState,      // the initial state is not used
  kTransposedState,  // kept as [K, V]
  kTiledHeads,       // value head hv reads key head hv % HK
  kSqueezedGates,    // all rows take the first row's a and b
  kSlotOfBlocks      // sequence i reads the state of slot i
};
/// The recurrence in double, token by token; the slots change (rounded to float).
std::vector<float> gdn_in_double(GdnWorld& world, const GdnCall& call,
                                 GdnMistake mistake = GdnMistake::kNone);

bool same_bits(const std::vector<float>& a, const std::vector<float>& b);
std::vector<float> rows_of(const std::vector<float>& x, int64_t width, int64_t first,
                           int64_t count);

}  // namespace weft
