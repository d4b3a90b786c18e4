#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <optional>

#include "base/hash.h"
#include "base/philox.h"
#include "device/gpu.h"
#include "nn/weights.h"

namespace weft {
namespace {

constexpr int64_t kBatch = int64_t{64} << 20;  // bytes staged at a time, if the tensors allow it
constexpr int64_t kPiece = int64_t{1} << 20;   // bytes of one read
constexpr float kDummyScale = 0.02f;           // standard deviation, as transformers initialises

int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

/// Seeded values of elements [begin, end) of a tensor: uniform of the usual deviation, bf16.
void fill_random(uint64_t key, int64_t begin, int64_t end, bf16* out) {
  const float range = kDummyScale * std::sqrt(3.0f);
  std::array<uint32_t, 4> draw{};
  for (int64_t i = begin; i < end; ++i) {
    const uint64_t element = static_cast<uint64_t>(i);
    if (i == begin || element % 8 == 0) draw = philox4x32(key, element / 8, 0);
    const uint32_t bits = draw[element % 8 / 2] >> (element % 2 * 16) & 0xFFFFu;
    *out++ = float_to_bf16((static_cast<float>(bits) * 0x1p-15f - 1.0f) * range);
  }
}

float dummy_constant(VectorRole role) {
  return role == VectorRole::kNorm ? 1.0f : 0.0f;
}

float element(const std::byte* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF32: return reinterpret_cast<const float*>(data)[i];
    case DType::kBF16: return bf16_to_float(reinterpret_cast<const bf16*>(data)[i]);
    default: return f16_to_float(reinterpret_cast<const f16*>(data)[i]);
  }
}

}  // namespace

/// Values of fp8 codes: of a tensor [.., N, K], from element `begin` on, where 128 x 128 codes of a
/// matrix share a scale. In place: the codes are the second half of `data`, whose 2n bytes become n
/// bf16 values.
void expand_fp8(const TensorPart& part, const std::vector<float>& scales, int64_t begin,
                std::span<std::byte> data) {
  const int64_t n = part.shape[part.shape.size() - 2], k = part.width();
  const int64_t scale_rows = fp8_blocks(n), scale_columns = fp8_blocks(k);
  const size_t count = data.size() / 2;
  const std::byte* codes = data.data() + count;
  for (size_t i = 0; i < count; ++i) {
    const int64_t at = begin + static_cast<int64_t>(i), row = at / k;
    const int64_t scale =
        (row / n * scale_rows + row % n / kFp8Block) * scale_columns + at % k / kFp8Block;
    const float value =
        e4m3_to_float(static_cast<uint8_t>(codes[i])) * scales[static_cast<size_t>(scale)];
    const bf16 rounded = float_to_bf16(value);
    std::memcpy(data.data() + 2 * i, &rounded, sizeof rounded);
  }
}

/// Fills the memory of a plan, a batch of jobs at a time: read into a staging buffer (or straight
/// into a table), then pack. For a GPU there are three staging buffers of pinned memory: the next
/// batches are read while the last ones are on their way. There large tensors are cut into batches.
class WeightPlan::Loader {
 public:
  Loader(const WeightPlan& plan, Stream& stream, bool dummy, const LoadProgress& progress)
      : plan_(plan), stream_(stream), dummy_(dummy), progress_(progress) {
    for (const Job& job : plan_.jobs_) {
      for (const TensorPart& part : job.parts) total_ += part_bytes(job, part);
      cut(job);
    }
  }

  Result<> run(std::byte* memory) {
    memory_ = memory;
    size_t first = 0;
    while (first < jobs_.size()) {
      int64_t bytes = 0;
      size_t last = first;
      while (last < jobs_.size() &&
             (last == first || bytes + staged_bytes(jobs_[last]) <= kBatch)) {
        bytes += staged_bytes(jobs_[last++]);
      }
      TRY(prepare_staging(bytes));
      TRY(run_batch(std::span(jobs_).subspan(first, last - first)));
      first = last;
    }
    synchronize(stream_);
    return {};
  }

