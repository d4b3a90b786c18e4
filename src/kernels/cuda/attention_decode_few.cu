// attention_decode for a few (sequence, kv head) pairs of one row each, where latency is all: one
// kernel instead of qkv_prepare, the persistent kernel and the merge, with their bits.
// A cluster of eight blocks has one pair: block r takes chunks r, r + 8, ... of 128 keys, so that
// eight chunks that follow each other, one of each block, are the children of one node of the tree
// (docs/kernels/attention_decode.md). A chunk's partial goes to the shared memory of all blocks, 16
// columns to each, whose last warp folds the nodes and climbs the tree in registers. Where the call
// begins with qkv_prepare, each block norms and turns the q rows of its pair, and the one with the
// newest key writes it to the cache and into its own copy of the chunk.
// Bytes: K and V once. Bound: the latency of one chain of loads, products and exchanges.

#include "kernels/cuda/attention_decode_few.h"
#include "kernels/cuda/attention_decode_kernel.cuh"
#include "kernels/cuda/common/cluster.h"
#include "kernels/cuda/qkv_prepare.h"

namespace weft::cuda::decode {
namespace {

constexpr int kFewBlocks = kFan;     // of a pair
constexpr int kProducer = kWarps;    // the warp that copies
constexpr int kMerger = kWarps + 1;  // the warp that folds, and writes the newest key
constexpr int kFewThreads = (kMerger + 1) * 32;
constexpr int kRows = 8;         // q heads of a kv head, at most
constexpr int kFewestPairs = 8;  // of fewer, long contexts need more blocks
constexpr int kMostPairs = 12;   // 15 clusters find place at once
constexpr int kWindows = 2;      // nodes whose children are under way
// Of a q row. Beside a larger product than this stands for, clusters begin where its blocks end
// first: long contexts lose more than a kernel less gains.
constexpr int kWidestPrepared = 2048;

struct FewParams {
  DecodeParams decode;
  PrepareParams prepare;
  bool prepared;  // q, k and v are still to be prepared
};

template <class Format, int D>
struct FewShared {
  Shared<Format, D, 1> main;
  // What the blocks send: of each child of a node 16 columns and all rows, as a lane of the merger
  // has them (TileState<1>), and (top, sum) of two rows.
  alignas(16) float4 outputs[kWindows][kFan][32];
  alignas(16) float4 scalars[kWindows][kFan][4];
  alignas(16) __nv_bfloat16 q[kRows][D + 8];  // padded: rows shift by 4 banks
  alignas(16) float heads[kWarps + 1][D];     // of turn_head()
  Barrier arrived[kWindows];                  // all children of a node are here
  Barrier drained[kWindows];                  // all blocks have folded it
  Barrier asked;                              // all of the block's chunks are on their way
  Barrier complete[2];                        // K, V of the pair's last chunk
};

/// Of a block. More than half of a processor's, so that the blocks of long contexts have one each,
/// and little more, so that a small product's block finds place beside it.
template <class Format, int D>
constexpr size_t kFewBytes = std::max(sizeof(FewShared<Format, D>), size_t{116} * 1024);

/// The pair of a cluster.
struct Pair {
  Run run;  // of the block: every eighth chunk from `begin` on
  int64_t token;
  int rank;
  __device__ __forceinline__ int nodes() const { return (run.chunks + kFan - 1) / kFan; }
  __device__ __forceinline__ int children(int node) const {
    return min(kFan, run.chunks - node * kFan);
  }
  __device__ __forceinline__ bool has_last() const {
    return run.chunks > 0 && (run.chunks - 1) % kFan == rank;
  }
};

/// Bytes that a block gets of a node.
__device__ __forceinline__ uint32_t node_bytes(const DecodeParams& p, const Pair& pair, int node) {
  return static_cast<uint32_t>(pair.children(node) * ((p.group + 1) / 2) * 9 * 16);
}

template <class Format, int D>
class FewConsumer : Consumer<Format, D, 1> {
  using Base = Consumer<Format, D, 1>;
  static constexpr int kTurns = D / 64;

 public:
  __device__ FewConsumer(const FewParams& params, const Plan& none, FewShared<Format, D>& memory,
                         int at_warp)
      : Base(params.decode, none, memory.main, at_warp), f(params), few(memory) {}

