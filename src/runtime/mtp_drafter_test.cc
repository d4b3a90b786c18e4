#include "runtime/mtp_drafter.h"

#include <gtest/gtest.h>

#include <numeric>

#include "runtime/toy_model.h"

namespace weft {
namespace {

constexpr int64_t kPages = 20;
constexpr int32_t kImageToken = 40;

/// Notes what the module's rows are made of: a token's id, or 1000 and the pool row of its
/// features.
class SpyModel : public ToyModel {
 public:
  SpyModel() : spec_(ToyModel::spec()) { spec_.mtp.emplace(); }
  const ModelSpec& spec() const override { return spec_; }
  TensorView mtp_hidden(StepContext& context, TensorView previous) const override {
    const StepBatch& batch = context.batch;
    whole = context.asked == nullptr;
    EXPECT_TRUE(whole || context.asked->rows.dim(0) == 0);
    fed.clear();
    for (int64_t row = 0; row < batch.num_rows(); ++row) {
      fed.push_back(batch.ids.ptr<int32_t>()[row]);
    }
    for (const ImageRun& run : batch.images.runs) {
      for (int64_t i = 0; i < run.count; ++i) {
        fed.at(static_cast<size_t>(run.row + i)) =
            1000 + batch.images.rows.ptr<int32_t>()[run.first + i];
      }
    }
    return whole ? previous : previous.rows(0, 0);
  }
  mutable std::vector<int32_t> fed;
  mutable bool whole = false;

 private:
  ModelSpec spec_;
};

class MtpDrafterTest : public testing::Test {
 protected:
  MtpDrafterTest() {
    limits_.max_rows = 256;
    limits_.max_seqs = 4;
    limits_.max_model_len = 512;
    limits_.vocab_size = ToyModel::kVocab;
    limits_.block_size = ToyModel::kBlockSize;
    limits_.num_blocks = 64;
    limits_.num_slots = 8;
    limits_.multimodal = true;
    limits_.image_tokens = 200;
    limits_.image_pages = kPages;
    limits_.max_draft_rows = 4;
    step_.emplace(PackedStep::create(limits_).value());
    features_.resize(static_cast<size_t>(kPages * kImagePage * ToyModel::kHidden));
    step_->set_image_features(
        TensorView(features_.data(), DType::kF32, {kPages * kImagePage, ToyModel::kHidden}));
    drafter_.emplace(MtpDrafter::create(model_, kv_, stream_, ref_ops(), limits_).value());
    pages_.resize(static_cast<size_t>(kPages));
    std::iota(pages_.rbegin(), pages_.rend(), 0);  // the last one first
  }

  /// Text with images at [first, first + tokens), whose features lie in the pages in order.
  std::shared_ptr<Request> make_request(int length,
                                        const std::vector<std::pair<int64_t, int64_t>>& images) {
    auto request = std::make_shared<Request>();
    request->id = SeqId{next_id_++};
    for (int i = 0; i < length; ++i) {
      request->prompt.push_back(i % 30);
      request->positions.push_back({i, i, i});
    }
    for (const auto& [first, tokens] : images) {
      auto content = std::make_shared<ImagePatches>();
      content->num_tokens = tokens;
      request->images.push_back({first, content});
      std::fill_n(request->prompt.begin() + first, tokens, kImageToken);
    }
    request->sampling.max_tokens = 10;
    return request;
  }

  std::span<const int32_t> pages_of(const Request& request, size_t image) const {
    size_t first = static_cast<size_t>(request.id.value) * 10;
    for (size_t i = 0; i < image; ++i) first += num_pages(request.images[i]);
    return std::span(pages_).subspan(first, num_pages(request.images[image]));
  }
  static size_t num_pages(const PromptImage& image) {
    return static_cast<size_t>((image.content->num_tokens + kImagePage - 1) / kImagePage);
  }

