// extend_ngrams, propose_ngrams: the n-gram matcher with the texts on the device
// (kernels/ngram_args.h). Bytes of a step, a sequence: a 32-byte bucket a size and new token, a
// match of 64 tokens and the drafts. Bound by the chain of loads that need each other: the
// segment, its head, the buckets, the match. docs/kernels/sampler_cuda.md

#include <algorithm>
#include <iterator>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

constexpr int kSlotsInBucket = 4;
constexpr int kMostWarps = 8;
constexpr int kSizeShift = 25;  // of what stands above an end where longer matches win

static_assert(kMaxNgramText + kMaxNgramTail <= int64_t{1} << kSizeShift &&
              kMaxNgram < 1 << (32 - kSizeShift) && kMaxNgram == std::size(GramKeys().key));

/// What a step needs of a text at once.
struct Head {
  int32_t length;
  int32_t limit;
  int32_t tail[kMaxNgram];  // the last tokens; of a shorter text the last of these
};
static_assert(sizeof(Head) <= NgramIndex::kHeadBytes);

struct Index {
  std::byte *heads, *slots;
  int64_t text_bytes, slot_bytes;
  int min_size, num_sizes;

  __device__ Head* head(int64_t slot) const {
    return reinterpret_cast<Head*>(heads + slot * NgramIndex::kHeadBytes);
  }
  __device__ int32_t* text(int64_t slot) const {
    return reinterpret_cast<int32_t*>(slots + slot * slot_bytes);
  }
  /// The tables of all sizes, each of as many buckets.
  __device__ unsigned long long* tables(int64_t slot) const {
    return reinterpret_cast<unsigned long long*>(slots + slot * slot_bytes + text_bytes);
  }
};

Index index_of(const NgramIndex& index) {
  CHECK(1 <= index.min_size && index.min_size <= index.max_size && index.max_size <= kMaxNgram &&
            0 < index.capacity && index.capacity <= kMaxNgramText && index.keys.key[0] != 0,
        "an index of n-grams");
  auto* const memory = static_cast<std::byte*>(index.memory);
  return {.heads = memory,
          .slots = memory + index.slots * NgramIndex::kHeadBytes,
          .text_bytes = index.text_bytes(),
          .slot_bytes = index.slot_bytes(),
          .min_size = index.min_size,
          .num_sizes = index.max_size - index.min_size + 1};
}

__device__ __forceinline__ uint32_t num_buckets(int32_t limit) {
  return static_cast<uint32_t>(limit) * 3u / 8 + 1;
}

/// Tokens that lie in memory and tokens behind them.
struct Text {
  const int32_t* known;
  const int32_t* behind;
  int32_t num_known;
  __device__ int32_t at(int32_t i) const {
    return i < num_known ? known[i] : behind[i - num_known];
  }
};

__device__ bool grams_equal(const Text& text, int32_t a, int32_t b, int size) {
  bool equal = true;
#pragma unroll 4
  for (int i = 1; i <= size; ++i) equal &= text.at(a - i) == text.at(b - i);
  return equal;
}

/// A gram's hash: where it is looked for, and what its slot shows of it.
struct Hash {
  uint64_t sum = 0;
  __device__ void add(uint64_t key, int32_t token) { sum = add_to_gram(sum, key, token); }
  /// The `size` <= `most` tokens before `back`, in shared memory as the keys are; those before them
  /// can be read.
  __device__ static Hash before(const int32_t* back, const uint64_t* keys, int size, int most) {
    Hash hash;
#pragma unroll 1
    for (int i = 0; i < most; i += 4) {
#pragma unroll
      for (int j = i; j < i + 4; ++j) {
        const int32_t token = back[-1 - j];
        const uint64_t key = keys[j];
        if (j < size) hash.add(key, token);
      }
    }
    return hash;
  }
  __device__ uint32_t bucket(uint32_t buckets) const {
    return __umulhi(gram_place(sum), buckets);
  }
  __device__ uint32_t tag() const {
    return static_cast<uint32_t>(sum);
  }
};

/// A table of open addressing: slots of a gram's tag and its latest end, 0 where there is none. A
/// slot keeps its gram, so what others put meanwhile misleads nobody.
struct Table {
  unsigned long long* slots;
  uint32_t buckets;

  __device__ static uint32_t tag(unsigned long long slot) {
    return static_cast<uint32_t>(slot >> 32);
  }
  __device__ static int32_t end(unsigned long long slot) { return static_cast<int32_t>(slot); }
  __device__ void load(uint32_t bucket, unsigned long long (&out)[kSlotsInBucket]) const {
    const auto* from = reinterpret_cast<const ulonglong2*>(slots + bucket * kSlotsInBucket);
    const ulonglong2 a = __ldcg(from), b = __ldcg(from + 1);
    out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y;
  }