 private:
  struct Staging {
    Buffer buffer;
    std::optional<GpuEvent> passed;  // when the GPU has taken what was in it
  };
  struct Read {
    const TensorPart* part;
    VectorRole role;
    bool constant;   // dummy: a constant instead of random values
    bool expanded;   // fp8 codes become bf16 values
    int64_t offset;  // bytes from the beginning of the tensor
    std::span<std::byte> dst;
  };

  bool is_fp8(const TensorPart& part) const {
    return plan_.stored_dtype(part.name) == DType::kFP8E4M3;
  }
  /// The codes of an fp8 tensor stay as they are.
  bool keeps_codes(const Job& job, const TensorPart& part) const {
    return job.kind == JobKind::kMatrix && is_fp8(part) &&
           plan_.weights_[job.weight].target->shape.format == WeightFormat::kFp8Block;
  }
  /// Of what is staged: other fp8 codes become bf16 values there.
  DType dtype_of(const Job& job, const TensorPart& part) const {
    return is_fp8(part) && !keeps_codes(job, part) ? DType::kBF16 : plan_.stored_dtype(part.name);
  }
  int64_t part_bytes(const Job& job, const TensorPart& part) const {
    return part.num_rows() * part.width() * dtype_size(dtype_of(job, part));
  }
  /// Of the scales that are staged behind kept codes.
  static int64_t scale_bytes(const TensorPart& part) {
    return fp8_blocks(part.num_rows()) * fp8_blocks(part.width()) * 4;
  }
  int64_t staged_bytes(const Job& job, const TensorPart& part) const {
    return aligned(part_bytes(job, part)) +
           (keeps_codes(job, part) ? aligned(scale_bytes(part)) : 0);
  }
  /// The job, or what it is cut into: rows that fit into half a staging buffer.
  void cut(const Job& job) {
    const bool rows = job.kind == JobKind::kMatrix ? plan_.ops_->pack_rows != nullptr
                                                   : job.kind == JobKind::kTable && on_gpu() &&
                                                         job.dtype == dtype_of(job, job.parts[0]);
    const bool at_blocks =
        std::all_of(job.parts.begin(), job.parts.end() - 1,
                    [](const TensorPart& part) { return part.num_rows() % kFp8Block == 0; });
    if (!rows || !at_blocks || staged_bytes(job) <= kBatch / 2) {
      jobs_.push_back(job);
      return;
    }
    int64_t done = 0;
    for (const TensorPart& part : job.parts) {
      const int64_t row_bytes = part.width() * dtype_size(dtype_of(job, part));
      const int64_t step = std::max<int64_t>(kBatch / 2 / row_bytes / kFp8Block, 1) * kFp8Block;
      for (int64_t row = 0; row < part.num_rows(); row += step) {
        Job piece = job;
        piece.parts = {part};
        piece.parts[0].begin += row;
        piece.parts[0].rows = std::min(step, part.num_rows() - row);
        if (job.kind == JobKind::kMatrix) {
          piece.first_row = done + row;
        } else {
          piece.offset += row * row_bytes;
        }
        jobs_.push_back(std::move(piece));
      }
      done += part.num_rows();
    }
  }
  bool on_gpu() const { return plan_.ops_->device == DeviceKind::kCuda; }
  /// A table whose type needs no conversion is read in place.
  bool in_place(const Job& job) const {
    return job.kind == JobKind::kTable && !on_gpu() && dtype_of(job, job.parts[0]) != DType::kF16;
  }

  /// The next staging buffer, at least that large and free.
  Result<> prepare_staging(int64_t bytes) {
    staging_ = &stagings_[num_batches_++ % (on_gpu() ? stagings_.size() : 1)];
    if (on_gpu() && !staging_->passed) staging_->passed.emplace(TRY(GpuEvent::create()));
    if (staging_->passed) staging_->passed->wait();
    if (bytes <= staging_->buffer.bytes()) return {};
    staging_->buffer = Buffer();  // the old one goes first
    const DeviceKind kind = on_gpu() ? DeviceKind::kPinned : DeviceKind::kCpu;
    staging_->buffer = TRY(Buffer::allocate(kind, std::max(bytes, kBatch)));
    return {};
  }
  int64_t staged_bytes(const Job& job) const {
    if (in_place(job)) return 0;
    int64_t bytes = 0;
    for (const TensorPart& part : job.parts) bytes += staged_bytes(job, part);
    return bytes;
  }

