#include "kernels/cpu/pack.h"

#include <cstring>

#include "kernels/cpu/gemm_vec.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr float kMaxHalf = 65504.0f;

/// Sixteen rows by thirty-two values of the source, as f32, zero beyond its edges.
struct Patch {
  alignas(64) float w[kPanelWidth][kStep];
};

WEFT_INLINE float bf16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

WEFT_INLINE uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

/// The pieces as one tall [N, K] matrix.
class Source {
 public:
  Source(std::span<const TensorView> pieces, int64_t k) : pieces_(pieces), k_(k) {}

  /// Values [k0, k0 + 32) of row `n`, zeros beyond the matrix.
  void load(int64_t n, int64_t k0, float* out) const {
    int64_t count = k_ - k0 < kStep ? k_ - k0 : kStep;
    size_t i = 0;
    while (i < pieces_.size() && n >= pieces_[i].dim(0)) n -= pieces_[i++].dim(0);
    if (i == pieces_.size() || count < 0) count = 0;
    if (count > 0) load_row(pieces_[i], n, k0, count, out);
    for (int64_t j = count; j < kStep; ++j) out[j] = 0.0f;
  }

 private:
  static void load_row(const TensorView& piece, int64_t n, int64_t k0, int64_t count, float* out) {
    const int64_t offset = n * piece.stride[0] + k0;
    if (piece.dtype == DType::kF32) {
      std::memcpy(out, static_cast<const float*>(piece.data) + offset,
                  static_cast<size_t>(count) * 4);
      return;
    }
    const uint16_t* p = static_cast<const uint16_t*>(piece.data) + offset;
    if (piece.dtype == DType::kBF16) {
      for (int64_t j = 0; j < count; ++j) out[j] = bf16_value(p[j]);
    } else {
      for (int64_t j = 0; j < count; ++j) out[j] = _cvtsh_ss(p[j]);
    }
  }

  std::span<const TensorView> pieces_;
  int64_t k_;
};

void write_f32(const Patch& patch, float* out) {
  for (int k = 0; k < kStep; ++k) {
    for (int o = 0; o < kPanelWidth; ++o) out[k * kPanelWidth + o] = patch.w[o][k];
  }
}

void write_bf16(const Patch& patch, uint16_t* out) {
  for (int pair = 0; pair < kStep / 2; ++pair) {
    for (int o = 0; o < kPanelWidth; ++o) {
      out[(pair * kPanelWidth + o) * 2] = bf16_bits(patch.w[o][2 * pair]);
      out[(pair * kPanelWidth + o) * 2 + 1] = bf16_bits(patch.w[o][2 * pair + 1]);
    }
  }
}

/// The codes of one row's group plus `offset` (kernels/quantize.h); returns the f16 scale.
uint16_t quantize(const float* w, bool int4, uint8_t* codes) {
  float extreme = 0.0f, largest = 0.0f;
  for (int i = 0; i < kStep; ++i) {
    const float magnitude = w[i] < 0.0f ? -w[i] : w[i];
    if (magnitude > largest) {
      largest = magnitude;
      extreme = w[i];
    }
  }
  float s = int4 ? extreme / -8.0f : largest / 127.0f;
  s = s > kMaxHalf ? kMaxHalf : (s > -kMaxHalf ? s : -kMaxHalf);
  const auto scale = static_cast<uint16_t>(_cvtss_sh(s, _MM_FROUND_TO_NEAREST_INT));
  const float stored = _cvtsh_ss(scale);
  const Vec inverse = vec_set(stored != 0.0f ? 1.0f / stored : 0.0f);
  const float low = int4 ? -8.0f : -127.0f, high = int4 ? 7.0f : 127.0f;
  const Vec offset = vec_set(int4 ? 8.0f : 128.0f);
  for (int i = 0; i < kStep; i += kPanelWidth) {
    const Vec q = vec_round(vec_clamp(vec_mul(vec_load(w + i), inverse), low, high));
    alignas(64) float biased[kPanelWidth];
    vec_store(biased, vec_add(q, offset));
    for (int j = 0; j < kPanelWidth; ++j)
      codes[i + j] = static_cast<uint8_t>(static_cast<int32_t>(biased[j]));
  }
  return scale;
}

