#include "runtime/step_upload.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <string>
#include <utility>

#include "base/check.h"
#include "device/gpu.h"
#include "kernels/gdn_slots.h"
#include "nn/rope.h"
#include "runtime/carver.h"
#include "runtime/draft_state.h"

namespace weft {
namespace {

int64_t num_pieces(int64_t rows, const StepLimits& limits) {
  return (rows + limits.piece_rows() - 1) / limits.piece_rows();
}

std::string name(const Slice& slice) {
  return "slice of sequence " + std::to_string(slice.seq.value) + " at " +
         std::to_string(slice.first) + " + " + std::to_string(slice.tokens.size());
}

}  // namespace

int64_t StepLimits::max_segments() const {
  return std::min(max_rows, 2 * max_seqs + max_rows / kChunk + 1);
}

ExecutorSequence::ExecutorSequence(std::shared_ptr<const Request> r, const StepLimits& limits)
    : request(std::move(r)), history(*request, limits.vocab_size, limits.max_model_len) {
  CHECK(!request->prompt.empty());
  CHECK(request->positions.empty() || request->positions.size() == request->prompt.size());
  CHECK(limits.multimodal || (request->positions.empty() && request->rope_delta == 0),
        "positions of images without multimodal rope");
  if (request->constraint) grammar = std::make_unique<GrammarMatcher>(*request->constraint);
}

ExecutorSequence::~ExecutorSequence() = default;

StateSlotMap::StateSlotMap(const StepLimits& limits)
    : slots_(static_cast<size_t>(limits.num_slots)),
      spares_(static_cast<size_t>(limits.max_spares())) {
  std::iota(slots_.begin(), slots_.end(), 0);
  std::iota(spares_.begin(), spares_.end(), static_cast<int32_t>(limits.num_slots));
}

void StateSlotMap::exchange(SlotId slot, int64_t spare) {
  std::swap(slots_[static_cast<size_t>(slot.value)], spares_[static_cast<size_t>(spare)]);
}

KeptRows::Codes KeptRows::pack(const Slice& slice) {
  Codes out{slice.state_read.value, slice.state_write.value};
  const int kept = slice.state_read.valid() ? count(slice.state_read) : 0;
  CHECK(kept == 0 || slice.arithmetic == Arithmetic::kDecode, "a prompt behind drafts");
  CHECK(slice.max_drafts < room_ || slice.max_drafts == 0, name(slice));
  if (kept > 0) out.read = read_with_kept(out.read, kept);
  counts_[static_cast<size_t>(slice.state_write.value)] = 0;
  if (slice.max_drafts > 0) out.write = keep_in(out.write);
  return out;
}

void KeptRows::swap(const StateSwap& swap) {
  const auto host = static_cast<size_t>(swap.host);
  if (host >= swapped_.size()) swapped_.resize(host + 1);
  int& here = counts_[static_cast<size_t>(swap.slot.value)];
  if (swap.out) {
    swapped_[host] = here;
  } else {
    here = swapped_[host];
  }
}

void KeptRows::accept(std::span<const ResultRow> rows, const StepResult& result) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].num_drafts == 0) continue;
    counts_[static_cast<size_t>(rows[i].state.value)] =
        static_cast<int>(result.rows[i].tokens.size());
  }
}

int64_t PackedStep::bytes(const StepLimits& limits) {
  PackedStep measured;
  measured.limits_ = limits;
  const int64_t width = limits.max_table_width();
  measured.carve({limits.all_rows(), limits.max_segments(), width, limits.multimodal});
  const int64_t bytes = measured.used_bytes_;
  if (limits.layered_rows == 0) return bytes;
  measured.carve({limits.layered_rows, 1, width, false, num_pieces(limits.layered_rows, limits)});
  return std::max(bytes, measured.used_bytes_);
}

