// DEPS: weft_media
// A file of arbitrary bytes: it is refused or becomes pixels within the limits, and those patches.
#include <cstdint>
#include <span>
#include <string>

#include "base/check.h"
#include "media/image.h"
#include "media/processing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr weft::ImageLimits kLimits{.max_bytes = 1 << 20, .max_pixels = 1 << 14, .max_side = 999};
  if (size < 2) return 0;
  weft::ImageProcessing processing;
  processing.patch_size = data[0] % 16 + 1;
  processing.merge_size = data[0] / 16 % 3 + 1;
  processing.min_pixels = 64;
  processing.max_pixels = 1 << 14;
  processing.resampling = weft::Resampling(data[1] % 4);
  const auto image = weft::decode_image(std::span(data, size).subspan(2), kLimits);
  if (!image) return 0;
  CHECK(image->width <= kLimits.max_side && image->height <= kLimits.max_side);
  CHECK(image->rgb.size() ==
        size_t{3} * static_cast<size_t>(image->width) * static_cast<size_t>(image->height));
  const auto patches = weft::make_patches(*image, processing);
  if (!patches) return 0;
  const weft::PatchGrid& grid = patches->grid;
  CHECK(grid.t == 1 && grid.h % processing.merge_size == 0 && grid.w % processing.merge_size == 0);
  CHECK(static_cast<int64_t>(patches->patches.size()) ==
        grid.patches() * processing.patch_values());
  return 0;
}
