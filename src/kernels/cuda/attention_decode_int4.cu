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

/// One of the 4 warps that compute. Of the chunks of a node, warp w computes 4 i + w.
template <int D, int N>
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
        const int mine = warp - chunk % kWarps;
#pragma unroll 1
        for (int n = 0; n < N; ++n) {
          if (mine >= 0 && mine < count) {
            compute(run, chunk + mine, n, ring.after(mine), ring.after(count + mine));
          }
          barrier_sync(1, kWarps * 32);
          for (int i = 0; i < count; ++i) add_chunk(run, chunk + i, n);
          barrier_sync(1, kWarps * 32);
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

  /// The partial of chunk `chunk` for row tile n, from stages k and v.
  __device__ __forceinline__ void compute(const Run& run, int chunk, int n, Stage k, Stage v) {
    const int first_key = chunk * kKeys;
    const bool masked = first_key + kKeys > p.kv_start[run.segment] + run.first_row / p.group + 1;
    int visible[2] = {INT_MAX, INT_MAX};  // keys of the chunk that the thread's rows see
    if (masked) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = n * 8 + lane % 4 * 2 + h;
        if (row >= run.rows) continue;
        visible[h] = p.kv_start[run.segment] + (run.first_row + row) / p.group + 1 - first_key;
      }
    }
    wait(&shared.full[k.stage], k.parity);
    float top[2] = {minus_infinity(), minus_infinity()};  // of the thread's keys
    multiply_keys(top, visible, masked, n, k.stage);
    if (n == N - 1) release(k);
    wait(&shared.full[v.stage], v.parity);
    multiply_values(top, visible, masked, n, v.stage);
    if (n == N - 1) release(v);
  }
  __device__ __forceinline__ void release(Stage of) {
    __syncwarp();
    if (lane == 0) arrive(&shared.empty[of.stage]);
  }
  /// Row r of the matrices of tile t is key 2 r, or 2 r + 1 in those of the second half.
  __device__ __forceinline__ int key_of(int t) const {
    return t * 16 + lane / 4 * 2;
  }
  /// The addresses that the lane gives for the first 16 keys x 64 dims of a stage.
  struct CodesAt {
    uint32_t part[kParts];
    /// Of tile t.
    __device__ __forceinline__ uint32_t of(int t, int i) const {
      // Tiles of 8 rows of 128 bytes are swizzled alike; at 64 dims they have 4 rows.
      return (part[i] + static_cast<uint32_t>(t * 8 * D)) ^
             (D == 64 ? static_cast<uint32_t>(t % 2 * 64) : 0u);
    }
  };
  __device__ __forceinline__ CodesAt codes_at(int stage) const {
    CodesAt at;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      at.part[i] = shared_address(shared.ring[stage]) +
                   Codes::offset(lane % 8 * 2 + lane / 8 % 2, i * 2 + lane / 16);
    }
    return at;
  }

  /// Of the 16 keys of tile t.
  __device__ __forceinline__ const float* scales_of(int stage, int part, int t) const {
    return &shared.scales[stage][Memory::scale_place(part, t * 16, p.box_rows)];
  }
  /// 128 + the codes in the low bits of the halves of a word.
  static __device__ __forceinline__ uint32_t biased(uint32_t word) {
    return and_or(word, 0x000F000Fu, 0x43004300u);
  }
  /// Scores of keys key_of(tile) + {0, 1} x rows 2 (lane % 4) + {0, 1}, and the largest of them.
  __device__ __forceinline__ void multiply_keys(float (&top)[2], const int (&visible)[2],
                                                bool masked, int n, int stage) {
    const CodesAt at = codes_at(stage);
    uint4 q[D / 32];
    uint32_t q_sums[kParts];
#pragma unroll
    for (int i = 0; i < D / 32; ++i) q[i] = shared.q[n][i][lane];
#pragma unroll
    for (int part = 0; part < kParts; ++part) q_sums[part] = shared.q_sums[n][part][lane];
#pragma unroll 1
    for (int first = 0; first < kTiles; first += kTilesAtOnce) {
      uint32_t codes[kTilesAtOnce][kParts][4];  // of keys, the other keys; of the next 32 dims
      float2 scales[kTilesAtOnce][kParts];
      float group[kTilesAtOnce][kParts][4];
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          load_matrices(codes[i][part], at.of(first + i, part));
          scales[i][part] =
              *reinterpret_cast<const float2*>(scales_of(stage, part, first + i) + lane / 4 * 2);
        }
      }
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const float2& scale = scales[i][part];
          mma_bf16_k8(group[i][part], KvInt4::zero(scale.x), KvInt4::zero(scale.y), q_sums[part]);
        }
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int i = 0; i < kTilesAtOnce; ++i) {
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
      for (int i = 0; i < kTilesAtOnce; ++i) {
        float s[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const float by = j < 2 ? scales[i][part].x : scales[i][part].y;
            s[j] = part == 0 ? __fmul_rn(group[i][0][j], by) : fmaf(group[i][part][j], by, s[j]);
          }
        }
        if (masked) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (key_of(first + i) + j / 2 >= visible[j % 2]) s[j] = minus_infinity();
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) top[h] = fmaxf(top[h], fmaxf(s[h], s[h + 2]));
        shared.o[warp][first + i][lane] = {s[0], s[1], s[2], s[3]};
      }
    }
  }

  /// The powers of two of the largest scales of values that the thread's rows see, of 64 dims.
  __device__ __forceinline__ void find_powers(PowerOfTwo (&of)[kParts][2], const int (&visible)[2],
                                              bool masked, int stage) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (!masked) {
        const float4 x = *reinterpret_cast<const float4*>(
            &shared.scales[stage][Memory::scale_place(part, lane * 4, p.box_rows)]);
        const float mine = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
        of[part][0] = of[part][1] =
            power_of(__uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(mine))));
        continue;
      }
      float most[2] = {0, 0};