  __device__ __forceinline__ void consume(const Pair& pair) {
    const Run& run = pair.run;
    LanePlan<kTurns> plan;
    if (f.prepared && this->warp < p.group) {
      plan = plan_lane<kTurns>(f.prepare, pair.token, f.prepare.q_norm);
    }
    this->seen_by_all = run.keys;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      this->visible[0][h] = this->lane % 4 * 2 + h < p.group ? run.keys : INT_MAX;
    }
    this->q_rows[0] = this->lane / 4 < p.group ? few.q[this->lane / 4] : nullptr;
    wait_for_predecessor();
    if (run.begin >= run.chunks) return cluster_wait();
    for (int row = this->warp; row < p.group; row += kWarps) load_row(pair, plan, row);
    barrier_sync(2, kWarps * 32);
    this->load_rows(run);
    cluster_wait();
    for (int chunk = run.begin; chunk < run.chunks; chunk += run.step) {
      const bool last = chunk + 1 == run.chunks;
      if (last) wait(&few.complete[0], 0);
      this->score(chunk * kKeys);
      if (last) wait(&few.complete[1], 0);
      multiply_seen(min(kKeys, run.keys - chunk * kKeys));
      send_chunk(pair.rank, chunk / kFan);
    }
  }

 private:
  const FewParams& f;
  FewShared<Format, D>& few;
  using Base::p;

  /// A q row into shared memory.
  __device__ __forceinline__ void load_row(const Pair& pair, const LanePlan<kTurns>& plan,
                                           int row) {
    uint32_t pairs[kTurns];
    const int head = pair.run.kv_head * p.group + row;
    load_head(p.q + pair.token * p.q_row + head * p.q_head, D, pairs);
    if (f.prepared) {
      float rotated[kTurns][2];
      turn_head<kTurns, false>(f.prepare, plan, f.prepare.q_norm != nullptr, pairs,
                               few.heads[this->warp], rotated);
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        pairs[turn] = pack_bf16(rotated[turn][0], rotated[turn][1]);
      }
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      *reinterpret_cast<uint32_t*>(&few.q[row][this->lane * 2 + turn * 64]) = pairs[turn];
    }
  }

  /// multiply_values() of a chunk of which `seen` keys are seen. Of the last 16, the values that
  /// are not seen become 0 (their weights are 0, but 0 * NaN is NaN): each warp's columns by
  /// itself.
  __device__ __forceinline__ void multiply_seen(int seen) {
    constexpr int kUnits = Base::kColumns / 8, kAtOnce = Base::kBatch;
    const int steps = (seen + 15) / 16;
    const auto& ring = this->ring;
    for (auto& x : this->chunk_state.tile[0].o) x[0] = x[1] = x[2] = x[3] = 0;
    wait(&this->shared.full[ring.stage], ring.parity);
    unsigned char* chunk = this->shared.ring[ring.stage];
    for (int i = this->lane; i < (steps * 16 - seen) * kUnits; i += 32) {
      const int key = seen + i / kUnits, unit = this->warp * kUnits + i % kUnits;
      *reinterpret_cast<uint4*>(chunk + Base::Tile::offset(key, unit)) = uint4{};
    }
    __syncwarp();
    int k = 0;
#pragma unroll 1
    for (; k + kAtOnce <= steps; k += kAtOnce) this->template multiply_steps<kAtOnce>(k);
#pragma unroll 1
    for (; k < steps; ++k) this->template multiply_steps<1>(k);
  }

  /// chunk_state to all blocks, as child `rank` of a node.
  __device__ __forceinline__ void send_chunk(int rank, int node) {
    const int window = node % kWindows, lane = this->lane;
    if (node >= kWindows) wait_cluster(&few.drained[window], (node / kWindows - 1) & 1);
    this->free_values();
    const auto& x = this->chunk_state;
#pragma unroll
    for (int m = 0; m < Base::kM; ++m) {
      const auto to = static_cast<uint32_t>(this->warp * Base::kM + m);
      const uint32_t barrier = map_to_block(shared_address(&few.arrived[window]), to);
      if (lane % 4 * 2 >= p.group) continue;
      send(map_to_block(shared_address(&few.outputs[window][rank][lane]), to),
           {x.tile[0].o[m][0], x.tile[0].o[m][1], x.tile[0].o[m][2], x.tile[0].o[m][3]}, barrier);
      if (lane >= 4) continue;
      send(map_to_block(shared_address(&few.scalars[window][rank][lane]), to),
           {x.tile[0].top[0], x.tile[0].sum[0], x.tile[0].top[1], x.tile[0].sum[1]}, barrier);
    }
  }
};

/// The newest key and value as they are stored: pairs of dimensions 2 lane + 64 turn.
template <int Turns>
struct Newest {
  bool there = false;
  uint32_t pairs[2][Turns];
};