/// Lays the arrays of a step of these extents out; without memory it only measures.
void PackedStep::carve(const Extents& extents) {
  Carver carver(buffer_.data());
  carver.take(ids_, extents.rows);
  carver.take(feed_, extents.rows);
  carver.take(logit_ids_, extents.rows);
  carver.take(index_, extents.rows);
  carver.take(delta_, extents.rows);
  carver.take(kv_slot_, extents.rows);
  carver.take(cu_q_, extents.segments + 1);
  carver.take(kv_start_, extents.segments);
  carver.take(asked_segments_.cu_q, extents.segments + 1);
  carver.take(asked_segments_.start, extents.segments);
  carver.take(sees_all_, extents.segments);
  carver.take(read_slot_, extents.segments);
  carver.take(write_slot_, extents.segments);
  carver.take(chains_, extents.segments + 1);
  carver.take(block_table_.data, extents.segments * extents.table_width);
  triples_ = image_rows_ = piece_cu_q_ = piece_start_ = nullptr;
  if (extents.triples) {
    carver.take(triples_, extents.rows * 3);
    // The token behind a slice may be an image's too.
    carver.take(image_rows_, extents.rows + extents.segments);
  }
  if (extents.pieces > 0) {
    carver.take(piece_cu_q_, 2 * (extents.pieces + 1));
    carver.take(piece_start_, extents.pieces + 1);
  }
  used_bytes_ = carver.used();
}

Result<PackedStep> PackedStep::create(const StepLimits& limits, DeviceKind device) {
  CHECK(limits.max_rows > 0 && limits.max_seqs > 0 && limits.max_model_len > 0);
  PackedStep out;
  out.limits_ = limits;
  const bool gpu = device == DeviceKind::kCuda;
  out.buffer_ = TRY(Buffer::allocate(gpu ? DeviceKind::kPinned : DeviceKind::kCpu, bytes(limits)));
  if (gpu) out.device_buffer_ = TRY(Buffer::allocate(device, bytes(limits)));
  const auto segments = static_cast<size_t>(limits.max_segments());
  out.fed_.reserve(segments);
  out.results_.reserve(segments);
  return out;
}

void PackedStep::check_slice(const Slice& slice, const ExecutorSequence& sequence) const {
  const auto count = static_cast<int64_t>(slice.tokens.size());
  const int64_t end = slice.first + count;
  const auto prompt_len = static_cast<int64_t>(sequence.request->prompt.size());
  if (slice.max_drafts > 0) {
    CHECK(count == 1 + slice.max_drafts && slice.sample, name(slice));
    CHECK(slice.arithmetic == Arithmetic::kDecode, name(slice));
  }
  CHECK(count > 0 && slice.first >= 0 && end <= limits_.max_model_len, name(slice));
  if (slice.arithmetic == Arithmetic::kPrompt) {
    CHECK(slice.first % kChunk == 0 && end <= prompt_len, name(slice));
  } else {
    CHECK(slice.first >= prompt_len && !slice.decides, name(slice));
  }
  CHECK(!slice.decides || slice.first == 0, name(slice));
  CHECK(!slice.layers.partial() || slice.decides, name(slice));
  if (limits_.paged) {
    CHECK(static_cast<int64_t>(slice.blocks.size()) * limits_.block_size >= end &&
              static_cast<int64_t>(slice.blocks.size()) <= limits_.max_blocks_per_seq(),
          name(slice));
    for (const BlockId block : slice.blocks) {
      CHECK(block.valid() && block.value < limits_.num_blocks, name(slice));
    }
  }
  if (limits_.recurrent) {
    CHECK(slice.state_read.valid() == (slice.first > 0), name(slice));
    CHECK(slice.state_read.value < limits_.num_slots, name(slice));
    CHECK(slice.state_write.valid() && slice.state_write.value < limits_.num_slots, name(slice));
  }
}