  void slice(const Request& r, int64_t first, int64_t end, bool sample) {
    std::vector<BlockId> table;
    for (int32_t i = 0; i < 16; ++i) table.push_back({16 * r.id.value + i});
    tables_.push_back(std::move(table));
    plan_.slices.push_back({.seq = r.id,
                            .first = first,
                            .tokens = std::span(r.prompt).subspan(static_cast<size_t>(first),
                                                                  static_cast<size_t>(end - first)),
                            .sample = sample});
    for (size_t i = 0; i < r.images.size(); ++i) {
      if (r.images[i].first < end && r.images[i].end() > first) {
        plan_.image_uses.push_back({r.id, static_cast<int>(i), pages_of(r, i)});
      }
    }
  }

  /// Runs the module over the planned step; its slices that sample get token 33.
  std::vector<int32_t> follow(bool follows = true) {
    plan_.step = next_step_++;
    for (size_t i = 0; i < tables_.size(); ++i) plan_.slices[i].blocks = tables_[i];
    step_->pack(plan_, sequences_);
    drafter_->begin(plan_, sequences_, follows);
    if (!follows) {
      plan_ = {};
      tables_.clear();
      return {};
    }
    StepResult result;
    for (const ResultRow& row : step_->results()) {
      result.rows.push_back({.seq = row.sequence->request->id, .tokens = {33}});
      if (row.row >= 0) row.sequence->history.append(33);
    }
    std::vector<float> hidden(static_cast<size_t>(step_->batch().num_rows() * ToyModel::kHidden));
    std::iota(hidden.begin(), hidden.end(), 0.0f);
    StepContext context{stream_, ref_ops(), arena_, step_->batch(), kv_};
    drafter_->follow(
        context, *step_,
        TensorView(hidden.data(), DType::kF32, {step_->batch().num_rows(), ToyModel::kHidden}),
        result);
    plan_ = {};
    tables_.clear();
    return model_.fed;
  }

  /// By the definition: the row of position p is made of token p + 1.
  std::vector<int32_t> expected(const Request& r, int64_t first, int64_t end) const {
    std::vector<int32_t> out;
    for (int64_t at = first + 1; at <= end; ++at) {
      if (at == std::ssize(r.prompt)) {
        out.push_back(33);
        continue;
      }
      int32_t value = r.prompt[static_cast<size_t>(at)];
      for (size_t i = 0; i < r.images.size(); ++i) {
        const int64_t token = at - r.images[i].first;
        if (token < 0 || at >= r.images[i].end()) continue;
        value = 1000 + static_cast<int32_t>(
                           pages_of(r, i)[static_cast<size_t>(token / kImagePage)] * kImagePage +
                           token % kImagePage);
      }
      out.push_back(value);
    }
    return out;
  }

