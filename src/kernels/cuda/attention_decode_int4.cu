// attention_decode over a cache of 4-bit codes: 0.28 of the bytes of bf16, so that what a chunk
// costs in instructions decides. A warp takes a whole chunk: scores, weights and outputs stay in
// its registers, and only the chunks' partials are exchanged, four at a time.
// docs/kernels/attention_decode.md

#include "kernels/cuda/attention_decode_kernel.cuh"

namespace weft::cuda::decode {
namespace {

/// D (16x8 f32) = A (16x8 bf16) B (8x8 bf16).
__device__ __forceinline__ void mma_bf16_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%7, %7, %7, %7};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(0.0f));
}
__device__ __forceinline__ float round_bf16(float x) {
  return __uint_as_float(pack_bf16(x, 0) << 16);
}
/// A matrix of 8x8 16-bit elements turned, in registers: load_matrices() tells who holds what.
__device__ __forceinline__ uint32_t turn_matrix(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// A code meets q as 128 + code, which costs no difference of its own: first comes the product of
// 128 + zero point and minus the sum of q over the 64 dims, as three bf16.

template <int D, int N>
constexpr int kExchangeBytes = kWarps*((D < 128 ? 8 : D / 16) * 512 + 64) + N*(D / 32 * 512 +
                                                                               D / 64 * 128);
template <int D, int N, int Blocks = blocks_per_processor(D, 8 * N, 4)>
constexpr int kChunkStages = ((Blocks == 1 ? 227 : (Blocks == 2 ? 113 : 75)) * 1024 -
                              static_cast<int>(plan_bytes(kMaxDecodeSegments)) -
                              kExchangeBytes<D, N> - 1024) /
                             (kStageBytes<KvInt4, D> + 16);

/// What the warps of a block share.
template <int D, int N>
struct ChunkMemory
    : Ring<KvInt4, D, blocks_per_processor(D, 8 * N, 4), kChunkStages<D, N>, 1, kWarps> {
  static_assert(kChunkStages<D, N> >= 2 * kWarps);  // K and V of chunks that come together
  // Scores of a chunk, then the outputs of its partial: [chunk][16 keys or columns][lane].
  alignas(16) float4 o[kWarps][D < 128 ? 8 : D / 16][32];
  alignas(8) float tops[kWarps][8];
  alignas(8) float sums[kWarps][8];
  alignas(16) uint4 q[N][D / 32][32];        // fragments, two steps of 16 dims each
  uint32_t q_sums[N][D / kKvInt4Group][32];  // fragments of - sum of 64 dims
};

/// One of the 4 warps that compute. Of the chunks of a node, warp w computes 4 i + w. `Short`: for
/// shares of a few chunks.
template <int D, int N, bool Short = false>
class ChunkConsumer : Tree<KvInt4, D, N> {
  using Base = Tree<KvInt4, D, N>;
  using Base::kM;
  using Base::p, Base::plan, Base::lane, Base::warp;
  using typename Base::Partial;

 public:
  using Memory = ChunkMemory<D, N>;

  __device__ ChunkConsumer(const DecodeParams& params, const Plan& the_plan, Memory& memory,
                           int at_warp)
      : Base(params, the_plan, at_warp), shared(memory) {}

  /// All of the share whose first run is `run`.
  __device__ __forceinline__ void consume(Run run, int end) {
    Partial upper[kMaxLevels];  // indexed at run time: in local memory, on the rare path
    // Scales of dims that heads don't have are never copied: 0, so that the scores of their codes
    // are 0.
    for (int part = p.layout.scales; part < kParts; ++part) {
      for (int stage = warp; stage < Memory::kStages; stage += kWarps) {
        for (int key = lane; key < kKeys; key += 32) {
          shared.scales[stage][Memory::scale_place(part, key, p.box_rows)] = 0;
        }
      }
    }
    wait_for_predecessor();
    for (;;) {
      load_rows(run);
      barrier_sync(1, kWarps * 32);
      for (int chunk = run.begin, count = 0; chunk < run.end; chunk += count) {
        count = min(kWarps - chunk % kWarps, run.end - chunk);
        if (kFewChunks > 0 && count <= kFewChunks) {
#pragma unroll 1
          for (int i = 0; i < count * N; ++i) {
            compute_together(run, chunk + i / N, i % N, ring.after(i / N),
                             ring.after(count + i / N));
          }
        } else {
          compute_each(run, chunk, count);
        }
        ring = ring.after(2 * count);
        Base::end_chunk(run, chunk + count - 1, upper);
      }
      if (run.end < run.chunks) Base::flush(run, upper);
      if (run.next == end) return;
      run = find_run(p, plan, run.segment, run.next, end);
    }
  }

 private:
  static constexpr int kTiles = kKeys / 16;  // of keys
  static constexpr int kParts = Memory::kParts;
  static constexpr int kTilesAtOnce = kParts < 4 ? 4 / kParts : 1;  // 4 chains of products
  // So few chunks are shared by all warps, one after the other: the same instructions on the same
  // numbers, a quarter of the keys and then of the columns each.
  static constexpr int kFewChunks = Short ? 2 : 0;
  static constexpr int kMyTiles = kTiles / kWarps;  // then
  static constexpr int kMyTilesAtOnce = std::min(kMyTiles, kTilesAtOnce);
  using Codes = Tiles<KvInt4, D>;
  using Stage = Cursor<Memory::kStages>;

  Memory& shared;
  Stage ring{.parity = 0};

  /// The run's rows of q as fragments in shared memory, a warp a tile of 8 rows.
  __device__ __forceinline__ void load_rows(const Run& run) {
    const int n = warp;
    if (n >= N) return;
    const int row = n * 8 + lane / 4;
    const QRow at = locate(p, run, min(row, run.rows - 1));
    const __nv_bfloat16* from = p.q + at.token * p.q_row + at.head * p.q_head;
    uint32_t raw[D / 8];
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      const int column = i / 4 * 32 + lane % 4 * 8 + i % 4 * 2;
      raw[i] = row < run.rows && column < p.head_dim
                   ? *reinterpret_cast<const uint32_t*>(from + column)
                   : 0u;
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      float sum = 0;
#pragma unroll
      for (int i = part * 8; i < part * 8 + 8; ++i) {
        sum += __uint_as_float(raw[i] << 16) + __uint_as_float(raw[i] & 0xFFFF0000u);
      }
      sum = -sum_of_quad(sum);
      const float high = round_bf16(sum), middle = round_bf16(sum - high);
      const float low = sum - high - middle;
      const float mine =
          lane % 4 == 0 ? high : (lane % 4 == 1 ? middle : (lane % 4 == 2 ? low : 0.0f));
      shared.q_sums[n][part][lane] = pack_bf16(mine, 0);
    }
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      shared.q[n][i][lane] = {raw[4 * i], raw[4 * i + 1], raw[4 * i + 2], raw[4 * i + 3]};
    }
  }

  /// Keys of a chunk that the thread's rows (of row tile n) see.
  struct View {
    int n, keys[2];
    bool masked;  // else all see all
  };
  __device__ __forceinline__ View view_of(const Run& run, int chunk, int n) const {
    const int first_key = chunk * kKeys;
    View view{n,
              {INT_MAX, INT_MAX},
              first_key + kKeys > p.kv_start[run.segment] + run.first_row / p.group + 1};
    if (!view.masked) return view;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = n * 8 + lane % 4 * 2 + h;
      if (row >= run.rows) continue;
      view.keys[h] = p.kv_start[run.segment] + (run.first_row + row) / p.group + 1 - first_key;
    }
    return view;
  }

  /// Chunks [chunk, chunk + count), a warp each, into the tree.
  __device__ __forceinline__ void compute_each(const Run& run, int chunk, int count) {
    const int mine = warp - chunk % kWarps;
#pragma unroll 1
    for (int n = 0; n < N; ++n) {
      if (mine >= 0 && mine < count) {
        const Stage k = ring.after(mine), v = ring.after(count + mine);
        const View view = view_of(run, chunk + mine, n);
        wait(&shared.full[k.stage], k.parity);
        float top[2];
        multiply_keys<kTilesAtOnce>(top, view, k.stage, 0, kTiles, warp);
        if (n == N - 1) release(k);
        wait(&shared.full[v.stage], v.parity);
        multiply_values(top, view, v.stage);
        if (n == N - 1) release(v);
      }
      barrier_sync(1, kWarps * 32);
      for (int i = 0; i < count; ++i) add_chunk(run, chunk + i, n);
      barrier_sync(1, kWarps * 32);
    }
  }

  /// Chunk `chunk` for row tile n by all warps, from stages k and v, into the tree.
  __device__ __forceinline__ void compute_together(const Run& run, int chunk, int n, Stage k,
                                                   Stage v) {
    const View view = view_of(run, chunk, n);
    wait(&shared.full[k.stage], k.parity);
    float top[2];
    multiply_keys<kMyTilesAtOnce>(top, view, k.stage, warp * kMyTiles, (warp + 1) * kMyTiles, 0);
    if (lane < 4) *reinterpret_cast<float2*>(&shared.tops[warp][lane * 2]) = {top[0], top[1]};
    barrier_sync(1, kWarps * 32);
    if (n == N - 1 && warp == 0) release(k);  // for all warps
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 of = *reinterpret_cast<const float2*>(&shared.tops[w][lane % 4 * 2]);
      top[0] = fmaxf(top[0], of.x);
      top[1] = fmaxf(top[1], of.y);
    }
    wait(&shared.full[v.stage], v.parity);
    TileState<kM> x;
    multiply_columns(x, top, view, v.stage);