void PackedStep::pack(const StepPlan& plan, Sequences& sequences, const PaddedShape& padded) {
  step_ = plan.step;
  batch_ = {};
  pieces_.clear();
  layers_ = plan.slices.empty() ? LayerRange() : plan.slices[0].layers;
  fed_.clear();
  logit_rows_.clear();
  results_.clear();
  next_tokens_.clear();
  num_prompt_logit_rows_ = 0;
  copies_.assign(plan.copies.begin(), plan.copies.end());
  block_swaps_.assign(plan.block_swaps.begin(), plan.block_swaps.end());
  state_swaps_.assign(plan.state_swaps.begin(), plan.state_swaps.end());
  add_encodings(plan);
  for (const BlockCopy& copy : copies_) {
    CHECK(copy.from.valid() && copy.from.value < limits_.num_blocks);
    CHECK(copy.to.valid() && copy.to.value < limits_.num_blocks);
  }
  for (const auto& request : plan.admitted) {
    const bool fresh =
        sequences.emplace(request->id, std::make_unique<ExecutorSequence>(request, limits_)).second;
    CHECK(fresh, "a sequence was admitted twice");
  }

  int64_t num_rows = 0, num_drafts = 0, num_segments = 0;
  bool triples = false;
  num_rows_ = num_spares_ = 0;
  for (const StateSwap& swap : plan.state_swaps) {
    if (kept_ != nullptr) kept_->swap(swap);
  }
  block_table_.used = 0;
  for (const Slice& slice : plan.slices) {
    num_rows += static_cast<int64_t>(slice.tokens.size());
    num_drafts += slice.max_drafts;
    num_segments += slice.tokens.empty() ? 0 : 1;
    const auto it = sequences.find(slice.seq);
    triples |= slice.arithmetic == Arithmetic::kPrompt && it != sequences.end() &&
               !it->second->request->positions.empty();
    block_table_.used = std::max(block_table_.used, std::ssize(slice.blocks));
  }
  const bool layered = layers_.partial();
  CHECK(num_rows - num_drafts <= (layered ? limits_.layered_rows : limits_.max_rows) &&
            num_drafts <= limits_.max_draft_rows &&
            num_segments <= (layered ? 1 : limits_.max_segments()),
        "a step is larger than was planned for");
  block_table_.used = block_table_.width = std::min(block_table_.used, limits_.num_blocks);
  if (padded.rows > 0) {
    CHECK(num_rows == num_segments + num_drafts && num_rows <= padded.rows &&
          num_segments <= padded.segments && padded.segments <= padded.rows &&
          padded.rows <= limits_.max_rows + limits_.max_draft_rows);
    block_table_.width = limits_.max_table_width();
  }
  CHECK(!layered || !triples, "a prompt with images is computed layer by layer");
  carve({std::max(num_rows, padded.rows), std::max(num_segments, padded.segments),
         block_table_.width, triples, layered ? num_pieces(num_rows, limits_) : 0});
  cu_q_[0] = 0;
  chain_seq_ = {};
  // Deciding slices first, then the other prompt slices, then those of decode.
  for (const int part : {0, 1, 2}) {
    const Arithmetic arithmetic = part < 2 ? Arithmetic::kPrompt : Arithmetic::kDecode;
    int result = 0;
    for (const Slice& slice : plan.slices) {
      const auto it = sequences.find(slice.seq);
      CHECK(it != sequences.end(), "unknown " + name(slice));
      ExecutorSequence& sequence = *it->second;
      const bool wants_prompt = slice.arithmetic == Arithmetic::kPrompt &&
                                sequence.request->sampling.prompt_logprobs >= 0 &&
                                (!layered || layers_.last);
      const bool has_row = slice.sample || wants_prompt;
      if (part == 0) {
        const bool ended = slice.tokens.empty() && slice.arithmetic == Arithmetic::kDecode;
        if (!ended) check_slice(slice, sequence);
        if (has_row) {
          results_.push_back({slice.seq, &sequence, sequence.request->sampling.logprobs >= 0, 0});
        }
      }
      const bool here = slice.arithmetic == arithmetic && slice.decides == (part == 0);
      if (here && !slice.tokens.empty()) {
        add_slice(slice, sequence, has_row ? result : -1);
      }
      result += has_row ? 1 : 0;
    }
    if (part == 0) batch_.num_deciding = batch_.seqs.num_segments;
    if (part == 1) {
      batch_.prompt_rows = num_rows_;
      batch_.num_prompt_segments = batch_.seqs.num_segments;
      batch_.num_prompt_chains = batch_.num_chains;
      chain_seq_ = {};
      num_prompt_logit_rows_ = static_cast<int64_t>(logit_rows_.size());
    }
  }

  pad(padded);
  if (padded.rows > 0 && batch_.max_decode_len > 1) {
    batch_.max_decode_len =
        std::max(4, static_cast<int>(std::bit_ceil(static_cast<unsigned>(batch_.max_decode_len))));
  }
  make_views(padded.rows > 0);
  if (layered) make_pieces();
  image_uses_ = {};
  for (const SeqId id : plan.retired) {
    const auto it = sequences.find(id);
    CHECK(it != sequences.end(), "an unknown sequence was retired");
    retired_.push_back(std::move(it->second));
    sequences.erase(it);
  }
}

