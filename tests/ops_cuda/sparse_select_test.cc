// XAttention's selection on the GPU: every list against the oracle's scores, in double.

#include "tests/ops_cuda/attention_support.h"

namespace weft {
namespace {

struct Selection {
  Heads heads;
  int stride = 16, block_size = 64;
  std::vector<float> thresholds = {0.9f};  ///< of head h: [h % size]
  std::vector<HeadKind> kinds = {HeadKind::kBlocks};
  float norm = 1;
  int quirk_blocks = 0;
};

/// The words and counts of each piece's lists.
struct Lists {
  std::vector<std::vector<int32_t>> words, counts;
  std::vector<float> mass;  ///< of all
};

class SelectStep {
 public:
  SelectStep(const Selection& selection, std::vector<Piece> pieces)
      : s_(selection), pieces_(std::move(pieces)) {
    cu_q_ = {0};
    for (const Piece& piece : pieces_) {
      cu_q_.push_back(cu_q_.back() + piece.rows);
      starts_.push_back(piece.start);
      const int keys = piece.start + piece.rows;
      max_blocks_ = std::max(max_blocks_, round_up(keys, s_.block_size) / s_.block_size);
      words_ = std::max(words_, keys / HeadPlan::kBlock / 32 + 1);
      row_blocks_ = std::max(row_blocks_, piece.rows / HeadPlan::kBlock + 1);
    }
    num_blocks_ = max_blocks_ * static_cast<int64_t>(pieces_.size());
    for (int64_t i = 0; i < num_blocks_; ++i) {  // in falling order: no page follows its own
      table_.push_back(static_cast<int32_t>(num_blocks_ - 1 - i));
    }
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (int h = 0; h < s_.heads.q; ++h) {
        kinds_.push_back(static_cast<int32_t>(s_.kinds[static_cast<size_t>(h) % s_.kinds.size()]));
      }
    }
    for (int h = 0; h < s_.heads.q; ++h) {
      thresholds_.push_back(s_.thresholds[static_cast<size_t>(h) % s_.thresholds.size()]);
    }
  }

  Lists run() {
    const Heads& heads = s_.heads;
    const int64_t width = int64_t{heads.q} * heads.dim, num = segments();
    const KvShape shape{KvFormat::kBf16, heads.kv, heads.dim, s_.block_size};
    const int64_t block_bytes = cuda::kv_block_bytes(shape);
    DeviceTensor cache(DType::kBF16, {num_blocks_, block_bytes / 2}, cache_values(block_bytes / 2));
    DeviceTensor q(DType::kBF16, {rows() + 2, width}, q_values(2));
    DeviceTensor thresholds(DType::kF32, {heads.q}, thresholds_);
    DeviceTensor cu_q(cu_q_), starts(starts_), table(table_);
    DeviceTensor words(std::vector<int32_t>(static_cast<size_t>(num * lists() * words_), 0x5a5a));
    DeviceTensor counts(std::vector<int32_t>(static_cast<size_t>(num * lists()), 0x5a5a));
    HeadPlan plan = plan_of(nullptr, words.view.data, counts.view.data);
    AttnArgs args = common_args();
    args.heads = &plan;
    args.q = q.view.split_last(heads.q, heads.dim);
    args.kv = {shape, static_cast<std::byte*>(cache.view.data), block_bytes, num_blocks_};
    args.seqs.cu_q = cu_q.view;
    args.seqs.kv_start = starts.view;
    args.seqs.block_table = TensorView(table.view.data, DType::kI32, {num, max_blocks_});
    // The kinds of segment s stand in row 2 s + 1, garbage around them.
    std::vector<int32_t> rows_of, spread;
    for (int s = 0; s < num; ++s) {
      rows_of.push_back(2 * s + 1);
      spread.insert(spread.end(), static_cast<size_t>(heads.q), 77);
      spread.insert(spread.end(), kinds_.begin(), kinds_.begin() + heads.q);
    }
    DeviceTensor rows(rows_of), kinds(spread), mass(DType::kF32, {num, heads.q, row_blocks_});
    plan.rows = rows.view;
    plan.kinds = TensorView(kinds.view.data, DType::kI32, {2 * num, heads.q});
    SelectArgs select;
    select.attention = &args;
    select.stride = s_.stride;
    select.norm = s_.norm;
    select.thresholds = thresholds.view;
    select.quirk_blocks = s_.quirk_blocks;
    select.mass = mass.view;
    int longest = 0;
    for (const Piece& piece : pieces_) longest = std::max(longest, piece.start + piece.rows);
    CudaTestStream stream(
        cuda::select_blocks_scratch(args.shape, args.prompt_rows, longest, s_.stride));
    cuda::select_blocks(stream, select);
    stream.sync();
    Lists result;
    const auto copy = [&](const DeviceTensor& from, size_t s, int64_t size) {
      std::vector<int32_t> all(from.bytes().size() / 4);
      std::memcpy(all.data(), from.bytes().data(), all.size() * 4);
      return std::vector<int32_t>(all.begin() + static_cast<int64_t>(s) * size,
                                  all.begin() + static_cast<int64_t>(s + 1) * size);
    };
    for (size_t s = 0; s < pieces_.size(); ++s) {
      result.words.push_back(copy(words, s, lists() * words_));
      result.counts.push_back(copy(counts, s, lists()));
    }
    result.mass = mass.floats();
    return result;
  }

