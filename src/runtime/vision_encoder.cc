#include "runtime/vision_encoder.h"

#include <algorithm>

#include "base/align.h"
#include "base/check.h"
#include "device/gpu.h"

namespace weft {
namespace {
int64_t max_patches(const VisionTower& tower, const StepLimits& limits) {
  return limits.image_tokens * tower.spec().merge_patches();
}

struct Sizes {
  int64_t patches, inputs, tokens, pages;
};

Sizes sizes_of(const VisionTower& tower, const OpTable& ops, const StepLimits& limits) {
  const int64_t n = max_patches(tower, limits), size = dtype_size(ops.activation);
  const int64_t width = tower.spec().feature_width();
  return {.patches = aligned(n * tower.spec().patch_values() * size),
          // positions, grid ids and weights, bounds of frames and windows, order
          .inputs = aligned(n * 4 * (2 + 4 + 4 + 2 + 1) + 1024),
          .tokens = aligned(limits.image_tokens * width * size),
          .pages = aligned(limits.image_pages * kImagePage * width * size)};
}

}  // namespace

int64_t VisionEncoder::bytes(const VisionTower& tower, const OpTable& ops,
                             const StepLimits& limits) {
  const Sizes s = sizes_of(tower, ops, limits);
  return s.patches + s.inputs + s.tokens + s.pages +
         tower.arena_bytes(ops, max_patches(tower, limits)) +
         VisionTower::rope_bytes(tower.spec(), max_patches(tower, limits));
}

VisionEncoder::VisionEncoder(const VisionTower& tower, Stream& stream, const OpTable& ops)
    : tower_(tower), stream_(stream), ops_(ops) {}

Result<VisionEncoder> VisionEncoder::create(const VisionTower& tower, Stream& stream,
                                            const OpTable& ops, const StepLimits& limits) {
  VisionEncoder out(tower, stream, ops);
  const Sizes s = sizes_of(tower, ops, limits);
  const int64_t n = max_patches(tower, limits);
  const bool gpu = ops.device == DeviceKind::kCuda;
  out.arena_ = Arena(TRY(Buffer::allocate(ops.device, tower.arena_bytes(ops, n) + s.tokens)));
  out.inputs_ = Arena(TRY(Buffer::allocate(ops.device, s.inputs + (gpu ? s.patches : 0))));
  out.host_ = TRY(Buffer::allocate(gpu ? DeviceKind::kPinned : DeviceKind::kCpu, s.patches));
  out.pages_ = TRY(Buffer::allocate(ops.device, s.pages));
  out.patches_ = TensorView(out.host_.data(), ops.activation, {n, tower.spec().patch_values()});
  out.features_ = TensorView(out.pages_.data(), ops.activation,
                             {limits.image_pages * kImagePage, tower.spec().feature_width()});
  return out;
}

/// The samples of all images, rescaled and normalised, in the order of the plan.
void VisionEncoder::fill_patches(std::span<const PackedStep::Encoding> images) {
  const int64_t width = tower_.spec().patch_values(), channel = width / 3;
  struct Source {
    int64_t first;  // patch of the pass
    const ImagePatches* image;
  };
  std::vector<Source> sources;
  int64_t first = 0;
  for (const auto& [image, pages] : images) {
    sources.push_back({first, image.get()});
    first += static_cast<int64_t>(image->samples.size()) / width;
  }
  CHECK(first == plan_.num_patches() && first <= patches_.dim(0));
  stream_.pool().for_each(first, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t patch = plan_.source[static_cast<size_t>(row)];
      const auto behind = std::upper_bound(sources.begin(), sources.end(), patch,
                                           [](int64_t p, const Source& s) { return p < s.first; });
      const Source& source = behind[-1];
      const uint8_t* samples = source.image->samples.data() + (patch - source.first) * width;
      for (int64_t i = 0; i < width; ++i) {
        const float value =
            source.image->values[static_cast<size_t>(i / channel * 256 + samples[i])];
        if (patches_.dtype == DType::kF32) {
          patches_.row<float>(row)[i] = value;
        } else {
          patches_.row<bf16>(row)[i] = float_to_bf16(value);
        }
      }
    }
  });
}

/// Host data to the device; on the CPU it stays where it is.
TensorView VisionEncoder::upload(const void* data, DType dtype,
                                 std::initializer_list<int64_t> dims) {
  TensorView view(const_cast<void*>(data), dtype, dims);
  if (view.size() == 0) return {};
  if (ops_.device == DeviceKind::kCpu) return view;
  view.data = inputs_.take(view.bytes());
  copy_bytes(stream_, view.data, data, view.bytes());
  return view;
}

VisionBatch VisionEncoder::upload() {
  const int64_t n = plan_.num_patches();
  const auto bounds = [&](const std::vector<int32_t>& values) {
    return upload(values.data(), DType::kI32, {std::ssize(values)});
  };
  const bool grid = !plan_.grid_ids.empty();
  return {
      .patches = upload(patches_.data, patches_.dtype, {n, patches_.dim(1)}),
      .positions = upload(plan_.positions.data(), DType::kI32, {n, 2}),
      .grid_ids = grid ? upload(plan_.grid_ids.data(), DType::kI32, {n, 4}) : TensorView(),
      .grid_weights = grid ? upload(plan_.grid_weights.data(), DType::kF32, {n, 4}) : TensorView(),
      .frames = bounds(plan_.frames),
      .windows = bounds(plan_.windows),
      .order = bounds(plan_.order),
      .host_frames = plan_.frames.data(),
      .host_windows = plan_.windows.data()};
}

/// Rows of tokens to the pages of their images.
void VisionEncoder::store(std::span<const PackedStep::Encoding> images, const TensorView& tokens) {
  int64_t row = 0;
  for (const auto& [image, pages] : images) {
    for (int64_t at = 0; at < image->num_tokens; at += kImagePage) {
      const int64_t count = std::min<int64_t>(kImagePage, image->num_tokens - at);
      const int64_t page = pages[static_cast<size_t>(at / kImagePage)];
      const TensorView from = tokens.rows(row, row + count);
      copy_bytes(stream_, features_.rows(page * kImagePage, page * kImagePage + count).data,
                 from.data, from.bytes());
      row += count;
    }
  }
}

void VisionEncoder::encode(std::span<const PackedStep::Encoding> images) {
  if (images.empty()) return;
  grids_.clear();
  for (const auto& [image, pages] : images) grids_.push_back({image->t, image->h, image->w});
  if (ops_.device == DeviceKind::kCuda) synchronize(stream_);  // the pass before reads host_ still
  plan_vision(tower_.spec(), grids_, plan_);
  fill_patches(images);
  const ArenaScope inputs(inputs_), scope(arena_);
  const VisionBatch batch = upload();
  const int64_t tokens = plan_.num_patches() / tower_.spec().merge_patches();
  const int64_t width = tower_.spec().feature_width();
  TensorView out(arena_.take(tokens * width * dtype_size(ops_.activation)), ops_.activation,
                 {tokens, width});
  VisionContext context{stream_, ops_, arena_};
  tower_.forward(context, batch, out);
  store(images, out);
}

}  // namespace weft