/// Rows that are written nowhere, and segments and chains without rows.
void PackedStep::pad(const PaddedShape& shape) {
  if (shape.rows == 0) return;
  const auto real = static_cast<int32_t>(num_rows_);
  for (int64_t i = real; i < shape.rows; ++i) {
    ids_[i] = 0;
    feed_[i] = -1;
    kv_slot_[i] = -1;
    index_[i] = delta_[i] = 0;
  }
  for (int64_t i = batch_.seqs.num_segments; i < shape.segments; ++i) {
    cu_q_[i + 1] = real;
    kv_start_[i] = sees_all_[i] = 0;
    read_slot_[i] = write_slot_[i] = -1;
    block_table_.set(i, {});
  }
  std::fill(chains_ + batch_.num_chains, chains_ + shape.segments + 1,
            static_cast<int32_t>(batch_.seqs.num_segments));
  num_rows_ = shape.rows;
  batch_.seqs.num_segments = batch_.num_chains = static_cast<int>(shape.segments);
}

/// A view of the device's half where there is one.
TensorView PackedStep::view(void* host, DType dtype, std::initializer_list<int64_t> dims) const {
  auto* data = static_cast<std::byte*>(host);
  if (device_buffer_.data()) data = device_buffer_.data() + (data - buffer_.data());
  return {data, dtype, dims};
}

void PackedStep::make_views(bool padded) {
  const int64_t segments = batch_.seqs.num_segments;
  if (!padded) chains_[batch_.num_chains] = static_cast<int32_t>(segments);
  batch_.ids = view(ids_, DType::kI32, {num_rows_});
  feed_view_ = view(feed_, DType::kI32, {num_rows_});
  const auto num_logits = static_cast<int64_t>(logit_rows_.size());
  for (int64_t i = 0; i < num_logits; ++i) {
    logit_ids_[i] = static_cast<int32_t>(logit_rows_[static_cast<size_t>(i)].row);
  }
  batch_.positions = {.index = view(index_, DType::kI32, {num_rows_}),
                      .delta = view(delta_, DType::kI32, {num_rows_})};
  if (triples_) batch_.positions.triples = view(triples_, DType::kI32, {num_rows_, 3});
  if (num_image_rows_ > 0) {
    batch_.images = {.features = image_features_,
                     .rows = view(image_rows_, DType::kI32, {num_image_rows_}),
                     .runs = image_runs_};
  }
  batch_.seqs.cu_q = view(cu_q_, DType::kI32, {segments + 1});
  batch_.seqs.kv_start = view(kv_start_, DType::kI32, {segments});
  if (batch_.num_prompt_segments > 0) {
    batch_.seqs.host_cu_q = cu_q_;
    batch_.seqs.host_kv_start = kv_start_;
    batch_.seqs.host_block_table = block_table_.data;
    batch_.sees_all = std::span(sees_all_, static_cast<size_t>(batch_.num_prompt_segments));
  }
  if (limits_.paged) {
    batch_.kv_slot = view(kv_slot_, DType::kI64, {num_rows_});
    batch_.seqs.block_table = view(block_table_.data, DType::kI32, {segments, block_table_.width});
  }
  if (limits_.recurrent) {
    batch_.read_slot = view(read_slot_, DType::kI32, {segments});
    batch_.write_slot = view(write_slot_, DType::kI32, {segments});
    batch_.chains = view(chains_, DType::kI32, {batch_.num_chains + 1});
  }
  asked_ = {view(logit_ids_, DType::kI32, {num_logits}), num_prompt_logit_rows_};
  if (num_logits == 0 || batch_.num_prompt_segments == 0) return;
  asked_.seqs = batch_.seqs;
  asked_.first_row = asked_segments_.set(batch_.seqs, batch_.num_prompt_segments,
                                         batch_.prompt_rows, logit_ids_[0]);
  asked_.seqs.cu_q = view(asked_segments_.cu_q, DType::kI32, {segments + 1});
  asked_.seqs.kv_start = view(asked_segments_.start, DType::kI32, {segments});
  asked_.seqs.host_cu_q = asked_segments_.cu_q;
  asked_.seqs.host_kv_start = asked_segments_.start;
}