  /// A question whose first bucket is on its way.
  struct Question {
    Hash hash;
    uint32_t bucket = 0;
    unsigned long long there[kSlotsInBucket] = {};
  };
  __device__ Question ask(const Hash& hash) const {
    Question question{.hash = hash, .bucket = hash.bucket(buckets)};
    load(question.bucket, question.there);
    return question;
  }
  /// The end in the first slot of the tag for which `is_gram(end)`, or 0.
  template <class IsGram>
  __device__ int32_t answer(Question& question, const IsGram& is_gram) const {
    for (;;) {
#pragma unroll
      for (const unsigned long long slot : question.there) {
        if (slot == 0) return 0;
        if (tag(slot) == question.hash.tag() && is_gram(end(slot))) return end(slot);
      }
      question.bucket = question.bucket + 1 == buckets ? 0 : question.bucket + 1;
      load(question.bucket, question.there);
    }
  }

  /// The gram of `size` tokens ends at `at`, too.
  __device__ void put(const Hash& hash, const Text& text, int32_t at, int size) const {
    const auto mine = static_cast<unsigned long long>(hash.tag()) << 32 | static_cast<uint32_t>(at);
    for (uint32_t bucket = hash.bucket(buckets);;) {
      unsigned long long there[kSlotsInBucket];
      load(bucket, there);
#pragma unroll
      for (int i = 0; i < kSlotsInBucket; ++i) {
        unsigned long long* const slot = slots + bucket * kSlotsInBucket + i;
        if (there[i] == 0) {
          there[i] = atomicCAS(slot, 0ull, mine);
          if (there[i] == 0) return;
        }
        if (tag(there[i]) != hash.tag() || !grams_equal(text, end(there[i]), at, size)) continue;
        if (end(there[i]) < at) atomicMax(slot, mine);
        return;
      }
      bucket = bucket + 1 == buckets ? 0 : bucket + 1;
    }
  }
};

__global__ void clear_kernel(Index index, const NgramText* texts) {
  const NgramText job = texts[blockIdx.y];
  if (job.known > 0) return;
  auto* const at = reinterpret_cast<uint4*>(index.tables(job.slot));
  const int64_t count = int64_t{num_buckets(job.limit)} * index.num_sizes * 2;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    at[i] = uint4{0, 0, 0, 0};
  }
}

/// A thread an end and size. The last ends come first: where a text repeats itself, the others find
/// a later one there and leave it.
__global__ void extend_kernel(Index index, const __grid_constant__ GramKeys keys,
                              const NgramText* texts, const int32_t* tokens) {
  const NgramText job = texts[blockIdx.z];
  const int32_t back = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  const int32_t length = job.known + job.count, end = length - 1 - back;
  int32_t* const kept = index.text(job.slot);
  const Text text{kept, tokens + job.first, job.known};
  if (blockIdx.y == 0) {
    Head* const head = index.head(job.slot);
    if (back < kMaxNgram) head->tail[kMaxNgram - 1 - back] = end >= 0 ? text.at(end) : 0;
    if (back == 0) head->length = length, head->limit = job.limit;
    if (end >= job.known) kept[end] = text.at(end);
  }
  const int size = index.min_size + static_cast<int>(blockIdx.y);
  if (end < job.known || end < size) return;
  Hash hash;
  for (int i = 1; i <= size; ++i) hash.add(keys.key[i - 1], text.at(end - i));
  const uint32_t buckets = num_buckets(job.limit);
  const Table table{index.tables(job.slot) + int64_t{blockIdx.y} * buckets * kSlotsInBucket,
                    buckets};
  table.put(hash, text, end, size);
}

struct Params {
  Index index;
  const int32_t *slots, *cu_q, *next_ids, *counts;
  const int32_t *behind, *behind_counts;
  int64_t behind_stride;
  int32_t *drafts, *matched, *lengths;
  int num_drafts;
  GramKeys keys;
};

/// A segment's text, what is new and what another source put behind it.
struct Segment {
  int32_t slot;
  const int32_t* recent;  // shared memory, from kMaxNgram tokens before the known text's end on
  const uint64_t* keys;   // there, too
  Text text;
  unsigned long long* tables;
  uint32_t buckets;
  int32_t length;  // with all that is new

