#pragma once

#include "device/stream.h"
#include "kernels/cuda/gemm.h"

namespace weft::cuda {

inline constexpr int kDraftRows = 64;  ///< of a tile

/// gemm_int() of int4 codes, dense, for some 64 rows, whose scales are rounded to bf16 first: for
/// logits of drafts, which decide no bit of an answer.
void gemm_int4_drafts(Stream& stream, const Gemm& gemm);

/// The same for at most kDraftRows rows, and of each the first greatest of gemm.out, which is not
/// written: as keys (Best of sample_device.h), of each of so many parts of the columns as are
/// returned. `best`: [parts][kDraftRows], in gemm_int4_best_bytes().
int gemm_int4_best(Stream& stream, const Gemm& gemm, uint64_t* best);
int64_t gemm_int4_best_bytes(int64_t n);

/// Both for a head of kDraft4, f32 logits without a bias, with gemm_draft4_scratch() bytes of the
/// stream's scratch memory; `best` is as large.
void gemm_draft4(Stream& stream, const Gemm& gemm);
int gemm_draft4_best(Stream& stream, const Gemm& gemm, uint64_t* best);
int64_t gemm_draft4_scratch(int64_t k, int64_t rows);

}  // namespace weft::cuda