/// Group `half` (0 or 1) of an int8 or int4 pair.
void write_group(const Patch& patch, bool int4, int half, std::byte* pair) {
  auto* scales = reinterpret_cast<uint16_t*>(pair) + half * kPanelWidth;
  auto* out = reinterpret_cast<uint8_t*>(pair) + 64 + half * (int4 ? 256 : 512);
  uint8_t codes[kPanelWidth][kStep];
  for (int o = 0; o < kPanelWidth; ++o) scales[o] = quantize(patch.w[o], int4, codes[o]);
  for (int quad = 0; quad < (int4 ? 4 : 8); ++quad) {
    for (int o = 0; o < kPanelWidth; ++o) {
      for (int i = 0; i < 4; ++i) {
        uint8_t& byte = out[(quad * kPanelWidth + o) * 4 + i];
        byte = codes[o][quad * 4 + i];
        if (int4) byte = static_cast<uint8_t>(byte | (codes[o][quad * 4 + 16 + i] << 4));
      }
    }
  }
}

void write_step(const PackedMatrix& m, const Patch& patch, int64_t step, std::byte* panel) {
  switch (m.format) {
    case WeightFormat::kF32:
      write_f32(patch, reinterpret_cast<float*>(panel) + step * kStep * kPanelWidth);
      break;
    case WeightFormat::kBf16:
      write_bf16(patch, reinterpret_cast<uint16_t*>(panel) + step * kStep * kPanelWidth);
      break;
    case WeightFormat::kInt8:
    case WeightFormat::kInt4: {
      const bool int4 = m.format == WeightFormat::kInt4;
      write_group(patch, int4, static_cast<int>(step % 2),
                  panel + step / 2 * (int4 ? kInt4PairBytes : kInt8PairBytes));
      break;
    }
    case WeightFormat::kFp8Block:
    case WeightFormat::kDraft4: break;  // refused at packing
  }
}

/// Weight (n, k) of a packed matrix.
float unpack_one(const PackedMatrix& m, int64_t n, int64_t k) {
  const std::byte* panel = m.panel(n / kPanelWidth);
  const int64_t o = n % kPanelWidth, step = k / kStep, i = k % kStep;
  if (m.format == WeightFormat::kF32)
    return reinterpret_cast<const float*>(panel)[k * kPanelWidth + o];
  if (m.format == WeightFormat::kBf16) {
    return bf16_value(
        reinterpret_cast<const uint16_t*>(panel)[((k / 2) * kPanelWidth + o) * 2 + k % 2]);
  }
  const bool int4 = m.format == WeightFormat::kInt4;
  const std::byte* pair = panel + step / 2 * (int4 ? kInt4PairBytes : kInt8PairBytes);
  const float scale =
      _cvtsh_ss(reinterpret_cast<const uint16_t*>(pair)[step % 2 * kPanelWidth + o]);
  const auto* codes = reinterpret_cast<const uint8_t*>(pair) + 64 + step % 2 * (int4 ? 256 : 512);
  const int64_t row = int4 ? i % 16 / 4 : i / 4;
  const int byte = codes[(row * kPanelWidth + o) * 4 + i % 4];
  const int code = !int4 ? byte - 128 : (i < 16 ? byte & 15 : byte >> 4) - 8;
  return static_cast<float>(code) * scale;
}

}  // namespace

int64_t weight_bytes(const WeightShape& shape) {
  const PackedMatrix m = packed_matrix(shape);
  return m.panels * m.panel_bytes;
}

void pack_weight(Stream& stream, const Weight& weight, int64_t expert,
                 std::span<const TensorView> pieces) {
  const PackedMatrix m = packed_matrix(weight, expert);
  int64_t rows = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const TensorView& piece = pieces[i];
    ISA_CHECK(
        piece.rank == 2 && piece.shape[1] == m.k &&
        (piece.dtype == DType::kF32 || piece.dtype == DType::kBF16 || piece.dtype == DType::kF16));
    rows += piece.shape[0];
  }
  ISA_CHECK(rows == m.n);
  const Source source(pieces, m.k);
  stream.pool().for_each(m.panels, 4, [&](int64_t begin, int64_t end) {
    Patch patch;
    for (int64_t p = begin; p < end; ++p) {
      std::byte* panel = m.data + p * m.panel_bytes;
      for (int64_t step = 0; step < m.steps; ++step) {
        for (int o = 0; o < kPanelWidth; ++o)
          source.load(p * kPanelWidth + o, step * kStep, patch.w[o]);
        write_step(m, patch, step, panel);
      }
    }
  });
}

void unpack_weight(const Weight& weight, int64_t expert, TensorView out) {
  const PackedMatrix m = packed_matrix(weight, expert);
  ISA_CHECK(out.rank == 2 && out.shape[0] == m.n && out.shape[1] == m.k &&
            out.dtype == DType::kF32);
  for (int64_t n = 0; n < m.n; ++n) {
    float* row = static_cast<float*>(out.data) + n * out.stride[0];
    for (int64_t k = 0; k < m.k; ++k) row[k] = unpack_one(m, n, k);
  }
}

}  // namespace weft::WEFT_ISA_NS
