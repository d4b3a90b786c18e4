#include "tests/noninterference/plants.h"

#include <deque>
#include <set>
#include <unordered_map>

#include "base/check.h"

namespace weft {
namespace {

// The ops are plain functions, so the table they go on to has to be found here.
const OpTable* base_ops = nullptr;

// A library that chooses another kernel for more rows: the last bits change.
void linear_by_batch(Stream& stream, const LinearArgs& args) {
  base_ops->linear(stream, args);
  if (args.epilogue != Epilogue::kStore || args.out.dim(0) < 5) return;
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    float* row = args.out.row<float>(t);
    for (int64_t i = 0; i < args.out.dim(1); ++i) row[i] *= 1 + 0x1.0p-22f;
  }
}

// Attention that splits its keys by how many sequences share the device.
void attention_by_batch(Stream& stream, const AttnArgs& args) {
  base_ops->attention(stream, args);
  if (args.seqs.num_segments < 3) return;
  for (int64_t t = 0; t < args.out.dim(0); ++t) args.out.row<float>(t)[0] *= 1 + 0x1.0p-22f;
}

// K and V of the last row of a large step are not written.
void skip_kv_write(Stream& stream, const QkvPrepareArgs& args) {
  const int64_t rows = args.kv_slot.dim(0);
  if (rows < 65) return base_ops->qkv_prepare(stream, args);
  auto* last = args.kv_slot.ptr<int64_t>() + rows - 1;
  const int64_t slot = std::exchange(*last, -1);
  base_ops->qkv_prepare(stream, args);
  *last = slot;
}

// The recurrent state of a step's first segment is given to a later one that begins anew.
void state_from_neighbour(Stream& stream, const GdnArgs& args) {
  auto* read = args.read_slot.ptr<int32_t>();
  for (int s = 1; s < args.num_segments; ++s) {
    if (read[s] >= 0 || read[0] < 0) continue;
    read[s] = read[0];
    base_ops->gdn(stream, args);
    read[s] = -1;
    return;
  }
  base_ops->gdn(stream, args);
}

// The heads of every prompt of a step see what the first one's router decided.
void plan_of_neighbour(Stream& stream, const AttnArgs& args) {
  if (args.heads == nullptr || !args.heads->rows.defined())
    return base_ops->attention(stream, args);
  HeadPlan plan = *args.heads;
  plan.rows.stride[0] = 0;
  AttnArgs changed = args;
  changed.heads = &plan;
  base_ops->attention(stream, changed);
}

template <class F>
OpTable with(const OpTable& base, F&& change) {
  base_ops = &base;
  OpTable out = base;
  out.prepared_attention = nullptr;  // a changed op is reached
  out.linear_prepare = nullptr;
  out.linear_pair = nullptr;
  out.attention_linear = nullptr;
  change(out);
  return out;
}

/// Changes the plans on their way to the executor.
class Tamperer : public Executor {
 public:
  explicit Tamperer(std::unique_ptr<Executor> inner) : inner_(std::move(inner)) {}
  void launch(const StepPlan& plan) override {
    StepPlan copy = plan;
    tamper(copy);
    inner_->launch(copy);
  }
  StepResult collect() override { return inner_->collect(); }

 protected:
  virtual void tamper(StepPlan& plan) = 0;

 private:
  std::unique_ptr<Executor> inner_;
};

/// A prefix hit gets its first block from the end of its own table: a block of another content.
class ForeignBlock : public Tamperer {
 public:
  using Tamperer::Tamperer;

 protected:
  void tamper(StepPlan& plan) override {
    tables_.clear();
    for (const auto& request : plan.admitted) fresh_.insert(request->id);
    for (Slice& slice : plan.slices) {
      const bool first = fresh_.erase(slice.seq) > 0;
      if (!first || slice.first == 0) continue;
      auto& table = tables_.emplace_back(slice.blocks.begin(), slice.blocks.end());
      table[0] = table.back();
      slice.blocks = table;
    }
  }

 private:
  std::set<SeqId> fresh_;
  std::deque<std::vector<BlockId>> tables_;
};

/// A prefix hit goes on from the state in its own slot instead of the checkpoint.
class StaleState : public Tamperer {
 public:
  using Tamperer::Tamperer;