  Result<> run_batch(std::span<const Job> jobs) {
    std::vector<Read> reads;
    std::vector<std::byte*> staged;  // of every part, in order
    std::byte* at = staging_->buffer.data();
    for (const Job& job : jobs) {
      for (const TensorPart& part : job.parts) {
        std::byte* dst = in_place(job) ? memory_ + job.offset : at;
        if (!in_place(job)) at += staged_bytes(job, part);
        staged.push_back(dst);
        const int64_t bytes = part_bytes(job, part);
        const int64_t start = part.begin * part.width() * dtype_size(dtype_of(job, part));
        for (int64_t done = 0; done < bytes; done += kPiece) {
          const int64_t size = std::min(kPiece, bytes - done);
          reads.push_back({&part,
                           job.role,
                           job.kind == JobKind::kVector && job.role != VectorRole::kOther,
                           is_fp8(part) && !keeps_codes(job, part),
                           start + done,
                           {dst + done, static_cast<size_t>(size)}});
        }
      }
    }
    for (const Job& job : jobs) {
      for (const TensorPart& part : job.parts) {
        if (is_fp8(part)) TRY(read_scales(part));
      }
    }
    TRY(read_all(reads));
    size_t next = 0;
    for (const Job& job : jobs) {
      finish(job, std::span(staged).subspan(next, job.parts.size()));
      next += job.parts.size();
    }
    if (staging_->passed) staging_->passed->record(stream_);
    return {};
  }

