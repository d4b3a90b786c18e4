#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/quantize.h"
#include "kernels/ref/ref.h"

namespace weft::ref {
namespace {

int64_t num_groups(int64_t k) {
  return (k + kWeightGroup - 1) / kWeightGroup;
}

/// Bytes of one group of a quantised row: the scale, then the codes.
int64_t group_bytes(WeightFormat format) {
  return 2 + (format == WeightFormat::kInt8 ? kWeightGroup : kWeightGroup / 2);
}

int64_t row_bytes(const WeightShape& shape) {
  switch (shape.format) {
    case WeightFormat::kF32:
    case WeightFormat::kFp8Block: return shape.k * 4;  // codes times scales
    case WeightFormat::kBf16: return shape.k * 2;
    default: return num_groups(shape.k) * group_bytes(shape.format);
  }
}

std::byte* row_data(const Weight& weight, int64_t expert, int64_t n) {
  return weight.data + expert * weight.expert_bytes + n * row_bytes(weight.shape);
}

void load_source_row(const TensorView& piece, int64_t row, float* out) {
  const int64_t k = piece.dim(1);
  switch (piece.dtype) {
    case DType::kF32: std::copy_n(piece.row<float>(row), k, out); break;
    case DType::kBF16:
      for (int64_t i = 0; i < k; ++i) out[i] = bf16_to_float(piece.row<bf16>(row)[i]);
      break;
    case DType::kF16:
      for (int64_t i = 0; i < k; ++i) out[i] = f16_to_float(piece.row<f16>(row)[i]);
      break;
    default: CHECK(false, "weights are packed from bf16, f16 or f32");
  }
}

void store_row(const WeightShape& shape, const float* in, std::byte* out) {
  if (shape.format == WeightFormat::kF32 || shape.format == WeightFormat::kFp8Block) {
    std::memcpy(out, in, static_cast<size_t>(shape.k) * 4);
    return;
  }
  if (shape.format == WeightFormat::kBf16) {
    for (int64_t i = 0; i < shape.k; ++i) {
      const bf16 x = float_to_bf16(in[i]);
      std::memcpy(out + i * 2, &x, 2);
    }
    return;
  }
  const bool int8 = shape.format == WeightFormat::kInt8;
  for (int64_t g = 0; g < num_groups(shape.k); ++g) {
    int8_t codes[kWeightGroup];
    const int64_t begin = g * kWeightGroup;
    const int count = static_cast<int>(std::min<int64_t>(kWeightGroup, shape.k - begin));
    const f16 scale = int8 ? quantize_group_int8(in + begin, count, codes)
                           : quantize_group_int4(in + begin, count, codes);
    std::byte* group = out + g * group_bytes(shape.format);
    std::memcpy(group, &scale, 2);
    if (int8) {
      std::memcpy(group + 2, codes, kWeightGroup);
      continue;
    }
    for (int i = 0; i < kWeightGroup / 2; ++i) {  // code + 8 in a nibble, the even one low
      group[2 + i] = static_cast<std::byte>((codes[2 * i] + 8) | ((codes[2 * i + 1] + 8) << 4));
    }
  }
}

/// Rows [begin, end) of a piece, which lie in one row of blocks, as they are after their codes:
/// those of a piece of codes with `scales`, else with s = amax / 448 of each block.
void round_fp8_blocks(const TensorView& piece, const TensorView* scales, int64_t begin,
                      std::span<std::vector<float>> rows) {
  const int64_t k = piece.dim(1);
  if (!scales) {
    for (size_t i = 0; i < rows.size(); ++i) {
      load_source_row(piece, begin + static_cast<int64_t>(i), rows[i].data());
    }
  }
  for (int64_t first = 0; first < k; first += kFp8Block) {
    const int64_t last = std::min<int64_t>(first + kFp8Block, k);
    float s = 0;
    if (scales) {
      s = scales->row<float>(begin / kFp8Block)[first / kFp8Block];
    } else {
      for (const auto& row : rows) {
        for (int64_t j = first; j < last; ++j)
          s = std::max(s, std::fabs(row[static_cast<size_t>(j)]));
      }
      s /= kE4m3Max;
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      const uint8_t* codes = scales ? piece.row<uint8_t>(begin + static_cast<int64_t>(i)) : nullptr;
      for (int64_t j = first; j < last; ++j) {
        float& value = rows[i][static_cast<size_t>(j)];
        const uint8_t code = codes ? codes[j] : float_to_e4m3(s > 0 ? value / s : 0);
        value = e4m3_to_float(code) * s;
      }
    }
  }
}

/// `pieces` of a kFp8Block weight, one row of blocks after the other.
void pack_fp8_blocks(const Weight& weight, int64_t expert, std::span<const TensorView> pieces) {
  int64_t n = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const TensorView& piece = pieces[i];
    CHECK(piece.rank == 2 && piece.dim(1) == weight.shape.k, "a piece has another K");
    CHECK(n % kFp8PieceRows == 0, "fp8: rows of a fused weight by 16");
    const TensorView* scales = piece.dtype == DType::kFP8E4M3 ? &pieces[++i] : nullptr;
    for (int64_t begin = 0; begin < piece.dim(0); begin += kFp8Block) {
      const int64_t count = std::min<int64_t>(kFp8Block, piece.dim(0) - begin);
      std::vector<std::vector<float>> rows(static_cast<size_t>(count));
      for (auto& row : rows) row.resize(static_cast<size_t>(weight.shape.k));
      round_fp8_blocks(piece, scales, begin, rows);
      for (const auto& row : rows) {
        store_row(weight.shape, row.data(), row_data(weight, expert, n++));
      }
    }
  }
  CHECK(n == weight.shape.n, "the pieces don't add up to N rows");
}

}  // namespace

