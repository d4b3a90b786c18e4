#pragma once

// Ops that are several of an OpTable's as one, with the same bits.

#include "kernels/op_table.h"

namespace weft {

struct FusedOps {
  /// qkv_prepare, then attention; q is left as it was. False, and nothing was done: not for this
  /// shape.
  bool (*prepared_attention)(Stream&, const QkvPrepareArgs&, const AttnArgs&);
};

/// Of a backend's own table where the backend has such ops; null for the others, and for a table
/// that was copied and may have other ops in it.
const FusedOps* fused_ops(const OpTable& ops);

/// qkv_prepare, then attention.
inline void prepare_and_attend(const OpTable& ops, Stream& stream, const QkvPrepareArgs& prepare,
                               const AttnArgs& attention) {
  const FusedOps* fused = fused_ops(ops);
  if (fused != nullptr && fused->prepared_attention(stream, prepare, attention)) return;
  ops.qkv_prepare(stream, prepare);
  ops.attention(stream, attention);
}

}  // namespace weft
