#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/buffer.h"
#include "kernels/op_table.h"

namespace weft {

/// Rows of a tensor of the checkpoint, seen as [product of the leading extents, last extent].
struct TensorPart {
  std::string name;
  std::vector<int64_t> shape;  ///< what the checkpoint must have
  int64_t begin = 0;
  int64_t rows = -1;  ///< -1: all from `begin` on

  int row_extents = 1;  ///< how many of the last extents make a row (a convolution's: 4)

  int64_t width() const;
  int64_t num_rows() const;
};

/// What a small f32 tensor is; decides its values with dummy weights.
enum class VectorRole : uint8_t {
  kNorm,          ///< a norm's weight
  kNormMinusOne,  ///< a norm's weight stored as w - 1: 1 is added while loading
  kBias,
  kOther,
};

/// Called while weights are read, from any thread but never by two at once.
using LoadProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

/// The list of all weights of a model: layers declare what they need, then the whole list is
/// checked against the checkpoint, and only then memory is taken and filled. Targets are set by
/// load() and must stay where they are until then. Counting needs no checkpoint and no memory.
class WeightPlan {
 public:
  /// `checkpoint` may be null: dummy weights, or counting. `ops` may be null: counting parameters.
  WeightPlan(const OpTable* ops, const Checkpoint* checkpoint)
      : ops_(ops), checkpoint_(checkpoint) {}
  WeightPlan(const WeightPlan&) = delete;
  WeightPlan& operator=(const WeightPlan&) = delete;

  /// Whether the checkpoint has a tensor of that name (false without a checkpoint).
  bool has(std::string_view name) const;

  /// A matrix of the rows of all parts, one below the other. With kBf16 the codes of an fp8
  /// checkpoint are kept (kFp8Block) where the backend has that format; kFp8Block is bf16 where the
  /// parts don't fit into blocks.
  void matrix(Weight& target, WeightFormat format, std::vector<TensorPart> parts);
  /// A stack of matrices of one shape; parts(e) are those of expert e.
  void experts(Weight& target, WeightFormat format, int64_t count,
               const std::function<std::vector<TensorPart>(int64_t)>& parts);
  /// All parts one after the other as f32, of shape `dims`.
  void vector(TensorView& target, VectorRole role, std::vector<TensorPart> parts,
              std::initializer_list<int64_t> dims);
  /// A table of rows in the checkpoint's own precision (bf16 or f32; f16 becomes f32).
  void table(TensorView& target, TensorPart part);
  /// Whether the backend's activations are bf16, as its small matrices then are.
  bool narrow() const { return ops_ && ops_->activation == DType::kBF16; }
  /// What is declared from now on must be there and have its shape, but is not loaded.
  void check_only(bool value) { check_only_ = value; }
  /// Tensors that may be there and are not used: by the beginning of their names, or by a part.
  void ignore_prefix(std::string prefix) { ignored_prefixes_.push_back(std::move(prefix)); }
  void ignore_containing(std::string text) { ignored_parts_.push_back(std::move(text)); }

  int64_t parameters() const { return parameters_; }  ///< each tensor counted once
  int64_t bytes() const { return bytes_; }            ///< of the packed weights

  /// Missing, misshapen, unreadable and extra tensors as one Error that names them.
  Result<> check() const;
  /// Takes the memory, reads (or, with dummy weights, makes) and packs everything, sets the
  /// targets. Reads with all threads of the stream's pool; beside the result it holds one staging
  /// buffer (for a GPU eight small ones, of pinned memory).
  Result<Buffer> load(Stream& stream, bool dummy, const LoadProgress& progress);

 private:
  enum class JobKind : uint8_t { kMatrix, kVector, kTable };
  struct Job {
    JobKind kind = JobKind::kMatrix;
    VectorRole role = VectorRole::kOther;
    DType dtype = DType::kF32;  // of the result, for kVector and kTable
    size_t weight = 0;          // index into weights_, for kMatrix
    int64_t expert = 0;
    int64_t offset = 0;      // of the result, for kVector and kTable
    int64_t first_row = -1;  // of the result, for kMatrix; -1: all rows
    std::vector<TensorPart> parts;
  };
  struct WeightTarget {
    Weight* target = nullptr;
    int64_t offset = 0;
  };
  struct ViewTarget {
    TensorView* target = nullptr;
    TensorView view;  // data unset
    int64_t offset = 0;
  };
  class Loader;

  /// Of the scales of a tensor of fp8 codes.
  static std::string fp8_scale_name(const std::string& name);
  /// What a matrix is kept as: codes of fp8 blocks stay what they are where the backend has them
  /// and the parts are cut at blocks, else they are bf16.
  WeightFormat format_of(WeightFormat wanted, const std::vector<TensorPart>& parts) const;
  bool fits_fp8_blocks(const std::vector<TensorPart>& parts) const;
  void expect(const TensorPart& part, int64_t times);
  DType stored_dtype(const std::string& name) const;
  int64_t reserve(int64_t bytes);
  bool ignored(std::string_view name) const;

  const OpTable* ops_;
  const Checkpoint* checkpoint_;
  std::map<std::string, std::vector<int64_t>, std::less<>> expected_;
  std::vector<std::string> ignored_prefixes_, ignored_parts_;
  std::vector<Job> jobs_;
  std::vector<WeightTarget> weights_;
  std::vector<ViewTarget> views_;
  int64_t parameters_ = 0, bytes_ = 0;
  bool check_only_ = false;
};

}  // namespace weft
