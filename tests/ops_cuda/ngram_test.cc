// extend_ngrams, propose_ngrams: CUDA against NgramMatcher.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "sched/ngram_matcher.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

struct Shape {
  int min_size, max_size, num_drafts, most_new;
};

/// Which keys the hash has. Of kUpperHalves every gram has tag 0, so that each question but the
/// luckiest is asked again with its gram; of kLowerHalves most have the same few buckets.
enum class Keys { kRandom, kUpperHalves, kLowerHalves };

GramKeys keys_of(Keys kind, uint64_t seed) {
  GramKeys keys(seed);
  for (uint64_t& key : keys.key) {
    if (kind == Keys::kUpperHalves) key &= ~uint64_t{0xffffffff};
    if (kind == Keys::kLowerHalves) key &= 0xffffffff;
  }
  return keys;
}

/// Texts on both sides, which change in the same steps. Tokens repeat in several ways.
class Twins {
 public:
  static constexpr int kSlots = 96;
  static constexpr int64_t kCapacity = 700;

  Twins(const Shape& shape, uint32_t seed, Keys keys) : shape_(shape), rng_(seed) {
    index_ = {.slots = kSlots,
              .capacity = kCapacity,
              .min_size = shape.min_size,
              .max_size = shape.max_size,
              .keys = keys_of(keys, seed)};
    memory_ = DeviceTensor(DType::kI32, {index_.bytes() / 4});
    memory_.poison();
    index_.memory = memory_.view.data;
    texts_.resize(kSlots);
  }

  int below(int n) { return static_cast<int>(rng_() % static_cast<uint32_t>(n)); }

  /// A new text in each of the slots, from 0 tokens on.
  void begin(const std::vector<int>& slots) {
    for (const int slot : slots) {
      Own& own = texts_[static_cast<size_t>(slot)];
      own = {.kind = below(4), .alphabet = 2 + below(49)};
      own.limit = below(4) == 0 ? kCapacity : 40 + below(kCapacity - 40);
      own.matcher = std::make_unique<NgramMatcher>(shape_.min_size, shape_.max_size, 0);
    }
    extend(slots, [&](int) { return below(4) == 0 ? below(4) : below(400); });
  }

  /// Tokens that the host knows.
  template <class Count>
  void extend(const std::vector<int>& slots, const Count& count_of) {
    std::vector<NgramText> jobs;
    std::vector<int32_t> tokens(1, -7);
    int64_t most = 0;
    bool any_new = false;
    for (const int slot : slots) {
      Own& own = texts_[static_cast<size_t>(slot)];
      const auto known = static_cast<int32_t>(own.text.size());
      const int count = std::min(count_of(slot), own.limit - known);
      jobs.push_back({slot, known, count, static_cast<int32_t>(tokens.size()), own.limit});
      for (int i = 0; i < count; ++i) tokens.push_back(next(own));
      append(own, std::span(tokens).last(static_cast<size_t>(count)));
      most = std::max<int64_t>(most, count);
      any_new |= known == 0;
    }
    const DeviceTensor jobs_d = upload_structs(jobs), tokens_d(tokens);
    cuda::extend_ngrams(stream_, {.index = index_,
                                  .texts = static_cast<const NgramText*>(jobs_d.view.data),
                                  .num_texts = static_cast<int>(jobs.size()),
                                  .any_new = any_new,
                                  .most_tokens = most,
                                  .tokens = tokens_d.view.ptr<int32_t>()});
    stream_.sync();
  }