#pragma unroll
    for (int i = 0; i < N; ++i) {  // registers can't be chosen at run time
      if (i == n) Base::add_tile(run, chunk, i, x);
    }
    barrier_sync(1, kWarps * 32);
    if (n == N - 1 && warp == 0) release(v);
  }
  __device__ __forceinline__ void release(Stage of) {
    __syncwarp();
    if (lane == 0) arrive(&shared.empty[of.stage]);
  }
  /// Row r of the matrices of tile t is key 2 r, or 2 r + 1 in those of the second half.
  __device__ __forceinline__ int key_of(int t) const {
    return t * 16 + lane / 4 * 2;
  }
  /// The address that the lane gives for the first 16 keys x 32 dims (unit lane / 16 of the next
  /// two) of a stage.
  __device__ __forceinline__ uint32_t codes_at(int stage, int unit) const {
    return shared_address(shared.ring[stage]) + Codes::offset(lane % 8 * 2 + lane / 8 % 2, unit);
  }
  /// Of tile t: tiles of 8 rows of 128 bytes are swizzled alike; at 64 dims they have 4 rows.
  static __device__ __forceinline__ uint32_t tile_at(uint32_t codes, int t) {
    return (codes + static_cast<uint32_t>(t * 8 * D)) ^
           (D == 64 ? static_cast<uint32_t>(t % 2 * 64) : 0u);
  }

  /// Of the 16 keys of tile t.
  __device__ __forceinline__ const float* scales_of(int stage, int part, int t) const {
    return &shared.scales[stage][Memory::scale_place(part, t * 16, p.box_rows)];
  }
  /// 128 + the codes in the low bits of the halves of a word.
  static __device__ __forceinline__ uint32_t biased(uint32_t word) {
    return and_or(word, 0x000F000Fu, 0x43004300u);
  }
  /// Scores of keys key_of(tile) + {0, 1} x rows 2 (lane % 4) + {0, 1} of tiles [begin, end), into
  /// shared.o[slot], and the largest of each row.
  template <int AtOnce>
  __device__ __forceinline__ void multiply_keys(float (&top)[2], const View& view, int stage,
                                                int begin, int end, int slot) {
    uint32_t at[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) at[i] = codes_at(stage, i * 2 + lane / 16);
    top[0] = top[1] = minus_infinity();
    uint4 q[D / 32];
    uint32_t q_sums[kParts];
#pragma unroll
    for (int i = 0; i < D / 32; ++i) q[i] = shared.q[view.n][i][lane];
#pragma unroll
    for (int part = 0; part < kParts; ++part) q_sums[part] = shared.q_sums[view.n][part][lane];
#pragma unroll 1
    for (int first = begin; first < end; first += AtOnce) {
      uint32_t codes[AtOnce][kParts][4];  // of keys, the other keys; of the next 32 dims
      float2 scales[AtOnce][kParts];
      float group[AtOnce][kParts][4];
#pragma unroll
      for (int i = 0; i < AtOnce; ++i) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          load_matrices(codes[i][part], tile_at(at[part], first + i));
          scales[i][part] =
              *reinterpret_cast<const float2*>(scales_of(stage, part, first + i) + lane / 4 * 2);
        }
      }
