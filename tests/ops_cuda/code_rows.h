#pragma once

// Rows of e4m3 codes (kernels/cuda/gemm.h) on the host.

#include <cstring>
#include <vector>

#include "device/gpu.h"
#include "kernels/cuda/attention_prompt_tiles.h"
#include "kernels/cuda/gemm.h"
#include "tests/ops_cuda/support.h"

namespace weft {

/// Codes and scales without what pads them.
struct HostRows {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  bool operator==(const HostRows& other) const {
    return codes == other.codes && scales.size() == other.scales.size() &&
           std::memcmp(scales.data(), other.scales.data(), scales.size() * 4) == 0;
  }
};

inline HostRows download(Stream& stream, const cuda::QuantizedRows& q, int64_t rows, int64_t k) {
  const int64_t bytes = cuda::quantized_rows_bytes(rows, k), blocks = (k + 127) / 128;
  const DeviceTensor copy(DType::kF32, {bytes / 4});
  copy_bytes(stream, copy.view.data, q.codes, bytes);
  const std::vector<std::byte> raw = copy.bytes();
  HostRows out;
  for (int64_t row = 0; row < rows; ++row) {
    const auto* codes = reinterpret_cast<const uint8_t*>(raw.data()) + row * q.stride;
    out.codes.insert(out.codes.end(), codes, codes + k);
  }
  const std::byte* scales = raw.data() + rows * q.stride;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t row = 0; row < rows; ++row) {
      float value = 0;
      std::memcpy(&value, scales + (block * q.scale_stride + row) * 4, 4);
      out.scales.push_back(value);
    }
  }
  return out;
}

/// `op`, attention of prompts that has run, gives the same bytes with tiles of any rows.
template <class Op>
void expect_same_in_any_tiles(Stream& stream, const AttnArgs& args, int64_t rows, const Op& op) {
  if (rows == 0) return;
  const int64_t width = args.out.dim(1) * args.out.dim(2);
  const int64_t count = (rows - 1) * args.out.stride[0] + width;
  const auto read = [&] {
    if (count < int64_t{1} << 28) {
      const DeviceTensor copy(DType::kF32, {(count + 1) / 2});
      copy_bytes(stream, copy.view.data, args.out.data, count * 2);
      return copy.bytes();
    }
    const DeviceTensor copy(DType::kBF16, {rows, width});  // of rows far apart those alone
    const auto* from = static_cast<const std::byte*>(args.out.data);
    auto* to = static_cast<std::byte*>(copy.view.data);
    for (int64_t row = 0; row < rows; ++row) {
      copy_bytes(stream, to + row * width * 2, from + row * args.out.stride[0] * 2, width * 2);
    }
    return copy.bytes();
  };
  const std::vector<std::byte> chosen = read();
  for (const int tile : {64, 128, 192}) {
    cuda::prompt_tile_rows() = tile;
    op(stream, args);
    EXPECT_TRUE(read() == chosen) << "tiles of " << tile << " rows";
  }
  cuda::prompt_tile_rows() = 0;
}

/// Attention of prompts that makes codes makes those of the first `rows` rows of args.out, which
/// hold what it gave before.
inline void expect_codes_of_attention(Stream& stream, const AttnArgs& args, int64_t rows) {
  if (!cuda::attention_prompt_quantizes(args.shape) || rows == 0) return;
  const int64_t k = args.out.dim(1) * args.out.dim(2);
  TensorView out(args.out.data, DType::kBF16, {rows, k});
  out.stride[0] = args.out.stride[0];
  const DeviceTensor memory(DType::kF32, {cuda::quantized_rows_bytes(rows, k) / 4});
  const cuda::QuantizedRows codes = cuda::quantized_rows_at(memory.view.data, rows, k);
  ArenaScope scope(stream.scratch());
  const HostRows expected = download(stream, cuda::quantize_rows(stream, out), rows, k);
  (args.kv.shape.format == KvFormat::kBf16
       ? cuda::attention_prompt_into
       : cuda::attention_prompt_gathered_into)(stream, args, codes);
  EXPECT_TRUE(download(stream, codes, rows, k) == expected);
}

}  // namespace weft
