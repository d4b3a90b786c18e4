#include <cstring>
#include <vector>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_format.h"

namespace weft::cuda {

int64_t kv_block_bytes(const KvShape& shape) {
  return with_kv_format(shape.format,
                        [&](auto format) { return kv_layout(format, shape).bytes(); });
}

void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v) {
  std::vector<std::byte> raw(static_cast<size_t>(kv_block_bytes(kv.shape)));
  check(
      cudaMemcpy(raw.data(), kv.data + block * kv.block_bytes, raw.size(), cudaMemcpyDeviceToHost),
      "reading a KV block");
  with_kv_format(kv.shape.format, [&](auto format) {
    using Format = decltype(format);
    const KvBlockLayout layout = kv_layout(format, kv.shape);
    const auto read = [&](int plane, int64_t g, int64_t b, float* to) {
      const std::byte* codes = raw.data() + layout.code_offset(plane, g, b);
      for (int64_t d = 0; d < kv.shape.head_dim; ++d) {
        if constexpr (Format::kScaled) {
          float scale;
          std::memcpy(&scale, raw.data() + layout.scale_offset(plane, g, b), sizeof scale);
          to[d] = Format::value(static_cast<uint8_t>(codes[d])) * scale;
        } else {
          bf16 value;
          std::memcpy(&value, codes + d * 2, sizeof value);
          to[d] = bf16_to_float(value);
        }
      }
    };
    for (int64_t g = 0; g < kv.shape.heads; ++g) {
      for (int64_t b = 0; b < kv.shape.block_size; ++b) {
        read(0, g, b, k.row<float>(b) + g * k.stride[1]);
        read(1, g, b, v.row<float>(b) + g * v.stride[1]);
      }
    }
  });
}

}  // namespace weft::cuda
