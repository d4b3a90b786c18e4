// softmax(q k^T scale) v among the rows of each long segment, heads of 65 to 80 dimensions: the
// attention of vision towers over whole images. docs/images.md
//
// A work item is 64 rows a warpgroup of one head against all keys of their segment, in tiles of 128
// cut from its beginning. A warp each copies K (and Q) and V by TMA, which fills the dimensions
// beyond the head's with zeros; the warpgroups compute S = Q K^T (wgmma, five steps of 16
// dimensions), the softmax in registers, O += P V (wgmma of 80 columns, P in registers), each at
// its own pace through the ring of tiles. Bound: 4 D flops a (query, key) on the tensor cores.
//
// A row's bits depend on its segment alone: its keys come in the same tiles in ascending order,
// keys beyond the segment weigh nothing, and the rows of V there are zeros (0 * NaN is not 0).

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/vision_attention.h"

namespace weft::cuda {
namespace {

constexpr int kWarpgroups = 3;
constexpr int kThreads = 128 * (kWarpgroups + 1);
constexpr int kQueries = 64 * kWarpgroups;
static_assert(kQueries == kLongQueries);
constexpr int kKeys = 128;
constexpr int kSteps = 5;  // of 16 dimensions
constexpr int kDims = 16 * kSteps;
constexpr int kPanel = 128;  // bytes of a row of a panel: 64 dimensions
constexpr int kPanelBytes = kKeys * kPanel;
constexpr int kTileBytes = 2 * kPanelBytes;
constexpr int kQPanelBytes = 64 * kPanel;
constexpr int kQBytes = 2 * kQPanelBytes;  // of a warpgroup
constexpr int kStages = 5;
constexpr int kConsumerRegisters = 160, kProducerRegisters = 32;

struct __align__(1024) Shared {
  unsigned char q[kWarpgroups][kQBytes];
  unsigned char ring[kStages][kTileBytes];  // K, V, K, V, ..
  Barrier full[kStages], empty[kStages];
  Barrier q_full, q_empty, tail;
};

/// (dimension, head, row) in boxes of 64 dimensions of one head.
struct Maps {
  CUtensorMap q, k, v;
};

struct Ring {
  int slot = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void step() {
    if (++slot == kStages) {
      slot = 0;
      phase ^= 1;
    }
  }
};

/// The items of this block, one after the other: heads side by side, so that blocks that run
/// together share K and V.
class Items {
 public:
  __device__ Items(const SegmentAttnParams& p, int blocks)
      : p_(p), blocks_(blocks), item_(static_cast<int>(blockIdx.x)) {}
  /// False beyond the last one.
  __device__ __forceinline__ bool next() {
    if (item_ >= blocks_ * p_.heads) return false;
    head = item_ / blocks_;
    rows = p_.rows_of(item_ - head * blocks_, kQueries);
    tiles = (rows.end - rows.begin + kKeys - 1) / kKeys;
    item_ += static_cast<int>(gridDim.x);
    return true;
  }

  SegmentAttnParams::Rows rows;
  int head = 0, tiles = 0;

