// Attention of vision towers: all rows of a segment among each other, per head. 4 queries and 16
// keys at a time in registers; tiles of 128 keys with online softmax, so that nothing but one
// block of queries and one tile of keys is held. A row's bits depend on its segment alone: tiles
// are cut from the segment's beginning. Bound: 4 D flops a (query, key), f32.

#include "kernels/cpu/limits.h"
#include "kernels/cpu/simd.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kQueries = 32;  // of a work item
constexpr int64_t kRows = 4;      // of a micro-tile
constexpr int64_t kTile = 128;    // keys
constexpr int64_t kMaxDim = kCpuMaxDim;

const float* head_of(const TensorView& x, int64_t row, int64_t head) {
  return static_cast<const float*>(x.data) + row * x.stride[0] + head * x.stride[1];
}

struct Work {
  alignas(64) float q[kQueries][kMaxDim];  // scaled by scale * log2(e)
  alignas(64) float keys[kMaxDim][kTile];  // a tile, transposed
  alignas(64) float scores[kQueries][kTile];
  alignas(64) float sums[kQueries][kMaxDim];  // of values, not yet divided
  float largest[kQueries], total[kQueries];
};

void transpose(const SegmentAttnArgs& args, int64_t head, int64_t first, int64_t count, Work& w) {
  const int64_t dim = args.q.shape[2];
  for (int64_t i = 0; i < count; ++i) {
    const float* key = head_of(args.k, first + i, head);
    for (int64_t d = 0; d < dim; ++d) w.keys[d][i] = key[d];
  }
  for (int64_t i = count; i < kTile; ++i) {
    for (int64_t d = 0; d < dim; ++d) w.keys[d][i] = 0;
  }
}

/// scores = q keys of four queries.
void score(int64_t dim, int64_t row, Work& w) {
  for (int64_t at = 0; at < kTile; at += 2 * kLanes) {
    Vec sum[kRows][2];
    for (auto& both : sum) both[0] = both[1] = splat(0);
    for (int64_t d = 0; d < dim; ++d) {
      const Vec a = load(&w.keys[d][at]), b = load(&w.keys[d][at + kLanes]);
      for (int64_t r = 0; r < kRows; ++r) {
        const Vec q = splat(w.q[row + r][d]);
        sum[r][0] = fma(q, a, sum[r][0]);
        sum[r][1] = fma(q, b, sum[r][1]);
      }
    }
    for (int64_t r = 0; r < kRows; ++r) {
      store(&w.scores[row + r][at], sum[r][0]);
      store(&w.scores[row + r][at + kLanes], sum[r][1]);
    }
  }
}

/// Turns the scores of a row into weights and makes its sums those of the new largest score.
void soften(int64_t dim, int64_t row, int64_t count, Work& w) {
  float* scores = w.scores[row];
  Vec most = splat(kNegInf);
  for (int64_t i = 0; i < kTile; i += kLanes) {
    const Vec x = keep_first(load(scores + i), count - i, kNegInf);
    store(scores + i, x);
    most = max(most, x);
  }
  const float tile_most = max_lanes(most);
  const float largest = tile_most > w.largest[row] ? tile_most : w.largest[row];
  Vec sum = splat(0);
  for (int64_t i = 0; i < kTile; i += kLanes) {
    const Vec p = exp2(load(scores + i) - splat(largest));
    store(scores + i, p);
    sum = sum + p;
  }
  const float scale = first_lane(exp2(splat(w.largest[row] - largest)));
  w.largest[row] = largest;
  w.total[row] = __builtin_fmaf(w.total[row], scale, sum_lanes(sum));
  for (int64_t i = 0; i < dim; i += kLanes) {
    store(&w.sums[row][i], load(&w.sums[row][i]) * splat(scale));
  }
}

/// sums += weights values, for four queries.
void gather(const SegmentAttnArgs& args, int64_t head, int64_t first, int64_t count, int64_t row,
            Work& w) {
  const int64_t dim = args.q.shape[2];
  for (int64_t at = 0; at < dim; at += kLanes) {
    const int64_t lanes = dim - at < kLanes ? dim - at : kLanes;
    Vec sum[kRows];
    for (int64_t r = 0; r < kRows; ++r) sum[r] = load(&w.sums[row + r][at]);
    for (int64_t i = 0; i < count; ++i) {
      const Vec v = load_n(head_of(args.v, first + i, head) + at, lanes);
      for (int64_t r = 0; r < kRows; ++r) sum[r] = fma(splat(w.scores[row + r][i]), v, sum[r]);
    }
    for (int64_t r = 0; r < kRows; ++r) store(&w.sums[row + r][at], sum[r]);
  }
}

struct Item {
  int64_t begin, end;    // the segment
  int64_t first, count;  // queries
  int64_t head;
};

void run(const SegmentAttnArgs& args, const Item& item, Work& w) {
  const int64_t dim = args.q.shape[2];
  const float factor = args.scale * 1.44269504f;
  for (int64_t r = 0; r < kQueries; ++r) {
    w.largest[r] = kNegInf;
    w.total[r] = 0;
    const int64_t row = item.first + (r < item.count ? r : 0);
    const float* q = head_of(args.q, row, item.head);
    for (int64_t d = 0; d < dim; ++d) w.q[r][d] = q[d] * factor;
    for (int64_t d = 0; d < kMaxDim; ++d) w.sums[r][d] = 0;
  }
  for (int64_t tile = item.begin; tile < item.end; tile += kTile) {
    const int64_t count = item.end - tile < kTile ? item.end - tile : kTile;
    transpose(args, item.head, tile, count, w);
    for (int64_t row = 0; row < item.count; row += kRows) {
      score(dim, row, w);
      for (int64_t r = 0; r < kRows; ++r) soften(dim, row + r, count, w);
      gather(args, item.head, tile, count, row, w);
    }
  }
  for (int64_t r = 0; r < item.count; ++r) {
    float* out = static_cast<float*>(args.out.data) + (item.first + r) * args.out.stride[0] +
                 item.head * args.out.stride[1];
    const Vec scale = splat(1.0f / w.total[r]);
    for_lanes(dim, [&](int64_t i, int64_t m) { store_n(out + i, load(&w.sums[r][i]) * scale, m); });
  }
}

}  // namespace

void segment_attention(Stream& stream, const SegmentAttnArgs& args) {
  const int64_t heads = args.q.shape[1];
  ISA_CHECK(args.q.shape[2] <= kMaxDim);
  const int32_t* bounds = args.host_bounds;
  int64_t blocks = 0;
  for (int s = 0; s < args.num_segments; ++s) {
    blocks += (bounds[s + 1] - bounds[s] + kQueries - 1) / kQueries;
  }
  stream.pool().for_each(blocks * heads, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    Work work;
    int segment = 0;
    int64_t before = 0;  // blocks of the segments before
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / heads;
      for (;; ++segment) {
        const int64_t here = (bounds[segment + 1] - bounds[segment] + kQueries - 1) / kQueries;
        if (block < before + here) break;
        before += here;
      }
      Item item{.begin = bounds[segment], .end = bounds[segment + 1], .head = i % heads};
      item.first = item.begin + (block - before) * kQueries;
      item.count = item.end - item.first < kQueries ? item.end - item.first : kQueries;
      run(args, item, work);
    }
  });
}

}  // namespace weft::WEFT_ISA_NS