/// The pieces of a prompt that is computed layer by layer, and the segment of its ends. They share
/// its rows and its block table; positions of the ends are not looked at.
void PackedStep::make_pieces() {
  const int64_t count = num_pieces(num_rows_, limits_), size = limits_.piece_rows();
  const auto set_segment = [&](int64_t index, int64_t start, int64_t rows, StepBatch& out) {
    piece_cu_q_[2 * index] = 0;
    piece_cu_q_[2 * index + 1] = static_cast<int32_t>(rows);
    piece_start_[index] = static_cast<int32_t>(start);
    out.seqs = {.cu_q = view(piece_cu_q_ + 2 * index, DType::kI32, {2}),
                .kv_start = view(piece_start_ + index, DType::kI32, {1}),
                .block_table = batch_.seqs.block_table,
                .num_segments = 1,
                .host_cu_q = piece_cu_q_ + 2 * index,
                .host_kv_start = piece_start_ + index,
                .host_block_table = block_table_.data};
    out.prompt_rows = rows;
    out.num_prompt_segments = 1;
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = i * size, end = std::min(num_rows_, begin + size);
    StepBatch& piece = pieces_.emplace_back();
    piece.ids = batch_.ids.rows(begin, end);
    piece.positions = {.index = batch_.positions.index.rows(begin, end),
                       .delta = batch_.positions.delta.rows(begin, end)};
    piece.kv_slot = batch_.kv_slot.rows(begin, end);
    set_segment(i, begin, end - begin, piece);
  }
  const int64_t ends = std::min<int64_t>(num_rows_, 2 * RouterArgs::kPooled);
  ends_ = {};
  ends_.ids = batch_.ids.rows(0, ends);
  ends_.num_deciding = 1;
  set_segment(count, 0, ends, ends_);
}

void PackedStep::upload(Stream& stream) {
  if (!device_buffer_.data()) return;
  if (block_table_.used == block_table_.width) {
    return copy_bytes(stream, device_buffer_.data(), buffer_.data(), used_bytes_);
  }
  // A padded step has nothing behind its tables.
  upload_with(stream, block_table_, batch_.seqs.num_segments, device_buffer_.data(),
              buffer_.data());
}

void PackedStep::add_slice(const Slice& slice, ExecutorSequence& sequence, int result) {
  const int64_t segment = batch_.seqs.num_segments++;
  const int64_t row = num_rows_;
  const auto count = static_cast<int64_t>(slice.tokens.size());
  num_rows_ += count;
  if (slice.seq != chain_seq_) {
    chains_[batch_.num_chains++] = static_cast<int32_t>(segment);
    chain_seq_ = slice.seq;
  }
  if (slice.arithmetic == Arithmetic::kDecode) {
    batch_.max_decode_len = std::max(batch_.max_decode_len, static_cast<int>(count));
  }
  cu_q_[segment + 1] = static_cast<int32_t>(row + count);
  kv_start_[segment] = static_cast<int32_t>(slice.first);
  sees_all_[segment] = std::ssize(sequence.request->prompt) < limits_.sparse_from ? 1 : 0;
  add_states(slice, segment, row + count, result);
  if (limits_.paged) {
    block_table_.set(segment, slice.blocks);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = slice.first + i;
      const int64_t block = slice.blocks[static_cast<size_t>(at / limits_.block_size)].value;
      kv_slot_[row + i] = block * limits_.block_size + at % limits_.block_size;
    }
  }
  add_tokens(slice, sequence, row);
  if (limits_.max_draft_rows > 0) add_next_token(slice, sequence, row + count - 1);
  if (result >= 0) add_logit_rows(slice, sequence, row, result);
}

