#include <algorithm>
#include <csetjmp>
#include <cstdio>
// jpeglib.h needs FILE from above.
#include <jerror.h>
#include <jpeglib.h>

#include "media/decoders.h"
#include "media/image_errors.h"

namespace weft {
namespace {

/// A progressive file may ask for any number of passes over its pixels.
constexpr int kMaxScans = 100;

/// libjpeg reports errors through a jump: what it may jump over holds nothing that needs a
/// destructor.
struct Reader {
  jpeg_decompress_struct jpeg = {};
  jpeg_error_mgr errors = {};
  jpeg_progress_mgr progress = {};
  std::jmp_buf on_error = {};
  bool cut_off = false;
  uint8_t* out = nullptr;   // of the next row
  uint8_t* inks = nullptr;  // one row of CMYK; null: the rows are RGB
  std::span<const uint8_t> file;

  ~Reader() { jpeg_destroy_decompress(&jpeg); }
};

Reader& reader_of(j_common_ptr jpeg) {
  return *static_cast<Reader*>(jpeg->client_data);
}

[[noreturn]] void on_error(j_common_ptr jpeg) {
  std::longjmp(reader_of(jpeg).on_error, 1);
}

void on_message(j_common_ptr jpeg, int level) {
  if (level < 0 && jpeg->err->msg_code == JWRN_JPEG_EOF) reader_of(jpeg).cut_off = true;
}
void on_output(j_common_ptr) {}

void on_progress(j_common_ptr jpeg) {
  Reader& reader = reader_of(jpeg);
  if (reader.jpeg.input_scan_number > kMaxScans || reader.cut_off) on_error(jpeg);
}

using Step = void (*)(Reader&);

/// Runs `step`; false when libjpeg gave up.
bool run(Reader& reader, Step step) {
  if (setjmp(reader.on_error)) return false;
  step(reader);
  return true;
}

void read_header(Reader& reader) {
  jpeg_create_decompress(&reader.jpeg);
  reader.jpeg.client_data = &reader;
  reader.jpeg.progress = &reader.progress;
  jpeg_mem_src(&reader.jpeg, reader.file.data(), static_cast<unsigned long>(reader.file.size()));
  jpeg_read_header(&reader.jpeg, TRUE);
}

/// RGB from CMYK as Pillow has it; Adobe writes inks inverted (255: none), so `black` is the light
/// that black leaves.
uint8_t shade(int ink, int black) {
  const int product = (255 - ink) * black + 128;
  return static_cast<uint8_t>(std::clamp(black - (((product >> 8) + product) >> 8), 0, 255));
}

void read_rows(Reader& reader) {
  jpeg_decompress_struct& jpeg = reader.jpeg;
  jpeg.out_color_space = reader.inks ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&jpeg);
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW row = reader.inks ? reader.inks : reader.out;
    if (jpeg_read_scanlines(&jpeg, &row, 1) != 1) on_error(reinterpret_cast<j_common_ptr>(&jpeg));
    if (reader.inks) {
      for (JDIMENSION x = 0; x < jpeg.output_width; ++x) {
        const uint8_t* ink = reader.inks + 4 * x;
        for (int c = 0; c < 3; ++c) reader.out[3 * x + c] = shade(ink[c], ink[3]);
      }
    }
    reader.out += size_t{3} * jpeg.output_width;
  }
}

}  // namespace

Result<Image> decode_jpeg(std::span<const uint8_t> file, const ImageLimits& limits) {
  Reader reader;
  reader.file = file;
  reader.jpeg.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_error;
  reader.errors.emit_message = on_message;
  reader.errors.output_message = on_output;
  reader.progress.progress_monitor = on_progress;
  reader.jpeg.client_data = &reader;
  if (!run(reader, read_header)) return image_error::damaged();
  const int parts = reader.jpeg.num_components;
  if (parts != 1 && parts != 3 && parts != 4) return image_error::damaged();
  const int64_t width = reader.jpeg.image_width;
  Image image = TRY(allocate_image(width, reader.jpeg.image_height, limits));
  std::vector<uint8_t> inks(parts == 4 ? static_cast<size_t>(4 * width) : 0);
  reader.out = image.rgb.data();
  if (parts == 4) reader.inks = inks.data();
  if (!run(reader, read_rows) || reader.cut_off) return image_error::damaged();
  return image;
}

}  // namespace weft