  __device__ Table table(int which) const {
    return {tables + int64_t{which} * buckets * kSlotsInBucket, buckets};
  }
  __device__ const int32_t* before(int32_t end) const {
    return recent + kMaxNgram + (end - text.num_known);
  }
  __device__ Hash hash(int32_t end, int size, int most) const {
    return Hash::before(before(end), keys, size, most);
  }
  /// The greatest size whose last tokens also end at `end`, one of the new ends.
  __device__ int run(int32_t end, int most) const {
    const int32_t *a = before(end), *b = before(length);
    int same = 0;
    while (same < most && same < end && a[-1 - same] == b[-1 - same]) ++same;
    return same;
  }
};

/// What wins: a longer match, then a later end.
__device__ uint32_t rank(int size, int32_t end) {
  return end > 0 ? static_cast<uint32_t>(size) << kSizeShift | static_cast<uint32_t>(end) : 0;
}

/// The best of all sizes but the first `skipped`, a lane a size.
template <class IsGram>
__device__ uint32_t best_in_tables(const Params& p, const Segment& segment, int skipped,
                                   const IsGram& is_gram) {
  uint32_t best = 0;
  for (int i = skipped + static_cast<int>(threadIdx.x); i < p.index.num_sizes; i += 32) {
    const int size = p.index.min_size + i;
    if (size >= segment.length) break;
    const Table table = segment.table(i);
    Table::Question question = table.ask(segment.hash(segment.length, size, size));
    best = max(best,
               rank(size, table.answer(question, [&](int32_t end) { return is_gram(end, size); })));
  }
  return best;
}

/// The first warp.
__device__ void propose(const Params& p, const Segment& segment) {
  constexpr auto kAll = 0xffffffffu;
  const auto all = [](auto...) { return true; };
  const int lane = static_cast<int>(threadIdx.x);
  const int32_t length = segment.length;
  const int32_t* const back = segment.before(length);
  const int most = p.index.min_size + p.index.num_sizes - 1, own = p.index.min_size + lane;
  // A tag is believed until the match, which has to be read anyway, says otherwise.
  const Table table = segment.table(lane);
  const bool asks = own <= most && own < length;
  Table::Question question;
  if (asks) question = table.ask(segment.hash(length, own, most));
  uint32_t recent = 0;
  for (int32_t end = segment.text.num_known + lane; end < length; end += 32) {
    const int size = segment.run(end, most);
    if (size >= p.index.min_size) recent = max(recent, rank(size, end));
  }
  uint32_t best = asks ? rank(own, table.answer(question, all)) : 0;
  if (p.index.num_sizes > 32) best = max(best, best_in_tables(p, segment, 32, all));
  for (bool sure = false;; sure = true) {
    best = __reduce_max_sync(kAll, max(best, recent));
    const int size = static_cast<int>(best >> kSizeShift);
    const auto end = static_cast<int32_t>(best & ((1u << kSizeShift) - 1));
    if (size == 0) {
      if (lane == 0) p.matched[segment.slot] = 0;
      return;
    }
    bool same[kMaxNgram / 32];
#pragma unroll
    for (int i = 0; i < kMaxNgram / 32; ++i) {
      const int j = i * 32 + lane;
      same[i] = j < end && segment.text.at(end - 1 - j) == back[-1 - j];
    }
    const int32_t draft = lane < p.num_drafts ? segment.text.at(end + lane % (length - end)) : 0;
    int matched = 0;
#pragma unroll
    for (int i = 0; i < kMaxNgram / 32; ++i) {
      const unsigned differs = ~__ballot_sync(kAll, same[i]);
      if (matched == i * 32) matched += differs == 0 ? 32 : __ffs(static_cast<int>(differs)) - 1;
    }
    if (sure || matched >= size) {
      if (lane == 0) p.matched[segment.slot] = matched;
      if (lane < p.num_drafts) p.drafts[int64_t{segment.slot} * p.num_drafts + lane] = draft;
      return;
    }
    best = best_in_tables(p, segment, 0, [&](int32_t at, int of_size) {
      return grams_equal(segment.text, at, length, of_size);
    });
  }
}

