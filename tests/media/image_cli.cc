// For tests/media/pil.py: decodes and resizes as it is told on standard input, a line an image:
//   FILE OUT WIDTH HEIGHT RESAMPLING     (WIDTH 0: not resized)
// OUT becomes a binary PPM. Prints a line each: "WIDTH HEIGHT" as decoded, or "error: ...".

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "media/image.h"
#include "media/resize.h"

int main() {
  std::string path, out;
  int width = 0, height = 0, resampling = 0;
  while (std::cin >> path >> out >> width >> height >> resampling) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
    weft::Result<weft::Image> image = weft::decode_image(bytes, {});
    if (!image) {
      std::cout << "error: " << image.error().message << '\n';
      continue;
    }
    std::cout << image->width << ' ' << image->height << '\n';
    if (width > 0) {
      *image = weft::resize_image(*image, width, height, weft::Resampling(resampling));
    }
    std::ofstream ppm(out, std::ios::binary);
    ppm << "P6\n" << image->width << ' ' << image->height << "\n255\n";
    ppm.write(reinterpret_cast<const char*>(image->rgb.data()),
              static_cast<std::streamsize>(image->rgb.size()));
  }
}