  /// A step of all slots in a random order, some of which are left out.
  void step(bool with_others) {
    std::vector<int32_t> slots(kSlots), cu_q = {0}, next_ids, counts, behind, behind_counts;
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), rng_);
    for (int32_t& slot : slots) {
      Own& own = texts_[static_cast<size_t>(slot)];
      const int rows = below(shape_.most_new + 1);
      int count = below(3) == 0 ? rows : std::min(rows, below(4));
      if (below(10) == 0) slot = -1;
      counts.push_back(count);  // beyond the limit, too
      if (slot >= 0) count = std::min(count, own.limit - static_cast<int>(own.text.size()));
      const size_t first = next_ids.size();
      next_ids.resize(first + static_cast<size_t>(rows), -9);
      for (int i = 0; slot >= 0 && i < count; ++i) {
        next_ids[first + static_cast<size_t>(i)] = next(own);
      }
      if (slot >= 0) append(own, std::span(next_ids).subspan(first, static_cast<size_t>(count)));
      cu_q.push_back(static_cast<int32_t>(next_ids.size()));
      const int others = below(2) == 0 ? 0 : below(kOthers + 1);
      behind_counts.push_back(others);
      const size_t size = own.text.size();
      for (int i = 0; i < kOthers; ++i) behind.push_back(i < others ? next(own) : -3);
      own.text.resize(size);
    }
    next_ids.push_back(0);
    const DeviceTensor slots_d(slots), cu_q_d(cu_q), next_d(next_ids), counts_d(counts);
    DeviceTensor behind_d(behind), behind_counts_d(behind_counts);
    behind_d.view = TensorView(behind_d.view.data, DType::kI32, {kSlots, kOthers});
    DeviceTensor drafts(DType::kI32, {kSlots, shape_.num_drafts}), matched(DType::kI32, {kSlots}),
        lengths(DType::kI32, {kSlots});
    drafts.poison();
    matched.poison();
    lengths.poison();
    cuda::propose_ngrams(stream_, {.index = index_,
                                   .slots = slots_d.view,
                                   .cu_q = cu_q_d.view,
                                   .next_ids = next_d.view,
                                   .counts = counts_d.view,
                                   .most_tokens = shape_.most_new,
                                   .behind = with_others ? behind_d.view : TensorView(),
                                   .behind_counts = behind_counts_d.view,
                                   .drafts = drafts.view,
                                   .matched = matched.view,
                                   .lengths = lengths.view});
    stream_.sync();
    const auto got = download<int32_t>(drafts), got_matched = download<int32_t>(matched);
    const auto got_lengths = download<int32_t>(lengths);
    const auto num_drafts = static_cast<size_t>(shape_.num_drafts);
    std::vector<bool> asked(kSlots);
    for (size_t i = 0; i < kSlots; ++i) {
      if (slots[i] < 0) continue;
      const auto slot = static_cast<size_t>(slots[i]);
      asked[slot] = true;
      const auto mine = std::span(got).subspan(slot * num_drafts, num_drafts);
      std::vector<int32_t> want(num_drafts, -1);
      const Own& own = texts_[slot];
      const auto others = std::span(behind).subspan(
          i * kOthers, with_others ? static_cast<size_t>(behind_counts[i]) : 0);
      const NgramDraft found = own.matcher->propose(others, want);
      ++cases;
      matches += found.matched > 0 ? 1 : 0;
      const bool right =
          got_matched[slot] == found.matched && std::equal(want.begin(), want.end(), mine.begin());
      ASSERT_TRUE(right) << "a text of " << own.text.size() << " and " << others.size() << ": "
                         << got_matched[slot] << " matched instead of " << found.matched;
      ASSERT_EQ(got_lengths[slot], std::ssize(own.text));
    }
    for (size_t slot = 0; slot < kSlots; ++slot) {
      ASSERT_TRUE(asked[slot] || (got_matched[slot] == -1 && got_lengths[slot] == -1));
    }
  }

  int64_t cases = 0, matches = 0;

 private:
  static constexpr int kOthers = 9;
  struct Own {
    int kind = 0, alphabet = 2, limit = 0;
    std::vector<int32_t> text;
    std::unique_ptr<NgramMatcher> matcher;
  };

  int32_t next(Own& own) {
    int token = below(own.alphabet);
    if (own.kind == 1) token = static_cast<int>(own.alphabet * std::pow(below(10000) / 1e4, 4));
    const size_t period = static_cast<size_t>(1 + own.alphabet % 9);
    if (own.kind == 2 && own.text.size() >= period && below(40) > 0) {
      token = own.text[own.text.size() - period];
    }
    if (own.kind == 3) {  // large and negative ones
      token = static_cast<int32_t>(static_cast<uint32_t>(token - 1) * 0x3c6ef35fu);
    }
    own.text.push_back(token);
    return token;
  }
  static void append(Own& own, std::span<const int32_t> tokens) { own.matcher->append(tokens); }

  Shape shape_;
  std::mt19937 rng_;
  CudaTestStream stream_{int64_t{1} << 20};
  NgramIndex index_;
  DeviceTensor memory_;
  std::vector<Own> texts_;
};

void expect_equal(int64_t min_cases, int steps, Keys keys = Keys::kRandom) {
  int64_t cases = 0, matches = 0;
  const Shape shapes[] = {{1, 1, 1, 2},   {2, 5, 1, 2},  {1, 3, 4, 5},    {2, 5, 8, 9},
                          {2, 4, 15, 16}, {3, 8, 5, 6},  {1, 16, 15, 16}, {1, 64, 7, 16},
                          {2, 5, 32, 32}, {40, 64, 3, 4}};
  for (size_t i = 0; i < std::size(shapes); ++i) {
    SCOPED_TRACE("sizes from " + std::to_string(shapes[i].min_size) + " to " +
                 std::to_string(shapes[i].max_size));
    Twins twins(shapes[i], static_cast<uint32_t>(i), keys);
    std::vector<int> all(Twins::kSlots);
    std::iota(all.begin(), all.end(), 0);
    twins.begin(all);
    for (int step = 0; step < steps; ++step) {
      twins.step(step % 2 == 1);
      if (::testing::Test::HasFatalFailure()) return;
      if (step % 16 == 7) twins.begin({twins.below(Twins::kSlots / 2), Twins::kSlots / 2 + 1});
      if (step % 16 == 11) twins.extend({3, 50, 95}, [&](int) { return twins.below(80); });
    }
    cases += twins.cases;
    matches += twins.matches;
  }
  EXPECT_GE(cases, min_cases);
  EXPECT_GT(matches, cases / 2);
  EXPECT_LT(matches, cases);
  std::printf("%lld proposals, %lld of them with a match\n", static_cast<long long>(cases),
              static_cast<long long>(matches));
}

