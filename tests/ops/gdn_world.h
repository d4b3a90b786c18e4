#pragma once

// A call of the gated delta rule: inputs, a pool of slots, segments.

#include <algorithm>

#include "support.h"

namespace weft {

struct Part {  // a segment of the call
  int rows;
  int read, write;
};

/// Inputs of `rows` tokens and a pool of state slots. Poisoned slots are NaN all over.
struct World {
  GdnShape shape;
  int64_t rows, slots;
  Floats qkv, a, b, conv, a_log, dt_bias, windows, states, z, norm;
  bool with_norm = false;
  bool states_only = false;  // no outputs are asked for
  bool half_states = false;  // kept as bf16; `states` has their values

  World(GdnShape s, int64_t num_rows, uint64_t seed, int64_t num_slots = 8)
      : shape(s), rows(num_rows), slots(num_slots) {
    const int64_t c = channels();
    qkv = random_floats({rows, c}, seed, 2);
    a = random_floats({rows, s.value_heads}, seed + 1, 3);
    b = random_floats({rows, s.value_heads}, seed + 2, 3);
    conv = random_floats({c, s.conv_width}, seed + 3);
    a_log = random_floats({s.value_heads}, seed + 4, 1);
    dt_bias = random_floats({s.value_heads}, seed + 5, 1);
    windows = random_floats({slots, s.conv_width - 1, c}, seed + 6, 2);
    states = random_floats({slots, s.value_heads, s.value_dim, s.key_dim}, seed + 7, 0.3f);
    z = random_floats({rows, s.value_heads, s.value_dim}, seed + 8, 2);
    norm = random_floats({s.value_dim}, seed + 9);
  }
  int64_t channels() const {
    return 2 * shape.key_heads * shape.key_dim + shape.value_heads * shape.value_dim;
  }
  void halve_states() {
    half_states = true;
    for (float& x : states.data) x = bf16_to_float(float_to_bf16(x));
  }
  void poison(int64_t slot) {
    const auto fill = [&](Floats& x) {
      const int64_t n = x.view.stride[0];
      std::fill_n(x.data.begin() + slot * n, n, kNaN);
    };
    fill(windows);
    fill(states);
  }
  std::vector<float> slot_of(int64_t slot) const {
    std::vector<float> out;
    for (const Floats* x : {&windows, &states}) {
      const int64_t n = x->view.stride[0];
      out.insert(out.end(), x->data.begin() + slot * n, x->data.begin() + (slot + 1) * n);
    }
    return out;
  }
};

/// Runs rows [first, ...) of a world in the parts given, prompt parts first.
inline Floats run(const OpTable& ops, Stream& stream, World& w, int64_t first,
                  const std::vector<Part>& parts, int num_prompt) {
  std::vector<int32_t> cu = {0}, read, write;
  for (const Part& p : parts) {
    cu.push_back(cu.back() + p.rows);
    read.push_back(p.read);
    write.push_back(p.write);
  }
  const int64_t rows = cu.back();
  Floats out({rows, w.shape.value_heads, w.shape.value_dim}, kNaN);
  Ints cu_q(cu), read_slot(read), write_slot(write);
  GdnArgs args;
  args.shape = w.shape;
  args.qkv = w.qkv.view.rows(first, first + rows);
  args.a = w.a.view.rows(first, first + rows);
  args.b = w.b.view.rows(first, first + rows);
  args.conv = w.conv.view;
  args.a_log = w.a_log.view;
  args.dt_bias = w.dt_bias.view;
  args.state = {w.windows.view, w.states.view};
  std::vector<bf16> half;
  if (w.half_states) {
    for (const float x : w.states.data) half.push_back(float_to_bf16(x));
    args.state.recurrent.data = reinterpret_cast<std::byte*>(half.data());
    args.state.recurrent.dtype = DType::kBF16;
  }
  args.cu_q = cu_q.view;
  args.read_slot = read_slot.view;
  args.write_slot = write_slot.view;
  args.num_segments = static_cast<int>(parts.size());
  args.num_prompt_segments = num_prompt;
  if (!w.states_only) args.out = out.view;
  if (w.with_norm) {
    args.norm.z = w.z.view.rows(first, first + rows);
    args.norm.weight = w.norm.view;
  }
  ops.gdn(stream, args);
  for (size_t i = 0; i < half.size(); ++i) w.states.data[i] = bf16_to_float(half[i]);
  out.data.pop_back();
  return out;
}

inline constexpr double kTolerance = 1e-5;  // fp32 against the recurrence with sums in double

}  // namespace weft
