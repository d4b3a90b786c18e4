#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>

#include "base/align.h"
#include "base/hash.h"
#include "base/philox.h"
#include "device/gpu.h"
#include "nn/weights.h"

namespace weft {
namespace {

// Bytes staged at a time, if the tensors allow it, and of one read.
constexpr int64_t kBatch = int64_t{64} << 20, kPiece = int64_t{4} << 20;
constexpr int64_t kGpuBatch = int64_t{8} << 20, kGpuPiece = int64_t{1} << 20;
constexpr size_t kGpuStagings = 8;
constexpr float kDummyScale = 0.02f;  // standard deviation, as transformers initialises

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
/// into a table), then pack. On the CPU all threads read a batch, then all pack it. For a GPU large
/// tensors are cut, there are some staging buffers of pinned memory, and no thread waits for
/// another: whoever reads the last piece of a batch enqueues its way to the device, while the
/// others read the next ones.
class WeightPlan::Loader {
 public:
  Loader(const WeightPlan& plan, Stream& stream, bool dummy, const LoadProgress& progress)
      : plan_(plan), stream_(stream), dummy_(dummy), progress_(progress) {
    for (const Job& job : plan_.jobs_) {
      for (const TensorPart& part : job.parts) total_ += part_bytes(job, part);
      cut(job);
    }
    stagings_.resize(on_gpu() ? kGpuStagings : 1);
  }

  Result<> run(std::byte* memory) {
    memory_ = memory;
    auto done = on_gpu() ? run_overlapped() : run_in_turn();
    synchronize(stream_);  // after an error, too: what is under way reads the staging buffers
    return done;
  }