void weight_row(const Weight& weight, int64_t expert, int64_t n, float* out) {
  const WeightShape& shape = weight.shape;
  const std::byte* row = row_data(weight, expert, n);
  if (shape.format == WeightFormat::kF32 || shape.format == WeightFormat::kFp8Block) {
    std::memcpy(out, row, static_cast<size_t>(shape.k) * 4);
    return;
  }
  if (shape.format == WeightFormat::kBf16) {
    for (int64_t i = 0; i < shape.k; ++i) {
      bf16 x;
      std::memcpy(&x, row + i * 2, 2);
      out[i] = bf16_to_float(x);
    }
    return;
  }
  for (int64_t i = 0; i < shape.k; ++i) {
    const std::byte* group = row + i / kWeightGroup * group_bytes(shape.format);
    const int64_t j = i % kWeightGroup;
    f16 scale;
    std::memcpy(&scale, group, 2);
    const int code = shape.format == WeightFormat::kInt8
                         ? static_cast<int8_t>(group[2 + j])
                         : ((static_cast<int>(group[2 + j / 2]) >> (j % 2 * 4)) & 15) - 8;
    out[i] = static_cast<float>(code) * f16_to_float(scale);
  }
}

void matmul(Stream& stream, const Weight& weight, int64_t expert, const TensorView& x, float* out) {
  const int64_t rows = x.dim(0), k = weight.shape.k, n = weight.shape.n;
  std::vector<float> input(static_cast<size_t>(rows * k));
  for (int64_t t = 0; t < rows; ++t) {
    float* copy = std::copy_n(x.row<float>(t), k, input.data() + t * k) - k;
    if (weight.shape.format != WeightFormat::kBf16) continue;
    for (int64_t i = 0; i < k; ++i) copy[i] = bf16_to_float(float_to_bf16(copy[i]));
  }
  stream.pool().for_each(n, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t j = begin; j < end; ++j) {
      weight_row(weight, expert, j, row.data());
      for (int64_t t = 0; t < rows; ++t) {
        const float* in = input.data() + t * k;
        double sum[4] = {};  // four chains of additions, for speed alone
        int64_t i = 0;
        for (; i + 4 <= k; i += 4) {
          for (int64_t c = 0; c < 4; ++c) {
            sum[c] += static_cast<double>(row[static_cast<size_t>(i + c)]) * in[i + c];
          }
        }
        for (; i < k; ++i) sum[0] += static_cast<double>(row[static_cast<size_t>(i)]) * in[i];
        out[t * n + j] = static_cast<float>(sum[0] + sum[1] + sum[2] + sum[3]);
      }
    }
  });
}

int64_t weight_bytes(const WeightShape& shape) {
  return (shape.n * row_bytes(shape) + 63) / 64 * 64;
}

void pack_weight(Stream& stream, const Weight& weight, int64_t expert,
                 std::span<const TensorView> pieces) {
  if (weight.shape.format == WeightFormat::kFp8Block) {
    return pack_fp8_blocks(weight, expert, pieces);
  }
  int64_t n = 0;
  for (const TensorView& piece : pieces) {
    CHECK(piece.rank == 2 && piece.dim(1) == weight.shape.k, "a piece has another K");
    stream.pool().for_each(piece.dim(0), 64, [&](int64_t begin, int64_t end) {
      std::vector<float> row(static_cast<size_t>(weight.shape.k));
      for (int64_t i = begin; i < end; ++i) {
        load_source_row(piece, i, row.data());
        store_row(weight.shape, row.data(), row_data(weight, expert, n + i));
      }
    });
    n += piece.dim(0);
  }
  CHECK(n == weight.shape.n, "the pieces don't add up to N rows");
}

void unpack_weight(const Weight& weight, int64_t expert, TensorView out) {
  for (int64_t n = 0; n < weight.shape.n; ++n) weight_row(weight, expert, n, out.row<float>(n));
}

void linear(Stream& stream, const LinearArgs& args) {
  if (args.norm.weight.defined()) rms_norm(stream, args.norm);
  const int64_t n = args.weight->shape.n, rows = args.x.dim(0);
  std::vector<float> all(static_cast<size_t>(rows * n));
  matmul(stream, *args.weight, 0, args.x, all.data());
  for (int64_t t = 0; t < rows; ++t) {
    float* y = all.data() + t * n;
    if (args.bias.defined()) {
      for (int64_t i = 0; i < n; ++i) y[i] += args.bias.ptr<float>()[i];
    }
    float* out = args.out.row<float>(t);
    switch (args.epilogue) {
      case Epilogue::kStore: std::copy_n(y, n, out); break;
      case Epilogue::kAdd:
        for (int64_t i = 0; i < n; ++i) out[i] += y[i];
        break;
      case Epilogue::kSiluMul:
        for (int64_t i = 0; i < n / 2; ++i) out[i] = silu(y[i]) * y[n / 2 + i];
        break;
    }
  }
}

}  // namespace weft::ref
