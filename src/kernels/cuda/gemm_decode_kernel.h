#pragma once

// out (+)= x W^T + bias for few rows x: W streams through shared memory once for each 64 rows of x.
// docs/kernels/gemm_decode.md. Included by the .cu files of the formats.
//
// A block has U units of 64 rows of W and the K range of its rank, of 1 to 8. W is the A operand of
// the tensor cores, x the B operand, so that few rows of x cost little. One thread keeps a ring of
// stages full of W by TMA, before the predecessor kernel has ended, and fetches some more of W into
// L2; another one loads x. The other warps take the stages in C turns, whose sums meet in shared
// memory. The ranks of a tile of W are a cluster: each sends others their shares of its sums and
// adds up its own. Sums: k ascending within a turn in steps of 16, then turns, then ranks: the
// same for every count of rows.
// Bytes: W once (once each 64 or 256 rows for more), x once a cluster (from L2). Bound: memory.

#include <algorithm>

#include "kernels/cuda/common/cluster.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/gemm_decode_load.h"
#include "kernels/cuda/gemm_decode_math.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

/// Which rows of W and which stages a warp has.
struct DecodeTurn {
  int chunk;  ///< its first 16 rows in the block's
  int turn;
};
template <WeightFormat F, int MT>
__device__ __forceinline__ DecodeTurn decode_turn(const DecodeParams& p) {
  constexpr int kChunks = decode_chunks(F, MT);
  const int warps = p.units * 4 / kChunks, warp = warp_index();
  return {warp % warps * kChunks, warp / warps};
}

/// fp8: the scales of 16 rows, for the stages from k_begin; null: no such rows.
__device__ __forceinline__ const float* scales_of_chunk(const DecodeWork& work,
                                                        const DecodeParams& p, int chunk,
                                                        int k_begin) {
  const int local = chunk * 16;
  int row = work.tile * p.units * 64 + local;
  if (p.up_row > 0) {
    const int half = p.units * 32;
    row = work.tile * half + local % half + local / half * p.up_row;
  }
  if (row >= p.n) return nullptr;
  return reinterpret_cast<const float*>(p.codes + work.expert * p.expert_bytes) +
         row / kFp8ScaleRows * p.tiles_k + k_begin;
}

/// The stages of a block.
struct DecodeRange {
  const std::byte *memory, *x;  ///< the rings of W and of x
  int k_begin, count;
};

/// The sums of this thread (the D layout of wgmma and mma.sync, by chunks) over its turns of the
/// stages [0, count).
template <WeightFormat F, int MT, bool AtOnce>
__device__ __forceinline__ void decode_sums(const DecodeRing& ring, const DecodeWork& work,
                                            const DecodeParams& p, const DecodeRange& range,
                                            float (&sum)[decode_chunks(F, MT)][MT / 2]) {
  using Stage = DecodeStage<F>;
  constexpr int kChunks = decode_chunks(F, MT);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const DecodeTurn who = decode_turn<F, MT>(p);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (float& s : sum[c]) s = 0.0f;
  }
  [[maybe_unused]] const float* scales[kChunks];
  if constexpr (F == WeightFormat::kFp8Block) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      scales[c] = scales_of_chunk(work, p, who.chunk + c, range.k_begin);
    }
  }
  // Nobody waits for the last stages. With `AtOnce` (wgmma) a stage is released when it has been
  // read, else in its turn's next round: behind the end of the loop all reads of it have returned.
  // Within a round ptxas lets the arrival pass reads under way, and fp8 products beside other
  // processes on the GPU then saw x of a later stage.
  const auto release = [&](int i, int stage) {
    if (i >= 0 && i + p.x_stages < range.count && lane == 0) {
      arrive_at(ring.empty + 8 * static_cast<uint32_t>(stage));
    }
  };
  int stage = who.turn, x_stage = who.turn, before = 0;
  uint32_t phase = 0;
  // Counted this way ptxas sees that the sums are nobody's while products run (else: C7515, each
  // product waits for the one before).
  const int rounds = (range.count - who.turn + p.turns - 1) / p.turns;