  /// Each list of run() against the oracle's scores.
  void check(const Lists& got) {
    const Heads& heads = s_.heads;
    const KvShape shape{KvFormat::kF32, heads.kv, heads.dim, s_.block_size};
    const int64_t block_bytes = ref::kv_block_bytes(shape);
    std::vector<std::byte> cache(static_cast<size_t>(num_blocks_ * block_bytes));
    HeadPlan plan = plan_of(kinds_.data(), nullptr, nullptr);
    AttnArgs args = common_args();
    args.heads = &plan;
    args.kv = {shape, cache.data(), block_bytes, num_blocks_};
    for_each_key([&](size_t s, int position, int32_t block) {
      const std::vector<float> k = token(pieces_[s].sequence, position, 1, heads.kv, heads.dim);
      const int64_t slot = int64_t{block} * s_.block_size + position % s_.block_size;
      for (int g = 0; g < heads.kv; ++g)
        ref::kv_store(args.kv, 0, slot, g, &k[size_t(g * heads.dim)]);
    });
    std::vector<float> q = q_values(0);
    args.q = TensorView(q.data(), DType::kF32, {rows(), heads.q, heads.dim});
    args.seqs.cu_q = TensorView(cu_q_.data(), DType::kI32, {segments() + 1});
    args.seqs.kv_start = TensorView(starts_.data(), DType::kI32, {segments()});
    args.seqs.block_table = TensorView(table_.data(), DType::kI32, {segments(), max_blocks_});
    SelectArgs select;
    select.attention = &args;
    select.stride = s_.stride;
    select.norm = s_.norm;
    int64_t equal = 0, all = 0;
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (int h = 0; h < heads.q; ++h) {
        for (int row = 0; row * HeadPlan::kBlock < pieces_[s].rows; ++row) {
          const auto list = static_cast<size_t>(h * row_blocks_ + row);
          const int32_t* words = &got.words[s][list * static_cast<size_t>(words_)];
          if (kinds_[static_cast<size_t>(h)] != static_cast<int32_t>(HeadKind::kBlocks)) {
            ASSERT_EQ(got.counts[s][list], 0x5a5a);
            ASSERT_EQ(words[0], 0x5a5a);
            continue;
          }
          const int b = pieces_[s].start / HeadPlan::kBlock + row;
          const auto scores = ref::block_scores(select, static_cast<int64_t>(s), h, b);
          const float threshold = thresholds_[static_cast<size_t>(h)];
          const bool quirk = b < s_.quirk_blocks;
          const auto want = ref::choose_blocks(scores, threshold, quirk);
          const size_t at = s * static_cast<size_t>(lists()) + list;
          if (!quirk) check_list(words, got.counts[s][list], scores, threshold);
          check_mass(words, scores, got.mass[at]);
          if (testing::Test::HasFatalFailure()) {
            ADD_FAILURE() << "segment " << s << " head " << h << " row " << row;
            return;
          }
          bool same = true;
          for (size_t c = 0; c < want.size(); ++c) {
            same = same && want[c] == ((words[c / 32] >> (c % 32) & 1) != 0);
          }
          equal += same ? 1 : 0;
          ++all;
        }
      }
    }
    EXPECT_GE(equal * 100, all * 98) << equal << " of " << all;  // the others are near-ties
  }