/// A block has a segment; its first warp asks, the others put the new ends and the text there. Both
/// may look at a slot at once: an end among the new ones is found without the tables.
__global__ void __launch_bounds__(32 * kMostWarps)
    propose_kernel(const __grid_constant__ Params p) {
  __shared__ int32_t recent[kMaxNgram + 2 * kMaxNgramTail];
  __shared__ uint64_t keys[kMaxNgram];
  let_successor_begin();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (thread < kMaxNgram) keys[thread] = p.keys.key[thread];
  wait_for_predecessor();
  const int64_t n = blockIdx.x;
  const int32_t slot = p.slots[n], first = p.cu_q[n];
  int32_t count = p.counts[n];
  const int32_t others = p.behind_counts != nullptr ? p.behind_counts[n] : 0;
  if (slot < 0) return;
  Head* const head = p.index.head(slot);
  const int32_t known = head->length, limit = head->limit;
  const int32_t token = lane < count ? p.next_ids[first + lane] : 0;
  const int32_t other = lane < others ? p.behind[n * p.behind_stride + lane] : 0;
  const int32_t tail = thread < kMaxNgram ? head->tail[thread] : 0;
  count = min(count, limit - known);
  if (thread < kMaxNgram) recent[thread] = tail;
  if (thread < 32) {
    if (lane < count) recent[kMaxNgram + lane] = token;
  } else if (thread < 64 && lane < others) {
    recent[kMaxNgram + count + lane] = other;
  }
  __syncthreads();

  int32_t* const kept = p.index.text(slot);
  const Segment segment{.slot = slot,
                        .recent = recent,
                        .keys = keys,
                        .text = {kept, recent + kMaxNgram, known},
                        .tables = p.index.tables(slot),
                        .buckets = num_buckets(limit),
                        .length = known + count + others};
  if (thread < 32) return propose(p, segment);

  const int most = p.index.min_size + p.index.num_sizes - 1;
  for (int i = thread - 32; i < p.index.num_sizes * count; i += static_cast<int>(blockDim.x) - 32) {
    const int which = i % p.index.num_sizes, size = p.index.min_size + which;
    const int32_t end = known + i / p.index.num_sizes;
    if (end < size) continue;
    segment.table(which).put(segment.hash(end, size, most), segment.text, end, size);
  }
  if (thread < 64 && lane < count) kept[known + lane] = token;
  if (thread == 32) p.lengths[slot] = known + count;
  if (count <= 0) return;
  for (int i = thread - 32; i < kMaxNgram; i += static_cast<int>(blockDim.x) - 32) {
    head->tail[i] = recent[count + i];
  }
  if (thread == 32) head->length = known + count;
}

}  // namespace

void extend_ngrams(Stream& stream, const ExtendNgramsArgs& args) {
  if (args.num_texts == 0) return;
  const Index index = index_of(args.index);
  const auto texts = static_cast<unsigned>(args.num_texts);
  if (args.any_new) {
    const unsigned blocks = std::clamp(4u * 132 / texts, 1u, 128u);
    launch(stream, {.grid = dim3(blocks, texts), .block = 256}, clear_kernel, index, args.texts);
  }
  const int64_t threads = std::max<int64_t>(args.most_tokens, kMaxNgram);
  const dim3 grid(static_cast<unsigned>((threads + 255) / 256),
                  static_cast<unsigned>(index.num_sizes), texts);
  launch(stream, {.grid = grid, .block = 256}, extend_kernel, index, args.index.keys, args.texts,
         args.tokens);
}

void propose_ngrams(Stream& stream, const ProposeNgramsArgs& args) {
  const int64_t segments = args.slots.dim(0), num_drafts = args.drafts.dim(1);
  if (segments == 0) return;
  CHECK(args.cu_q.dim(0) == segments + 1 && args.counts.dim(0) == segments &&
            args.drafts.dim(0) == args.index.slots && args.matched.dim(0) == args.index.slots &&
            args.lengths.dim(0) == args.index.slots && args.drafts.stride[0] == num_drafts &&
            num_drafts <= kMaxNgramTail,
        "propose_ngrams: shapes");
  Params params{.index = index_of(args.index),
                .slots = args.slots.ptr<int32_t>(),
                .cu_q = args.cu_q.ptr<int32_t>(),
                .next_ids = args.next_ids.ptr<int32_t>(),
                .counts = args.counts.ptr<int32_t>(),
                .behind = nullptr,
                .behind_counts = nullptr,
                .behind_stride = 0,
                .drafts = args.drafts.ptr<int32_t>(),
                .matched = args.matched.ptr<int32_t>(),
                .lengths = args.lengths.ptr<int32_t>(),
                .num_drafts = static_cast<int>(num_drafts),
                .keys = args.index.keys};
  if (args.behind.defined()) {
    CHECK(args.behind.dim(0) == segments && args.behind.dim(1) <= kMaxNgramTail &&
              args.behind_counts.dim(0) == segments,
          "propose_ngrams: shapes");
    params.behind = args.behind.ptr<int32_t>();
    params.behind_stride = args.behind.stride[0];
    params.behind_counts = args.behind_counts.ptr<int32_t>();
  }
  const int items = params.index.num_sizes * std::max(args.most_tokens, 1);
  const int warps = std::clamp(1 + (items + 31) / 32, 2, kMostWarps);
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(segments)),
          .block = dim3(static_cast<unsigned>(32 * warps)),
          .overlap = true},
         propose_kernel, params);
}

}  // namespace weft::cuda
