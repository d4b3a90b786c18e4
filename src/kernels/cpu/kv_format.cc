#include "kernels/cpu/kv_format.h"

namespace weft::WEFT_ISA_NS {

int64_t kv_block_bytes(const KvShape& shape) {
  ISA_CHECK(shape.block_size > 0 && shape.block_size % kGroup == 0);
  ISA_CHECK(shape.head_dim > 0 && shape.head_dim % kLanes == 0);
  return with_kv_format(shape.format, [&](auto format) { return format.block_bytes(shape); });
}

void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v) {
  with_kv_format(kv.shape.format, [&](auto format) {
    for (int64_t g = 0; g < kv.shape.heads; ++g) {
      std::byte* head = format.head(kv, block, g);
      for (int64_t token = 0; token < kv.shape.block_size; ++token) {
        format.load_token(kv, head, token,
                          static_cast<float*>(k.data) + token * k.stride[0] + g * k.stride[1],
                          static_cast<float*>(v.data) + token * v.stride[0] + g * v.stride[1]);
      }
    }
  });
}

}  // namespace weft::WEFT_ISA_NS
