#include <algorithm>
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
    case WeightFormat::kF32: return shape.k * 4;
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
  if (shape.format == WeightFormat::kF32) {
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

}  // namespace

void weight_row(const Weight& weight, int64_t expert, int64_t n, float* out) {
  const WeightShape& shape = weight.shape;
  const std::byte* row = row_data(weight, expert, n);
  if (shape.format == WeightFormat::kF32) {
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

void matvec(const Weight& weight, int64_t expert, const float* x, float* out) {
  const size_t k = static_cast<size_t>(weight.shape.k);
  std::vector<float> row(k), input(x, x + k);
  if (weight.shape.format == WeightFormat::kBf16) {
    for (float& value : input) value = bf16_to_float(float_to_bf16(value));
  }
  for (int64_t n = 0; n < weight.shape.n; ++n) {
    weight_row(weight, expert, n, row.data());
    double sum = 0;
    for (size_t i = 0; i < k; ++i) sum += static_cast<double>(row[i]) * input[i];
    out[n] = static_cast<float>(sum);
  }
}

int64_t weight_bytes(const WeightShape& shape) {
  return (shape.n * row_bytes(shape) + 63) / 64 * 64;
}

void pack_weight(Stream& stream, const Weight& weight, int64_t expert,
                 std::span<const TensorView> pieces) {
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
  const int64_t n = args.weight->shape.n;
  stream.pool().for_each(args.x.dim(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> y(static_cast<size_t>(n));
    for (int64_t t = begin; t < end; ++t) {
      matvec(*args.weight, 0, args.x.row<float>(t), y.data());
      if (args.bias.defined()) {
        for (int64_t i = 0; i < n; ++i) y[static_cast<size_t>(i)] += args.bias.ptr<float>()[i];
      }
      float* out = args.out.row<float>(t);
      switch (args.epilogue) {
        case Epilogue::kStore: std::copy_n(y.data(), n, out); break;
        case Epilogue::kAdd:
          for (int64_t i = 0; i < n; ++i) out[i] += y[static_cast<size_t>(i)];
          break;
        case Epilogue::kSiluMul:
          for (int64_t i = 0; i < n / 2; ++i) {
            out[i] = silu(y[static_cast<size_t>(i)]) * y[static_cast<size_t>(n / 2 + i)];
          }
          break;
      }
    }
  });
}

}  // namespace weft::ref
