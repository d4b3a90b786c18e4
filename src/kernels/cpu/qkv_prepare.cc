// q, k -> optional RMS norm a head, then rope; k, v -> the paged cache. Rows are independent.
// Bound: one read and write of q and k, one read of v, one write of the cache.

#include "kernels/cpu/kv_format.h"
#include "kernels/cpu/norm.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int kMaxRotary = 512;
constexpr int64_t kGrain = 16384;  // elements worth handing to another thread

/// cos and sin of one token. Neox: one value a pair. Interleaved: one a dim, sin with the sign that
/// the dim's partner takes.
struct Turn {
  alignas(64) float cos[kMaxRotary];
  alignas(64) float sin[kMaxRotary];
};

/// `entry_of(i)`: cos and sin of frequency i.
template <class EntryOf>
void spread(const RopeTable& rope, EntryOf entry_of, Turn& turn) {
  for (int i = 0; i < rope.rotary_dim / 2; ++i) {
    const float* entry = entry_of(i);
    if (rope.style == RopeStyle::kNeox) {
      turn.cos[i] = entry[0];
      turn.sin[i] = entry[1];
    } else {
      turn.cos[2 * i] = turn.cos[2 * i + 1] = entry[0];
      turn.sin[2 * i] = -entry[1];
      turn.sin[2 * i + 1] = entry[1];
    }
  }
}

const int32_t* at(const TensorView& values, int64_t row) {
  return static_cast<const int32_t*>(values.data) + row * values.stride[0];
}

void look_up(const RopeTable& rope, const RopePositions& positions, int64_t t, Turn& turn) {
  if (rope.rotary_dim == 0) return;
  const auto row_of = [&](int64_t position) {
    ISA_CHECK(position >= 0 && position < rope.cos_sin.shape[0]);
    return static_cast<const float*>(rope.cos_sin.data) + position * rope.cos_sin.stride[0];
  };
  const int64_t step = rope.cos_sin.stride[1];
  const int32_t* triple = positions.triples.defined() ? at(positions.triples, t) : nullptr;
  if (triple != nullptr && (triple[0] != triple[1] || triple[0] != triple[2])) {
    const auto* axis = static_cast<const uint8_t*>(rope.axis.data);
    const float* rows[3] = {row_of(triple[0]), row_of(triple[1]), row_of(triple[2])};
    spread(
        rope, [&](int i) { return rows[axis == nullptr ? 0 : axis[i]] + i * step; }, turn);
    return;
  }
  const int64_t delta = positions.delta.defined() ? *at(positions.delta, t) : 0;
  const float* row = row_of(*at(positions.index, t) + delta);
  spread(
      rope, [&](int i) { return row + i * step; }, turn);
}

void rotate(const RopeTable& rope, const Turn& turn, float* x) {
  const int64_t half = rope.rotary_dim / 2;
  if (rope.style == RopeStyle::kNeox) {
    for_lanes(half, [&](int64_t i, int64_t m) {
      const Vec c = load_n(turn.cos + i, m), s = load_n(turn.sin + i, m);
      const Vec a = load_n(x + i, m), b = load_n(x + half + i, m);
      store_n(x + i, fnma(b, s, a * c), m);
      store_n(x + half + i, fma(a, s, b * c), m);
    });
    return;
  }
  for_lanes(2 * half, [&](int64_t i, int64_t m) {
    const Vec a = load_n(x + i, m);
    const Vec turned = fma(swap_pairs(a), load_n(turn.sin + i, m), a * load_n(turn.cos + i, m));
    store_n(x + i, turned, m);
  });
}

void prepare_heads(const QkvPrepareArgs& args, const TensorView& x, const TensorView& norm,
                   int64_t t, const Turn& turn) {
  for (int64_t h = 0; h < x.shape[1]; ++h) {
    float* head = static_cast<float*>(x.data) + t * x.stride[0] + h * x.stride[1];
    if (norm.defined()) {
      rms_norm_row(head, static_cast<const float*>(norm.data), x.shape[2], args.eps, head);
    }
    rotate(args.rope, turn, head);
  }
}

template <class Format>
void write_token(const QkvPrepareArgs& args, int64_t t) {
  const int64_t slot = static_cast<const int64_t*>(args.kv_slot.data)[t * args.kv_slot.stride[0]];
  if (slot < 0) return;
  const int64_t block = slot / args.kv.shape.block_size, token = slot % args.kv.shape.block_size;
  ISA_CHECK(block < args.kv.num_blocks);
  for (int64_t g = 0; g < args.kv.shape.heads; ++g) {
    Format::store_token(
        args.kv, Format::head(args.kv, block, g), token,
        static_cast<const float*>(args.k.data) + t * args.k.stride[0] + g * args.k.stride[1],
        static_cast<const float*>(args.v.data) + t * args.v.stride[0] + g * args.v.stride[1]);
  }
}

}  // namespace

void qkv_prepare(Stream& stream, const QkvPrepareArgs& args) {
  ISA_CHECK(args.rope.rotary_dim <= kMaxRotary && args.rope.rotary_dim % 2 == 0 &&
            args.rope.rotary_dim <= args.q.shape[2]);
  const int64_t width = (args.q.shape[1] + 2 * args.k.shape[1]) * args.q.shape[2];
  const auto body = [&](int64_t begin, int64_t end) {
    Turn turn;
    for (int64_t t = begin; t < end; ++t) {
      look_up(args.rope, args.positions, t, turn);
      prepare_heads(args, args.q, args.q_norm, t, turn);
      prepare_heads(args, args.k, args.k_norm, t, turn);
      with_kv_format(args.kv.shape.format,
                     [&](auto format) { write_token<decltype(format)>(args, t); });
    }
  };
  stream.pool().for_each(args.q.shape[0], 1 + kGrain / (width + 1), body);
}

}  // namespace weft::WEFT_ISA_NS
