// s[b, c] = sum of softmax_j(q_i . k_j by antidiagonals) over the groups of Z rows of block b and
// of Z keys of block c (XAttention, arXiv 2503.16428); then the blocks that hold enough of it. A
// piece of work: one block of 128 rows of one head, against all keys before it, 4 groups of rows at
// a time. With q turned round and laid out as keys are, tokens in lanes, a product of vectors is 16
// / Z groups of keys at once. Bound: multiply-adds, L^2 D / (2 Z) a head. docs/kernels/elastic.md

#include "kernels/cpu/attention_math.h"
#include "kernels/cpu/choose_blocks.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kBlock = HeadPlan::kBlock;
constexpr int kTeam = 4;  // groups of rows that share a load of keys
constexpr int kMaxGroups = kBlock / 4;
constexpr float kLog2E = 1.44269504f;

static_assert(kBlock == kKeyTile);

int64_t num_blocks_of(int64_t keys) {
  return (keys + kBlock - 1) / kBlock;
}

/// What one thread works in, in scratch memory.
struct Work {
  float* q;        // [128 / Z groups][D][16] turned round, tokens in lanes
  float* top;      // [kTeam][blocks] largest score of a group of rows in a block, log2
  float* sum;      // [kTeam][blocks] sum of 2^(score - top)
  float* scores;   // [blocks] s[b, .]
  int32_t* order;  // [blocks]

  static int64_t bytes(int64_t d, int64_t stride, int64_t blocks) {
    return kBlock / stride * d * kLanes * 4 + (2 * kTeam + 2) * blocks * 4 + 5 * 64;
  }
  Work(std::byte* at, int64_t d, int64_t stride, int64_t blocks) {
    const auto take = [&](int64_t count) {
      auto* out = reinterpret_cast<float*>(at);
      at += (count * 4 + 63) / 64 * 64;
      return out;
    };
    q = take(kBlock / stride * d * kLanes);
    top = take(kTeam * blocks);
    sum = take(kTeam * blocks);
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
};

struct Item {
  int64_t s, head, row;  // row: block of rows of the segment
};

/// q of the block's groups: [group][D][16], lane t has row Z - 1 - t % Z of the group; rows beyond
/// the segment are 0.
void turn_q(const Call& call, const Item& item, const Work& work) {
  const TensorView& q = call.attn.q;
  const int64_t first = call.at(call.attn.seqs.cu_q, item.s) + item.row * kBlock;
  const int64_t left = call.rows(item.s) - item.row * kBlock;
  for (int64_t i = 0; i < kBlock / call.stride; ++i) {
    for (int64_t t = 0; t < kLanes; ++t) {
      const int64_t row = i * call.stride + call.stride - 1 - t % call.stride;
      float* out = work.q + i * call.d * kLanes + t;
      if (row >= left) {
        for (int64_t e = 0; e < call.d; ++e) out[e * kLanes] = 0;
        continue;
      }
      const float* in =
          static_cast<const float*>(q.data) + (first + row) * q.stride[0] + item.head * q.stride[1];
      for (int64_t e = 0; e < call.d; ++e) out[e * kLanes] = in[e];
    }
  }
}

/// acc[i] = sum over D of q[i] * k of 16 tokens, for kRows groups of rows.
template <class Format, int kRows>
WEFT_INLINE void multiply(const float* q, int64_t d, const std::byte* k, Vec* acc) {
  for (int i = 0; i < kRows; ++i) acc[i] = splat(0);
  for (int64_t e = 0; e < d; e += Format::kPack) {
    if constexpr (Format::kPack == 1) {
      const Vec key = load(reinterpret_cast<const float*>(k) + e * kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) acc[i] = fma(load(q + (i * d + e) * kLanes), key, acc[i]);
    } else {
      const Pairs pairs = load_pairs(k + e / 2 * 64);
      const Vec first = first_of(pairs), second = second_of(pairs);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        acc[i] = fma(load(q + (i * d + e) * kLanes), first, acc[i]);
        acc[i] = fma(load(q + (i * d + e + 1) * kLanes), second, acc[i]);
      }
    }
  }
}

/// Sums of Z lanes each: 16 / Z scores.
WEFT_INLINE void sum_groups(Vec x, int64_t stride, float* out) {
  alignas(64) float lanes[kLanes];
  store(lanes, x);
  for (int64_t j = 0; j < kLanes / stride; ++j) {
    float sum = 0;
    for (int64_t t = 0; t < stride; ++t) sum += lanes[j * stride + t];
    out[j] = sum;
  }
}

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

