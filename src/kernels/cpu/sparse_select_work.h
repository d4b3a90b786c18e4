#pragma once

// What both ways to score blocks share (sparse_select.cc, sparse_select_amx.h): the call, a
// thread's memory, softmax by blocks, the choice.

#include <atomic>

#include "kernels/cpu/attention_math.h"
#include "kernels/cpu/choose_blocks.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kBlock = HeadPlan::kBlock;
constexpr int kTeam = 4;                // groups of rows that share a load of keys
constexpr int kMaxGroups = kBlock / 4;  // of a block
constexpr float kLog2E = 1.44269504f;

static_assert(kBlock == kKeyTile);

int64_t num_blocks_of(int64_t keys) {
  return (keys + kBlock - 1) / kBlock;
}

/// What one thread works in, in scratch memory.
struct Work {
  float* q;        // [128 / Z groups][D][16] turned round, tokens in lanes
  float* top;      // [kMaxGroups][blocks] largest score of a group of rows in a block, log2
  float* sum;      // [kMaxGroups][blocks] sum of 2^(score - top)
  float* scores;   // [blocks] s[b, .]
  int32_t* order;  // [blocks]

  static int64_t bytes(int64_t d, int64_t stride, int64_t blocks) {
    return kBlock / stride * d * kLanes * 4 + (2 * kMaxGroups + 2) * blocks * 4 + 5 * 64;
  }
  Work(std::byte* at, int64_t d, int64_t stride, int64_t blocks) {
    const auto take = [&](int64_t count) {
      auto* out = reinterpret_cast<float*>(at);
      at += (count * 4 + 63) / 64 * 64;
      return out;
    };
    q = take(kBlock / stride * d * kLanes);
    top = take(kMaxGroups * blocks);
    sum = take(kMaxGroups * blocks);
    scores = take(blocks);
    order = reinterpret_cast<int32_t*>(take(blocks));
  }
};

/// The call, unpacked.
struct Call {
  const SelectArgs& args;
  const AttnArgs& attn;
  int64_t d, stride, blocks;  // blocks: of the longest segment

  explicit Call(const SelectArgs& a)
      : args(a), attn(*a.attention), d(attn.shape.head_dim), stride(a.stride), blocks(0) {
    for (int s = 0; s < attn.num_prompt_segments; ++s) {
      const int64_t n = num_blocks_of(end(s));
      if (n > blocks) blocks = n;
    }
  }
  static int64_t at(const TensorView& v, int64_t i) {
    return static_cast<const int32_t*>(v.data)[i * v.stride[0]];
  }
  int64_t start(int64_t s) const { return at(attn.seqs.kv_start, s); }
  int64_t rows(int64_t s) const { return at(attn.seqs.cu_q, s + 1) - at(attn.seqs.cu_q, s); }
  int64_t end(int64_t s) const { return start(s) + rows(s); }
  HeadKind kind(int64_t s, int64_t head) const {
    const HeadPlan& plan = *attn.heads;
    const int64_t row = plan.rows.data == nullptr ? s : at(plan.rows, s);
    return static_cast<HeadKind>(
        static_cast<const int32_t*>(plan.kinds.data)[row * plan.kinds.stride[0] + head]);
  }
  float threshold(int64_t head) const {
    return static_cast<const float*>(args.thresholds.data)[head];
  }
  /// Has a head scores? One that takes all blocks needs none.
  bool estimated(int64_t s, int64_t head) const {
    if (kind(s, head) != HeadKind::kBlocks) return false;
    return threshold(head) < 1 || args.mass.data != nullptr;
  }
  /// Of products to scores, in log2.
  float score_scale() const {
    return attn.shape.scale * kLog2E / (static_cast<float>(stride) * args.norm);
  }
};

struct Item {
  int64_t s, head, row;  // row: block of rows of the segment
};

/// Largest score and sum of powers of `n` scores of a row.
void reduce_scores(const float* scores, int64_t n, float& top, float& sum) {
  Vec best = splat(kNegInf), total = splat(0);
  for_lanes(n, [&](int64_t i, int64_t m) {
    best = max(best, keep_first(load_n(scores + i, m), m, kNegInf));
  });
  top = max_lanes(best);
  const Vec base = splat(top);
  for_lanes(n, [&](int64_t i, int64_t m) {
    total = total + keep_first(exp2(load_n(scores + i, m) - base), m, 0.0f);
  });
  sum = sum_lanes(total);
}

/// Adds the softmax of a group of rows, block by block, to s[b, .].
void add_row(int64_t b, float* top, const float* sum, float* scores) {
  float largest = kNegInf;
  for (int64_t c = 0; c <= b; ++c) largest = top[c] > largest ? top[c] : largest;
  double total = 0;
  for_lanes(b + 1, [&](int64_t c, int64_t m) {
    store_n(top + c, exp2(load_n(top + c, m) - splat(largest)) * load_n(sum + c, m), m);
  });
  for (int64_t c = 0; c <= b; ++c) total += static_cast<double>(top[c]);
  const Vec inverse = splat(static_cast<float>(1 / total));
  for_lanes(b + 1, [&](int64_t c, int64_t m) {
    store_n(scores + c, fma(load_n(top + c, m), inverse, load_n(scores + c, m)), m);
  });
}

/// Writes the list of the item's block of rows by its scores.
void choose(const Call& call, const Item& item, const Work& work) {
  const HeadPlan& plan = *call.attn.heads;
  const int64_t b = call.start(item.s) / kBlock + item.row;
  const TensorView& words = plan.blocks;
  const ChosenBlocks chosen =
      choose_blocks({.scores = work.scores,
                     .row = b,
                     .threshold = call.threshold(item.head),
                     .quirk = b < call.args.quirk_blocks,
                     .order = work.order,
                     .words = static_cast<int32_t*>(words.data) + item.s * words.stride[0] +
                              item.head * words.stride[1] + item.row * words.stride[2],
                     .num_words = words.shape[3]});
  static_cast<int32_t*>(plan.counts.data)[item.s * plan.counts.stride[0] +
                                          item.head * plan.counts.stride[1] + item.row] =
      chosen.count;
  if (call.args.mass.data == nullptr) return;
  static_cast<float*>(call.args.mass.data)[item.s * call.args.mass.stride[0] +
                                           item.head * call.args.mass.stride[1] + item.row] =
      chosen.mass;
}

}  // namespace
}  // namespace weft::WEFT_ISA_NS