 private:
  const SegmentAttnParams& p_;
  int blocks_, item_;
};

/// One thread: Q of an item, K.
__device__ void produce_keys(const Maps& maps, Shared& shared, Items items) {
  Ring ring;
  for (uint32_t round = 0; items.next(); ++round) {
    wait(&shared.q_empty, (round & 1) ^ 1);
    arrive_expect(&shared.q_full, kWarpgroups * kQBytes);
    for (int w = 0; w < kWarpgroups; ++w) {
      for (int panel = 0; panel < 2; ++panel) {
        tma_load(shared.q[w] + panel * kQPanelBytes, &maps.q, &shared.q_full,
                 Coords{64 * panel, items.head, items.rows.first + 64 * w});
      }
    }
    for (int tile = 0; tile < items.tiles; ++tile) {
      wait(&shared.empty[ring.slot], ring.phase ^ 1);
      arrive_expect(&shared.full[ring.slot], kTileBytes);
      for (int panel = 0; panel < 2; ++panel) {
        tma_load(shared.ring[ring.slot] + panel * kPanelBytes, &maps.k, &shared.full[ring.slot],
                 Coords{64 * panel, items.head, items.rows.begin + tile * kKeys});
      }
      ring.step();
      ring.step();
    }
  }
}

/// One warp: V.
__device__ void produce_values(const Maps& maps, Shared& shared, Items items) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Ring ring;
  ring.step();
  uint32_t tail_phase = 0;
  while (items.next()) {
    for (int tile = 0; tile < items.tiles; ++tile) {
      const int first = items.rows.begin + tile * kKeys, left = items.rows.end - first;
      const bool tail = left < kKeys;  // what is behind the segment may be anything
      unsigned char* to = shared.ring[ring.slot];
      wait(&shared.empty[ring.slot], ring.phase ^ 1);
      if (lane == 0) {
        Barrier* barrier = tail ? &shared.tail : &shared.full[ring.slot];
        arrive_expect(barrier, kTileBytes);
        for (int panel = 0; panel < 2; ++panel) {
          tma_load(to + panel * kPanelBytes, &maps.v, barrier,
                   Coords{64 * panel, items.head, first});
        }
      }
      if (tail) {
        wait(&shared.tail, tail_phase);
        tail_phase ^= 1;
        for (int panel = 0; panel < 2; ++panel) {
          unsigned char* rows = to + panel * kPanelBytes;
          for (int at = left * kPanel + lane * 16; at < kPanelBytes; at += 32 * 16) {
            *reinterpret_cast<uint4*>(rows + at) = make_uint4(0, 0, 0, 0);
          }
        }
        fence_async_shared();
        __syncwarp();
        if (lane == 0) arrive(&shared.full[ring.slot]);
      }
      ring.step();
      ring.step();
    }
  }
}

/// A warpgroup's 64 rows. d[4j..] of thread t: rows r and r + 8, r = 16 warp + lane / 4; columns
/// 8j + c, c = 2 (lane % 4).
class Consumer {
 public:
  __device__ Consumer(const SegmentAttnParams& p, Shared& shared) : p_(p), shared_(shared) {
    warpgroup_ = warp_index() / 4 - 1;
    lane_ = static_cast<int>(threadIdx.x) % 32;
    q_ = k_major_128(shared.q[warpgroup_]);
  }

  __device__ void run(Items items) {
    for (uint32_t round = 0; items.next(); ++round) {
      largest_[0] = largest_[1] = -INFINITY;
      total_[0] = total_[1] = 0;
#pragma unroll
      for (float& x : o_) x = 0;
      wait(&shared_.q_full, round & 1);
      for (int tile = 0; tile < items.tiles; ++tile) {
        scores();
        if (tile + 1 == items.tiles) {
          release(&shared_.q_empty);
          mask(items.rows.end - items.rows.begin - tile * kKeys);
        }
        soften();
        values();
      }
      store(items);
    }
  }

 private:
  __device__ __forceinline__ void release(Barrier* barrier) const {
    if (lane_ == 0) arrive(barrier);
  }