#pragma unroll 1
  for (int n = 0; n < rounds; ++n) {
    const int i = n * p.turns + who.turn;
    if constexpr (F != WeightFormat::kBf16) release(i - p.turns, before);
    [[maybe_unused]] float scale[kChunks] = {};
    if constexpr (F == WeightFormat::kFp8Block) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (scales[c] != nullptr) scale[c] = __ldg(scales[c] + i);
      }
    }
    wait_at(ring.full + 8 * static_cast<uint32_t>(stage), phase);
    const std::byte* x_tile = range.x + x_stage * Stage::x_bytes(MT);
    const std::byte* w_tile = range.memory + stage * ring.stage_bytes;
    if constexpr (F == WeightFormat::kBf16) {
      const uint64_t x = k_major_128(x_tile);
      const uint64_t a = k_major_128(w_tile + who.chunk / 4 * Stage::kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Wgmma<MT>::bf16(sum[0], advance(a, 32u * j), advance(x, 32u * j), 1);
      }
      wgmma_commit();
      if constexpr (AtOnce) {
        wgmma_wait<0>();
        release(i, stage);
      } else {
        wgmma_wait<1>();
        release(i - p.turns, before);
      }
    } else {
      if constexpr (F == WeightFormat::kFp8Block) {
        add_fp8<MT, kChunks>(w_tile, who.chunk, x_tile, scale, sum);
      } else if constexpr (wide_tiles(MT)) {
        const int tiles = min(p.tiles_k - 2 * (range.k_begin + i), int64_t{2});
        add_tiles_wide<F, MT>(w_tile, who.chunk, x_tile, tiles, sum[0]);
      } else if (2 * (range.k_begin + i) + 1 < p.tiles_k) {
        add_tiles<F, MT, 2, kChunks>(w_tile, who.chunk, x_tile, sum);
      } else {
        add_tiles<F, MT, 1, kChunks>(w_tile, who.chunk, x_tile, sum);
      }
      __syncwarp();
    }
    before = stage;
    stage += p.turns;
    if (stage >= p.stages) {
      stage -= p.stages;
      phase ^= 1;
    }
    x_stage += p.turns;
    if (x_stage >= p.x_stages) x_stage -= p.x_stages;
  }
  if constexpr (F == WeightFormat::kBf16) {
    wgmma_wait<0>();
    hold(sum[0]);
  }
}

/// The turns' sums as tiles [turns][MT][64 U + 4] in shared memory.
template <WeightFormat F, int MT>
__device__ __forceinline__ void put_turns(const DecodeParams& p, float* partial, int threads,
                                          const float (&sum)[decode_chunks(F, MT)][MT / 2]) {
  const int pitch = p.units * 64 + 4, lane = static_cast<int>(threadIdx.x) % 32;
  const DecodeTurn who = decode_turn<F, MT>(p);
  // All stages have been read: their memory takes the tiles.
  barrier_sync(1, threads);
#pragma unroll
  for (int c = 0; c < decode_chunks(F, MT); ++c) {
#pragma unroll
    for (int i = 0; i < MT / 2; ++i) {
      const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
      partial[(who.turn * MT + row) * pitch + (who.chunk + c) * 16 + lane / 4 + i % 4 / 2 * 8] =
          sum[c][i];
    }
  }
  barrier_sync(1, threads);
}

/// Four columns of a row of out, of which `count` exist.
struct FourOut {
  int64_t at;
  int column, count;
  bool aligned;