TEST(NgramTest, Small) {
  expect_equal(10 * 9 * 70, 10);
}

TEST(NgramTest, LikeTheMatcher) {
  expect_equal(100'000, 140);
}

TEST(NgramTest, SmallKeysDecideNothing) {
  expect_equal(10 * 9 * 70, 20, Keys::kUpperHalves);
  expect_equal(10 * 9 * 70, 20, Keys::kLowerHalves);
}

/// The whole of `text` into slot 0.
void extend(Stream& stream, const NgramIndex& index, const std::vector<int32_t>& text) {
  const auto limit = static_cast<int32_t>(index.capacity),
             count = static_cast<int32_t>(text.size());
  const DeviceTensor texts = upload_structs(std::vector<NgramText>{{0, 0, count, 0, limit}}),
                     tokens(text);
  cuda::extend_ngrams(stream, {.index = index,
                               .texts = static_cast<const NgramText*>(texts.view.data),
                               .num_texts = 1,
                               .any_new = true,
                               .most_tokens = count,
                               .tokens = tokens.view.ptr<int32_t>()});
}

// Of a text made for the hash that had no keys, whose pairs were all looked for from the first 16
// buckets of 1,537 on: full buckets side by side, which bound what a question reads.
TEST(NgramTest, SmallTextMadeForAHash) {
  std::mt19937 rng(1);
  std::vector<int32_t> text = {1};
  while (text.size() < 4096) {
    const auto token = static_cast<int32_t>(rng() % 1'000'000);
    uint32_t x = static_cast<uint32_t>(token) * 0x9e3779b1u + static_cast<uint32_t>(text.back());
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    if ((x ^ x >> 16) < 0xffffffffu / 1537 * 16) text.push_back(token);
  }
  CudaTestStream stream(int64_t{1} << 20);
  for (uint64_t seed = 1; seed < 11; ++seed) {
    NgramIndex index{
        .slots = 1, .capacity = 4096, .min_size = 2, .max_size = 2, .keys = GramKeys(seed)};
    const DeviceTensor memory(DType::kI32, {index.bytes() / 4});
    index.memory = memory.view.data;
    extend(stream, index, text);
    stream.sync();
    const auto words = download<int64_t>(memory);
    const auto* slot = words.data() + (NgramIndex::kHeadBytes + index.text_bytes()) / 8;
    int64_t longest = 0, run = 0;
    for (int64_t i = 0; i < NgramIndex::buckets(4096); ++i, slot += 4) {
      run = std::count(slot, slot + 4, 0) == 0 ? run + 1 : 0;
      longest = std::max(longest, run);
    }
    EXPECT_LT(longest, 40);  // 1,023 before
    EXPECT_GT(longest, 1);
  }
}

/// A text as long as one may be, and as many tokens behind it.
TEST(NgramTest, TheLongestText) {
  NgramIndex index{.slots = 1, .capacity = kMaxNgramText, .keys = GramKeys(1)};
  if (!has_free_memory(index.bytes() + 4 * kMaxNgramText)) GTEST_SKIP() << "needs memory";
  const DeviceTensor memory(DType::kI32, {(index.bytes() + 3) / 4});
  index.memory = memory.view.data;
  const auto limit = static_cast<int32_t>(kMaxNgramText);
  std::vector<int32_t> text(kMaxNgramText - 1);
  std::iota(text.begin(), text.end(), 0);
  CudaTestStream stream(int64_t{1} << 20);
  extend(stream, index, text);
  const auto one = [](int32_t value) { return DeviceTensor(std::vector<int32_t>{value}); };
  const DeviceTensor slots = one(0), next(std::vector<int32_t>{limit - 1, -5}), counts = one(2),
                     cu_q(std::vector<int32_t>{0, 2}), behind_counts = one(kMaxNgramTail),
                     drafts = one(0), matched = one(0), lengths = one(0);
  std::vector<int32_t> others(kMaxNgramTail, -7);
  others.back() = limit - 2;  // behind which stands the step's token, the last that fits
  for (const int32_t draft : {limit - 1, -7}) {
    DeviceTensor behind(others);
    const auto matrix = [](const DeviceTensor& tensor, int64_t columns) {
      return TensorView(tensor.view.data, DType::kI32, {1, columns});
    };
    cuda::propose_ngrams(stream, {.index = index,
                                  .slots = slots.view,
                                  .cu_q = cu_q.view,
                                  .next_ids = next.view,
                                  .counts = counts.view,
                                  .most_tokens = 2,
                                  .behind = matrix(behind, kMaxNgramTail),
                                  .behind_counts = behind_counts.view,
                                  .drafts = matrix(drafts, 1),
                                  .matched = matched.view,
                                  .lengths = lengths.view});
    stream.sync();
    EXPECT_EQ(download<int32_t>(drafts)[0], draft);
    EXPECT_EQ(download<int32_t>(matched)[0], draft == -7 ? kMaxNgramTail - 1 : 1);
    EXPECT_EQ(download<int32_t>(lengths)[0], limit);
    others.back() = -7;
  }
}

}  // namespace
}  // namespace weft
