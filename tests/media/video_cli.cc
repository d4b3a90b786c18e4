// For tests/media/video.py: processes videos as it is told on standard input, a line a video:
//   CONFIG FAMILY FPS OUT FRAME...
// CONFIG is a file as video_preprocessor_config.json, FAMILY qwen2_5 or qwen3. OUT becomes the
// patches of all groups of frames, one byte a sample. Prints a line each: "T H W", in patches, and
// the times of the groups as text; or "error: ...".

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>

#include "api/images.h"

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string data_uri(const std::string& bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out = "data:image/png;base64,";
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0u);
    }
    for (size_t j = 0; j < std::min<size_t>(4, bytes.size() - i + 1); ++j) {
      out += kDigits[group >> (18 - 6 * j) & 63];
    }
  }
  return out;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string config, family, out;
    weft::VideoSource source{.field = "video", .frames = {}};
    words >> config >> family >> source.fps >> out;
    for (std::string frame; words >> frame;) source.frames.push_back(data_uri(read_file(frame)));
    const bool timed = family == "qwen3";
    const auto processing = weft::parse_video_processing(read_file(config), timed);
    if (!processing) {
      std::cout << "error: " << processing.error().message << '\n';
      continue;
    }
    weft::ImageInputConfig input;
    input.processing = processing->frame;
    input.max_image_tokens = 1 << 20;
    input.video = weft::VideoInputConfig{.processing = *processing, .max_tokens = 1 << 20};
    const auto video = weft::ImageReader(input).read_video(source);
    if (!video) {
      std::cout << "error: " << video.error().message << '\n';
      continue;
    }
    std::ofstream samples(out, std::ios::binary);
    for (const auto& group : video->groups) {
      samples.write(reinterpret_cast<const char*>(group->samples.data()),
                    static_cast<std::streamsize>(group->samples.size()));
    }
    std::cout << video->groups.size() << ' ' << video->groups[0]->h << ' ' << video->groups[0]->w
              << ' ' << weft::timed_texts({*video}, {})[0] << '\n';
  }
}