  __device__ __forceinline__ FourOut(const DecodeParams& p, int64_t row, int first, int most)
      : at(row * p.out_stride + first), column(first), count(most) {
    aligned = count == 4 && p.out_stride % 4 == 0 &&
              reinterpret_cast<uintptr_t>(p.out) % (p.out_f32 ? 16 : 8) == 0;
  }
  /// What they are added to; 0 where nothing is.
  __device__ __forceinline__ float4 old(const DecodeParams& p) const {
    float values[4] = {};
    if (p.epilogue != Epilogue::kAdd || count <= 0) return {};
    if (p.out_f32) {
      const float* out = static_cast<const float*>(p.out) + at;
      if (aligned) return *reinterpret_cast<const float4*>(out);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count) values[i] = out[i];
      }
    } else {
      const uint16_t* out = static_cast<const uint16_t*>(p.out) + at;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count) values[i] = __uint_as_float(uint32_t{out[i]} << 16);
      }
    }
    return {values[0], values[1], values[2], values[3]};
  }
  __device__ __forceinline__ void store(const DecodeParams& p, float4 v, const float4& old) const {
    if (p.bias != nullptr && p.up_row == 0) {
      const float* b = p.bias + column;
      const auto of = [&](int i) { return i < count ? b[i] : 0.0f; };
      v = v + float4{of(0), of(1), of(2), of(3)};
    }
    if (p.epilogue == Epilogue::kAdd) v = old + v;
    const float values[4] = {v.x, v.y, v.z, v.w};
    if (p.out_f32) {
      float* out = static_cast<float*>(p.out) + at;
      if (aligned) {
        *reinterpret_cast<float4*>(out) = v;
        return;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count) out[i] = values[i];
      }
      return;
    }
    uint16_t* out = static_cast<uint16_t*>(p.out) + at;
    const uint32_t words[2] = {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
    if (aligned) {
      *reinterpret_cast<uint2*>(out) = {words[0], words[1]};
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) out[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
  }
};

/// kSiluMul: `v` becomes what the sums of four columns of both halves give, of which `count` exist.
__device__ __forceinline__ void gate_four(const DecodeParams& p, int column, int count, float4& v,
                                          float4& up) {
  if (p.bias != nullptr) {
    const float* b = p.bias + column;
    const auto at = [&](int j) { return j < count ? b[j] : 0.0f; };
    const auto at_up = [&](int j) { return j < count ? b[p.up_row + j] : 0.0f; };
    v = v + float4{at(0), at(1), at(2), at(3)};
    up = up + float4{at_up(0), at_up(1), at_up(2), at_up(3)};
  }
  v = {silu_of(v.x) * up.x, silu_of(v.y) * up.y, silu_of(v.z) * up.z, silu_of(v.w) * up.w};
}

/// What the ranks of a cluster exchange.
struct DecodeShares {
  const float* partial;  ///< [turns][MT][64 U + 4] of this rank
  float4* received;      ///< [split - 1][share (x 2 for kSiluMul: gate, up)]
  Barrier* arrived;
  int threads;
};

/// Float4s of room for the other ranks' shares.
constexpr int received_fours(int row_tile, int units, int split) {
  return (split - 1) * ((row_tile * units * 16 + split - 1) / split + 1);
}

/// Sends the other ranks their shares of this rank's sums, adds up its own share of the tile in the
/// order of turns, then of ranks, and stores it.
template <int MT>
class DecodeFinish {
 public:
  __device__ __forceinline__ DecodeFinish(const DecodeParams& p, const DecodeWork& work,
                                          const DecodeShares& shares)
      : p_(p), work_(work), s_(shares) {
    halves_ = p.up_row > 0 ? 2 : 1;
    columns_ = p.units * 64 / halves_;
    log_ = 31 - __clz(columns_ / 4);  // a power of two
    total_ = work.rows * (columns_ / 4);
    share_ = (total_ + p.split - 1) / p.split;
    first_ = work.rank * share_;
    mine_ = min(share_, total_ - first_);
    FourOut out = out_at(thread());
#pragma unroll
    for (int j = 0; j < kOld; ++j) {
      old_[j] = thread() + j * s_.threads < mine_ ? out.old(p) : float4{};
      out.at += out_step();
    }
  }

  __device__ __forceinline__ void exchange() const {
    for (int i = thread(); i < total_; i += s_.threads) {
      const int owner = i / share_;
      if (owner == work_.rank) continue;
      const int slot = (work_.rank - (work_.rank > owner)) * share_ + i - owner * share_;
      const auto rank = static_cast<uint32_t>(owner);
      const uint32_t barrier = map_to_block(shared_address(s_.arrived), rank);
      for (int half = 0; half < halves_; ++half) {
        send(map_to_block(shared_address(s_.received + slot * halves_ + half), rank),
             of_turns(i, half), barrier);
      }
    }
    if (mine_ > 0) wait_cluster(s_.arrived, 0);
  }