  StepLimits limits_;
  SpyModel model_;
  KvStore kv_ = KvStore::create(model_.cache_specs(), ref_ops(), 64, 8).value();
  ThreadPool pool_{1};
  Arena scratch_, arena_;
  Stream stream_{pool_, scratch_};
  std::optional<PackedStep> step_;
  std::optional<MtpDrafter> drafter_;
  PackedStep::Sequences sequences_;
  std::vector<float> features_;
  std::vector<int32_t> pages_;
  StepPlan plan_;
  std::vector<std::vector<BlockId>> tables_;
  int32_t next_id_ = 0;
  uint64_t next_step_ = 1;
};

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_F(MtpDrafterTest, RowsBeforeImageTokensAreMadeOfTheirFeatures) {
  // Two images that follow each other, as groups of a video's frames do.
  const auto a = make_request(100, {{10, 50}, {60, 20}});
  plan_.admitted = {a};
  slice(*a, 0, 100, true);
  EXPECT_EQ(follow(), expected(*a, 0, 100));
}

TEST_F(MtpDrafterTest, OfAPromptOnlyTheLastRowGoesThroughTheWholeModule) {
  const auto a = make_request(31, {}), b = make_request(100, {});
  plan_.admitted = {a};
  slice(*a, 0, 31, true);
  EXPECT_EQ(follow(), expected(*a, 0, 31));
  EXPECT_TRUE(model_.whole);  // few rows
  plan_.admitted = {b};
  slice(*b, 0, 100, true);
  const std::vector<BlockId> blocks = tables_.back();
  EXPECT_EQ(follow(), expected(*b, 0, 100));
  EXPECT_FALSE(model_.whole);

  ExecutorSequence& sequence = *sequences_.at(b->id);
  DraftState& state = *sequence.drafts;
  EXPECT_NE(state.hidden_at, 100);
  ASSERT_TRUE(state.is_late(true));
  EXPECT_FALSE(state.is_late(false));
  const LateRows late{&sequence, blocks};
  drafter_->catch_up(arena_, std::span(&late, 1));
  EXPECT_TRUE(model_.whole);
  EXPECT_EQ(model_.fed, (std::vector<int32_t>{33}));
  EXPECT_EQ(state.hidden_at, 100);
  EXPECT_EQ(state.hidden.front(), 99 * ToyModel::kHidden);  // the spy gives rows as they came
  EXPECT_FALSE(state.is_late(true));
}

TEST_F(MtpDrafterTest, LooksNoFurtherBackThanItHasSeen) {
  const auto a = make_request(200, {}), b = make_request(200, {}), c = make_request(200, {});
  const auto from = [&](const auto& request) {
    return sequences_.at(request->id)->drafts->seen_from;
  };
  const int64_t block = limits_.block_size;
  plan_.admitted = {a};
  slice(*a, 0, 64, false);
  follow();
  EXPECT_EQ(from(a), 0);
  slice(*a, 64, 128, false);
  follow(false);
  slice(*a, 128, 200, true);
  follow();
  EXPECT_EQ(from(a), 128);
  // Prefixes of it: what the module saw, and more than that.
  const std::vector<BlockId> table = [&] {
    std::vector<BlockId> out;
    for (int32_t i = 0; i < 16; ++i) out.push_back({16 * a->id.value + i});
    return out;
  }();
  const auto share = [&](const Request& request, int64_t tokens) {
    plan_.admitted = {request.id == b->id ? b : c};
    slice(request, tokens, 200, true);
    std::copy_n(table.begin(), tokens / block, tables_.back().begin());
    follow();
  };
  share(*b, 64);
  EXPECT_EQ(from(b), 0);
  share(*c, 128);
  EXPECT_EQ(from(c), 128);
}

TEST_F(MtpDrafterTest, AnImageMayBeCutByStepsAndBySlices) {
  const auto a = make_request(200, {{10, 100}, {150, 30}});
  plan_.admitted = {a};
  slice(*a, 0, 64, false);
  EXPECT_EQ(follow(), expected(*a, 0, 64));  // the next token is an image's
  slice(*a, 64, 128, false);                 // two slices of one step, the cut in text
  slice(*a, 128, 200, true);
  EXPECT_EQ(follow(), expected(*a, 64, 200));
  const auto b = make_request(200, {{10, 150}});
  plan_.admitted = {b};
  slice(*b, 0, 64, false);  // and inside an image
  slice(*b, 64, 128, false);
  EXPECT_EQ(follow(), expected(*b, 0, 128));
}

TEST_F(MtpDrafterTest, AnImageAtTheFrontTakesNoRowOfAnotherSequence) {
  const auto a = make_request(64, {}), b = make_request(80, {{0, 20}});
  plan_.admitted = {a, b};
  slice(*a, 0, 64, true);
  slice(*b, 0, 80, true);
  EXPECT_EQ(follow(), expected(*a, 0, 64) + expected(*b, 0, 80));
}

TEST_F(MtpDrafterTest, AnImageThatBeginsWithTheNextStepIsNotThereYet) {
  const auto a = make_request(100, {{64, 20}});
  plan_.admitted = {a};
  slice(*a, 0, 64, false);
  auto want = expected(*a, 0, 64);
  want.back() = kImageToken;  // the placeholder's embedding
  EXPECT_EQ(follow(), want);
  slice(*a, 64, 100, true);
  EXPECT_EQ(follow(), expected(*a, 64, 100));
}

}  // namespace
}  // namespace weft