 private:
  void check_list(const int32_t* words, int count, const std::vector<double>& scores,
                  float threshold) const {
    const size_t b = scores.size() - 1;
    const double total = std::accumulate(scores.begin(), scores.end(), 0.0), near = 1e-4 * total;
    int bits = 0;
    double mass = 0, least = 1e9, best_left = 0;
    for (size_t c = 0; c < static_cast<size_t>(words_) * 32; ++c) {
      const bool set = (words[c / 32] >> (c % 32) & 1) != 0;
      bits += set ? 1 : 0;
      if (c > b) {
        ASSERT_FALSE(set) << c;
      } else if (set) {
        mass += scores[c];
        if (c != 0 && c != b) least = std::min(least, scores[c]);
      } else {
        ASSERT_TRUE(c != 0 && c != b) << c;
        best_left = std::max(best_left, scores[c]);
      }
    }
    ASSERT_EQ(bits, count);
    if (threshold >= 1) {
      ASSERT_EQ(bits, static_cast<int>(b + 1));
      return;
    }
    ASSERT_GE(mass, threshold * total - near);
    if (least < 1e9) {
      ASSERT_LT(mass - least, threshold * total + near);  // none too many
      ASSERT_GE(least, best_left - near);
    }
  }

  void check_mass(const int32_t* words, const std::vector<double>& scores, float mass) const {
    double kept = 0;
    for (size_t c = 0; c < scores.size(); ++c) {
      if ((words[c / 32] >> (c % 32) & 1) != 0) kept += scores[c];
    }
    ASSERT_NEAR(kept / std::accumulate(scores.begin(), scores.end(), 0.0), mass, 1e-4);
  }

  int64_t segments() const { return static_cast<int64_t>(pieces_.size()); }
  int64_t rows() const { return cu_q_.back(); }
  int64_t lists() const { return int64_t{s_.heads.q} * row_blocks_; }
  HeadPlan plan_of(void* kinds, void* words, void* counts) const {
    HeadPlan plan;
    plan.kinds = TensorView(kinds, DType::kI32, {segments(), s_.heads.q});
    plan.blocks = TensorView(words, DType::kI32, {segments(), s_.heads.q, row_blocks_, words_});
    plan.counts = TensorView(counts, DType::kI32, {segments(), s_.heads.q, row_blocks_});
    return plan;
  }
  AttnArgs common_args() const {
    AttnArgs args;
    const Heads& heads = s_.heads;
    args.shape = {heads.q, heads.kv, heads.dim, 1.0f / std::sqrt(static_cast<float>(heads.dim))};
    args.seqs.num_segments = args.num_prompt_segments = static_cast<int>(pieces_.size());
    args.seqs.host_cu_q = cu_q_.data();
    args.seqs.host_kv_start = starts_.data();
    args.prompt_rows = rows();
    return args;
  }
  template <class F>
  void for_each_key(const F& f) const {
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (int p = 0; p < pieces_[s].start + pieces_[s].rows; ++p) {
        f(s, p,
          table_[s * static_cast<size_t>(max_blocks_) + static_cast<size_t>(p / s_.block_size)]);
      }
    }
  }
  /// Device layout; all but the keys is NaN.
  std::vector<float> cache_values(int64_t block_elements) const {
    const Heads& heads = s_.heads;
    std::vector<float> values(static_cast<size_t>(num_blocks_ * block_elements), NAN);
    for_each_key([&](size_t s, int position, int32_t block) {
      const std::vector<float> k = token(pieces_[s].sequence, position, 1, heads.kv, heads.dim);
      for (int g = 0; g < heads.kv; ++g) {
        const int64_t at = block * block_elements +
                           (int64_t{g} * s_.block_size + position % s_.block_size) * heads.dim;
        std::copy_n(k.begin() + g * heads.dim, heads.dim, values.begin() + at);
      }
    });
    return values;
  }
  /// `more` rows of NaN follow.
  std::vector<float> q_values(int more) const {
    std::vector<float> values;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i) {
        const auto row = token(piece.sequence, piece.start + i, 0, s_.heads.q, s_.heads.dim);
        values.insert(values.end(), row.begin(), row.end());
      }
    }
    values.resize(values.size() + static_cast<size_t>(more * s_.heads.q * s_.heads.dim), NAN);
    return values;
  }

  Selection s_;
  std::vector<Piece> pieces_;
  std::vector<int32_t> cu_q_, starts_, table_, kinds_;
  std::vector<float> thresholds_;
  int max_blocks_ = 0, words_ = 1, row_blocks_ = 1;
  int64_t num_blocks_ = 0;
};

