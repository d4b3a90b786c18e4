#include "app/eval_prompt.h"

#include "text/read_file.h"

namespace weft {
namespace {

constexpr size_t kMaxImageBytes = size_t{64} << 20;

Result<std::vector<std::shared_ptr<const ImagePatches>>> read_images(
    const EvalImages& images, const std::vector<std::string>& paths) {
  std::vector<std::shared_ptr<const ImagePatches>> out;
  for (const std::string& path : paths) {
    const std::string file = TRY(text::read_file(images.directory + "/" + path, kMaxImageBytes));
    auto image =
        images.reader->read_bytes({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
    if (!image) return with_context(std::move(image).error(), path);
    out.push_back(*image);
  }
  return out;
}

}  // namespace

Result<void> set_eval_prompt(const EvalImages& images, const std::vector<int32_t>& ids,
                             const std::vector<std::string>& paths, Request& request) {
  if (paths.empty()) {
    request.prompt = ids;
    return {};
  }
  ImagePrompt prompt = TRY(images.reader->expand(ids, TRY(read_images(images, paths))));
  request.prompt = std::move(prompt.ids);
  request.images = std::move(prompt.images);
  request.positions = std::move(prompt.positions);
  request.rope_delta = prompt.rope_delta;
  return {};
}

}  // namespace weft