 protected:
  void tamper(StepPlan& plan) override {
    for (Slice& slice : plan.slices) {
      if (slice.state_read.valid()) slice.state_read = slice.state_write;
    }
  }
};

/// The pages of an image are those of the image before it in the step.
class ForeignPages : public Tamperer {
 public:
  using Tamperer::Tamperer;

 protected:
  void tamper(StepPlan& plan) override {
    for (size_t i = 1; i < plan.image_uses.size(); ++i) {
      const ImageUse& before = plan.image_uses[i - 1];
      if (before.pages.size() >= plan.image_uses[i].pages.size()) {
        plan.image_uses[i].pages = before.pages;
      }
    }
  }
};

/// Requests are changed by what runs when they come.
class ChangedRequest : public Tamperer {
 public:
  using Tamperer::Tamperer;

 protected:
  virtual void change(Request& request, size_t num_running) = 0;
  void tamper(StepPlan& plan) override {
    for (const SeqId id : plan.retired) running_.erase(id);
    for (auto& request : plan.admitted) {
      auto copy = std::make_shared<Request>(*request);
      change(*copy, running_.size());
      running_.insert(copy->id);
      request = std::move(copy);
    }
  }

 private:
  std::set<SeqId> running_;
};

/// Draws from the row's place in the batch.
class SeedOfRow : public ChangedRequest {
 public:
  using ChangedRequest::ChangedRequest;

 protected:
  void change(Request& request, size_t num_running) override {
    request.sampling.seed += num_running;
  }
};

/// A position offset that stays from whoever had the seat before.
class StaleRopeDelta : public ChangedRequest {
 public:
  using ChangedRequest::ChangedRequest;

 protected:
  void change(Request& request, size_t num_running) override {
    request.rope_delta += num_running > 2 ? 1 : 0;
  }
};

/// A penalty that is taken from the neighbour admitted in the same step.
class PenaltyOfNeighbour : public ChangedRequest {
 public:
  using ChangedRequest::ChangedRequest;

 protected:
  void change(Request& request, size_t num_running) override {
    if (num_running > 0) request.sampling.repetition_penalty = last_;
    last_ = request.sampling.repetition_penalty;
  }

 private:
  float last_ = 1;
};

template <class T>
std::unique_ptr<Executor> wrapped(std::unique_ptr<Executor> inner) {
  return std::make_unique<T>(std::move(inner));
}

constexpr Plant kPlants[] = {
    {"linear-by-batch", "a matrix product whose last bits depend on the number of rows", false,
     [](const OpTable& b) { return with(b, [](OpTable& t) { t.linear = linear_by_batch; }); }},
    {"attention-by-batch", "attention whose last bits depend on the number of sequences", false,
     [](const OpTable& b) {
       return with(b, [](OpTable& t) { t.attention = attention_by_batch; });
     }},
    {"skip-kv-write", "K and V of one row of a large step are not stored", false,
     [](const OpTable& b) { return with(b, [](OpTable& t) { t.qkv_prepare = skip_kv_write; }); }},
    {"state-from-neighbour", "a new sequence starts from another one's recurrent state", true,
     [](const OpTable& b) { return with(b, [](OpTable& t) { t.gdn = state_from_neighbour; }); }},
    {"plan-of-neighbour", "the heads of a prompt see what another one's router decided", false,
     [](const OpTable& b) { return with(b, [](OpTable& t) { t.attention = plan_of_neighbour; }); },
     nullptr, false, true},
    {"foreign-block", "a prefix hit reads a block of another content", false, nullptr,
     wrapped<ForeignBlock>},
    {"stale-state", "a prefix hit goes on from the wrong recurrent state", true, nullptr,
     wrapped<StaleState>},
    {"foreign-pages", "an image token reads the features of another image", false, nullptr,
     wrapped<ForeignPages>, true},
    {"seed-of-row", "a draw depends on the place in the batch", false, nullptr, wrapped<SeedOfRow>},
    {"stale-rope-delta", "a position offset survives from another request", false, nullptr,
     wrapped<StaleRopeDelta>},
    {"penalty-of-neighbour", "a sampling parameter comes from another request", false, nullptr,
     wrapped<PenaltyOfNeighbour>},
};

}  // namespace

std::span<const Plant> plants() {
  return kPlants;
}

}  // namespace weft
