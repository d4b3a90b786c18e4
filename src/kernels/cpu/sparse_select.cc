// s[b, c] = sum of softmax_j(q_i . k_j by antidiagonals) over the groups of Z rows of block b and
// of Z keys of block c (XAttention, arXiv 2503.16428); then the blocks that hold enough of it. A
// piece of work: one block of 128 rows of one head, against all keys before it, 4 groups of rows at
// a time. With q turned round and laid out as keys are, tokens in lanes, a product of vectors is 16
// / Z groups of keys at once. Bound: multiply-adds, L^2 D / (2 Z) a head. The matrix unit has a way
// of its own for keys in bf16 (sparse_select_amx.h). docs/kernels/elastic.md

#include "kernels/cpu/sparse_select_amx.h"
#include "kernels/cpu/sparse_select_work.h"

namespace weft::WEFT_ISA_NS {
namespace {

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

/// Groups [first, first + kRows) of the block's rows against all keys up to their own group.
template <class Format, int kRows>
void score_team(const Call& call, const Item& item, const Work& work, int64_t first) {
  const PagedKv& kv = call.attn.kv;
  const int64_t stride = call.stride, block_size = kv.shape.block_size;
  const int64_t b = call.start(item.s) / kBlock + item.row, end = call.end(item.s);
  const int64_t kv_head = item.head / (call.attn.shape.q_heads / call.attn.shape.kv_heads);
  const TensorView& table = call.attn.seqs.block_table;
  const int32_t* blocks = static_cast<const int32_t*>(table.data) + item.s * table.stride[0];
  const Vec scale = splat(call.score_scale());
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
    add_row(b, work.top + i * call.blocks, work.sum + i * call.blocks, work.scores);
  }
}

template <class Format>
void select_item(const Call& call, const Item& item, const Work& work) {
  const int64_t b = call.start(item.s) / kBlock + item.row;
  for (int64_t c = 0; c <= b; ++c) work.scores[c] = 0;
  if (call.estimated(item.s, item.head)) {
    turn_q(call, item, work);
    const int64_t left = call.rows(item.s) - item.row * kBlock;
    const int64_t rows = left < kBlock ? left : kBlock;
    const int64_t groups = (rows + call.stride - 1) / call.stride;
    int64_t i = 0;
    for (; i + kTeam <= groups; i += kTeam) score_team<Format, kTeam>(call, item, work, i);
    for (; i < groups; ++i) score_team<Format, 1>(call, item, work, i);
  }
  choose(call, item, work);
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
  const int64_t blocks = num_blocks_of(num_keys);
  int64_t bytes = num_threads * Work::bytes(shape.head_dim, stride, blocks) + 64;
#if defined(WEFT_AMX)
  bytes += AmxWork::key_bytes(shape.head_dim, stride, blocks * kBlock) +
           num_threads * AmxWork::q_bytes(shape.head_dim, stride);
#endif
  return bytes;
}

void select_blocks(Stream& stream, const SelectArgs& args) {
  const Call call(args);
  ISA_CHECK(args.stride == 4 || args.stride == 8 || args.stride == 16);
  ISA_CHECK(call.d % kLanes == 0 && call.d <= kMaxHeadDim);
  for (int64_t s = 0; s < call.attn.num_prompt_segments; ++s) {
    ISA_CHECK(call.start(s) % kBlock == 0);
  }
  const ScratchScope scratch(stream);
  const AttnShape& shape = call.attn.shape;
  const int threads = stream.pool().num_threads();
#if defined(WEFT_AMX)
  if (call.attn.kv.shape.format == KvFormat::kBf16 && call.d % 32 == 0) {
    const int64_t bytes =
        select_scratch_bytes(shape, args.stride, call.blocks * kBlock, threads) - 64;
    return select_all_amx(stream, call, static_cast<std::byte*>(scratch.take(bytes)));
  }
#endif
  auto* memory = static_cast<std::byte*>(
      scratch.take(threads * Work::bytes(shape.head_dim, call.stride, call.blocks)));
  with_kv_format(call.attn.kv.shape.format,
                 [&](auto format) { select_all<decltype(format)>(stream, call, memory); });
}

}  // namespace weft::WEFT_ISA_NS
