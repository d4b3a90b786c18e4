#include "runtime/step_upload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "kernels/gdn_slots.h"
#include "kernels/ref/ref.h"
#include "runtime/row_sampler.h"

namespace weft {
namespace {

using testing::ElementsAre;

StepLimits small_limits() {
  StepLimits limits;
  limits.max_rows = 256;
  limits.max_seqs = 4;
  limits.max_model_len = 320;
  limits.vocab_size = 1000;
  limits.block_size = 64;
  limits.num_blocks = 10;
  limits.num_slots = 5;
  limits.recurrent = true;
  limits.multimodal = true;
  return limits;
}

std::shared_ptr<Request> make_request(int32_t id, int prompt_len) {
  auto request = std::make_shared<Request>();
  request->id = SeqId{id};
  for (int i = 0; i < prompt_len; ++i) request->prompt.push_back((id * 100 + i) % 1000);
  return request;
}

template <class T>
std::vector<T> values(const TensorView& view) {
  return std::vector<T>(view.ptr<T>(), view.ptr<T>() + view.size());
}

std::span<const int32_t> piece(const Request& request, size_t first, size_t count) {
  return std::span(request.prompt).subspan(first, count);
}

const int32_t kFromDevice[] = {kDeviceToken};

class PackedStepTest : public testing::Test {
 protected:
  PackedStep step_ = PackedStep::create(small_limits()).value();
  PackedStep::Sequences sequences_;
};

TEST_F(PackedStepTest, PromptSlicesComeFirst) {
  const auto a = make_request(1, 70), b = make_request(2, 3);
  const std::vector<BlockId> blocks_a = {{7}, {2}}, blocks_b = {{9}};
  StepPlan plan;
  plan.step = 5;
  plan.admitted = {a, b};
  plan.slices = {
      {b->id, 0, piece(*b, 0, 3), Arithmetic::kPrompt, true, blocks_b, {}, {1}},
  };
  step_.pack(plan, sequences_);
  plan.admitted.clear();
  plan.step = 6;
  plan.slices = {
      {b->id, 3, kFromDevice, Arithmetic::kDecode, true, blocks_b, {1}, {1}},
      {a->id, 0, piece(*a, 0, 64), Arithmetic::kPrompt, false, blocks_a, {}, {2}},
      {a->id, 64, piece(*a, 64, 6), Arithmetic::kPrompt, true, blocks_a, {2}, {3}},
  };
  step_.pack(plan, sequences_);
  const StepBatch& batch = step_.batch();
  EXPECT_EQ(step_.step(), 6u);
  EXPECT_EQ(batch.num_rows(), 71);
  EXPECT_EQ(batch.prompt_rows, 70);
  EXPECT_EQ(batch.num_prompt_segments, 2);
  EXPECT_EQ(batch.seqs.num_segments, 3);
  EXPECT_THAT(values<int32_t>(batch.seqs.cu_q), ElementsAre(0, 64, 70, 71));
  EXPECT_THAT(values<int32_t>(batch.seqs.kv_start), ElementsAre(0, 64, 3));
  EXPECT_THAT(values<int32_t>(batch.seqs.block_table), ElementsAre(7, 2, 7, 2, 9, -1));
  EXPECT_THAT(values<int32_t>(batch.read_slot), ElementsAre(-1, 2, 1));
  EXPECT_THAT(values<int32_t>(batch.write_slot), ElementsAre(2, 3, 1));
  const auto slots = values<int64_t>(batch.kv_slot);
  EXPECT_EQ(slots[0], 7 * 64);
  EXPECT_EQ(slots[63], 7 * 64 + 63);
  EXPECT_EQ(slots[64], 2 * 64);
  EXPECT_EQ(slots[70], 9 * 64 + 3);
  const auto ids = values<int32_t>(batch.ids);
  EXPECT_TRUE(std::equal(a->prompt.begin(), a->prompt.end(), ids.begin()));
  EXPECT_FALSE(batch.positions.triples.defined()) << "a text takes the 1-d path";
  EXPECT_THAT(ref::position_of(batch.positions, 69), ElementsAre(69, 69, 69));
  EXPECT_THAT(ref::position_of(batch.positions, 70), ElementsAre(3, 3, 3));
  // Results in plan order, rows in batch order.
  ASSERT_EQ(step_.results().size(), 2u);
  EXPECT_EQ(step_.results()[0].seq, b->id);
  ASSERT_EQ(step_.logit_rows().size(), 2u);
  EXPECT_EQ(step_.num_prompt_logit_rows(), 1);
  EXPECT_EQ(step_.logit_rows()[0].row, 69);
  EXPECT_EQ(step_.asked().first_row, 64);
  EXPECT_THAT(values<int32_t>(step_.asked().seqs.cu_q), ElementsAre(0, 0, 6, 7));
  EXPECT_THAT(values<int32_t>(step_.asked().seqs.kv_start), ElementsAre(0, 64, 3));
  EXPECT_EQ(step_.logit_rows()[0].result, 1);
  EXPECT_EQ(step_.logit_rows()[0].position, 70);
  EXPECT_EQ(step_.logit_rows()[1].row, 70);
  EXPECT_EQ(step_.logit_rows()[1].result, 0);
  ASSERT_EQ(step_.fed_tokens().size(), 1u);
  EXPECT_TRUE(step_.fed_tokens()[0].from_device);
  EXPECT_EQ(step_.fed_tokens()[0].row, 70);
}

TEST(PackedStepPlans, AskedSegmentsBeginWithABlock) {
  const int32_t cu_q[] = {0, 64, 400, 600, 603}, kv_start[] = {128, 192, 0, 70};
  std::array<int32_t, 5> cu;
  std::array<int32_t, 4> start;
  const SeqMap all{.num_segments = 4, .host_cu_q = cu_q, .host_kv_start = kv_start};
  const auto first = [&](int64_t row) {
    return AskedSegments{cu.data(), start.data()}.set(all, 3, 600, row);
  };
  EXPECT_EQ(first(63), 0) << "no block begins between";
  EXPECT_THAT(cu, ElementsAre(0, 64, 400, 600, 603));
  EXPECT_EQ(first(399), 64 + 320) << "of position 527";
  EXPECT_THAT(cu, ElementsAre(0, 0, 16, 216, 219));
  EXPECT_THAT(start, ElementsAre(128, 512, 0, 70));
  EXPECT_EQ(first(127), 64) << "a segment may begin behind its block's first row";
  EXPECT_EQ(first(600), 600) << "no row of a prompt";
  EXPECT_THAT(cu, ElementsAre(0, 0, 0, 0, 3));
  EXPECT_THAT(start, ElementsAre(128, 192, 0, 70));
}

TEST(PackedStepPlans, ShortPromptsSeeAllKeysInEveryChunk) {
  StepLimits limits = small_limits();
  limits.sparse_from = 70;
  PackedStep step = PackedStep::create(limits).value();
  PackedStep::Sequences sequences;
  const auto a = make_request(1, 70), b = make_request(2, 69);
  const std::vector<BlockId> blocks_a = {{7}, {2}}, blocks_b = {{9}, {1}};
  StepPlan plan;
  plan.admitted = {a, b};
  plan.slices = {
      {a->id, 0, piece(*a, 0, 64), Arithmetic::kPrompt, false, blocks_a, {}, {1}},
      {b->id, 0, piece(*b, 0, 64), Arithmetic::kPrompt, false, blocks_b, {}, {2}},
  };
  step.pack(plan, sequences);
  EXPECT_THAT(step.batch().sees_all, ElementsAre(0, 1));
  plan.admitted.clear();
  plan.slices = {
      {b->id, 64, piece(*b, 64, 5), Arithmetic::kPrompt, true, blocks_b, {2}, {2}},
      {a->id, 64, piece(*a, 64, 6), Arithmetic::kPrompt, true, blocks_a, {1}, {1}},
  };
  step.pack(plan, sequences);
  EXPECT_THAT(step.batch().sees_all, ElementsAre(1, 0));
}

/// A step of two sequences that decode: `a` with two drafts, `b` with none.
class DraftingPair {
 public:
  explicit DraftingPair(const StepLimits& limits)
      : step_(PackedStep::create(limits).value()), map_(limits), kept_(limits) {
    if (limits.kept_rows > 0) {
      step_.set_kept_rows(&kept_);
    } else {
      step_.set_state_slots(&map_);
    }
    plan_.admitted = {a_, b_};
    plan_.slices = {{a_->id, 0, piece(*a_, 0, 3), Arithmetic::kPrompt, true, blocks_, {}, {1}},
                    {b_->id, 0, piece(*b_, 0, 3), Arithmetic::kPrompt, true, blocks_, {}, {2}}};
    step_.pack(plan_, sequences_);
    plan_.admitted.clear();
    sequences_.at(a_->id)->history.append(5);
    sequences_.at(b_->id)->history.append(5);
    plan_.slices = {{a_->id, 3, three_, Arithmetic::kDecode, true, blocks_, {1}, {1}, 2, 320},
                    {b_->id, 3, one_, Arithmetic::kDecode, true, blocks_, {2}, {2}}};
  }
  DraftingPair(const DraftingPair&) = delete;
  DraftingPair& operator=(const DraftingPair&) = delete;