  __device__ __forceinline__ void store() const {
    FourOut out = out_at(thread());
    if (out.count <= 0) return;
    for (int j = 0, l = thread(); l < mine_; ++j, l += s_.threads, out.at += out_step()) {
      float4 v = sum(l, 0);
      if (halves_ == 2) {
        float4 up = sum(l, 1);
        gate_four(p_, out.column, out.count, v, up);
      }
      out.store(p_, v, j == 0 ? old_[0] : j == 1 ? old_[1] : out.old(p_));
    }
  }

 private:
  static constexpr int kOld = 2;  ///< of a thread, asked for before the sums are exchanged

  static __device__ __forceinline__ int thread() {
    return static_cast<int>(threadIdx.x);
  }
  __device__ __forceinline__ FourOut out_at(int l) const {
    const int row = (first_ + l) >> log_;
    const int column = work_.tile * columns_ + ((first_ + l) & (columns_ / 4 - 1)) * 4;
    const int limit = p_.up_row > 0 ? p_.up_row : p_.n;
    return {p_, work_.first_row + row, column, l < mine_ ? min(4, limit - column) : 0};
  }
  /// From one float4 of a thread in `out` to its next: their columns are the same.
  __device__ __forceinline__ int64_t out_step() const {
    return (s_.threads >> log_) * p_.out_stride;
  }
  __device__ __forceinline__ float4 of_turns(int i, int half) const {
    const int pitch = p_.units * 64 + 4;
    const float* at =
        s_.partial + (i >> log_) * pitch + half * columns_ + (i & (columns_ / 4 - 1)) * 4;
    float4 v = *reinterpret_cast<const float4*>(at);
    for (int turn = 1; turn < p_.turns; ++turn) {
      v = v + *reinterpret_cast<const float4*>(at + turn * MT * pitch);
    }
    return v;
  }
  __device__ __forceinline__ float4 sum(int l, int half) const {
    float4 v{};
    for (int r = 0; r < p_.split; ++r) {
      const float4 part = r == work_.rank
                              ? of_turns(first_ + l, half)
                              : s_.received[((r - (r > work_.rank)) * share_ + l) * halves_ + half];
      v = r == 0 ? part : v + part;
    }
    return v;
  }

  const DecodeParams& p_;
  const DecodeWork& work_;
  const DecodeShares& s_;
  int halves_, columns_, log_, total_, share_, first_, mine_;
  float4 old_[kOld];
};

/// By one thread.
template <WeightFormat F, int MT>
__device__ __forceinline__ void init_barriers(const DecodeParams& p, const DecodeWork& work,
                                              Barrier* full, Barrier* arrived) {
  for (int i = 0; i < p.stages; ++i) {
    barrier_init(full + i, 1);
    barrier_init(full + p.stages + i, static_cast<uint32_t>(p.units * 4 / decode_chunks(F, MT)));
  }
  if (p.split > 1) {
    barrier_init(arrived, 1);
    const int halves = p.up_row > 0 ? 2 : 1, total = work.rows * p.units * 16 / halves;
    const int share = (total + p.split - 1) / p.split;
    const int mine = max(0, min(share, total - work.rank * share));
    arrive_expect(arrived, static_cast<uint32_t>((p.split - 1) * mine * halves * 16));
  }
  fence_barrier_init();
}

constexpr int kDecodeProducers = 64;  ///< threads

