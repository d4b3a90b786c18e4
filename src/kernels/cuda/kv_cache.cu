#include <cstring>
#include <vector>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_format.h"

namespace weft::cuda {
namespace {

/// A block's bytes on the host.
struct HostBlock {
  const KvShape& shape;
  KvBlockLayout layout;
  const std::byte* data;

  float scale(int plane, int64_t head, int group, int64_t token) const {
    float scale;
    std::memcpy(&scale, data + layout.scale_offset(plane, head, group, token), sizeof scale);
    return scale;
  }
  /// The code of dimension `d`.
  uint8_t code(int plane, int64_t head, int64_t token, int64_t d, int bits) const {
    const int64_t codes = 32 / bits;
    const int64_t place =
        d / codes * codes + kv_place(static_cast<int>(d % codes), static_cast<int>(codes));
    const auto byte =
        static_cast<uint8_t>(data[layout.code_offset(plane, head, token) + place * bits / 8]);
    return bits == 8 ? byte : static_cast<uint8_t>(byte >> place % 2 * 4 & 0xF);
  }
};

std::vector<float> host(const float* from, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  check(cudaMemcpy(out.data(), from, out.size() * sizeof(float), cudaMemcpyDeviceToHost),
        "scales of a KV cache");
  return out;
}

}  // namespace

int64_t kv_block_bytes(const KvShape& shape) {
  return kv_layout(shape).bytes();
}

void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v) {
  const KvShape& shape = kv.shape;
  std::vector<std::byte> raw(static_cast<size_t>(kv_block_bytes(shape)));
  check(
      cudaMemcpy(raw.data(), kv.data + block * kv.block_bytes, raw.size(), cudaMemcpyDeviceToHost),
      "reading a KV block");
  const HostBlock from{shape, kv_layout(shape), raw.data()};
  std::vector<float> given[2];
  if (kv_has_static_scales(shape.format)) {
    given[0] = host(kv.k_scale, int64_t{shape.heads} * shape.head_dim);
    given[1] = host(kv.v_scale, int64_t{shape.heads} * shape.head_dim);
  }
  const auto scale_of = [&](int plane, int64_t g, int64_t b, int64_t d) {
    return given[plane].empty() ? from.scale(plane, g, 0, b)
                                : given[plane][static_cast<size_t>(g * shape.head_dim + d)];
  };
  with_kv_format(shape.format, [&](auto format) {
    using Format = decltype(format);
    const auto read = [&](int plane, int64_t g, int64_t b, float* to) {
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        if constexpr (!Format::kScaled) {
          bf16 value;
          std::memcpy(&value, raw.data() + from.layout.code_offset(plane, g, b) + d * 2,
                      sizeof value);
          to[d] = bf16_to_float(value);
        } else if constexpr (Format::kZeros) {
          const float scale = from.scale(plane, g, static_cast<int>(d / kKvInt4Group), b);
          to[d] = kv_int4_value(from.code(plane, g, b, d, 4), scale);
        } else {
          to[d] = Format::value(from.code(plane, g, b, d, 8)) * scale_of(plane, g, b, d);
        }
      }
    };
    for (int64_t g = 0; g < shape.heads; ++g) {
      for (int64_t b = 0; b < shape.block_size; ++b) {
        read(0, g, b, k.row<float>(b) + g * k.stride[1]);
        read(1, g, b, v.row<float>(b) + g * v.stride[1]);
      }
    }
  });
}

}  // namespace weft::cuda
