#include "nn/weights.h"

#include <algorithm>

#include "base/align.h"

namespace weft {
namespace {

constexpr size_t kMaxNames = 5;  // in a message

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

int64_t num_elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  return n;
}

/// "a, b, c and 7 more"
std::string shortened(const std::vector<std::string>& items) {
  std::string out;
  for (size_t i = 0; i < std::min(items.size(), kMaxNames); ++i) out += (i ? ", " : "") + items[i];
  if (items.size() > kMaxNames) {
    out += " and " + std::to_string(items.size() - kMaxNames) + " more";
  }
  return out;
}

std::string counted(size_t n) {
  return std::to_string(n) + (n == 1 ? " tensor" : " tensors");
}

bool readable(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 ||
         dtype == DType::kFP8E4M3;
}

/// Of a tensor [.., N, K] of fp8 codes: one a block of 128 x 128.
std::vector<int64_t> scale_shape(std::vector<int64_t> shape) {
  for (size_t i = shape.size() - 2; i < shape.size(); ++i) shape[i] = fp8_blocks(shape[i]);
  return shape;
}

}  // namespace

int64_t TensorPart::width() const {
  int64_t width = 1;
  for (size_t i = shape.size() - static_cast<size_t>(row_extents); i < shape.size(); ++i) {
    width *= shape[i];
  }
  return width;
}

int64_t TensorPart::num_rows() const {
  return rows >= 0 ? rows : num_elements(shape) / width() - begin;
}

bool WeightPlan::has(std::string_view name) const {
  return checkpoint_ && checkpoint_->find(name) != nullptr;
}

DType WeightPlan::stored_dtype(const std::string& name) const {
  const TensorInfo* info = checkpoint_ ? checkpoint_->find(name) : nullptr;
  return info ? info->dtype : DType::kBF16;
}

void WeightPlan::expect(const TensorPart& part, int64_t times) {
  const auto [it, fresh] = expected_.emplace(part.name, part.shape);
  CHECK(it->second == part.shape, part.name + " is declared with two shapes");
  if (!fresh) return;
  parameters_ += num_elements(part.shape) * times;
  if (stored_dtype(part.name) == DType::kFP8E4M3 && part.shape.size() >= 2) {
    expected_.emplace(fp8_scale_name(part.name), scale_shape(part.shape));
  }
}

std::string WeightPlan::fp8_scale_name(const std::string& name) {
  return name + "_scale_inv";
}

int64_t WeightPlan::reserve(int64_t bytes) {
  const int64_t offset = bytes_;
  bytes_ += aligned(bytes);
  return offset;
}

void WeightPlan::matrix(Weight& target, WeightFormat format, std::vector<TensorPart> parts) {
  experts(target, format, 1, [&](int64_t) { return parts; });
}

/// Whether a matrix of these parts can be kept as fp8 blocks.
bool WeightPlan::fits_fp8_blocks(const std::vector<TensorPart>& parts) const {
  int64_t row = 0;
  for (const TensorPart& part : parts) {
    if (row % kFp8PieceRows != 0) return false;
    row += part.num_rows();
    if (stored_dtype(part.name) != DType::kFP8E4M3) continue;
    const int64_t n = part.shape[part.shape.size() - 2];
    // The part lies in one matrix and begins with a row of blocks.
    if (part.begin % n % kFp8Block != 0 || part.begin % n + part.num_rows() > n) return false;
  }
  return true;
}

WeightFormat WeightPlan::format_of(WeightFormat wanted,
                                   const std::vector<TensorPart>& parts) const {
  if (wanted != WeightFormat::kBf16 && wanted != WeightFormat::kFp8Block) return wanted;
  const bool codes = std::all_of(parts.begin(), parts.end(), [&](const TensorPart& part) {
    return stored_dtype(part.name) == DType::kFP8E4M3;
  });
  const bool keep = ops_ && ops_->fp8_blocks && (wanted == WeightFormat::kFp8Block || codes) &&
                    fits_fp8_blocks(parts);
  return keep ? WeightFormat::kFp8Block : WeightFormat::kBf16;
}