#pragma unroll 1
      for (int t = 0; t < kTiles; ++t) {
        const float2 x = *reinterpret_cast<const float2*>(scales_of(stage, part, t) + lane / 4 * 2);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (key_of(t) < visible[h]) most[h] = fmaxf(most[h], x.x);
          if (key_of(t) + 1 < visible[h]) most[h] = fmaxf(most[h], x.y);
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], step));
        }
        of[part][h] = power_of(most[h]);
      }
    }
  }

  /// Scores to weights; the outputs, V^T x weights; leaves the partial in shared memory. Weights
  /// get the scales of the values, and are 0 where a row doesn't see the key, whatever its scale.
  /// They are f16, of 64 dims by the power of two that makes the largest scale 1 to 2; codes and
  /// zero points are subnormal, and the zero points' product is of all columns.
  __device__ __forceinline__ void multiply_values(float (&top)[2], const int (&visible)[2],
                                                  bool masked, int n, int stage) {
    float shift[2], sum[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
      }
      const bool none = top[h] == minus_infinity();
      top[h] = __fmul_rn(top[h], p.scale);
      shift[h] = none ? 0.0f : -top[h];
    }
    const CodesAt at = codes_at(stage);
    PowerOfTwo powers[kParts][2];
    find_powers(powers, visible, masked, stage);
    float o[kParts][4][4] = {}, of_zeros[kParts][4] = {};
#pragma unroll 2
    for (int t = 0; t < kTiles; ++t) {
      const float4 scores = shared.o[warp][t][lane];
      float s[4] = {scores.x, scores.y, scores.z, scores.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[j] = exp2_approx(fmaf(s[j], p.scale, shift[j % 2]));
        sum[j % 2] += s[j];
      }
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float* scales = scales_of(stage, part, t);
        const float2 scale = *reinterpret_cast<const float2*>(scales + lane / 4 * 2);
        float x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          x[j] = __fmul_rn(s[j], __fmul_rn(j < 2 ? scale.x : scale.y, powers[part][j % 2].inverse));
        }
        if (masked) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (key_of(t) + j / 2 >= visible[j % 2]) x[j] = 0;
          }
        }
        const uint32_t w[2] = {turn_matrix(pack_f16(x[0], x[1])),
                               turn_matrix(pack_f16(x[2], x[3]))};
        uint32_t codes[4];
        load_matrices<true>(codes, at.of(t, part));
        const uint4 of = *reinterpret_cast<const uint4*>(scales + lane % 4 * 4);
        const uint32_t first = KvInt4::tiny_f16<0>(__byte_perm(of.x, of.z, 0x5410));
        const uint32_t second = KvInt4::tiny_f16<0>(__byte_perm(of.y, of.w, 0x5410));
        const uint32_t zeros[4] = {first, first, second, second};
        mma_f16(of_zeros[part], zeros, w[0], w[1]);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const uint32_t* c = codes + 2 * u;
          const uint32_t a0[4] = {KvInt4::tiny_f16<0>(c[0]), KvInt4::tiny_f16<1>(c[0]),
                                  KvInt4::tiny_f16<0>(c[1]), KvInt4::tiny_f16<1>(c[1])};
          mma_f16(o[part][2 * u], a0, w[0], w[1]);
          const uint32_t a1[4] = {KvInt4::tiny_f16<2>(c[0]), KvInt4::tiny_f16<3>(c[0]),
                                  KvInt4::tiny_f16<2>(c[1]), KvInt4::tiny_f16<3>(c[1])};
          mma_f16(o[part][2 * u + 1], a1, w[0], w[1]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], step);
      }
    }
    if (lane < 4) {
      *reinterpret_cast<float2*>(&shared.tops[warp][lane * 2]) = {top[0], top[1]};
      *reinterpret_cast<float2*>(&shared.sums[warp][lane * 2]) = {sum[0], sum[1]};
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        float x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float codes =
              fmaf(o[part][tile][j], j < 2 ? 0x1p24f : 0x1p20f, -0x1p24f * of_zeros[part][j]);
          x[j] = __fmul_rn(codes, powers[part][j % 2].power);
        }
        shared.o[warp][part * 4 + tile][lane] = {x[0], x[1], x[2], x[3]};
      }
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

}  // namespace

void launch_int4(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim) {
  launch_format<ChunkConsumer>(stream, args, p, padded_dim);
}

}  // namespace weft::cuda::decode
