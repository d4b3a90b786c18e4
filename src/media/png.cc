#include <png.h>

#include <cstring>

#include "media/decoders.h"
#include "media/image_errors.h"

namespace weft {
namespace {

/// libpng reports errors by longjmp: what it may jump over holds nothing that needs a destructor.
struct Reader {
  std::span<const uint8_t> file;
  size_t at = 0;
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::vector<png_bytep> rows;

  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_error(png_structp png, png_const_charp) {
  png_longjmp(png, 1);
}
void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep out, size_t count) {
  Reader& reader = *static_cast<Reader*>(png_get_io_ptr(png));
  if (count > reader.file.size() - reader.at) png_error(png, "cut off");
  std::memcpy(out, reader.file.data() + reader.at, count);
  reader.at += count;
}

using Step = void (*)(Reader&);

/// Runs `step`; false when libpng gave up.
bool run(Reader& reader, Step step) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  step(reader);
  return true;
}

void read_header(Reader& reader) {
  png_read_info(reader.png, reader.info);
}

/// Samples beyond a short palette are greys, as in Pillow.
void fill_palette(Reader& reader) {
  png_colorp given = nullptr;
  int count = 0;
  if (png_get_PLTE(reader.png, reader.info, &given, &count) == 0) return;
  png_color all[256];
  for (int i = 0; i < 256; ++i) {
    const auto grey = static_cast<png_byte>(i);
    all[i] = i < count ? given[i] : png_color{grey, grey, grey};
  }
  png_set_PLTE(reader.png, reader.info, all, 1 << png_get_bit_depth(reader.png, reader.info));
}

/// Whatever it holds becomes 8-bit RGB.
void choose_output(Reader& reader) {
  png_structp png = reader.png;
  const int depth = png_get_bit_depth(png, reader.info);
  const int type = png_get_color_type(png, reader.info);
  if (depth == 16) png_set_strip_16(png);
  if (type == PNG_COLOR_TYPE_PALETTE) {
    fill_palette(reader);
    png_set_palette_to_rgb(png);
  }
  if (type == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
  if ((type & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, reader.info);
}

void read_rows(Reader& reader) {
  png_read_image(reader.png, reader.rows.data());
}

}  // namespace

Result<Image> decode_png(std::span<const uint8_t> file, const ImageLimits& limits) {
  Reader reader{.file = file};
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, nullptr, on_error, on_warning);
  if (!reader.png) return image_error::no_memory();
  reader.info = png_create_info_struct(reader.png);
  if (!reader.info) return image_error::no_memory();
  png_set_read_fn(reader.png, &reader, read_bytes);
  png_set_chunk_malloc_max(reader.png, 1 << 20);
  // Profiles, texts and the like are skipped, never unpacked.
  static constexpr png_byte kSkipped[] =
      "iCCP\0iTXt\0tEXt\0zTXt\0sPLT\0hIST\0eXIf\0pCAL\0sCAL\0gAMA\0cHRM\0sRGB\0bKGD\0pHYs\0tIME";
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, kSkipped, sizeof(kSkipped) / 5);
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
  png_set_user_limits(reader.png, 0x7FFFFFFF, 0x7FFFFFFF);  // ours below say which limit it was
  if (!run(reader, read_header)) return image_error::damaged();
  const int64_t width = png_get_image_width(reader.png, reader.info);
  const int64_t height = png_get_image_height(reader.png, reader.info);
  Image image = TRY(allocate_image(width, height, limits));
  if (!run(reader, choose_output)) return image_error::damaged();
  if (png_get_rowbytes(reader.png, reader.info) != static_cast<size_t>(3 * width)) {
    return image_error::damaged();
  }
  for (int64_t y = 0; y < height; ++y) reader.rows.push_back(image.rgb.data() + 3 * width * y);
  if (!run(reader, read_rows)) return image_error::damaged();
  return image;
}

}  // namespace weft