/// Prepares them and writes them to the cache, where the call has that to do.
template <int Turns>
__device__ __forceinline__ Newest<Turns> write_newest(const FewParams& f, const Pair& pair,
                                                      float* shared) {
  const PrepareParams& p = f.prepare;
  Newest<Turns> newest;
  const int64_t slot = f.prepared && pair.has_last() ? p.kv_slot[pair.token] : -1;
  if (slot < 0) {
    wait_for_predecessor();
    return newest;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32, head = pair.run.kv_head;
  const LanePlan<Turns> plan = plan_lane<Turns>(p, pair.token, p.k_norm);
  wait_for_predecessor();
  newest.there = true;
  auto& [keys, values] = newest.pairs;
  load_head(p.k + pair.token * p.k_row + head * p.k_head, p.head_dim, keys);
  load_head(p.v + pair.token * p.v_row + head * p.v_head, p.head_dim, values);
  float rotated[Turns][2];
  turn_head<Turns, false>(p, plan, p.k_norm != nullptr, keys, shared, rotated);
  std::byte* block = p.cache + slot / p.block_size * p.block_bytes;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    keys[turn] = pack_bf16(rotated[turn][0], rotated[turn][1]);
    values[turn] = pack_bf16(low_bf16(values[turn]), high_bf16(values[turn]));
#pragma unroll
    for (int plane = 0; plane < 2; ++plane) {
      reinterpret_cast<uint32_t*>(
          block + p.layout.code_offset(plane, head, slot % p.block_size))[lane + turn * 32] =
          newest.pairs[plane][turn];
    }
  }
  return newest;
}

/// The newest key and value into the last chunk, where TMA may have found what was there before.
template <class Format, int D>
__device__ __forceinline__ void complete_last(FewShared<Format, D>& shared, const Pair& pair,
                                              const Newest<D / 64>& newest) {
  constexpr int kStages = Shared<Format, D, 1>::kStages;
  using Tile = Tiles<Format, D>;
  const int lane = static_cast<int>(threadIdx.x) % 32, key = (pair.run.keys - 1) % kKeys;
  // From here on no barrier of the ring begins another phase, so that the parity of one tells.
  wait(&shared.asked, 0);
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    const int load = (pair.run.chunks - 1) / kFan * 2 + plane, stage = load % kStages;
    wait(&shared.main.full[stage], static_cast<uint32_t>(load / kStages) & 1);
    unsigned char* chunk = shared.main.ring[stage];
#pragma unroll
    for (int turn = 0; turn < D / 64; ++turn) {
      if (!newest.there) continue;
      *reinterpret_cast<uint32_t*>(chunk + Tile::offset(key, lane / 4 + turn * 8) + lane % 4 * 4) =
          newest.pairs[plane][turn];
    }
    arrive(&shared.complete[plane]);  // every lane, for what it wrote
  }
}