/// What drafts make of a state goes to a spare slot, or nowhere: whether they are right is not
/// known yet. `end`: the row behind the slice.
void PackedStep::add_states(const Slice& slice, int64_t segment, int64_t end, int result) {
  const auto physical = [&](SlotId slot) {
    return state_slots_ != nullptr ? state_slots_->of(slot) : slot.value;
  };
  int32_t& read = read_slot_[segment] = physical(slice.state_read);
  int32_t& write = write_slot_[segment] = physical(slice.state_write);
  if (result >= 0 && slice.sample) {
    ResultRow& out = results_[static_cast<size_t>(result)];
    out.row = end - 1 - slice.max_drafts;
    out.state = slice.state_write;
    out.num_drafts = slice.max_drafts;
    if (slice.max_drafts > 0 && state_slots_ != nullptr) {
      out.state_read = read;
      out.spare = num_spares_++;
      write = state_slots_->spare(out.spare);
    }
  }
  if (kept_ == nullptr) return;
  const KeptRows::Codes codes = kept_->pack(slice);
  batch_.kept_rows |= codes.read != read || codes.write != write;
  read = codes.read;
  write = codes.write;
}

void PackedStep::add_next_token(const Slice& slice, const ExecutorSequence& sequence, int64_t row) {
  if (slice.sample) return;
  const std::vector<int32_t>& prompt = sequence.request->prompt;
  const int64_t at = slice.first + std::ssize(slice.tokens) - std::ssize(prompt);
  if (at >= 0) {
    next_tokens_.push_back({row, sequence.history.generated(at)});
    return;
  }
  next_tokens_.push_back({row, prompt[prompt.size() - static_cast<size_t>(-at)],
                          next_image_row(slice, *sequence.request)});
}

/// Where the prompt's token behind a slice has its features: of an image that is cut by the slice's
/// end, or whose tokens another slice of this step has. -1: it is none, or they are not there yet.
int64_t PackedStep::next_image_row(const Slice& slice, const Request& request) {
  const int64_t at = slice.first + std::ssize(slice.tokens);
  for (size_t i = 0; i < request.images.size(); ++i) {
    const PromptImage& image = request.images[i];
    if (at < image.first || at >= image.end()) continue;
    const ImageUse* use = find_use(slice.seq, i);
    if (use == nullptr || image_rows_ == nullptr) return -1;
    add_image_row(*use, at - image.first);
    return num_image_rows_ - 1;
  }
  return -1;
}

const ImageUse* PackedStep::find_use(SeqId seq, size_t image) const {
  const auto use =
      std::find_if(image_uses_.begin(), image_uses_.end(), [&](const ImageUse& candidate) {
        return candidate.seq == seq && candidate.image == static_cast<int>(image);
      });
  return use == image_uses_.end() ? nullptr : &*use;
}

/// The features of token `at` of an image.
void PackedStep::add_image_row(const ImageUse& use, int64_t at) {
  const int64_t page = use.pages[static_cast<size_t>(at / kImagePage)];
  CHECK(page >= 0 && page < limits_.image_pages);
  image_rows_[num_image_rows_++] = static_cast<int32_t>(page * kImagePage + at % kImagePage);
}

void PackedStep::add_tokens(const Slice& slice, ExecutorSequence& sequence, int64_t row) {
  const Request& request = *sequence.request;
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  const auto count = static_cast<int64_t>(slice.tokens.size());
  const bool from_device = slice.tokens[0] == kDeviceToken;
  CHECK(!from_device || (count == 1 && slice.first >= prompt_len), name(slice));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = slice.first + i;
    const int32_t id = from_device ? 0 : slice.tokens[static_cast<size_t>(i)];
    CHECK(id >= 0 && id < limits_.vocab_size, "token id out of range in " + name(slice));
    if (at < prompt_len) {
      CHECK(id == request.prompt[static_cast<size_t>(at)], "not the prompt's: " + name(slice));
    }
    ids_[row + i] = id;
    feed_[row + i] = -1;
    add_position(request, at, row + i);
  }
  if (slice.arithmetic == Arithmetic::kPrompt) add_images(slice, sequence, row);
  if (slice.first >= prompt_len) {
    fed_.push_back(
        {&sequence, row, count - slice.max_drafts, slice.first - prompt_len, from_device});
  }
}