Lists check(const Selection& selection, const std::vector<Piece>& pieces) {
  SelectStep step(selection, pieces);
  Lists lists = step.run();
  step.check(lists);
  return lists;
}

TEST(SparseSelect, SmallAgainstOracle) {
  check({.heads = {2, 1, 64}}, {{1, 0, 1}, {2, 0, 0}, {3, 128, 70}, {4, 0, 300}});
}

TEST(SparseSelect, StridesAgainstOracle) {
  for (const int stride : {4, 8, 16}) {
    // A small norm makes the softmax peaked: few blocks hold the mass.
    check({.heads = {4, 2, 128}, .stride = stride, .thresholds = {0.9f, 0.5f, 0.99f}, .norm = 0.2f},
          {{1, 0, 1283}, {2, 1024, 400}, {3, 0, 15}, {4, 256, 17}});
  }
}

TEST(SparseSelect, DimensionsAgainstOracle) {
  check({.heads = {2, 2, 256}, .block_size = 16, .norm = 0.3f}, {{1, 384, 520}});
  check({.heads = {3, 1, 80}, .stride = 8, .block_size = 128, .norm = 0.3f}, {{1, 0, 700}});
}

TEST(SparseSelect, LongAgainstOracle) {  // several tiles of groups both ways, words and bands
  check({.heads = {2, 1, 64}, .stride = 4, .norm = 0.1f}, {{1, 4096, 1300}});
}

TEST(SparseSelect, OtherHeadsAreLeftAlone) {
  check({.heads = {4, 2, 64},
         .kinds = {HeadKind::kFull, HeadKind::kBlocks, HeadKind::kStreaming, HeadKind::kBlocks}},
        {{1, 0, 400}});
}

TEST(SparseSelect, ThresholdOneChoosesAll) {
  check({.heads = {2, 1, 64}, .thresholds = {1.0f, 0.0f}}, {{1, 0, 900}});
}

TEST(SparseSelect, PublishedCodesFirstChunk) {
  for (const float threshold : {0.5f, 0.9f, 1.0f}) {
    check({.heads = {4, 2, 64}, .thresholds = {threshold}, .norm = 0.2f, .quirk_blocks = 9},
          {{1, 0, 1500}, {2, 0, 3}, {3, 640, 700}});
  }
}

TEST(SparseSelect, SameListsInChunksAndCompany) {
  const Selection selection{.heads = {4, 2, 128}, .norm = 0.2f};
  const Lists whole = SelectStep(selection, {{1, 0, 1500}}).run();
  const Lists parts = SelectStep(selection, {{7, 0, 90}, {1, 640, 860}, {8, 128, 1300}}).run();
  const int whole_rows = 1500 / 128 + 1, part_rows = 1300 / 128 + 1;
  for (int h = 0; h < 4; ++h) {
    for (int row = 0; row * 128 < 860; ++row) {
      const auto a = static_cast<size_t>(h * whole_rows + row + 5);
      const auto b = static_cast<size_t>(h * part_rows + row);
      EXPECT_EQ(whole.words[0][a], parts.words[1][b]) << h << " " << row;
      EXPECT_EQ(whole.counts[0][a], parts.counts[1][b]);
    }
  }
}

}  // namespace
}  // namespace weft