#pragma unroll
      for (int i = 0; i < AtOnce; ++i) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const float2& scale = scales[i][part];
          mma_bf16_k8(group[i][part], KvInt4::zero(scale.x), KvInt4::zero(scale.y), q_sums[part]);
        }
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int i = 0; i < AtOnce; ++i) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const uint32_t* of = codes[i][part] + step / 2 * 2;
            const int shift = step % 2 * 8;
            const uint32_t a[4] = {biased(of[0] >> shift), biased(of[1] >> shift),
                                   biased(of[0] >> (shift + 4)), biased(of[1] >> (shift + 4))};
            const uint4& b = q[part * 2 + step / 2];
            mma_bf16(group[i][part], a, step % 2 == 0 ? b.x : b.z, step % 2 == 0 ? b.y : b.w);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < AtOnce; ++i) {
        float s[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const float by = j < 2 ? scales[i][part].x : scales[i][part].y;
            s[j] = part == 0 ? __fmul_rn(group[i][0][j], by) : fmaf(group[i][part][j], by, s[j]);
          }
        }
        if (view.masked) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (key_of(first + i) + j / 2 >= view.keys[j % 2]) s[j] = minus_infinity();
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) top[h] = fmaxf(top[h], fmaxf(s[h], s[h + 2]));
        shared.o[slot][first + i][lane] = {s[0], s[1], s[2], s[3]};
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
      }
    }
  }

  /// 64 dims of the values.
  struct Group {
    int part;
    float inverses[2];  // 1 over the power of two of the largest scale that the thread's rows see
    float of_zeros[4] = {0, 0, 0, 0};  // the weights' product with the zero points
  };
  __device__ __forceinline__ Group group_of(int part, const View& view, int stage) const {
    Group group{.part = part};
    if (!view.masked) {
      const float4 x = *reinterpret_cast<const float4*>(
          &shared.scales[stage][Memory::scale_place(part, lane * 4, p.box_rows)]);
      const float mine = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
      const uint32_t all = __reduce_max_sync(0xffffffffu, __float_as_uint(mine));
      group.inverses[0] = group.inverses[1] = power_of(__uint_as_float(all)).inverse;
      return group;
    }
    float most[2] = {0, 0};
#pragma unroll 1
    for (int t = 0; t < kTiles; ++t) {
      const float2 x = *reinterpret_cast<const float2*>(scales_of(stage, part, t) + lane / 4 * 2);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (key_of(t) < view.keys[h]) most[h] = fmaxf(most[h], x.x);
        if (key_of(t) + 1 < view.keys[h]) most[h] = fmaxf(most[h], x.y);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], step));
      }
      group.inverses[h] = power_of(most[h]).inverse;
    }
    return group;
  }

  // Weights get the scales of the values, and are 0 where a row doesn't see the key, whatever its
  // scale. They are f16, of 64 dims by the power of two that makes the largest scale 1 to 2. Codes
  // and zero points are subnormal, and the zero points' product is of all columns.

  /// Scores, of which `top` are the largest, to weights, tile by tile; their sums.
  struct Weights {
    float top[2], shift[2], sum[2] = {0, 0}, s[4];

    __device__ __forceinline__ Weights(const float (&largest)[2], float scale) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[h] = __fmul_rn(largest[h], scale);
        shift[h] = largest[h] == minus_infinity() ? 0.0f : -top[h];
      }
    }
    __device__ __forceinline__ void next(const float4& scores, float scale) {
      const float of[4] = {scores.x, scores.y, scores.z, scores.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[j] = exp2_approx(fmaf(of[j], scale, shift[j % 2]));
        sum[j % 2] += s[j];
      }
    }
    __device__ __forceinline__ void finish() {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], step);
        }
      }
    }
  };
  /// Fragments of the weights of tile t for columns of the group, and their product with zero
  /// points.
  __device__ __forceinline__ void weigh(uint32_t (&w)[2], Group& group, const float (&s)[4],
                                        const View& view, int stage, int t) const {
    const float* scales = scales_of(stage, group.part, t);
    const float2 scale = *reinterpret_cast<const float2*>(scales + lane / 4 * 2);
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = __fmul_rn(s[j], __fmul_rn(j < 2 ? scale.x : scale.y, group.inverses[j % 2]));
    }
    if (view.masked) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (key_of(t) + j / 2 >= view.keys[j % 2]) x[j] = 0;
      }
    }
    w[0] = turn_matrix(pack_f16(x[0], x[1]));
    w[1] = turn_matrix(pack_f16(x[2], x[3]));
    const uint4 of = *reinterpret_cast<const uint4*>(scales + lane % 4 * 4);
    const uint32_t first = KvInt4::tiny_f16<0>(__byte_perm(of.x, of.z, 0x5410));
    const uint32_t second = KvInt4::tiny_f16<0>(__byte_perm(of.y, of.w, 0x5410));
    const uint32_t zeros[4] = {first, first, second, second};
    mma_f16(group.of_zeros, zeros, w[0], w[1]);
  }
  /// 16 columns: pairs Pair and Pair + 1 of two words.
  template <int Pair>
  static __device__ __forceinline__ void multiply_tile(float (&o)[4], uint32_t first,
                                                       uint32_t second, const uint32_t (&w)[2]) {
    const uint32_t a[4] = {KvInt4::tiny_f16<Pair>(first), KvInt4::tiny_f16<Pair + 1>(first),
                           KvInt4::tiny_f16<Pair>(second), KvInt4::tiny_f16<Pair + 1>(second)};
    mma_f16(o, a, w[0], w[1]);
  }
  static __device__ __forceinline__ void finish_tile(float (&o)[4], const Group& group) {
    const float powers[2] = {power_of(group.inverses[0]).inverse,
                             power_of(group.inverses[1]).inverse};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      o[j] = __fmul_rn(fmaf(o[j], j < 2 ? 0x1p24f : 0x1p20f, -0x1p24f * group.of_zeros[j]),
                       powers[j % 2]);
    }
  }

  /// The outputs of the warp's chunk, V^T x weights; leaves the partial in shared memory.
  __device__ __forceinline__ void multiply_values(const float (&top)[2], const View& view,
                                                  int stage) {
    Weights weights(top, p.scale);
    Group groups[kParts];
    uint32_t at[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      at[part] = codes_at(stage, part * 2 + lane / 16);
      groups[part] = group_of(part, view, stage);
    }
    float o[kParts][4][4] = {};
#pragma unroll(kParts < 4 ? 2 : 1)
    for (int t = 0; t < kTiles; ++t) {
      weights.next(shared.o[warp][t][lane], p.scale);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        uint32_t codes[4], w[2];
        weigh(w, groups[part], weights.s, view, stage, t);
        load_matrices<true>(codes, tile_at(at[part], t));
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          multiply_tile<0>(o[part][2 * u], codes[2 * u], codes[2 * u + 1], w);
          multiply_tile<2>(o[part][2 * u + 1], codes[2 * u], codes[2 * u + 1], w);
        }
      }
    }
    weights.finish();
    if (lane < 4) {
      *reinterpret_cast<float2*>(&shared.tops[warp][lane * 2]) = {weights.top[0], weights.top[1]};
      *reinterpret_cast<float2*>(&shared.sums[warp][lane * 2]) = {weights.sum[0], weights.sum[1]};
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        float(&x)[4] = o[part][tile];
        finish_tile(x, groups[part]);
        shared.o[warp][part * 4 + tile][lane] = {x[0], x[1], x[2], x[3]};
      }
    }
  }
  /// The warp's columns of the chunk whose scores are in shared.o[0].
  __device__ __forceinline__ void multiply_columns(TileState<kM>& x, const float (&top)[2],
                                                   const View& view, int stage) {
    constexpr int kUnits = kM < 2 ? 1 : kM / 2;  // of 32 columns
    const int part = warp * kM / 4, unit = warp * kM / 2;
    Weights weights(top, p.scale);
    Group group = group_of(part, view, stage);
    for (auto& o : x.o) o[0] = o[1] = o[2] = o[3] = 0;
    const uint32_t at = codes_at(stage, unit + (kUnits > 1 ? lane / 16 : 0));
#pragma unroll 2
    for (int t = 0; t < kTiles; ++t) {
      weights.next(shared.o[0][t][lane], p.scale);
      uint32_t codes[2 * kUnits], w[2];
      weigh(w, group, weights.s, view, stage, t);
      load_turned(codes, tile_at(at, t));
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        uint32_t first = codes[2 * u], second = codes[2 * u + 1];
        if constexpr (kM == 1) {
          first >>= warp % 2 * 8;
          second >>= warp % 2 * 8;
        }
        multiply_tile<0>(x.o[2 * u], first, second, w);
        if constexpr (kM > 1) multiply_tile<2>(x.o[2 * u + 1], first, second, w);
      }
    }
    weights.finish();
