#include "media/resize.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace weft {
namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;  // a pixel, a weight and two bits of overshoot

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}

struct Filter {
  double support;
  double (*weight)(double);
};

Filter filter_of(Resampling resampling) {
  switch (resampling) {
    case Resampling::kLanczos:
      return {3.0, [](double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }};
    case Resampling::kBilinear:
      return {1.0, [](double x) { return std::max(0.0, 1.0 - std::abs(x)); }};
    case Resampling::kBicubic:
      return {2.0, [](double x) {
                constexpr double kA = -0.5;
                x = std::abs(x);
                if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1;
                if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * kA;
                return 0.0;
              }};
    case Resampling::kNearest: break;
  }
  CHECK(false);
  return {};
}

/// Output i is the sum of weights[i * width + j] * input[first[i] + j], j < count[i].
struct Taps {
  int width = 0;
  std::vector<int> first, count;
  std::vector<int32_t> weights;
};

Taps make_taps(int in_size, int out_size, const Filter& filter) {
  const double scale = static_cast<double>(in_size) / out_size;
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale;
  Taps taps;
  taps.width = static_cast<int>(std::ceil(support)) * 2 + 1;
  taps.weights.assign(static_cast<size_t>(taps.width) * static_cast<size_t>(out_size), 0);
  std::vector<double> exact(static_cast<size_t>(taps.width));
  for (int i = 0; i < out_size; ++i) {
    const double center = (i + 0.5) * scale;
    const int begin = std::max(static_cast<int>(center - support + 0.5), 0);
    const int end = std::min(static_cast<int>(center + support + 0.5), in_size);
    double sum = 0;
    for (int j = begin; j < end; ++j) {
      const double weight = filter.weight((j - center + 0.5) * (1.0 / filter_scale));
      exact[static_cast<size_t>(j - begin)] = weight;
      sum += weight;
    }
    int32_t* weights = taps.weights.data() + static_cast<int64_t>(i) * taps.width;
    for (int j = 0; j < end - begin; ++j) {
      double weight = exact[static_cast<size_t>(j)];
      if (sum != 0.0) weight /= sum;
      weights[j] = static_cast<int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kPrecisionBits));
    }
    taps.first.push_back(begin);
    taps.count.push_back(end - begin);
  }
  return taps;
}

uint8_t to_pixel(int sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

constexpr int kHalf = 1 << (kPrecisionBits - 1);

Image resize_rows(const Image& image, int width, const Filter& filter) {
  const Taps taps = make_taps(image.width, width, filter);
  Image out{.width = width, .height = image.height};
  out.rgb.resize(static_cast<size_t>(width) * static_cast<size_t>(image.height) * 3);
  uint8_t* to = out.rgb.data();
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = image.rgb.data() + int64_t{3} * image.width * y;
    for (int x = 0; x < width; ++x, to += 3) {
      const int32_t* weights = taps.weights.data() + int64_t{x} * taps.width;
      const uint8_t* from = row + 3 * taps.first[static_cast<size_t>(x)];
      int r = kHalf, g = kHalf, b = kHalf;
      for (int j = 0; j < taps.count[static_cast<size_t>(x)]; ++j, from += 3) {
        r += from[0] * weights[j];
        g += from[1] * weights[j];
        b += from[2] * weights[j];
      }
      to[0] = to_pixel(r);
      to[1] = to_pixel(g);
      to[2] = to_pixel(b);
    }
  }
  return out;
}

Image resize_columns(const Image& image, int height, const Filter& filter) {
  const Taps taps = make_taps(image.height, height, filter);
  const int64_t stride = int64_t{3} * image.width;
  Image out{.width = image.width, .height = height};
  out.rgb.resize(static_cast<size_t>(stride * height));
  std::vector<int> sums(static_cast<size_t>(stride));
  for (int y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), kHalf);
    const int32_t* weights = taps.weights.data() + int64_t{y} * taps.width;
    for (int j = 0; j < taps.count[static_cast<size_t>(y)]; ++j) {
      const uint8_t* row = image.rgb.data() + stride * (taps.first[static_cast<size_t>(y)] + j);
      const int weight = weights[j];
      for (int64_t i = 0; i < stride; ++i) sums[static_cast<size_t>(i)] += row[i] * weight;
    }
    uint8_t* to = out.rgb.data() + stride * y;
    for (int64_t i = 0; i < stride; ++i) to[i] = to_pixel(sums[static_cast<size_t>(i)]);
  }
  return out;
}

/// The pixel under the middle of each new one.
Image resize_nearest(const Image& image, int width, int height) {
  Image out{.width = width, .height = height};
  out.rgb.reserve(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
  const auto source = [](int i, int from, int to) {
    return std::min(static_cast<int>((i + 0.5) * (static_cast<double>(from) / to)), from - 1);
  };
  for (int y = 0; y < height; ++y) {
    const uint8_t* row =
        image.rgb.data() + int64_t{3} * image.width * source(y, image.height, height);
    for (int x = 0; x < width; ++x) {
      const uint8_t* pixel = row + 3 * source(x, image.width, width);
      out.rgb.insert(out.rgb.end(), pixel, pixel + 3);
    }
  }
  return out;
}

}  // namespace

Image resize_image(const Image& image, int width, int height, Resampling resampling) {
  CHECK(width >= 1 && height >= 1);
  if (width == image.width && height == image.height) return image;
  if (resampling == Resampling::kNearest) return resize_nearest(image, width, height);
  const Filter filter = filter_of(resampling);
  if (width == image.width) return resize_columns(image, height, filter);
  const Image rows = resize_rows(image, width, filter);
  return height == image.height ? rows : resize_columns(rows, height, filter);
}

}  // namespace weft
