#include <vector>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {

int64_t kv_block_bytes(const KvShape& shape) {
  CHECK(shape.format == KvFormat::kBf16, "the CUDA backend keeps K and V as bf16");
  return int64_t{2} * shape.heads * shape.block_size * shape.head_dim * 2;
}

void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v) {
  const KvShape& s = kv.shape;
  const int64_t plane = int64_t{s.heads} * s.block_size * s.head_dim;
  std::vector<bf16> codes(static_cast<size_t>(2 * plane));
  check(cudaMemcpy(codes.data(), kv.data + block * kv.block_bytes, codes.size() * sizeof(bf16),
                   cudaMemcpyDeviceToHost),
        "reading a KV block");
  for (int64_t g = 0; g < s.heads; ++g) {
    for (int64_t b = 0; b < s.block_size; ++b) {
      for (int64_t d = 0; d < s.head_dim; ++d) {
        const auto at = static_cast<size_t>((g * s.block_size + b) * s.head_dim + d);
        k.row<float>(b)[g * k.stride[1] + d] = bf16_to_float(codes[at]);
        v.row<float>(b)[g * v.stride[1] + d] =
            bf16_to_float(codes[at + static_cast<size_t>(plane)]);
      }
    }
  }
}

}  // namespace weft::cuda
