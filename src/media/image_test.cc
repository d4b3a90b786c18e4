#include "media/image.h"

#include <gtest/gtest.h>
#include <png.h>
#include <webp/encode.h>

#include <cstdio>
// jpeglib.h needs FILE from above.
#include <jpeglib.h>

#include <string>

#include "media/animation.h"

namespace weft {
namespace {

using Bytes = std::vector<uint8_t>;

Image sample(int width, int height) {
  Image image{.width = width, .height = height};
  for (int i = 0; i < width * height * 3; ++i) {
    image.rgb.push_back(static_cast<uint8_t>(i * i * 7 + i / 5));
  }
  return image;
}

Bytes png_of(const Image& image) {
  png_image png = {};
  png.version = PNG_IMAGE_VERSION;
  png.width = static_cast<png_uint_32>(image.width);
  png.height = static_cast<png_uint_32>(image.height);
  png.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  EXPECT_TRUE(png_image_write_to_memory(&png, nullptr, &size, 0, image.rgb.data(), 0, nullptr));
  Bytes out(size);
  EXPECT_TRUE(png_image_write_to_memory(&png, out.data(), &size, 0, image.rgb.data(), 0, nullptr));
  return out;
}

Bytes webp_of(const Image& image) {
  uint8_t* data = nullptr;
  const size_t size =
      WebPEncodeLosslessRGB(image.rgb.data(), image.width, image.height, 3 * image.width, &data);
  Bytes out(data, data + size);
  WebPFree(data);
  return out;
}

/// A GIF of at most 256 pixels, each of a color of its own, whose codes are cleared before they
/// grow.
Bytes gif_of(const Image& image) {
  const size_t pixels = image.rgb.size() / 3;
  Bytes out = {'G', 'I', 'F', '8', '9', 'a'};
  const auto number = [&](int value) {
    out.push_back(static_cast<uint8_t>(value));
    out.push_back(static_cast<uint8_t>(value >> 8));
  };
  number(image.width);
  number(image.height);
  out.insert(out.end(), {0xF7, 0, 0});
  out.insert(out.end(), image.rgb.begin(), image.rgb.end());
  out.resize(13 + 768);
  out.insert(out.end(), {0x2C, 0, 0, 0, 0});
  number(image.width);
  number(image.height);
  out.insert(out.end(), {0, 8});
  Bytes codes;
  uint64_t bits = 0;
  int held = 0;
  const auto put = [&](uint32_t code) {
    bits |= uint64_t{code} << held;
    for (held += 9; held >= 8; held -= 8, bits >>= 8) codes.push_back(static_cast<uint8_t>(bits));
  };
  for (size_t i = 0; i < pixels; ++i) {
    if (i % 200 == 0) put(256);
    put(static_cast<uint32_t>(i));
  }
  put(257);
  codes.push_back(static_cast<uint8_t>(bits));
  for (size_t at = 0; at < codes.size(); at += 255) {
    const size_t count = std::min<size_t>(codes.size() - at, 255);
    out.push_back(static_cast<uint8_t>(count));
    out.insert(out.end(), codes.begin() + static_cast<int64_t>(at),
               codes.begin() + static_cast<int64_t>(at + count));
  }
  out.insert(out.end(), {0, 0x3B});
  return out;
}

Bytes jpeg_of(const Image& image, bool progressive) {
  jpeg_compress_struct jpeg = {};
  jpeg_error_mgr errors = {};
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  uint8_t* data = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&jpeg, &data, &size);
  jpeg.image_width = static_cast<JDIMENSION>(image.width);
  jpeg.image_height = static_cast<JDIMENSION>(image.height);
  jpeg.input_components = 3;
  jpeg.in_color_space = JCS_RGB;
  jpeg_set_defaults(&jpeg);
  if (progressive) jpeg_simple_progression(&jpeg);
  jpeg_start_compress(&jpeg, TRUE);
  for (int y = 0; y < image.height; ++y) {
    JSAMPROW row = const_cast<uint8_t*>(image.rgb.data()) + 3 * image.width * y;
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  Bytes out(data, data + size);
  std::free(data);
  return out;
}

uint32_t crc_of(std::span<const uint8_t> bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const uint8_t byte : bytes) {
    crc ^= byte;
    for (int i = 0; i < 8; ++i) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

void append_number(Bytes& out, uint32_t value) {
  for (const int shift : {24, 16, 8, 0}) out.push_back(static_cast<uint8_t>(value >> shift));
}

Bytes chunk(const std::string& type, const Bytes& data) {
  Bytes out;
  append_number(out, static_cast<uint32_t>(data.size()));
  out.insert(out.end(), type.begin(), type.end());
  out.insert(out.end(), data.begin(), data.end());
  append_number(out, crc_of(std::span(out).subspan(4)));
  return out;
}

/// A PNG with this chunk behind its header.
Bytes with_chunk(Bytes png, const Bytes& extra) {
  png.insert(png.begin() + 33, extra.begin(), extra.end());
  return png;
}

/// The header of a PNG, 8-bit RGB, and nothing else.
Bytes png_header(uint32_t width, uint32_t height) {
  Bytes header;
  append_number(header, width);
  append_number(header, height);
  for (const uint8_t byte : {8, 2, 0, 0, 0}) header.push_back(byte);
  Bytes out = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  const Bytes ihdr = chunk("IHDR", header);
  out.insert(out.end(), ihdr.begin(), ihdr.end());
  const Bytes idat = chunk("IDAT", {0x78, 0x9C});
  out.insert(out.end(), idat.begin(), idat.end());
  return out;
}

Bytes exif(uint8_t orientation) {
  return {'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0};
}

std::string error_of(const Bytes& file, const ImageLimits& limits = {}) {
  const auto image = decode_image(file, limits);
  return image ? "" : image.error().message;
}

constexpr const char* kDamaged = "the image is damaged or cut off";

TEST(DecodeImage, LosslessFormatsGiveTheirPixels) {
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 9}, {17, 5}}) {
    const Image image = sample(width, height);
    for (const Bytes& file : {png_of(image), webp_of(image), gif_of(image)}) {
      const Image got = decode_image(file, {}).value();
      EXPECT_EQ(got.width, width);
      EXPECT_EQ(got.height, height);
      EXPECT_EQ(got.rgb, image.rgb);
    }
  }
  const Image got = decode_image(jpeg_of(sample(33, 9), true), {}).value();
  EXPECT_EQ(got.rgb.size(), 33u * 9 * 3);
}

// Attack list A40, to KnowsTheFormatByTheContent and BrokenExifCountsAsNone: files cut at each byte
// and changed at each, sizes that only the header has, chunks and scans without end, EXIF that
// leads nowhere.
TEST(DecodeImage, EveryTruncationIsRefusedOrDecoded) {
  const Image image = sample(23, 11);
  for (const Bytes& file : {png_of(image), webp_of(image), gif_of(image), jpeg_of(image, false),
                            jpeg_of(image, true)}) {
    int refused = 0;
    for (size_t size = 0; size < file.size(); ++size) {
      const std::string error = error_of({file.begin(), file.begin() + static_cast<int64_t>(size)});
      EXPECT_TRUE(error.empty() || error == kDamaged ||
                  error == "the image is not a PNG, JPEG, WebP or GIF file")
          << error;
      refused += !error.empty();
    }
    EXPECT_GT(refused, static_cast<int>(file.size()) * 9 / 10);
  }
}

TEST(DecodeImage, EveryChangedByteIsRefusedOrDecoded) {
  const Image image = sample(19, 13);
  for (Bytes file : {png_of(image), webp_of(image), gif_of(image), jpeg_of(image, false),
                     jpeg_of(image, true)}) {
    for (size_t i = 0; i < file.size(); ++i) {
      for (const uint8_t mask : {0x01, 0x80, 0xFF}) {
        file[i] ^= mask;
        const auto got = decode_image(file, {.max_pixels = 10000});
        if (got) {
          EXPECT_EQ(got->rgb.size(), size_t{3} * got->width * got->height);
        }
        file[i] ^= mask;
      }
    }
  }
}

TEST(DecodeImage, LimitsComeBeforePixels) {
  const char* too_many = "the image has too many pixels";
  EXPECT_EQ(error_of(png_header(65535, 65535)), too_many);
  EXPECT_EQ(error_of(png_header(0x7FFFFFFF, 1)), too_many);
  EXPECT_EQ(error_of(png_header(0x7FFFFFFF, 0x7FFFFFFF)), too_many);
  EXPECT_EQ(error_of(png_header(0, 5)), kDamaged);
  EXPECT_EQ(error_of(png_header(5, 5)), kDamaged);
  const Image image = sample(20, 10);
  for (const Bytes& file : {png_of(image), webp_of(image), gif_of(image), jpeg_of(image, true)}) {
    EXPECT_EQ(error_of(file, {.max_pixels = 200}), "");
    EXPECT_EQ(error_of(file, {.max_pixels = 199}), too_many);
    EXPECT_EQ(error_of(file, {.max_side = 19}), too_many);
    EXPECT_EQ(error_of(file, {.max_bytes = 10}), "the image file is too large");
  }
}

TEST(DecodeImage, KnowsTheFormatByTheContent) {
  for (const Bytes& file : {Bytes{}, Bytes{'G', 'I', 'F', '8', '8', 'a'}, Bytes{'B', 'M'},
                            Bytes{'R', 'I', 'F', 'F', 0, 0, 0, 0, 'W', 'A', 'V', 'E'}}) {
    EXPECT_EQ(error_of(file), "the image is not a PNG, JPEG, WebP or GIF file");
  }
}

TEST(DecodeImage, ManyAndHugeChunksCostNothing) {
  Bytes many;
  for (int i = 0; i < 10000; ++i) {
    const Bytes text = chunk("tEXt", {'a', 0, 'b'});
    many.insert(many.end(), text.begin(), text.end());
  }
  const Image image = sample(3, 3);
  EXPECT_EQ(decode_image(with_chunk(png_of(image), many), {}).value().rgb, image.rgb);
  const Bytes profile = chunk("iCCP", Bytes(8 << 20, 'x'));
  EXPECT_EQ(decode_image(with_chunk(png_of(image), profile), {}).value().rgb, image.rgb);
  // A zlib bomb in a text: never unpacked.
  const Bytes bomb = chunk("zTXt", Bytes(1 << 20, 0));
  EXPECT_EQ(decode_image(with_chunk(png_of(image), bomb), {}).value().rgb, image.rgb);
}

TEST(DecodeImage, TooManyScansAreRefused) {
  // Ten thousand times the last scan of a progressive file.
  const Bytes file = jpeg_of(sample(16, 16), true);
  size_t scan = file.size() - 2;
  while (!(file[scan] == 0xFF && file[scan + 1] == 0xDA)) --scan;
  Bytes many(file.begin(), file.end() - 2);
  for (int i = 0; i < 10000; ++i) {
    many.insert(many.end(), file.begin() + static_cast<int64_t>(scan), file.end() - 2);
  }
  many.insert(many.end(), file.end() - 2, file.end());
  EXPECT_EQ(error_of(many), kDamaged);
}

/// A screen of a few pixels whose frame claims to have four thousand million.
TEST(DecodeImage, AGifsFrameIsMeasuredBeforeItIsUnpacked) {
  Bytes file = gif_of(sample(2, 2));
  const size_t frame = 13 + 768 + 5;
  for (size_t i = 0; i < 4; ++i) file[frame + i] = 0xFF;
  EXPECT_EQ(error_of(file), "the image has too many pixels");
  EXPECT_EQ(error_of({file.begin(), file.begin() + 13}), kDamaged);
  EXPECT_EQ(error_of({file.begin(), file.begin() + 13 + 768}), kDamaged) << "no frame";
}

/// What an animation holds is told before there is memory for a frame of it, here 12 GB.
TEST(FindAnimation, TakesNoCanvas) {
  Bytes file = gif_of(sample(2, 2));
  const Bytes frame(file.begin() + 13 + 768, file.end() - 1);
  EXPECT_FALSE(find_animation(file, {}).value()) << "one frame";
  file.insert(file.end() - 1, frame.begin(), frame.end());
  EXPECT_EQ(find_animation(file, {}).value()->num_frames, 2);
  for (size_t i = 6; i < 10; ++i) file[i] = 0xFF;
  EXPECT_EQ(find_animation(file, {}).error().message, "the image has too many pixels");
  const ImageLimits wide{.max_pixels = int64_t{1} << 32, .max_side = 65535};
  const std::optional<Animation> animation = find_animation(file, wide).value();
  ASSERT_TRUE(animation);
  EXPECT_EQ(animation->width, 65535);
  EXPECT_EQ(animation->height, 65535);
  EXPECT_EQ(animation->num_frames, 2);
  EXPECT_EQ(animation->seconds, 0.2);
}

TEST(DecodeImage, TurnsAsExifSays) {
  const Image image = sample(3, 2);  // pixels 0 1 2 / 3 4 5
  const std::vector<std::vector<int>> order = {
      {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {2, 1, 0, 5, 4, 3}, {5, 4, 3, 2, 1, 0},
      {3, 4, 5, 0, 1, 2}, {0, 3, 1, 4, 2, 5}, {3, 0, 4, 1, 5, 2}, {5, 2, 4, 1, 3, 0},
      {2, 5, 1, 4, 0, 3}, {0, 1, 2, 3, 4, 5}};
  for (size_t orientation = 0; orientation < order.size(); ++orientation) {
    const auto tag = static_cast<uint8_t>(orientation);
    const Bytes file = with_chunk(png_of(image), chunk("eXIf", exif(tag)));
    const Image got = decode_image(file, {}).value();
    EXPECT_EQ(got.width, orientation >= 5 && orientation <= 8 ? 2 : 3);
    ASSERT_EQ(got.rgb.size(), 18u);
    for (size_t i = 0; i < 6; ++i) {
      const auto from = static_cast<size_t>(order[orientation][i]);
      for (size_t c = 0; c < 3; ++c) EXPECT_EQ(got.rgb[3 * i + c], image.rgb[3 * from + c]);
    }
  }
}

TEST(DecodeImage, BrokenExifCountsAsNone) {
  const Image image = sample(3, 2);
  const Bytes good = exif(6);
  for (size_t i = 0; i < good.size(); ++i) {
    for (const uint8_t mask : {0x01, 0x80, 0xFF}) {
      Bytes bad = good;
      bad[i] ^= mask;
      EXPECT_TRUE(decode_image(with_chunk(png_of(image), chunk("eXIf", bad)), {}).ok());
    }
    const Bytes cut(good.begin(), good.begin() + static_cast<int64_t>(i));
    EXPECT_TRUE(decode_image(with_chunk(png_of(image), chunk("eXIf", cut)), {}).ok());
  }
}

}  // namespace
}  // namespace weft
