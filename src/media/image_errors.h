#pragma once

#include "base/result.h"

namespace weft::image_error {

inline Error not_an_image() {
  return invalid_argument("the image is not a PNG, JPEG, WebP or GIF file");
}
inline Error not_a_video() {
  return invalid_argument(
      "the video is no list of pictures (\"data:video/jpeg;base64,FRAME,FRAME\") nor an animated "
      "WebP "
      "or GIF; video files can't be decoded");
}
inline Error too_many_bytes() {
  return invalid_argument("the image file is too large");
}
inline Error too_many_pixels() {
  return invalid_argument("the image has too many pixels");
}
inline Error damaged() {
  return invalid_argument("the image is damaged or cut off");
}
inline Error too_narrow() {
  return invalid_argument("the image is more than 200 times as long as it is wide");
}
inline Error no_memory() {
  return exhausted("there is no memory to decode the image");
}

}  // namespace weft::image_error