void WeightPlan::experts(Weight& target, WeightFormat format, int64_t count,
                         const std::function<std::vector<TensorPart>(int64_t)>& parts) {
  WeightShape shape{.format = format_of(format, parts(0)), .experts = count};
  const bool counting = ops_ == nullptr;
  for (int64_t e = 0; e < (counting ? 1 : count); ++e) {
    Job job{.weight = weights_.size(), .expert = e, .parts = parts(e)};
    shape.k = job.parts.front().width();
    shape.n = 0;
    for (const TensorPart& part : job.parts) {
      CHECK(part.width() == shape.k, part.name + " has another width than its neighbours");
      shape.n += part.num_rows();
      // A tensor of all experts is whole already; one of its own stands for `count` of them.
      expect(part, counting && part.shape.size() == 2 ? count : 1);
    }
    if (!counting && !check_only_) jobs_.push_back(std::move(job));
  }
  target = Weight{.shape = shape};
  if (counting || check_only_) return;
  target.expert_bytes = ops_->weight_bytes(shape);
  weights_.push_back({&target, reserve(target.expert_bytes * count)});
}

void WeightPlan::vector(TensorView& target, VectorRole role, std::vector<TensorPart> parts,
                        std::initializer_list<int64_t> dims) {
  const TensorView view(nullptr, DType::kF32, dims);
  int64_t n = 0;
  for (const TensorPart& part : parts) {
    expect(part, 1);
    n += part.num_rows() * part.width();
  }
  CHECK(n == view.size(), "the parts don't fill the tensor");
  if (check_only_) return;
  const int64_t offset = reserve(n * 4);
  views_.push_back({&target, view, offset});
  jobs_.push_back(
      {.kind = JobKind::kVector, .role = role, .offset = offset, .parts = std::move(parts)});
}

void WeightPlan::table(TensorView& target, TensorPart part) {
  expect(part, 1);
  if (check_only_) return;
  // A GPU keeps its activation type; the CPU what was stored.
  const bool narrow =
      stored_dtype(part.name) == DType::kBF16 || (ops_ && ops_->activation == DType::kBF16);
  const DType dtype = narrow ? DType::kBF16 : DType::kF32;
  const TensorView view(nullptr, dtype, {part.num_rows(), part.width()});
  const int64_t offset = reserve(view.bytes());
  views_.push_back({&target, view, offset});
  jobs_.push_back(
      {.kind = JobKind::kTable, .dtype = dtype, .offset = offset, .parts = {std::move(part)}});
}

bool WeightPlan::ignored(std::string_view name) const {
  return std::any_of(ignored_prefixes_.begin(), ignored_prefixes_.end(),
                     [&](const std::string& p) { return name.starts_with(p); }) ||
         std::any_of(ignored_parts_.begin(), ignored_parts_.end(),
                     [&](const std::string& p) { return name.find(p) != std::string_view::npos; });
}

Result<> WeightPlan::check() const {
  CHECK(checkpoint_ != nullptr, "there is no checkpoint to check");
  std::vector<std::string> missing, misshapen, unreadable, extra;
  for (const auto& [name, shape] : expected_) {
    const TensorInfo* info = checkpoint_->find(name);
    if (!info) {
      missing.push_back(name);
    } else if (info->shape != shape) {
      misshapen.push_back(name + " " + shape_text(info->shape) + " instead of " +
                          shape_text(shape));
    } else if (!readable(info->dtype)) {
      unreadable.push_back(name + " (" + std::string(dtype_name(info->dtype)) + ")");
    }
  }
  for (const std::string_view name : checkpoint_->names()) {
    if (!expected_.contains(name) && !ignored(name)) extra.emplace_back(name);
  }
  std::string text;
  const auto report = [&](const std::vector<std::string>& items, const std::string& what) {
    if (items.empty()) return;
    text +=
        (text.empty() ? "" : "; ") + counted(items.size()) + " " + what + ": " + shortened(items);
  };
  report(missing, "missing");
  report(misshapen, "of a wrong shape");
  report(unreadable, "of a type that is not read here (F32, BF16, F16 and F8_E4M3 are)");
  report(extra, "that the architecture does not have");
  if (text.empty()) return {};
  return invalid_argument(checkpoint_->dir() + ": the weights do not fit config.json: " + text);
}

}  // namespace weft