/// Folds what the blocks send of this block's 16 columns, and writes them.
template <class Format, int D>
__device__ __forceinline__ void merge_pair(const DecodeParams& p, FewShared<Format, D>& shared,
                                           const Pair& pair, const Newest<D / 64>& newest) {
  using Partial = TileState<1>;
  const int lane = static_cast<int>(threadIdx.x) % 32, nodes = pair.nodes();
  const auto load = [&](Partial& x, int window, int child) {
    const float4 o = shared.outputs[window][child][lane],
                 s = shared.scalars[window][child][lane % 4];
    x = {{{o.x, o.y, o.z, o.w}}, {s.x, s.z}, {s.y, s.w}};
  };
  Partial node, upper[kMaxLevels];  // indexed at run time: in local memory, on the rare path
  for (int i = 0; i < nodes; ++i) {
    const int window = i % kWindows, children = pair.children(i);
    const uint32_t parity = static_cast<uint32_t>(i / kWindows) & 1;
    // Not earlier: until its loads have begun, chunks before it wait for the nodes folded here.
    if (i == max(nodes - kWindows, 0) && pair.has_last()) complete_last(shared, pair, newest);
    // Nobody's arrival may be under way to a block that has ended.
    if (i >= kWindows) wait_cluster(&shared.drained[window], parity ^ 1);
    wait_cluster(&shared.arrived[window], parity);
    // Of all eight, what no fold waits for another is computed for all at once.
    const auto fold_children = [&]<bool All>() {
      Partial child[kFan];
#pragma unroll
      for (int c = 0; c < kFan; ++c) {
        if (All || c < children) load(child[c], window, c);
      }
      node = child[0];
#pragma unroll
      for (int c = 1; c < kFan; ++c) {
        if (All || c < children) node.fold(child[c]);
      }
    };
    if (children == kFan) {
      fold_children.template operator()<true>();
    } else {
      fold_children.template operator()<false>();
    }
    if (i + kWindows < nodes) {
      if (lane == 0) arrive_expect(&shared.arrived[window], node_bytes(p, pair, i + kWindows));
      __syncwarp();
      if (lane < kFewBlocks) arrive_remote(&shared.drained[window], static_cast<uint32_t>(lane));
    }
    if (nodes == 1) break;
    int64_t span = kFan;
    for (int level = 1, index = i; span < pair.run.chunks; ++level, span *= kFan, index /= kFan) {
      if (index % kFan == 0) {
        upper[level] = node;
      } else {
        upper[level].fold(node);
      }
      if (index % kFan != kFan - 1 && i + 1 < nodes) break;
      node = upper[level];
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = lane % 4 * 2 + h;
    if (row >= p.group) continue;
    __nv_bfloat16* to = p.out + pair.token * p.out_row +
                        (pair.run.kv_head * p.group + row) * p.out_head + pair.rank * 16 + lane / 4;
    const float scale = inverse(node.sum[h]);
    to[0] = __float2bfloat16(node.o[0][h] * scale);
    to[8] = __float2bfloat16(node.o[0][h + 2] * scale);
  }
}

template <class Format, int D>
__global__ __launch_bounds__(kFewThreads,
                             2) void few_kernel(const __grid_constant__ CUtensorMap map,
                                                const __grid_constant__ FewParams f) {
  static_assert(D == 16 * kFewBlocks, "a block folds 16 columns");
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<FewShared<Format, D>*>(memory);
  const DecodeParams& p = f.decode;
  const int warp = warp_index();
  let_successor_begin();
  // The SeqMap comes from copies, which a programmatic launch never overtakes.
  const int cluster = static_cast<int>(blockIdx.x) / kFewBlocks;
  Pair pair;
  Run& run = pair.run;
  run.segment = cluster / p.kv_heads;
  run.kv_head = cluster - run.segment * p.kv_heads;
  const int tokens = p.cu_q[run.segment + 1] - p.cu_q[run.segment];
  const bool rest = p.cu_q[p.num_segments] < p.total_rows;
  pair.token = p.cu_q[run.segment];
  pair.rank = static_cast<int>(cluster_rank());
  run.first_row = 0;
  run.rows = p.group;
  run.keys = tokens > 0 ? p.kv_start[run.segment] + tokens : 0;
  run.begin = pair.rank;
  run.step = kFewBlocks;
  run.next = run.end = run.chunks = (run.keys + kKeys - 1) / kKeys;
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    for (int i = 0; i < Shared<Format, D, 1>::kStages; ++i) {
      barrier_init(&shared.main.full[i], 1);
      barrier_init(&shared.main.empty[i], kWarps);
    }
    barrier_init(&shared.asked, 1);
    for (int i = 0; i < kWindows; ++i) {
      barrier_init(&shared.arrived[i], 1);
      barrier_init(&shared.drained[i], kFewBlocks);
      barrier_init(&shared.complete[i], 32);
    }
    fence_barrier_init();
    for (int i = 0; i < min(kWindows, pair.nodes()); ++i) {
      arrive_expect(&shared.arrived[i], node_bytes(p, pair, i));
    }
  }
  __syncthreads();
  cluster_arrive();
  const Plan none(memory, 0);  // the pair is the block's only run
  if (warp < kWarps) {
    FewConsumer<Format, D>(f, none, shared, warp).consume(pair);
  } else if (warp == kProducer) {
    // Where the newest key is written here, the cache has been as it is since the step before.
    produce(p, &map, none, shared.main, {run, run.next, f.prepared});
    if (threadIdx.x % 32 == 0) arrive(&shared.asked);
    wait_for_predecessor();
    cluster_wait();
  } else {
    const auto newest = write_newest<D / 64>(f, pair, shared.heads[kWarps]);
    cluster_wait();
    if (run.chunks > 0) merge_pair(p, shared, pair, newest);
  }
  if (rest) clear_rest(p);
}

}  // namespace

bool few_prepares(const AttnArgs& args) {
  return args.num_prompt_segments == 0 && takes_few(args) &&
         args.shape.q_heads * args.shape.head_dim <= kWidestPrepared;
}

bool takes_few(const AttnArgs& args) {
  const AttnShape& shape = args.shape;
  const int pairs = (args.seqs.num_segments - args.num_prompt_segments) * shape.kv_heads;
  return args.kv.shape.format == KvFormat::kBf16 && shape.head_dim == 128 &&
         args.max_decode_len == 1 && shape.q_heads <= kRows * shape.kv_heads &&
         pairs >= kFewestPairs && pairs <= kMostPairs;
}

void launch_few(Stream& stream, const AttnArgs& args, const QkvPrepareArgs* prepare,
                const DecodeParams& p) {
  FewParams f{.decode = p, .prepare = {}, .prepared = prepare != nullptr};
  if (prepare != nullptr) f.prepare = prepare_params(*prepare);
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(p.num_segments * p.kv_heads * kFewBlocks)),
          .block = dim3(kFewThreads),
          .shared_bytes = kFewBytes<KvBf16, 128>,
          .cluster = kFewBlocks,
          .overlap = true},
         few_kernel<KvBf16, 128>, encode_cache<Shared<KvBf16, 128, 1>>(args, p), f);
}

}  // namespace weft::cuda::decode