void PackedStep::add_encodings(const StepPlan& plan) {
  image_uses_ = plan.image_uses;
  image_runs_.clear();
  num_image_rows_ = 0;
  encodings_.clear();
  int64_t tokens = 0;
  for (const ImageEncoding& encoding : plan.encodings) {
    const int64_t capacity = std::ssize(encoding.pages) * kImagePage;
    CHECK(capacity >= encoding.image->num_tokens, "an image without room for its features");
    for (const int32_t page : encoding.pages) CHECK(page >= 0 && page < limits_.image_pages);
    tokens += encoding.image->num_tokens;
    encodings_.push_back({encoding.image, {encoding.pages.begin(), encoding.pages.end()}});
  }
  CHECK(tokens <= limits_.image_tokens, "more images in a step than were planned for");
}

/// Where the rows of image tokens find their features.
void PackedStep::add_images(const Slice& slice, const ExecutorSequence& sequence, int64_t row) {
  const auto& images = sequence.request->images;
  const int64_t last = slice.first + static_cast<int64_t>(slice.tokens.size());
  for (size_t i = 0; i < images.size(); ++i) {
    const int64_t begin = std::max(images[i].first, slice.first);
    const int64_t end = std::min(images[i].end(), last);
    if (begin >= end) continue;
    const ImageUse* use = find_use(slice.seq, i);
    CHECK(use != nullptr && triples_, "features of an image are missing: " + name(slice));
    image_runs_.push_back(
        {.row = row + begin - slice.first, .count = end - begin, .first = num_image_rows_});
    for (int64_t at = begin; at < end; ++at) add_image_row(*use, at - images[i].first);
  }
}

/// The row of token `index`: a 1-d position as index + delta, and its axes where they are needed.
void PackedStep::add_position(const Request& request, int64_t index, int64_t row) {
  const bool prompt = index < static_cast<int64_t>(request.prompt.size());
  const Position p = position(request.positions, prompt ? 0 : request.rope_delta, index);
  for (const int32_t axis : {p.t, p.h, p.w}) {
    CHECK(axis >= 0 && axis < limits_.max_model_len,
          "position out of range in sequence " + std::to_string(request.id.value));
  }
  index_[row] = static_cast<int32_t>(index);
  delta_[row] = static_cast<int32_t>(p.t - index);
  if (triples_) {
    triples_[3 * row] = p.t;
    triples_[3 * row + 1] = p.h;
    triples_[3 * row + 2] = p.w;
  }
}

void PackedStep::add_logit_rows(const Slice& slice, ExecutorSequence& sequence, int64_t row,
                                int result) {
  const Request& request = *sequence.request;
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  const auto count = static_cast<int64_t>(slice.tokens.size());
  const int64_t end = slice.first + count;
  if (slice.arithmetic == Arithmetic::kPrompt && request.sampling.prompt_logprobs >= 0) {
    // Row i predicts the token at first + i + 1, as long as that is one of the prompt.
    const int64_t entries = std::min(end, prompt_len - 1) - slice.first;
    results_[static_cast<size_t>(result)].num_prompt_logprobs = static_cast<int>(entries);
    for (int64_t i = 0; i < entries; ++i) {
      logit_rows_.push_back({row + i, result, static_cast<int>(i),
                             request.prompt[static_cast<size_t>(slice.first + i + 1)],
                             slice.first + i + 1, &sequence});
    }
  }
  if (!slice.sample) return;
  const int64_t base = count - 1 - slice.max_drafts;
  for (int64_t i = base; i < count; ++i) {
    const auto token = [&](int64_t at) { return slice.tokens[static_cast<size_t>(at)]; };
    logit_rows_.push_back({.row = row + i,
                           .result = result,
                           .position = slice.first + i + 1,
                           .sequence = &sequence,
                           .draft = i > base ? token(i) : -1,
                           .next_draft = i + 1 < count ? token(i + 1) : -1});
  }
}

}  // namespace weft