template <WeightFormat F, int MT, bool AtOnce = false>
__global__ void __launch_bounds__(decode_most_threads(F, MT) + kDecodeProducers)
    decode_kernel(const __grid_constant__ CUtensorMap w_map,
                  const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(1024) std::byte shared[];
  const int threads = static_cast<int>(blockDim.x) - kDecodeProducers;
  const int stage_bytes = DecodeStage<F>::bytes(p.units);
  std::byte* x_memory = shared + p.stages * stage_bytes;
  auto* received = reinterpret_cast<float4*>(x_memory + p.x_stages * DecodeStage<F>::x_bytes(MT));
  auto* barriers = reinterpret_cast<Barrier*>(received + received_fours(MT, p.units, p.split));
  Barrier* arrived = barriers + 2 * p.stages;
  const DecodeRing ring{shared_address(shared), shared_address(barriers),
                        shared_address(barriers + p.stages), stage_bytes, shared_address(x_memory)};
  const int warp = warp_index() - threads / 32;  // 0: loads W, 1: loads x, < 0: multiplies
  const bool clustered = p.split > 1;

  if (p.groups != nullptr) wait_for_predecessor();
  const DecodeWork work = decode_work<MT>(p);
  if (work.rows <= 0) return;  // all blocks of a cluster alike
  const int k_begin = p.k_steps * work.rank / p.split;
  const int count = p.k_steps * (work.rank + 1) / p.split - k_begin;
  const bool leader = static_cast<int>(threadIdx.x) % 32 == 0;
  if (warp == 0 && leader) init_barriers<F, MT>(p, work, barriers, arrived);
  __syncthreads();
  if (p.let_in == 0) let_successor_begin();
  if (clustered) cluster_arrive();
  if (warp >= 0) {
    if (warp == 0 && leader) load_weights<F, MT>(ring, work, p, &w_map, k_begin, count);
    if (warp == 1 && leader) {
      prefetch_map(&x_map);
      wait_for_predecessor();
    }
    __syncwarp();
    if (clustered) cluster_wait();
    if (warp == 1 && leader) load_x<F, MT>(ring, work, p, &x_map, k_begin, count);
  } else {
    float sum[decode_chunks(F, MT)][MT / 2];
    decode_sums<F, MT, AtOnce>(ring, work, p, {shared, x_memory, k_begin, count}, sum);
    wait_for_predecessor();
    const DecodeShares shares{reinterpret_cast<float*>(shared), received, arrived, threads};
    const DecodeFinish<MT> finish(p, work, shares);
    put_turns<F, MT>(p, reinterpret_cast<float*>(shared), threads, sum);
    if (clustered) {
      cluster_wait();
      finish.exchange();
    }
    finish.store();
  }
}

/// What the kernels for few rows and for many take alike; stages of `columns` k.
inline DecodeParams decode_params(const DecodeGemm& gemm, const DecodeCut& cut, int64_t columns) {
  const WeightShape& shape = gemm.weight->shape;
  CHECK(gemm.x.dim(0) > 0 && gemm.x.dim(1) == shape.k && gemm.x.stride[0] % 8 == 0,
        "decode gemm: x");
  DecodeParams p{};
  p.n = static_cast<int>(shape.n);
  p.rows = static_cast<int>(gemm.x.dim(0));
  p.k_steps = static_cast<int>(ceil_div(shape.k, columns));
  p.turns = cut.turns;
  p.split = cut.split;
  p.up_row = static_cast<int>(gemm.epilogue == Epilogue::kSiluMul ? shape.n / 2 : 0);
  p.bias = gemm.bias.defined() ? gemm.bias.ptr<float>() : nullptr;
  p.out = gemm.out.data;
  p.out_stride = gemm.out.stride[0];
  p.epilogue = gemm.epilogue;
  p.out_f32 = gemm.out.dtype == DType::kF32;
  return p;
}