  Result<> read_all(std::span<const Read> reads) {
    std::mutex mutex;
    std::optional<Error> first_error;
    std::atomic<bool> stop{false};
    stream_.pool().for_each(static_cast<int64_t>(reads.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end && !stop.load(std::memory_order_relaxed); ++i) {
        const Read& read = reads[static_cast<size_t>(i)];
        auto result = dummy_ ? make(read) : fetch(read);
        const std::lock_guard lock(mutex);
        if (!result.ok()) {
          if (!first_error) first_error = std::move(result).error();
          stop = true;
          return;
        }
        done_ += static_cast<int64_t>(read.dst.size());
        if (progress_) progress_(done_, total_);
      }
    });
    if (first_error) return *first_error;
    return {};
  }

  Result<> fetch(const Read& read) {
    const auto offset = static_cast<uint64_t>(read.offset);
    const Checkpoint& checkpoint = *plan_.checkpoint_;
    if (!read.expanded) return checkpoint.read_range(read.part->name, offset, read.dst);
    TRY(checkpoint.read_range(read.part->name, offset / 2, read.dst.last(read.dst.size() / 2)));
    expand_fp8(*read.part, scales_.at(read.part->name), read.offset / 2, read.dst);
    return {};
  }

  Result<> read_scales(const TensorPart& part) {
    if (scales_.contains(part.name)) return {};
    const std::string name = fp8_scale_name(part.name);
    const TensorInfo& info = *plan_.checkpoint_->find(name);
    int64_t count = 1;
    for (const int64_t extent : info.shape) count *= extent;
    std::vector<std::byte> bytes(static_cast<size_t>(count * dtype_size(info.dtype)));
    TRY(plan_.checkpoint_->read_range(name, 0, bytes));
    std::vector<float>& scales = scales_[part.name];
    for (int64_t i = 0; i < count; ++i) scales.push_back(element(bytes.data(), info.dtype, i));
    return {};
  }

  /// Those of the part's blocks, which begin with its rows, put to `to`.
  TensorView stage_scales(const TensorPart& part, std::byte* to) const {
    const int64_t n = part.shape[part.shape.size() - 2], columns = fp8_blocks(part.width());
    const int64_t first = part.begin / n * fp8_blocks(n) + part.begin % n / kFp8Block;
    const TensorView out(to, DType::kF32, {fp8_blocks(part.num_rows()), columns});
    std::memcpy(to, scales_.at(part.name).data() + first * columns,
                static_cast<size_t>(out.bytes()));
    return out;
  }

  static Result<> make(const Read& read) {
    bf16* out = reinterpret_cast<bf16*>(read.dst.data());
    const int64_t count = static_cast<int64_t>(read.dst.size()) / 2;
    if (read.constant) {
      std::fill_n(out, count, float_to_bf16(dummy_constant(read.role)));
      return {};
    }
    const std::string& name = read.part->name;
    const uint64_t key = chain_hash(0, {}, std::as_bytes(std::span(name.data(), name.size()))).lo;
    fill_random(key, read.offset / 2, read.offset / 2 + count, out);
    return {};
  }

  void finish(const Job& job, std::span<std::byte* const> staged) {
    if (in_place(job)) return;
    if (job.kind == JobKind::kMatrix) {
      std::vector<TensorView> pieces;
      for (size_t i = 0; i < staged.size(); ++i) {
        const TensorPart& part = job.parts[i];
        pieces.emplace_back(staged[i], dtype_of(job, part),
                            std::initializer_list<int64_t>{part.num_rows(), part.width()});
        if (!keeps_codes(job, part)) continue;
        pieces.push_back(stage_scales(part, staged[i] + aligned(part_bytes(job, part))));
      }
      const WeightTarget& target = plan_.weights_[job.weight];
      Weight weight = *target.target;
      weight.data = memory_ + target.offset;
      if (job.first_row < 0) {
        plan_.ops_->pack_weight(stream_, weight, job.expert, pieces);
      } else {
        plan_.ops_->pack_rows(stream_, weight, job.expert, job.first_row, pieces);
      }
      return;
    }
    if (job.kind == JobKind::kTable && job.dtype == dtype_of(job, job.parts[0])) {
      copy_bytes(stream_, memory_ + job.offset, staged[0], part_bytes(job, job.parts[0]));
      return;
    }
    convert(job, staged);
  }

  /// Vectors, and tables of a type that is not kept; small or rare.
  void convert(const Job& job, std::span<std::byte* const> staged) {
    int64_t count = 0;
    for (const TensorPart& part : job.parts) count += part.num_rows() * part.width();
    const int64_t bytes = count * dtype_size(job.dtype);
    Buffer converted;
    std::byte* out = memory_ + job.offset;
    if (on_gpu()) {
      converted = Buffer::allocate(DeviceKind::kCpu, bytes).value();
      out = converted.data();
    }
    std::byte* at = out;
    const float offset = job.role == VectorRole::kNormMinusOne ? 1.0f : 0.0f;
    for (size_t i = 0; i < staged.size(); ++i) {
      const TensorPart& part = job.parts[i];
      const int64_t n = part.num_rows() * part.width();
      for (int64_t j = 0; j < n; ++j, at += dtype_size(job.dtype)) {
        const float value = element(staged[i], dtype_of(job, part), j) + offset;
        if (job.dtype == DType::kF32) {
          *reinterpret_cast<float*>(at) = value;
        } else {
          *reinterpret_cast<bf16*>(at) = float_to_bf16(value);
        }
      }
    }
    if (!on_gpu()) return;
    copy_bytes(stream_, memory_ + job.offset, out, bytes);
    synchronize(stream_);
  }

  const WeightPlan& plan_;
  Stream& stream_;
  const bool dummy_;
  const LoadProgress& progress_;
  std::vector<Job> jobs_;  // those of the plan, or what they are cut into
  std::array<Staging, 3> stagings_;
  Staging* staging_ = nullptr;  // of this batch
  size_t num_batches_ = 0;
  std::map<std::string, std::vector<float>> scales_;  // of fp8 tensors, by their names
  std::byte* memory_ = nullptr;
  int64_t total_ = 0, done_ = 0;
};

Result<Buffer> WeightPlan::load(Stream& stream, bool dummy, const LoadProgress& progress) {
  CHECK(ops_ != nullptr);
  if (!dummy) TRY(check());
  auto memory = Buffer::allocate(ops_->device, bytes_);
  if (!memory.ok()) return with_context(std::move(memory).error(), "the weights");
  Loader loader(*this, stream, dummy, progress);
  TRY(loader.run(memory->data()));
  for (const WeightTarget& weight : weights_) weight.target->data = memory->data() + weight.offset;
  for (const ViewTarget& view : views_) {
    *view.target = view.view;
    view.target->data = memory->data() + view.offset;
  }
  return memory;
}

}  // namespace weft