/// Groups [first, first + kRows) of the block's rows against all keys up to their own group.
template <class Format, int kRows>
void score_team(const Call& call, const Item& item, const Work& work, int64_t first) {
  const PagedKv& kv = call.attn.kv;
  const int64_t stride = call.stride, block_size = kv.shape.block_size;
  const int64_t b = call.start(item.s) / kBlock + item.row, end = call.end(item.s);
  const int64_t kv_head = item.head / (call.attn.shape.q_heads / call.attn.shape.kv_heads);
  const TensorView& table = call.attn.seqs.block_table;
  const int32_t* blocks = static_cast<const int32_t*>(table.data) + item.s * table.stride[0];
  const Vec scale =
      splat(call.attn.shape.scale * kLog2E / (static_cast<float>(stride) * call.args.norm));
  const float* q = work.q + first * call.d * kLanes;
  alignas(64) float scores[kTeam][kMaxGroups];
  for (int64_t c = 0; c <= b; ++c) {
    for (int64_t k = c * kBlock; k < (c + 1) * kBlock; k += kGroup) {
      const int64_t at = (k - c * kBlock) / stride;
      Vec acc[kRows];
      if (k < end) {
        std::byte* head = Format::head(kv, blocks[k / block_size], kv_head);
        if constexpr (std::is_same_v<Format, KvCodes>) {
          alignas(64) float keys[kGroup * kMaxHeadDim];
          KvCodes::load_k_group(kv, head, k % block_size, keys);
          multiply<KvF32, kRows>(q, call.d, reinterpret_cast<const std::byte*>(keys), acc);
        } else {
          multiply<Format, kRows>(q, call.d, Format::k_group(kv, head, k % block_size), acc);
        }
      } else {
        for (Vec& x : acc) x = splat(0);
      }
      for (int i = 0; i < kRows; ++i) {
        sum_groups(keep_first(acc[i], end - k, 0.0f) * scale, stride, scores[i] + at);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      const int64_t seen = c < b ? kBlock / stride : first + i + 1;
      reduce_scores(scores[i], seen, work.top[i * call.blocks + c], work.sum[i * call.blocks + c]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    float* top = work.top + i * call.blocks;
    const float* sum = work.sum + i * call.blocks;
    float largest = kNegInf;
    for (int64_t c = 0; c <= b; ++c) largest = top[c] > largest ? top[c] : largest;
    double total = 0;
    for_lanes(b + 1, [&](int64_t c, int64_t m) {
      store_n(top + c, exp2(load_n(top + c, m) - splat(largest)) * load_n(sum + c, m), m);
    });
    for (int64_t c = 0; c <= b; ++c) total += static_cast<double>(top[c]);
    const Vec inverse = splat(static_cast<float>(1 / total));
    for_lanes(b + 1, [&](int64_t c, int64_t m) {
      store_n(work.scores + c, fma(load_n(top + c, m), inverse, load_n(work.scores + c, m)), m);
    });
  }
}

template <class Format>
void select_item(const Call& call, const Item& item, const Work& work) {
  const HeadPlan& plan = *call.attn.heads;
  const int64_t b = call.start(item.s) / kBlock + item.row;
  const float threshold = static_cast<const float*>(call.args.thresholds.data)[item.head];
  const bool mass = call.args.mass.data != nullptr;
  for (int64_t c = 0; c <= b; ++c) work.scores[c] = 0;
  if (threshold < 1 || mass) {
    turn_q(call, item, work);
    const int64_t left = call.rows(item.s) - item.row * kBlock;
    const int64_t rows = left < kBlock ? left : kBlock;
    const int64_t groups = (rows + call.stride - 1) / call.stride;
    int64_t i = 0;
    for (; i + kTeam <= groups; i += kTeam) score_team<Format, kTeam>(call, item, work, i);
    for (; i < groups; ++i) score_team<Format, 1>(call, item, work, i);
  }
  const TensorView& words = plan.blocks;
  const ChosenBlocks chosen =
      choose_blocks({.scores = work.scores,
                     .row = b,
                     .threshold = threshold,
                     .quirk = b < call.args.quirk_blocks,
                     .order = work.order,
                     .words = static_cast<int32_t*>(words.data) + item.s * words.stride[0] +
                              item.head * words.stride[1] + item.row * words.stride[2],
                     .num_words = words.shape[3]});
  static_cast<int32_t*>(plan.counts.data)[item.s * plan.counts.stride[0] +
                                          item.head * plan.counts.stride[1] + item.row] =
      chosen.count;
  if (!mass) return;
  static_cast<float*>(call.args.mass.data)[item.s * call.args.mass.stride[0] +
                                           item.head * call.args.mass.stride[1] + item.row] =
      chosen.mass;
}

template <class Format>
void select_all(Stream& stream, const Call& call, std::byte* memory) {
  const int64_t heads = call.attn.shape.q_heads, threads = stream.pool().num_threads();
  const int64_t bytes = Work::bytes(call.d, call.stride, call.blocks);
  stream.pool().parallel([&](int worker) {
    const FlushDenormals scope;
    const Work work(memory + worker * bytes, call.d, call.stride, call.blocks);
    int64_t index = 0;
    for (int64_t s = 0; s < call.attn.num_prompt_segments; ++s) {
      // The longest rows first; heads of a group one after the other, they share keys.
      for (int64_t row = num_blocks_of(call.rows(s)) - 1; row >= 0; --row) {
        for (int64_t head = 0; head < heads; ++head) {
          if (call.kind(s, head) != HeadKind::kBlocks) continue;
          if (index++ % threads == worker) select_item<Format>(call, {s, head, row}, work);
        }
      }
    }
  });
}

}  // namespace

int64_t select_scratch_bytes(const AttnShape& shape, int stride, int64_t num_keys,
                             int num_threads) {
  return num_threads * Work::bytes(shape.head_dim, stride, num_blocks_of(num_keys)) + 64;
}

void select_blocks(Stream& stream, const SelectArgs& args) {
  const Call call(args);
  ISA_CHECK(args.stride == 4 || args.stride == 8 || args.stride == 16);
  ISA_CHECK(call.d % kLanes == 0 && call.d <= kMaxHeadDim);
  for (int64_t s = 0; s < call.attn.num_prompt_segments; ++s) {
    ISA_CHECK(call.start(s) % kBlock == 0);
  }
  const ScratchScope scratch(stream);
  auto* memory = static_cast<std::byte*>(
      scratch.take(stream.pool().num_threads() * Work::bytes(call.d, call.stride, call.blocks)));
  with_kv_format(call.attn.kv.shape.format,
                 [&](auto format) { select_all<decltype(format)>(stream, call, memory); });
}

}  // namespace weft::WEFT_ISA_NS