  const StepBatch& pack(const PaddedShape& padded = {}) {
    step_.pack(plan_, sequences_, padded);
    return step_.batch();
  }
  /// From now on `b` alone decodes, with two drafts.
  void leave_b() {
    plan_.slices = {{b_->id, 3, three_, Arithmetic::kDecode, true, blocks_, {2}, {2}, 2, 320}};
  }
  const PackedStep& step() const { return step_; }
  KeptRows& kept() { return kept_; }

 private:
  const std::vector<BlockId> blocks_ = {{7}};
  const std::vector<int32_t> one_ = {5}, three_ = {5, 6, 7};
  const std::shared_ptr<Request> a_ = make_request(1, 3), b_ = make_request(2, 3);
  PackedStep step_;
  StateSlotMap map_;
  KeptRows kept_;
  PackedStep::Sequences sequences_;
  StepPlan plan_;
};

TEST(PackedStepDrafts, LeaveTheirStatesInSpareSlots) {
  StepLimits limits = small_limits();
  limits.max_draft_rows = 6;
  EXPECT_EQ(limits.all_slots(), 9);
  DraftingPair pair(limits);
  const StepBatch& batch = pair.pack();
  EXPECT_THAT(values<int32_t>(batch.seqs.cu_q), ElementsAre(0, 3, 4));
  EXPECT_THAT(values<int32_t>(batch.read_slot), ElementsAre(1, 2));
  EXPECT_THAT(values<int32_t>(batch.write_slot), ElementsAre(5, 2));
  EXPECT_THAT(values<int32_t>(batch.chains), ElementsAre(0, 1, 2));
  EXPECT_EQ(pair.step().results()[0].num_drafts, 2);
  EXPECT_EQ(pair.step().results()[0].spare, 0);
  EXPECT_EQ(pair.step().results()[1].spare, -1);
}

TEST(RowSampler, LossyVerificationTakesASecondBeforeRightOnes) {
  StepLimits limits = small_limits();
  limits.max_draft_rows = 6;
  ThreadPool pool(1);
  const auto sampled = [&](const SpeculationConfig& config) {
    // Behind 5 comes 9 and next 6, which is the draft; then 7, which is one too, then 8.
    std::vector<float> logits(static_cast<size_t>(4 * limits.vocab_size));
    const TensorView view(logits.data(), DType::kF32, {4, limits.vocab_size});
    view.row<float>(0)[9] = 1000;
    view.row<float>(0)[6] = 900;
    view.row<float>(1)[7] = view.row<float>(2)[8] = view.row<float>(3)[9] = 1000;
    DraftingPair pair(limits);
    pair.pack();
    RowSampler sampler(limits.vocab_size, 4, 1, config);
    StepResult result;
    RowSampler::begin(pair.step(), result);
    sampler.sample(pool, pair.step(), pair.step().logit_rows(), view, result);
    return result.rows[0].tokens;
  };
  SpeculationConfig config{.verify = VerifyStrategy::kTopP, .max_candidates = 1};
  config.verify_window = 1;
  EXPECT_THAT(sampled(config), ElementsAre(6, 7, 8));
  config.verify_window = 2;
  EXPECT_THAT(sampled(config), ElementsAre(9));
  EXPECT_THAT(sampled({}), ElementsAre(9));
}

TEST(PackedStepDrafts, KeepTheirRowsForTheNextStep) {
  StepLimits limits = small_limits();
  limits.max_draft_rows = 6;
  limits.kept_rows = 3;
  EXPECT_EQ(limits.all_slots(), 5);
  DraftingPair pair(limits);
  const StepBatch& batch = pair.pack();
  KeptRows& kept = pair.kept();
  EXPECT_THAT(values<int32_t>(batch.read_slot), ElementsAre(1, 2));
  EXPECT_THAT(values<int32_t>(batch.write_slot), ElementsAre(keep_in(1), 2));
  EXPECT_THAT(values<int32_t>(batch.chains), ElementsAre(0, 1, 2));
  StepResult result;
  result.rows.resize(2);
  result.rows[0].tokens = {6, 9};  // the first draft alone was right
  result.rows[1].tokens = {9};
  kept.accept(pair.step().results(), result);
  EXPECT_EQ(kept.count(SlotId{1}), 2);
  EXPECT_EQ(kept.count(SlotId{2}), 0);
  pair.pack();
  EXPECT_THAT(values<int32_t>(batch.read_slot), ElementsAre(read_with_kept(1, 2), 2));
  EXPECT_EQ(kept.count(SlotId{1}), 0) << "who reads a slot makes it whole";
  result.rows[0].tokens = {6, 7, 8};
  kept.accept(pair.step().results(), result);
  // The rows go to the swap space and come back to another slot with the state.
  kept.swap({SlotId{1}, 7, true});
  EXPECT_EQ(kept.count(SlotId{1}), 3);
  kept.swap({SlotId{3}, 7, false});
  EXPECT_EQ(kept.count(SlotId{3}), 3);
  // Whoever gets the slot writes it without reading.
  pair.leave_b();
  pair.pack();
  EXPECT_THAT(values<int32_t>(batch.write_slot), ElementsAre(keep_in(2)));
  result.rows.resize(1);
  result.rows[0].tokens.clear();  // a numeric error
  kept.accept(pair.step().results(), result);
  EXPECT_EQ(kept.count(SlotId{2}), 0);
}

TEST(PackedStepDrafts, PaddingTouchesNothing) {
  StepLimits limits = small_limits();
  limits.max_draft_rows = 6;
  limits.kept_rows = 3;
  DraftingPair pair(limits);
  const PaddedShape shape{.rows = 6, .segments = 3};
  const StepBatch& batch = pair.pack(shape);
  EXPECT_EQ(batch.num_rows(), 6);
  EXPECT_EQ(batch.max_decode_len, 4);
  EXPECT_EQ(batch.seqs.num_segments, 3);
  EXPECT_THAT(values<int32_t>(batch.seqs.cu_q), ElementsAre(0, 3, 4, 4));
  EXPECT_THAT(values<int64_t>(batch.kv_slot), ElementsAre(451, 452, 453, 451, -1, -1));
  EXPECT_THAT(values<int32_t>(batch.read_slot), ElementsAre(1, 2, -1));
  EXPECT_THAT(values<int32_t>(batch.write_slot), ElementsAre(keep_in(1), 2, -1));
  EXPECT_THAT(values<int32_t>(batch.chains), ElementsAre(0, 1, 2, 2)) << "no chain has the padding";
  // Steps of one shape lie in one place, whatever of it is real.
  const void* const slots = batch.write_slot.data;
  const void* const tables = batch.seqs.block_table.data;
  pair.leave_b();
  pair.pack(shape);
  EXPECT_EQ(batch.write_slot.data, slots);
  EXPECT_EQ(batch.seqs.block_table.data, tables);
  EXPECT_THAT(values<int32_t>(batch.chains), ElementsAre(0, 1, 1, 1));
}

TEST(BlockTable, GoesUpAsFarAsItIsUsed) {
  constexpr int64_t kBefore = 8, kWidth = 4096, kRows = 3;
  std::vector<int32_t> host(kBefore + kRows * kWidth, 77), device(host.size(), -9);
  BlockTable table{.data = host.data() + kBefore, .width = kWidth};
  table.set(0, std::vector<BlockId>{{7}, {2}, {5}});
  table.set(1, {});
  table.set(2, std::vector<BlockId>{{4}});
  ThreadPool pool(1);
  Arena scratch;
  Stream stream(pool, scratch);
  const auto bytes = [](std::vector<int32_t>& of) {
    return reinterpret_cast<std::byte*>(of.data());
  };
  upload_with(stream, table, kRows, bytes(device), bytes(host));
  const auto row = [&](int64_t i) {
    const auto at = device.begin() + kBefore + i * kWidth;
    return std::vector<int32_t>(at, at + 4);
  };
  EXPECT_EQ(std::count(device.begin(), device.begin() + kBefore, 77), kBefore);
  EXPECT_THAT(row(0), ElementsAre(7, 2, 5, -9));
  EXPECT_THAT(row(1), ElementsAre(-1, -1, -1, -9));
  EXPECT_THAT(row(2), ElementsAre(4, -1, -1, -9));
  // Small ones go up whole.
  upload_with(stream, table, 1, bytes(device), bytes(host));
  EXPECT_THAT(row(0), ElementsAre(7, 2, 5, 77));
}

TEST_F(PackedStepTest, PositionsOfImagesAndBehindThem) {
  const auto a = make_request(1, 4);
  a->positions = {{0, 0, 0}, {1, 1, 1}, {1, 1, 2}, {3, 3, 3}};
  a->rope_delta = 2;
  const std::vector<BlockId> blocks = {{0}};
  const int32_t replay[] = {5, 6};
  StepPlan plan;
  plan.admitted = {a};
  plan.slices = {{a->id, 0, piece(*a, 0, 4), Arithmetic::kPrompt, false, blocks, {}, {0}},
                 {a->id, 4, replay, Arithmetic::kDecode, true, blocks, {0}, {0}}};
  step_.pack(plan, sequences_);
  const RopePositions& positions = step_.batch().positions;
  EXPECT_THAT(values<int32_t>(positions.index), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(values<int32_t>(positions.delta), ElementsAre(0, 0, -1, 0, 2, 2));
  EXPECT_THAT(values<int32_t>(positions.triples),
              ElementsAre(0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 3, 6, 6, 6, 7, 7, 7));
  // Decode reads no triples: the delta alone says where a generated token stands.
  plan.admitted.clear();
  plan.slices = {{a->id, 4, replay, Arithmetic::kDecode, true, blocks, {0}, {0}}};
  step_.pack(plan, sequences_);
  EXPECT_FALSE(positions.triples.defined());
  EXPECT_THAT(ref::position_of(positions, 1), ElementsAre(7, 7, 7));
}

TEST_F(PackedStepTest, PromptLogprobsStopBeforeTheFirstGeneratedToken) {
  const auto a = make_request(1, 66);
  a->sampling.prompt_logprobs = 0;
  const std::vector<BlockId> blocks = {{0}, {1}};
  StepPlan plan;
  plan.admitted = {a};
  plan.slices = {{a->id, 0, piece(*a, 0, 64), Arithmetic::kPrompt, false, blocks, {}, {0}},
                 {a->id, 64, piece(*a, 64, 2), Arithmetic::kPrompt, true, blocks, {0}, {0}}};
  step_.pack(plan, sequences_);
  ASSERT_EQ(step_.results().size(), 2u);
  EXPECT_EQ(step_.results()[0].num_prompt_logprobs, 64);
  EXPECT_EQ(step_.results()[1].num_prompt_logprobs, 1);
  const auto rows = step_.logit_rows();
  ASSERT_EQ(rows.size(), 66u);
  EXPECT_EQ(rows[63].target, a->prompt[64]);
  EXPECT_EQ(rows[64].target, a->prompt[65]);
  EXPECT_EQ(rows[64].result, 1);
  EXPECT_EQ(rows[65].prompt_entry, -1);
  EXPECT_EQ(rows[65].row, 65);
}

TEST_F(PackedStepTest, RetiredSequencesAreForgotten) {
  const auto a = make_request(1, 4);
  StepPlan plan;
  plan.admitted = {a};
  step_.pack(plan, sequences_);
  EXPECT_EQ(sequences_.size(), 1u);
  EXPECT_EQ(step_.batch().num_rows(), 0);
  plan = {};
  plan.retired = {a->id};
  step_.pack(plan, sequences_);
  EXPECT_TRUE(sequences_.empty());
  EXPECT_EQ(a.use_count(), 2);  // until the step is done
  step_.forget_retired();
  EXPECT_EQ(a.use_count(), 1);
}

TEST_F(PackedStepTest, EveryViolationPanics) {
  const auto a = make_request(1, 100);
  const std::vector<BlockId> good = {{0}, {1}};
  StepPlan admit;
  admit.admitted = {a};
  step_.pack(admit, sequences_);
  EXPECT_THROW(step_.pack(admit, sequences_), Panic);

  const Slice sound{a->id, 64, piece(*a, 64, 36), Arithmetic::kPrompt, true, good, {0}, {0}};
  const auto pack = [&](Slice slice) {
    StepPlan plan;
    plan.slices = {slice};
    step_.pack(plan, sequences_);
  };
  EXPECT_NO_THROW(pack(sound));
  std::vector<std::function<void(Slice&)>> spoil = {
      [](Slice& s) { s.seq = SeqId{77}; },
      [](Slice& s) { s.first = 63; },
      [](Slice& s) { s.first = -64; },
      [](Slice& s) { s.first = 128; },
      [](Slice& s) { s.tokens = {}; },
      [](Slice& s) { s.arithmetic = Arithmetic::kDecode; },
      [](Slice& s) { s.state_read = {}; },
      [](Slice& s) { s.state_read = SlotId{5}; },
      [](Slice& s) { s.state_write = {}; },
      [](Slice& s) { s.state_write = SlotId{5}; },
      [&](Slice& s) { s.blocks = std::span(good).first(1); },
      [&](Slice& s) { s.tokens = piece(*a, 0, 36); },
      [](Slice& s) { s.tokens = kFromDevice; },
  };
  for (size_t i = 0; i < spoil.size(); ++i) {
    Slice slice = sound;
    spoil[i](slice);
    EXPECT_THROW(pack(slice), Panic) << i;
  }
  const std::vector<BlockId> wild = {{0}, {10}}, none = {{0}, {}};
  for (const auto& blocks : {wild, none}) {
    Slice slice = sound;
    slice.blocks = blocks;
    EXPECT_THROW(pack(slice), Panic);
  }
  a->prompt[70] = 1000;
  EXPECT_THROW(pack(sound), Panic);
  a->prompt[70] = 1;
  a->positions.assign(100, {0, 0, 0});
  EXPECT_NO_THROW(pack(sound));
  a->positions[99] = {0, 320, 0};
  EXPECT_THROW(pack(sound), Panic);
  StepPlan many;
  many.slices.assign(8, sound);
  EXPECT_THROW(step_.pack(many, sequences_), Panic) << "more rows than planned";
  StepPlan copy;
  copy.copies = {{BlockId{0}, BlockId{10}}};
  EXPECT_THROW(step_.pack(copy, sequences_), Panic);
}

}  // namespace
}  // namespace weft