 private:
  struct Staging {
    Buffer buffer;
    std::optional<GpuEvent> passed;  // when the GPU has taken what was in it
    bool busy = false;               // from its opening until its way to the GPU is enqueued
  };
  struct Read {
    const TensorPart* part;
    VectorRole role;
    bool constant;                     // dummy: a constant instead of random values
    const std::vector<float>* scales;  // fp8 codes become bf16 values; null: they stay
    int64_t offset;                    // bytes from the beginning of the tensor
    std::span<std::byte> dst;
  };
  /// Jobs that are staged together.
  struct Batch {
    std::span<const Job> jobs;
    Staging* staging = nullptr;
    std::vector<Read> reads;
    std::vector<std::byte*> staged;  // of every part, in order
    size_t unfinished = 0;           // reads
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
    const int64_t most = batch_bytes() / 2;
    if (!rows || !at_blocks || staged_bytes(job) <= most) {
      jobs_.push_back(job);
      return;
    }
    int64_t done = 0;
    for (const TensorPart& part : job.parts) {
      const int64_t row_bytes = part.width() * dtype_size(dtype_of(job, part));
      const int64_t step = std::max<int64_t>(most / row_bytes / kFp8Block, 1) * kFp8Block;
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
  int64_t batch_bytes() const { return on_gpu() ? kGpuBatch : kBatch; }
  /// A table whose type needs no conversion is read in place.
  bool in_place(const Job& job) const {
    return job.kind == JobKind::kTable && !on_gpu() && dtype_of(job, job.parts[0]) != DType::kF16;
  }

  /// Copied to the device as it is staged; other vectors and tables are converted on the host.
  bool copied(const Job& job) const {
    return job.kind == JobKind::kTable && job.dtype == dtype_of(job, job.parts[0]);
  }
  static int64_t num_elements(const Job& job) {
    int64_t count = 0;
    for (const TensorPart& part : job.parts) count += part.num_rows() * part.width();
    return count;
  }
  int64_t staged_bytes(const Job& job) const {
    if (in_place(job)) return 0;
    int64_t bytes = 0;
    for (const TensorPart& part : job.parts) bytes += staged_bytes(job, part);
    // What is made of them waits there for the device.
    const bool converted = on_gpu() && job.kind != JobKind::kMatrix && !copied(job);
    return bytes + (converted ? aligned(num_elements(job) * dtype_size(job.dtype)) : 0);
  }

  /// As many of the jobs that are left as fit into a staging buffer, at least one; not opened.
  Batch next_batch() {
    const size_t first = next_job_;
    int64_t bytes = 0;
    while (next_job_ < jobs_.size()) {
      const int64_t more = staged_bytes(jobs_[next_job_]);
      if (next_job_ > first && bytes + more > batch_bytes()) break;
      bytes += more;
      ++next_job_;
    }
    Batch batch;
    batch.jobs = std::span(jobs_).subspan(first, next_job_ - first);
    batch.staging = &stagings_[num_batches_++ % stagings_.size()];
    return batch;
  }

  /// Waits until the batch's staging buffer is free, and says what is to be read.
  Result<> open(Batch& batch) {
    Staging& staging = *batch.staging;
    int64_t bytes = 0;
    for (const Job& job : batch.jobs) bytes += staged_bytes(job);
    if (on_gpu() && !staging.passed) staging.passed.emplace(TRY(GpuEvent::create()));
    if (staging.passed) staging.passed->wait();
    if (bytes > staging.buffer.bytes()) {
      staging.buffer = Buffer();  // the old one goes first
      const DeviceKind kind = on_gpu() ? DeviceKind::kPinned : DeviceKind::kCpu;
      staging.buffer = TRY(Buffer::allocate(kind, std::max(bytes, batch_bytes())));
    }
    std::byte* at = staging.buffer.data();
    for (const Job& job : batch.jobs) {
      std::byte* const begin = at;
      for (const TensorPart& part : job.parts) {
        if (is_fp8(part)) TRY(read_scales(part));
        std::byte* dst = in_place(job) ? memory_ + job.offset : at;
        at += in_place(job) ? 0 : staged_bytes(job, part);
        batch.staged.push_back(dst);
        add_reads(job, part, dst, batch.reads);
      }
      at = begin + staged_bytes(job);
    }
    CHECK(!batch.reads.empty(), "a batch of empty tensors");
    batch.unfinished = batch.reads.size();
    return {};
  }

  void add_reads(const Job& job, const TensorPart& part, std::byte* dst,
                 std::vector<Read>& reads) const {
    const int64_t bytes = part_bytes(job, part), piece = on_gpu() ? kGpuPiece : kPiece;
    const int64_t start = part.begin * part.width() * dtype_size(dtype_of(job, part));
    for (int64_t done = 0; done < bytes; done += piece) {
      reads.push_back({&part,
                       job.role,
                       job.kind == JobKind::kVector && job.role != VectorRole::kOther,
                       is_fp8(part) && !keeps_codes(job, part) ? &scales_.at(part.name) : nullptr,
                       start + done,
                       {dst + done, static_cast<size_t>(std::min(piece, bytes - done))}});
    }
  }

  /// Packs what was read, or enqueues that on the GPU.
  void finish(const Batch& batch) {
    size_t next = 0;
    for (const Job& job : batch.jobs) {
      finish(job, std::span(batch.staged).subspan(next, job.parts.size()));
      next += job.parts.size();
    }
    if (batch.staging->passed) batch.staging->passed->record(stream_);
  }

  Result<> run_in_turn() {
    while (next_job_ < jobs_.size()) {
      Batch batch = next_batch();
      TRY(open(batch));
      stream_.pool().for_each(static_cast<int64_t>(batch.reads.size()), 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end && !stop_; ++i) {
                                  read(batch, batch.reads[static_cast<size_t>(i)]);
                                }
                              });
      if (error_) return *error_;
      finish(batch);
    }
    return {};
  }

  Result<> run_overlapped() {
    // All at once: taking and pinning memory is slow.
    stream_.pool().for_each(std::ssize(stagings_), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        auto buffer = Buffer::allocate(DeviceKind::kPinned, batch_bytes());
        // What could not be had is missed again when a batch asks for it.
        if (buffer.ok()) stagings_[static_cast<size_t>(i)].buffer = std::move(buffer).value();
      }
    });
    stream_.pool().parallel([&](int) { take_reads(); });
    if (error_) return *error_;
    return {};
  }