  __device__ __forceinline__ void scores() {
    wait(&shared_.full[ring_.slot], ring_.phase);
    const uint64_t k = k_major_128(shared_.ring[ring_.slot]);
    hold(s_);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t panel = static_cast<uint32_t>(step) / 4,
                     at = static_cast<uint32_t>(step) % 4 * 32;
      Wgmma<kKeys>::bf16(s_, advance(q_, panel * kQPanelBytes + at),
                         advance(k, panel * kPanelBytes + at), step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(s_);
    release(&shared_.empty[ring_.slot]);
    ring_.step();
  }

  __device__ __forceinline__ void values() {
    wait(&shared_.full[ring_.slot], ring_.phase);
    const uint64_t v = mn_major_128(shared_.ring[ring_.slot], kPanelBytes);
    hold(o_);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      Wgmma<kDims>::bf16_a<true>(o_, p16_[i], advance(v, 2048 * static_cast<uint32_t>(i)), 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(o_);
    release(&shared_.empty[ring_.slot]);
    ring_.step();
  }

  /// Keys behind the segment's `left` weigh nothing.
  __device__ __forceinline__ void mask(int left) {
    const int limit = left - 2 * (lane_ % 4);
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      if (i / 4 * 8 + i % 2 >= limit) s_[i] = -INFINITY;
    }
  }

  /// Scores become weights relative to a reference that rises only when a row's largest score
  /// passes it by 2^kSlack: until then what was summed before keeps its scale.
  __device__ __forceinline__ void soften() {
    constexpr float kSlack = 8;
    float top[2] = {largest_[0], largest_[1]}, shift[2], factor[2];
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s_[i]);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      top[row] = max_of_quad(top[row]);
      if ((top[row] - largest_[row]) * p_.factor <= kSlack) top[row] = largest_[row];
      factor[row] = exp2_approx((largest_[row] - top[row]) * p_.factor);
      largest_[row] = top[row];
      shift[row] = top[row] * p_.factor;
    }
    float part[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      s_[i] = exp2_approx(fmaf(s_[i], p_.factor, -shift[i / 2 % 2]));
      part[i % 4] += s_[i];
    }
    total_[0] = fmaf(total_[0], factor[0], part[0] + part[1]);
    total_[1] = fmaf(total_[1], factor[1], part[2] + part[3]);
    // Where no row of the warp changes, the products by 1 are left out: the same bits.
    if (__any_sync(0xffffffffu, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int i = 0; i < kDims / 2; ++i) o_[i] *= factor[i / 2 % 2];
    }
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p16_[i][j] = pack_bf16(s_[8 * i + 2 * j], s_[8 * i + 2 * j + 1]);
      }
    }
  }

  __device__ __forceinline__ void store(const Items& items) const {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int first = items.rows.first + 64 * warpgroup_ + thread / 32 * 16 + lane_ / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = 1.0f / sum_of_quad(total_[half]);
      const int row = first + 8 * half;
      if (row >= items.rows.end) continue;
      __nv_bfloat16* to = p_.out + row * p_.out_row + items.head * p_.out_head + 2 * (lane_ % 4);
#pragma unroll
      for (int j = 0; j < kDims / 8; ++j) {
        if (8 * j >= p_.head_dim) break;
        *reinterpret_cast<uint32_t*>(to + 8 * j) =
            pack_bf16(o_[4 * j + 2 * half] * inverse, o_[4 * j + 2 * half + 1] * inverse);
      }
    }
  }

  const SegmentAttnParams& p_;
  Shared& shared_;
  Ring ring_;
  int warpgroup_, lane_;
  uint64_t q_;
  float s_[kKeys / 2], o_[kDims / 2], largest_[2], total_[2];
  uint32_t p16_[kKeys / 16][4];
};

__global__ void __launch_bounds__(kThreads, 1)
    long_attention_kernel(const __grid_constant__ Maps maps,
                          const __grid_constant__ SegmentAttnParams p, int blocks) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], 4 * kWarpgroups);
    }
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.q_empty, 4 * kWarpgroups);
    barrier_init(&shared.tail, 1);
    fence_barrier_init();
  }
  __syncthreads();
  const Items items(p, blocks);
  if (warp_index() < 4) {
    drop_registers_to<kProducerRegisters>();
    if (warp_index() == 0 && elect_one()) produce_keys(maps, shared, items);
    if (warp_index() == 1) produce_values(maps, shared, items);
  } else {
    raise_registers_to<kConsumerRegisters>();
    Consumer(p, shared).run(items);
  }
}

CUtensorMap map_of(const __nv_bfloat16* base, const SegmentAttnParams& p, int64_t rows,
                   int64_t head_stride, int64_t row_stride, int box_rows) {
  MapShape m;
  m.rank = 3;
  m.dims[0] = static_cast<uint64_t>(p.head_dim);  // zeros beyond
  m.dims[1] = static_cast<uint64_t>(p.heads);
  m.dims[2] = static_cast<uint64_t>(rows);
  m.stride_bytes[0] = static_cast<uint64_t>(head_stride) * 2;
  m.stride_bytes[1] = static_cast<uint64_t>(row_stride) * 2;
  m.box[0] = 64;
  m.box[1] = 1;
  m.box[2] = static_cast<uint32_t>(box_rows);
  return encode_map(base, m);
}

}  // namespace

void segment_attention_long(Stream& stream, const SegmentAttnParams& p, int64_t rows, int blocks) {
  const Maps maps{.q = map_of(p.q, p, rows, p.q_head, p.q_row, 64),
                  .k = map_of(p.k, p, rows, p.k_head, p.k_row, kKeys),
                  .v = map_of(p.v, p, rows, p.v_head, p.v_row, kKeys)};
  const int grid = std::min(blocks * p.heads, num_processors());
  launch(stream,
         {.grid = static_cast<unsigned>(grid), .block = kThreads, .shared_bytes = sizeof(Shared)},
         long_attention_kernel, maps, p, blocks);
}

}  // namespace weft::cuda
