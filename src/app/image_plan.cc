#include "app/image_plan.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "runtime/vision_encoder.h"

namespace weft {
namespace {

/// Image tokens of one pass of the tower, and pages for the features of a few passes.
struct ImageRoom {
  int64_t tokens = 0, pages = 0;
};

ImageRoom image_room(const EnginePlan& plan, const EngineOptions& options) {
  if (!plan.images) return {};
  const int64_t largest = plan.images->max_image_tokens;
  const int64_t tokens =
      std::max<int64_t>(largest, std::min<int64_t>(options.max_image_tokens, 4 * largest));
  return {tokens, std::max<int64_t>(least_image_pages(tokens), 4 * tokens / kImagePage)};
}

bool same_patches(const ImageProcessing& p, const VisionSpec& vision) {
  return p.patch_size == vision.patch_size && p.merge_size == vision.merge_size &&
         p.temporal_patch_size == vision.temporal_patch_size;
}

Error other_patches(const std::string& path) {
  return invalid_argument(path +
                          ": patch_size, merge_size and temporal_patch_size must be those of "
                          "vision_config in config.json");
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Videos are there where the model has tokens for them. Without a file of their own they are
/// processed as `image_path` says.
Result<void> plan_videos(const EngineOptions& options, const EnginePlan& plan,
                         const std::string& image_path, ImageInputConfig& images) {
  const VisionSpec& vision = *plan.spec.vision;
  if (options.max_videos == 0 || vision.video_token < 0) return {};
  std::string path = plan.directory + "/video_preprocessor_config.json";
  std::string json = contents(path);
  if (json.empty()) {
    path = image_path;
    json = contents(path);
  }
  Result<VideoProcessing> parsed = parse_video_processing(json, vision.tokens_per_second == 0);
  if (!parsed.ok()) return with_context(std::move(parsed).error(), path);
  if (!same_patches(parsed->frame, vision)) return other_patches(path);
  images.video = VideoInputConfig{.processing = *parsed,
                                  .video_token = vision.video_token,
                                  .start_token = vision.start_token,
                                  .end_token = vision.end_token,
                                  .tokens_per_second = vision.tokens_per_second,
                                  .max_videos = options.max_videos,
                                  .max_frames = options.max_video_frames,
                                  .max_tokens = options.max_video_tokens};
  return {};
}

}  // namespace

Result<void> plan_images(const EngineOptions& options, EnginePlan& plan) {
  const std::optional<VisionSpec>& vision = plan.spec.vision;
  if (!vision || plan.ops->vision == nullptr || options.max_image_tokens == 0) return {};
  const std::string path = plan.directory + "/preprocessor_config.json";
  const std::string json = contents(path);
  if (json.empty() || vision->image_token < 0) return {};
  Result<ImageProcessing> parsed = parse_image_processing(json);
  if (!parsed.ok()) return with_context(std::move(parsed).error(), path);
  ImageInputConfig images{
      .processing = *parsed, .image_token = vision->image_token, .max_images = options.max_images};
  ImageProcessing& p = images.processing;
  if (!same_patches(p, *vision)) return other_patches(path);
  const int64_t token_pixels = int64_t{p.factor()} * p.factor();
  if (options.max_image_pixels > 0) p.max_pixels = options.max_image_pixels;
  if (options.min_image_pixels > 0) p.min_pixels = options.min_image_pixels;
  p.max_pixels = std::min(p.max_pixels, options.max_image_tokens * token_pixels);
  p.min_pixels = std::min(p.min_pixels, p.max_pixels);
  images.max_image_tokens = max_tokens(p);
  TRY(plan_videos(options, plan, path, images));
  plan.images = images;
  plan.load.images = true;
  plan.load.max_image_patches = image_room(plan, options).tokens * vision->merge_patches();
  return {};
}

int64_t scratch_bytes(const EnginePlan& plan, int64_t rows, int64_t image_tokens) {
  int64_t bytes = plan.footprint.arena_bytes(rows);
  if (const VisionTower* tower = plan.footprint.vision.get()) {
    const int64_t patches = image_tokens * tower->spec().merge_patches();
    bytes = std::max(bytes, tower->scratch_bytes(*plan.ops, patches, plan.threads));
  }
  return bytes;
}

void add_images(const EnginePlan& plan, const EngineOptions& options, ModelMemory& model) {
  const VisionTower* tower = plan.footprint.vision.get();
  if (tower == nullptr) return;
  const ImageRoom room = image_room(plan, options);
  const int64_t rows = options.max_num_batched_tokens;
  model.image_tokens = room.tokens;
  model.image_pages = room.pages;
  StepLimits limits;
  limits.image_tokens = room.tokens;
  limits.image_pages = room.pages;
  model.image_bytes = VisionEncoder::bytes(*tower, *plan.ops, limits) +
                      scratch_bytes(plan, rows, room.tokens) - plan.footprint.arena_bytes(rows);
}

std::shared_ptr<const ImageReader> image_reader_of(
    const EnginePlan& plan,
    std::function<Result<std::vector<uint8_t>>(const std::string& url)> fetch,
    std::function<Result<std::vector<uint8_t>>(const std::string& url)> read_file) {
  if (!plan.images) return nullptr;
  ImageInputConfig config = *plan.images;
  config.fetch = std::move(fetch);
  config.read_file = std::move(read_file);
  return std::make_shared<const ImageReader>(std::move(config));
}

}  // namespace weft