/// Encodes the maps and launches the kernel of the row tile.
template <WeightFormat F>
void launch_decode(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  using Stage = DecodeStage<F>;
  const WeightShape& shape = gemm.weight->shape;
  const bool gated = gemm.epilogue == Epilogue::kSiluMul;
  const int64_t rows = gemm.x.dim(0), tile_columns = cut.units * (gated ? 32 : 64);
  DecodeParams p = decode_params(gemm, cut, Stage::kColumns);
  p.codes = gemm.weight->data;
  p.expert_bytes = gemm.weight->expert_bytes;
  p.tiles_k = ceil_div(shape.k, kQuantTile);
  if (F == WeightFormat::kFp8Block) {
    p.codes += fp8_scales_offset(shape);
    p.tiles_k = fp8_scales_stride(shape);
  }
  p.units = cut.units;
  p.ahead = cut.ahead;
  p.let_in = cut.let_in;
  p.row_tiles =
      static_cast<int>(ceil_div(gemm.groups != nullptr ? gemm.max_group_rows : rows, cut.row_tile));
  p.stages = cut.stages;
  p.x_stages = cut.x();
  p.groups = gemm.groups;

  CUtensorMap w_map{};
  if constexpr (!Stage::kTiles) {
    MapShape w;
    w.type = F == WeightFormat::kBf16 ? MapType::kBF16 : MapType::kE4M3;
    w.rank = 3;
    w.dims[0] = static_cast<uint64_t>(shape.k);
    w.dims[1] = static_cast<uint64_t>(shape.n);
    w.dims[2] = static_cast<uint64_t>(shape.experts);
    w.stride_bytes[0] = static_cast<uint64_t>(weight_row_bytes(shape));
    w.stride_bytes[1] = shape.experts > 1 ? static_cast<uint64_t>(gemm.weight->expert_bytes)
                                          : w.stride_bytes[0] * w.dims[1];
    w.box[0] = F == WeightFormat::kBf16 ? 64 : 128;
    w.box[1] = static_cast<uint32_t>(tile_columns);
    w.box[2] = 1;
    w_map = encode_map(gemm.weight->data, w);
  }
  const bool blocked = shape.k % 64 == 0;
  p.x_blocked = blocked;
  MapShape x;
  x.rank = 3;
  x.dims[0] = static_cast<uint64_t>(blocked ? 64 : shape.k);
  x.dims[1] = static_cast<uint64_t>(rows);
  x.dims[2] = static_cast<uint64_t>(blocked ? shape.k / 64 : 1);
  x.stride_bytes[0] = static_cast<uint64_t>(gemm.x.stride[0] * 2);
  x.stride_bytes[1] = blocked ? 128 : x.stride_bytes[0] * x.dims[1];
  x.box[0] = 64;
  x.box[1] = static_cast<uint32_t>(cut.row_tile);
  x.box[2] = blocked ? Stage::kColumns / 64 : 1;
  const CUtensorMap x_map = encode_map(gemm.x.data, x);
  const int threads = cut.units * cut.turns * 128 / decode_chunks(F, cut.row_tile);
  CHECK(threads <= decode_most_threads(F, cut.row_tile) && cut.stages % cut.turns == 0,
        "decode gemm: cut");
  CHECK(p.x_stages % cut.turns == 0 && p.x_stages <= p.stages, "decode gemm: rings");
  LaunchShape at{.block = static_cast<unsigned>(threads + kDecodeProducers),
                 .cluster = static_cast<unsigned>(cut.split),
                 .overlap = true};
  const int64_t tiles = ceil_div(gated ? shape.n / 2 : shape.n, tile_columns);
  at.grid = dim3(static_cast<unsigned>(tiles * p.row_tiles * cut.split),
                 static_cast<unsigned>(gemm.groups != nullptr ? gemm.num_groups : 1));
  at.shared_bytes =
      static_cast<size_t>(cut.stages * (Stage::bytes(cut.units) + 2 * int{sizeof(Barrier)}) +
                          cut.x() * Stage::x_bytes(cut.row_tile) + int{sizeof(Barrier)} +
                          16 * received_fours(cut.row_tile, cut.units, cut.split));
  const auto kernel = [&]<int MT>() { launch(stream, at, decode_kernel<F, MT>, w_map, x_map, p); };
  // A short ring has no room for stages that have been read.
  if constexpr (F == WeightFormat::kBf16) {
    const bool brief = cut.split > 1 && cut.let_in > 0;
    if (brief && cut.row_tile == 32) {
      return launch(stream, at, decode_kernel<F, 32, true>, w_map, x_map, p);
    }
    if (brief && cut.row_tile == 64) {
      return launch(stream, at, decode_kernel<F, 64, true>, w_map, x_map, p);
    }
  }
  switch (cut.row_tile) {
    case 8: kernel.template operator()<8>(); break;
    case 16: kernel.template operator()<16>(); break;
    case 32: kernel.template operator()<32>(); break;
    case 64: kernel.template operator()<64>(); break;
    default:
      if constexpr (F == WeightFormat::kBf16) kernel.template operator()<128>();
      break;
  }
}

}  // namespace weft::cuda
