// The KV formats of the oracle: rows of codes in the order of the tensors, one code an element
// (int4 too), scales and zero points behind them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/kv_codes.h"
#include "kernels/ref/ref.h"

namespace weft::ref {
namespace {

int64_t element_bytes(KvFormat format) {
  if (format == KvFormat::kF32) return 4;
  return format == KvFormat::kBf16 ? 2 : 1;
}

/// One row of a block and its scales.
struct Row {
  std::byte* codes;
  std::byte* scales;
};
Row row_of(const PagedKv& kv, int plane, int64_t block, int64_t offset, int head) {
  const KvShape& s = kv.shape;
  const int64_t rows = int64_t{2} * s.block_size * s.heads;
  const int64_t row = (plane * s.block_size + offset) * s.heads + head;
  const int64_t row_bytes = s.head_dim * element_bytes(s.format);
  std::byte* base = kv.data + block * kv.block_bytes;
  return {base + row * row_bytes,
          base + rows * row_bytes + row * 4 * kv_scales_per_row(s.format, s.head_dim)};
}

const float* static_scales(const PagedKv& kv, int plane, int head) {
  const float* scales = plane == 0 ? kv.k_scale : kv.v_scale;
  CHECK(scales != nullptr, "a static KV format without scales");
  return scales + int64_t{head} * kv.shape.head_dim;
}

float value_of(KvFormat format, uint8_t code, float scale) {
  switch (format) {
    case KvFormat::kInt4: return kv_int4_value(code, scale);
    case KvFormat::kFp8:
    case KvFormat::kFp8Block: return e4m3_to_float(code) * scale;
    default: return static_cast<float>(static_cast<int8_t>(code)) * scale;
  }
}

/// Codes of up to kKvInt4Group values with a scale of their own, which is returned.
float encode_int4(const float* in, int n, uint8_t* codes) {
  const bool finite = std::all_of(in, in + n, [](float x) { return std::isfinite(x); });
  const KvInt4Scale scale =
      kv_int4_scale(*std::max_element(in, in + n), *std::min_element(in, in + n), finite);
  for (int i = 0; i < n; ++i) {
    codes[i] = finite ? kv_int4_code(in[i] * scale.inverse, scale.zero) : uint8_t{0};
  }
  return scale.scale;
}

/// The same of a row of 8 bits.
float encode_row(KvFormat format, const float* in, int n, uint8_t* codes) {
  float amax = 0;
  for (int i = 0; i < n; ++i) {
    amax = std::isfinite(in[i]) ? std::max(amax, std::abs(in[i]))
                                : std::numeric_limits<float>::infinity();
    if (!std::isfinite(amax)) break;
  }
  const KvRowScale scale = kv_row_scale(amax, kv_largest_code(format));
  for (int i = 0; i < n; ++i) {
    const float scaled = std::isfinite(amax) ? in[i] * scale.inverse : 0.0f;
    codes[i] = format == KvFormat::kInt8Dynamic ? kv_int8_code(scaled) : kv_fp8_code(scaled);
  }
  return scale.scale;
}

/// Codes and scales of a row of a format with scales a row.
void encode_row(const PagedKv& kv, const Row& row, const float* in) {
  const int d = kv.shape.head_dim;
  auto* codes = reinterpret_cast<uint8_t*>(row.codes);
  for (int s = 0; s < kv_scales_per_row(kv.shape.format, d); ++s) {
    const int first = s * kKvInt4Group;
    const float scale =
        kv.shape.format == KvFormat::kInt4
            ? encode_int4(in + first, std::min(kKvInt4Group, d - first), codes + first)
            : encode_row(kv.shape.format, in, d, codes);
    std::memcpy(row.scales + 4 * s, &scale, 4);
  }
}

}  // namespace

int64_t kv_block_bytes(const KvShape& s) {
  const int64_t rows = int64_t{2} * s.block_size * s.heads;
  const int64_t row_bytes =
      s.head_dim * element_bytes(s.format) + 4 * kv_scales_per_row(s.format, s.head_dim);
  return (rows * row_bytes + 63) / 64 * 64;
}

void kv_load(const PagedKv& kv, int plane, int64_t block, int64_t offset, int head, float* out) {
  const Row row = row_of(kv, plane, block, offset, head);
  const KvFormat format = kv.shape.format;
  const int d = kv.shape.head_dim;
  if (format == KvFormat::kF32) {
    std::memcpy(out, row.codes, static_cast<size_t>(d) * 4);
    return;
  }
  if (format == KvFormat::kBf16) {
    for (int i = 0; i < d; ++i) {
      bf16 x;
      std::memcpy(&x, row.codes + i * 2, 2);
      out[i] = bf16_to_float(x);
    }
    return;
  }
  const float* channels = kv_has_static_scales(format) ? static_scales(kv, plane, head) : nullptr;
  for (int i = 0; i < d; ++i) {
    float scale = 0;
    if (channels) {
      scale = channels[i];
    } else {
      const int s = format == KvFormat::kInt4 ? i / kKvInt4Group : 0;
      std::memcpy(&scale, row.scales + 4 * s, 4);
    }
    out[i] = value_of(format, static_cast<uint8_t>(row.codes[i]), scale);
  }
}

void kv_store(const PagedKv& kv, int plane, int64_t slot, int head, const float* in) {
  const Row row = row_of(kv, plane, slot / kv.shape.block_size, slot % kv.shape.block_size, head);
  const KvFormat format = kv.shape.format;
  const int d = kv.shape.head_dim;
  if (format == KvFormat::kF32) {
    std::memcpy(row.codes, in, static_cast<size_t>(d) * 4);
    return;
  }
  auto* codes = reinterpret_cast<uint8_t*>(row.codes);
  if (kv_has_row_scales(format)) return encode_row(kv, row, in);
  const float* channels = kv_has_static_scales(format) ? static_scales(kv, plane, head) : nullptr;
  for (int i = 0; i < d; ++i) {
    if (format == KvFormat::kBf16) {
      const bf16 x = float_to_bf16(in[i]);
      std::memcpy(row.codes + i * 2, &x, 2);
    } else {
      const float scaled = in[i] * (1.0f / channels[i]);
      codes[i] = format == KvFormat::kInt8 ? kv_int8_code(scaled) : kv_fp8_code(scaled);
    }
  }
}

void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v) {
  for (int64_t b = 0; b < kv.shape.block_size; ++b) {
    for (int g = 0; g < kv.shape.heads; ++g) {
      kv_load(kv, 0, block, b, g, row3(k, b, g));
      kv_load(kv, 1, block, b, g, row3(v, b, g));
    }
  }
}

}  // namespace weft::ref
