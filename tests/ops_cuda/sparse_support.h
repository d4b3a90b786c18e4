#pragma once

// XAttention's selection and the router of Elastic-Attention, on the GPU and on the oracle.

#include <climits>
#include <memory>
#include <numeric>
#include <vector>

#include "tests/ops_cuda/attention_support.h"

namespace weft {

struct Selection {
  Heads heads;
  int stride = 16, block_size = 64;
  std::vector<float> thresholds = {0.9f};  ///< of head h: [h % size]
  std::vector<HeadKind> kinds = {HeadKind::kBlocks};
  float norm = 1;
  int quirk_blocks = 0;
  int rotate = 0;      ///< kv head g, and its query heads, are those of kv head g + rotate
  uint64_t order = 0;  ///< of the pages; 0: falling, no page follows its own
  float q_scale = 1;
  int64_t q_gap = 0, page_gap = 0;  ///< unused elements after each row of q, and each page
  int nan_from = INT_MAX;           ///< keys and rows of q from this position on are NaN
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
    for (int64_t i = 0; i < num_blocks_; ++i) {
      table_.push_back(static_cast<int32_t>(num_blocks_ - 1 - i));
    }
    for (size_t i = table_.size(); s_.order > 0 && i > 1; --i) {
      std::swap(table_[i - 1], table_[philox4x32(s_.order, i, 0)[0] % i]);
    }
    const auto of_head = [&](const auto& values, int h) {
      const int from = (h + s_.rotate * (s_.heads.q / s_.heads.kv)) % s_.heads.q;
      return values[static_cast<size_t>(from) % values.size()];
    };
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (int h = 0; h < s_.heads.q; ++h) {
        kinds_.push_back(static_cast<int32_t>(of_head(s_.kinds, h)));
      }
    }
    for (int h = 0; h < s_.heads.q; ++h) thresholds_.push_back(of_head(s_.thresholds, h));
  }

  Lists run() {
    const Heads& heads = s_.heads;
    const int64_t width = int64_t{heads.q} * heads.dim, num = segments();
    const KvShape shape{KvFormat::kBf16, heads.kv, heads.dim, s_.block_size};
    const int64_t block_elements = cuda::kv_block_bytes(shape) / 2;
    const int64_t block_bytes = (block_elements + s_.page_gap) * 2;
    DeviceTensor cache =
        spread_rows(cache_values(block_elements), num_blocks_, block_elements + s_.page_gap);
    DeviceTensor q = spread_rows(q_values(2), rows() + 2, width + s_.q_gap);
    DeviceTensor thresholds(DType::kF32, {heads.q}, thresholds_);
    DeviceTensor cu_q(cu_q_), starts(starts_), table(table_);
    DeviceTensor words(std::vector<int32_t>(static_cast<size_t>(num * lists() * words_), 0x5a5a));
    DeviceTensor counts(std::vector<int32_t>(static_cast<size_t>(num * lists()), 0x5a5a));
    HeadPlan plan = plan_of(nullptr, words.view.data, counts.view.data);
    AttnArgs args = common_args();
    args.heads = &plan;
    args.q = q.view.columns(0, width).split_last(heads.q, heads.dim);
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
    Agreement with;
    compare(got, with);
    EXPECT_GE(with.equal * 100, with.all * 98) << with.equal << " of " << with.all;
  }
  /// Lists, and those of them that are the oracle's: the others are near-ties. All have the
  /// properties of a list.
  struct Agreement {
    int64_t equal = 0, all = 0;
  };
  void compare(const Lists& got, Agreement& with) {
    const Heads& heads = s_.heads;
    const KvShape shape{KvFormat::kF32, heads.kv, heads.dim, s_.block_size};
    const int64_t block_bytes = ref::kv_block_bytes(shape);
    std::vector<std::byte> cache(static_cast<size_t>(num_blocks_ * block_bytes));
    HeadPlan plan = plan_of(kinds_.data(), nullptr, nullptr);
    AttnArgs args = common_args();
    args.heads = &plan;
    args.kv = {shape, cache.data(), block_bytes, num_blocks_};
    for_each_key([&](size_t s, int position, int32_t block) {
      const std::vector<float> k = numbers(pieces_[s], position, 1);
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
          check_list(words, got.counts[s][list], scores, threshold, quirk);
          check_mass(words, scores, got.mass[at]);
          if (testing::Test::HasFatalFailure()) {
            ADD_FAILURE() << "segment " << s << " head " << h << " row " << row;
            return;
          }
          bool same = true;
          for (size_t c = 0; c < want.size(); ++c) {
            same = same && want[c] == ((words[c / 32] >> (c % 32) & 1) != 0);
          }
          with.equal += same ? 1 : 0;
          ++with.all;
        }
      }
    }
  }

 private:
  /// The published code's first chunk (`quirk`) takes more blocks than need be.
  void check_list(const int32_t* words, int count, const std::vector<double>& scores,
                  float threshold, bool quirk) const {
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
    if (least < 1e9 && !quirk) {
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
  /// As token(), with the selection's order of heads, scale and NaN.
  std::vector<float> numbers(const Piece& piece, int position, int plane) const {
    const int heads = plane == 0 ? s_.heads.q : s_.heads.kv;
    auto row = rotated(token(piece.sequence, position, plane, heads, s_.heads.dim), heads,
                       s_.rotate * (heads / s_.heads.kv));
    if (plane == 0) {
      for (float& x : row) x *= s_.q_scale;
    }
    if (position >= s_.nan_from) row.assign(row.size(), NAN);
    return row;
  }
  bool is_listed(int h) const {
    return kinds_[static_cast<size_t>(h)] == static_cast<int32_t>(HeadKind::kBlocks);
  }
  /// Device layout; all but the keys of kv heads with lists is NaN.
  std::vector<float> cache_values(int64_t block_elements) const {
    const Heads& heads = s_.heads;
    const int group = heads.q / heads.kv;
    std::vector<float> values(static_cast<size_t>(num_blocks_ * block_elements), NAN);
    for_each_key([&](size_t s, int position, int32_t block) {
      const std::vector<float> k = numbers(pieces_[s], position, 1);
      for (int g = 0; g < heads.kv; ++g) {
        bool listed = false;
        for (int h = g * group; h < (g + 1) * group; ++h) listed = listed || is_listed(h);
        if (!listed) continue;
        const int64_t at = block * block_elements +
                           (int64_t{g} * s_.block_size + position % s_.block_size) * heads.dim;
        std::copy_n(k.begin() + g * heads.dim, heads.dim, values.begin() + at);
      }
    });
    return values;
  }
  /// Heads without lists are NaN, and `more` rows that follow.
  std::vector<float> q_values(int more) const {
    std::vector<float> values;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i) {
        auto row = numbers(piece, piece.start + i, 0);
        for (int h = 0; h < s_.heads.q; ++h) {
          if (!is_listed(h)) std::fill_n(row.begin() + h * s_.heads.dim, s_.heads.dim, NAN);
        }
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

struct Router {
  int dim = 128, kv_heads = 8, group = 4;
  float bias[2] = {0, 0};  ///< of the last layer
  HeadKind retrieval = HeadKind::kBlocks, sparse = HeadKind::kStreaming;
  bool zero_last = false;  ///< the last layer gives `bias`, whatever comes
  bool poisoned = false;   ///< rows that are of neither end of their segment are NaN
};

/// `lengths`: rows of the segments; the keys of a segment are drawn from its length.
class Routing {
 public:
  Routing(const Router& router, std::vector<int> lengths) : r_(router), lengths_(lengths) {
    cu_q_ = {0};
    for (const int rows : lengths_) {
      cu_q_.push_back(cu_q_.back() + rows);
      const auto part =
          random_bf16(int64_t{rows} * r_.kv_heads * r_.dim, static_cast<uint64_t>(rows) + 17, 3);
      k_.insert(k_.end(), part.begin(), part.end());
      const int64_t width = int64_t{r_.kv_heads} * r_.dim, ends = RouterArgs::kPooled;
      if (r_.poisoned && rows > 2 * ends) {
        std::fill(k_.end() - (rows - ends) * width, k_.end() - ends * width, NAN);
      }
    }
    const int dims[5][2] = {{4 * r_.dim, r_.dim},
                            {r_.dim, 4 * r_.dim},
                            {4 * r_.dim, r_.dim},
                            {r_.dim, 4 * r_.dim},
                            {2, r_.dim}};
    for (uint64_t i = 0; i < 5; ++i) {
      n_[i] = dims[i][0];
      weights_[i] = random_bf16(int64_t{dims[i][0]} * dims[i][1], 100 + i,
                                4 / std::sqrt(static_cast<float>(dims[i][1])));
      bias_[i] = random_bf16(dims[i][0], 200 + i, 0.5f);
    }
    if (r_.zero_last) {
      std::fill(weights_[4].begin(), weights_[4].end(), 0.0f);
      std::fill(bias_[4].begin(), bias_[4].end(), 0.0f);
    }
    for (size_t i = 0; i < 2; ++i) bias_[4][i] += r_.bias[i];
    norm_ = random_bf16(r_.dim, 300, 1);
  }

  void oracle() {
    RouterArgs args = common_args();
    args.k = TensorView(k_.data(), DType::kF32, {cu_q_.back(), r_.kv_heads, r_.dim});
    args.cu_q = TensorView(cu_q_.data(), DType::kI32, {static_cast<int64_t>(cu_q_.size())});
    args.k_norm = TensorView(norm_.data(), DType::kF32, {r_.dim});
    for (size_t i = 0; i < 5; ++i) {
      set(args.weights, i, TensorView(weights_[i].data(), DType::kF32, {n_[i], columns(i)}),
          TensorView(bias_[i].data(), DType::kF32, {n_[i]}));
    }
    logits.assign(lengths_.size() * static_cast<size_t>(r_.kv_heads) * 2, -7);
    kinds.assign(lengths_.size() * static_cast<size_t>(r_.kv_heads * r_.group), 99);
    args.logits = TensorView(logits.data(), DType::kF32, {segments(), r_.kv_heads, 2});
    args.kinds = TensorView(kinds.data(), DType::kI32, {segments(), r_.kv_heads * r_.group});
    ThreadPool pool(1);
    Arena scratch;
    Stream stream(pool, scratch);
    ref::route_heads(stream, args);
  }
  void run() {
    RouterArgs args = common_args();
    const int64_t width = r_.kv_heads * r_.dim;
    std::vector<float> rows = k_;  // two of nobody follow
    rows.resize(rows.size() + static_cast<size_t>(2 * width), NAN);
    DeviceTensor k = spread_rows(rows, cu_q_.back() + 2, width + 64);
    DeviceTensor cu_q(cu_q_), norm(DType::kF32, {r_.dim}, norm_);
    args.k = k.view.columns(0, width).split_last(r_.kv_heads, r_.dim);
    args.cu_q = cu_q.view;
    args.k_norm = norm.view;
    std::vector<std::unique_ptr<DeviceTensor>> owned;
    for (size_t i = 0; i < 5; ++i) {
      owned.push_back(std::make_unique<DeviceTensor>(
          DType::kBF16, std::initializer_list<int64_t>{n_[i], columns(i)}, weights_[i]));
      owned.push_back(std::make_unique<DeviceTensor>(
          DType::kF32, std::initializer_list<int64_t>{n_[i]}, bias_[i]));
      set(args.weights, i, owned[2 * i]->view, owned[2 * i + 1]->view);
    }
    DeviceTensor logits_out(DType::kF32, {segments(), r_.kv_heads, 2});
    DeviceTensor kinds_out(
        std::vector<int32_t>(lengths_.size() * static_cast<size_t>(r_.kv_heads * r_.group), 99));
    logits_out.poison();
    args.logits = logits_out.view;
    args.kinds = TensorView(kinds_out.view.data, DType::kI32, {segments(), r_.kv_heads * r_.group});
    CudaTestStream stream;
    cuda::route_heads(stream, args);
    stream.sync();
    logits = logits_out.floats();
    const std::vector<std::byte> bytes = kinds_out.bytes();
    kinds.resize(bytes.size() / 4);
    std::memcpy(kinds.data(), bytes.data(), bytes.size());
  }
  /// Of segment `s`.
  std::vector<float> logits_of(size_t s) const {
    const auto n = static_cast<int64_t>(2 * r_.kv_heads);
    return {logits.begin() + static_cast<int64_t>(s) * n,
            logits.begin() + static_cast<int64_t>(s + 1) * n};
  }

  std::vector<float> logits;
  std::vector<int32_t> kinds;

 private:
  RouterArgs common_args() const {
    RouterArgs args;
    args.num_segments = static_cast<int>(lengths_.size());
    args.retrieval = r_.retrieval;
    args.sparse = r_.sparse;
    return args;
  }
  static void set(RouterWeights& weights, size_t i, TensorView weight, TensorView bias) {
    (i < 2 ? weights.feature[i] : weights.router[i - 2]) = weight;
    (i < 2 ? weights.feature_bias[i] : weights.router_bias[i - 2]) = bias;
  }
  int64_t columns(size_t i) const { return i % 2 == 0 ? r_.dim : 4 * r_.dim; }
  int64_t segments() const { return static_cast<int64_t>(lengths_.size()); }

  Router r_;
  std::vector<int> lengths_;
  std::vector<int32_t> cu_q_;
  std::vector<float> k_, norm_, weights_[5], bias_[5];
  int64_t n_[5] = {};
};

inline void expect_oracle(const Router& router, const std::vector<int>& lengths) {
  Routing routing(router, lengths);
  routing.oracle();
  const auto want = routing.logits;
  const auto kinds = routing.kinds;
  routing.run();
  const auto width = static_cast<size_t>(router.kv_heads * router.group);
  for (size_t s = 0; s < lengths.size(); ++s) {
    if (lengths[s] == 0) continue;  // nothing is written
    for (size_t i = 0; i < width; ++i) {
      const size_t head =
          s * static_cast<size_t>(router.kv_heads) + i / static_cast<size_t>(router.group);
      const float low = want[2 * head], high = want[2 * head + 1];
      ASSERT_NEAR(routing.logits[2 * head], low, 1e-4) << lengths[s];
      ASSERT_NEAR(routing.logits[2 * head + 1], high, 1e-4) << lengths[s];
      if (std::abs(high - low) > 3e-4f || high == low) {
        ASSERT_EQ(routing.kinds[s * width + i], kinds[s * width + i]);
      }
    }
  }
}

}  // namespace weft