#pragma unroll
    for (auto& o : x.o) finish_tile(o, group);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      x.top[h] = weights.top[h];
      x.sum[h] = weights.sum[h];
    }
  }

  /// The warp's columns of a chunk's partial join the tree.
  __device__ __forceinline__ void add_chunk(const Run& run, int chunk, int n) {
    TileState<kM> x;
    const int of_warp = chunk % kWarps;
    const float2 top = *reinterpret_cast<const float2*>(&shared.tops[of_warp][lane % 4 * 2]);
    const float2 sum = *reinterpret_cast<const float2*>(&shared.sums[of_warp][lane % 4 * 2]);
    x.top[0] = top.x;
    x.top[1] = top.y;
    x.sum[0] = sum.x;
    x.sum[1] = sum.y;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const float4 o = shared.o[of_warp][warp * kM + m][lane];
      x.o[m][0] = o.x;
      x.o[m][1] = o.y;
      x.o[m][2] = o.z;
      x.o[m][3] = o.w;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {  // registers can't be chosen at run time
      if (i == n) Base::add_tile(run, chunk, i, x);
    }
  }
};

template <int D, int N>
using LongConsumer = ChunkConsumer<D, N>;
constexpr int kShortPairs = 32;  // of more, shares are mostly of many chunks

}  // namespace

void launch_int4(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim) {
  if (padded_dim == 128 && p.tile_rows == 8 && p.num_segments * p.max_pairs <= kShortPairs) {
    return launch_decode<ChunkConsumer<128, 1, true>>(stream, args, p);
  }
  launch_format<LongConsumer>(stream, args, p, padded_dim);
}

}  // namespace weft::cuda::decode
