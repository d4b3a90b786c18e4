#pragma once

// The ops of the CPU backend, declared for each instruction set they are compiled for.
// table.cc puts them into one OpTable a set; cpu_ops.cc chooses among the tables.

#include <span>

#include "kernels/op_table.h"

#define WEFT_DECLARE_CPU_OPS(isa)                                                    \
  namespace isa {                                                                    \
  int64_t weight_bytes(const WeightShape& shape);                                    \
  void pack_weight(Stream& stream, const Weight& weight, int64_t expert,             \
                   std::span<const TensorView> pieces);                              \
  void unpack_weight(const Weight& weight, int64_t expert, TensorView out);          \
  int64_t kv_block_bytes(const KvShape& shape);                                      \
  void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v);  \
  void embed(Stream& stream, const EmbedArgs& args);                                 \
  void rms_norm(Stream& stream, const RmsNormArgs& args);                            \
  void linear(Stream& stream, const LinearArgs& args);                               \
  void moe_route(Stream& stream, const MoeRouteArgs& args);                          \
  void moe(Stream& stream, const MoeArgs& args);                                     \
  void add(Stream& stream, const AddArgs& args);                                     \
  void add_gated(Stream& stream, const AddGatedArgs& args);                          \
  void mul_sigmoid(Stream& stream, const MulSigmoidArgs& args);                      \
  void qkv_prepare(Stream& stream, const QkvPrepareArgs& args);                      \
  void attention(Stream& stream, const AttnArgs& args);                              \
  void route_heads(Stream& stream, const RouterArgs& args);                          \
  void select_blocks(Stream& stream, const SelectArgs& args);                        \
  int64_t select_scratch_bytes(const AttnShape& shape, int stride, int64_t num_keys, \
                               int num_threads);                                     \
  void gdn(Stream& stream, const GdnArgs& args);                                     \
  void gated_norm(Stream& stream, const GatedNormArgs& args);                        \
  void layer_norm(Stream& stream, const LayerNormArgs& args);                        \
  void gelu(Stream& stream, const GeluArgs& args);                                   \
  void interpolate(Stream& stream, const InterpolateArgs& args);                     \
  void axial_rope(Stream& stream, const AxialRopeArgs& args);                        \
  void segment_attention(Stream& stream, const SegmentAttnArgs& args);               \
  const OpTable& ops();                                                              \
  }

namespace weft {
WEFT_DECLARE_CPU_OPS(avx2)
WEFT_DECLARE_CPU_OPS(avx512)
WEFT_DECLARE_CPU_OPS(avx512bf16)
WEFT_DECLARE_CPU_OPS(amx)
}  // namespace weft