  /// What each thread does for a GPU: reads pieces of the youngest batch, and opens the next one
  /// when there is none left. Batches are opened in order, and a batch waits for a staging buffer
  /// of an older one whose pieces are all taken: some thread can always go on.
  void take_reads() {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (error_) return;
      if (open_ && next_read_ < open_->reads.size()) {
        const std::shared_ptr<Batch> batch = open_;
        const Read& piece = batch->reads[next_read_++];
        lock.unlock();
        const bool last = read(*batch, piece);
        lock.lock();
        if (!last) continue;
        finish(*batch);
        batch->staging->busy = false;
        changed_.notify_all();
      } else if (opening_ || (next_job_ < jobs_.size() && next_staging().busy)) {
        changed_.wait(lock);
      } else if (next_job_ == jobs_.size()) {
        return;
      } else {
        const auto batch = std::make_shared<Batch>(next_batch());
        batch->staging->busy = opening_ = true;
        lock.unlock();
        auto opened = open(*batch);
        lock.lock();
        if (!opened.ok() && !error_) error_ = std::move(opened).error();
        open_ = batch;
        next_read_ = 0;
        opening_ = false;
        changed_.notify_all();
      }
    }
  }
  const Staging& next_staging() const { return stagings_[num_batches_ % stagings_.size()]; }

  /// Reads (or makes) a piece; whether it was the batch's last one and all is well.
  bool read(Batch& batch, const Read& piece) {
    auto result = dummy_ ? make(piece) : fetch(piece);
    const std::lock_guard lock(mutex_);
    if (!result.ok()) {
      if (!error_) error_ = std::move(result).error();
      stop_ = true;
      changed_.notify_all();
      return false;
    }
    done_ += static_cast<int64_t>(piece.dst.size());
    if (progress_) progress_(done_, total_);
    return --batch.unfinished == 0 && !error_;
  }

  Result<> fetch(const Read& read) {
    const auto offset = static_cast<uint64_t>(read.offset);
    const Checkpoint& checkpoint = *plan_.checkpoint_;
    if (read.scales == nullptr) return checkpoint.read_range(read.part->name, offset, read.dst);
    TRY(checkpoint.read_range(read.part->name, offset / 2, read.dst.last(read.dst.size() / 2)));
    expand_fp8(*read.part, *read.scales, read.offset / 2, read.dst);
    return {};
  }

  /// By the thread that opens a batch, the only one that adds some.
  Result<> read_scales(const TensorPart& part) {
    if (scales_.contains(part.name)) return {};
    const std::string name = fp8_scale_name(part.name);
    const TensorInfo& info = *plan_.checkpoint_->find(name);
    int64_t count = 1;
    for (const int64_t extent : info.shape) count *= extent;
    std::vector<std::byte> bytes(static_cast<size_t>(count * dtype_size(info.dtype)));
    TRY(plan_.checkpoint_->read_range(name, 0, bytes));
    std::vector<float> scales;
    for (int64_t i = 0; i < count; ++i) scales.push_back(element(bytes.data(), info.dtype, i));
    const std::lock_guard lock(mutex_);  // finish() looks for others meanwhile
    scales_[part.name] = std::move(scales);
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
    if (copied(job)) {
      copy_bytes(stream_, memory_ + job.offset, staged[0], part_bytes(job, job.parts[0]));
      return;
    }
    convert(job, staged);
  }

  /// Vectors, and tables of a type that is not kept; small or rare.
  void convert(const Job& job, std::span<std::byte* const> staged) {
    const int64_t bytes = num_elements(job) * dtype_size(job.dtype);
    std::byte* out = memory_ + job.offset;
    if (on_gpu()) out = staged.back() + staged_bytes(job, job.parts.back());
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
    if (on_gpu()) copy_bytes(stream_, memory_ + job.offset, out, bytes);
  }

  const WeightPlan& plan_;
  Stream& stream_;
  const bool dummy_;
  const LoadProgress& progress_;
  std::vector<Job> jobs_;          // those of the plan, or what they are cut into
  std::vector<Staging> stagings_;  // batch i has the i-th, in rotation
  size_t next_job_ = 0, num_batches_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;  // what follows, and for a GPU the stream and what is above
  std::condition_variable changed_;
  std::shared_ptr<Batch> open_;  // the youngest
  size_t next_read_ = 0;         // of its
  bool opening_ = false;
  std::optional<Error> error_;                        // the first
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
