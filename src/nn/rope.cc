#include "nn/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "device/gpu.h"

namespace weft {
namespace {

using std::numbers::pi;

/// YaRN's yarn_get_mscale.
double mscale_of(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// The frequency index that turns `rotations` times within the original context.
double correction_dim(const RopeSpec& spec, const YarnScaling& yarn, double rotations) {
  return spec.rotary_dim *
         std::log(static_cast<double>(yarn.original_positions) / (rotations * 2 * pi)) /
         (2 * std::log(spec.theta));
}

void apply_yarn(const RopeSpec& spec, const YarnScaling& yarn, std::vector<double>& inv_freq) {
  double low = correction_dim(spec, yarn, yarn.beta_fast);
  double high = correction_dim(spec, yarn, yarn.beta_slow);
  if (yarn.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(spec.rotary_dim - 1));
  if (low == high) high += 0.001;  // a step instead of a ramp
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / yarn.factor * ramp + inv_freq[i] * (1 - ramp);
  }
}

/// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, between them a blend.
void apply_llama3(const Llama3Scaling& s, std::vector<double>& inv_freq) {
  const double context = static_cast<double>(s.original_positions);
  for (double& f : inv_freq) {
    const double wavelength = 2 * pi / f;
    if (wavelength > context / s.low_freq_factor) {
      f /= s.factor;
    } else if (wavelength >= context / s.high_freq_factor) {
      const double smooth =
          (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      f = (1 - smooth) * f / s.factor + smooth * f;
    }
  }
}

}  // namespace

double yarn_attention_factor(double factor, double mscale, double mscale_all_dim) {
  if (mscale != 0 && mscale_all_dim != 0) {
    return mscale_of(factor, mscale) / mscale_of(factor, mscale_all_dim);
  }
  return mscale_of(factor, 1);
}

double rope_attention_factor(const RopeSpec& spec) {
  const auto* yarn = std::get_if<YarnScaling>(&spec.scaling);
  return yarn ? yarn->attention_factor : 1.0;
}

std::vector<float> rope_inverse_frequencies(const RopeSpec& spec) {
  std::vector<double> f(static_cast<size_t>(spec.rotary_dim / 2));
  for (size_t i = 0; i < f.size(); ++i) {
    f[i] = std::pow(spec.theta, -2.0 * static_cast<double>(i) / spec.rotary_dim);
  }
  if (const auto* linear = std::get_if<LinearScaling>(&spec.scaling)) {
    for (double& x : f) x /= linear->factor;
  } else if (const auto* yarn = std::get_if<YarnScaling>(&spec.scaling)) {
    apply_yarn(spec, *yarn, f);
  } else if (const auto* llama3 = std::get_if<Llama3Scaling>(&spec.scaling)) {
    apply_llama3(*llama3, f);
  }
  return {f.begin(), f.end()};
}

std::vector<uint8_t> rope_axes(const RopeSpec& spec) {
  std::vector<uint8_t> axes(static_cast<size_t>(spec.rotary_dim / 2), 0);
  const auto& [t, h, w] = spec.sections;
  for (int i = 0; i < static_cast<int>(axes.size()); ++i) {
    uint8_t axis = 0;
    switch (spec.section_order) {
      case SectionOrder::kBlocks:
        if (spec.multimodal()) axis = i < t ? 0 : (i < t + h ? 1 : 2);
        break;
      case SectionOrder::kInterleaved:
        if (i % 3 == 1 && i < 3 * h) axis = 1;
        if (i % 3 == 2 && i < 3 * w) axis = 2;
        break;
      case SectionOrder::kAlternating:
        if (i < h + w) axis = i % 2 == 0 ? 1 : 2;
        break;
    }
    axes[static_cast<size_t>(i)] = axis;
  }
  return axes;
}

int64_t Rope::bytes(const RopeSpec& spec, int64_t num_positions) {
  return num_positions * spec.rotary_dim * int64_t{sizeof(float)} + spec.rotary_dim / 2;
}

Result<Rope> Rope::create(const RopeSpec& spec, int64_t num_positions) {
  Rope out;
  auto buffer = Buffer::allocate(DeviceKind::kCpu, bytes(spec, num_positions));
  if (!buffer.ok()) {
    return with_context(std::move(buffer).error(),
                        "the rope table of " + std::to_string(num_positions) + " positions");
  }
  out.buffer_ = std::move(buffer).value();
  out.num_positions_ = num_positions;
  const std::vector<float> inv_freq = rope_inverse_frequencies(spec);
  const std::vector<uint8_t> axes = rope_axes(spec);
  const int64_t half = spec.rotary_dim / 2;
  float* entry = reinterpret_cast<float*>(out.buffer_.data());
  out.table_.cos_sin = TensorView(entry, DType::kF32, {num_positions, half, 2});
  const double factor = rope_attention_factor(spec);
  for (int64_t p = 0; p < num_positions; ++p) {
    for (const float f : inv_freq) {
      const float angle = static_cast<float>(p) * f;  // rounded in f32, as transformers does
      *entry++ = static_cast<float>(std::cos(static_cast<double>(angle)) * factor);
      *entry++ = static_cast<float>(std::sin(static_cast<double>(angle)) * factor);
    }
  }
  uint8_t* axis = reinterpret_cast<uint8_t*>(entry);
  std::copy(axes.begin(), axes.end(), axis);
  out.table_.axis = TensorView(axis, DType::kU8, {half});
  out.table_.rotary_dim = spec.rotary_dim;
  out.table_.style = spec.style;
  return out;
}

Result<Rope> Rope::create(const RopeSpec& spec, int64_t num_positions, Stream& stream,
                          DeviceKind device) {
  Rope rope = TRY(create(spec, num_positions));
  if (device == DeviceKind::kCpu) return rope;
  Buffer moved = TRY(Buffer::allocate(device, rope.buffer_.bytes()));
  copy_bytes(stream, moved.data(), rope.buffer_.data(), rope.buffer_.bytes());
  synchronize(stream);
  const auto at_new = [&](void* data) {
    return moved.data() + (static_cast<std::byte*>(data) - rope.buffer_.data());
  };
  rope.table_.cos_sin.data = at_new(rope.table_.cos_sin.data);
  rope.table_.axis.data = at_new(rope.table_.axis.data);
  rope.buffer_ = std::move(moved);
  return rope;
}

}  // namespace weft
