#pragma once

// The ops of the CUDA backend for Hopper (sm_90a); table.cc puts them into one OpTable. All of them
// only enqueue on the stream: no synchronisation, no allocation, and the same launches for the same
// shapes, so that a step can be captured into a graph. Where prompt and decode arithmetic differ
// there is a function for each, and rows of both are split before.
//
// Layouts (all else is in args.h):
//   activations  bf16 rows, 16-byte aligned, row stride a multiple of 8 elements
//   bf16 weight  [experts][N][K] row-major, K contiguous, row stride K rounded up to 8 elements;
//                the other formats: weight_layout.h
//   KV block     K [G][B][D] then V [G][B][D], bf16

#include <span>

#include "kernels/op_table.h"
#include "kernels/sample_args.h"

namespace weft::cuda {

int64_t weight_bytes(const WeightShape& shape);
/// `pieces` are pinned host memory that must live until the stream has passed this point. For
/// kFp8Block a piece may also be e4m3 codes [rows, K], followed by a piece of their scales
/// [ceil(rows / 128), ceil(K / 128)] (f32, bf16 or f16; w = q * s).
void pack_weight(Stream& stream, const Weight& weight, int64_t expert,
                 std::span<const TensorView> pieces);
/// The rows from `first_row` on that the pieces have, of a weight packed in several calls; a
/// multiple of kFp8Block.
void pack_rows(Stream& stream, const Weight& weight, int64_t expert, int64_t first_row,
               std::span<const TensorView> pieces);
/// Synchronous: for tests and tools. `out` is host memory.
void unpack_weight(const Weight& weight, int64_t expert, TensorView out);
int64_t kv_block_bytes(const KvShape& shape);
/// Synchronous: for tests and tools. `k` and `v` are host memory.
void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v);

int64_t linear_prompt_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows);
int64_t linear_decode_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows);
/// All rows of `args` in one arithmetic (args.prompt_rows is not looked at).
void linear_prompt(Stream& stream, const LinearArgs& args);
void linear_decode(Stream& stream, const LinearArgs& args);
/// OpTable::draft_tokens: codes of a weight become bf16(code * bf16(scale)) for more than a few
/// rows, other weights have the arithmetic of linear_decode(). Of greedy rows, up to 64 of codes
/// and more than 64 of a wide bf16 weight, the logits are not written.
void draft_tokens(Stream& stream, const LinearArgs& args, const SampleArgs& choice);
/// The logits that draft_tokens() samples of.
void draft_logits(Stream& stream, const LinearArgs& args);
/// Whether the product takes args.norm (and leaves norm.out alone); otherwise it ignores it. That
/// of prompts does where it would quantise x.
bool linear_prompt_norms(const LinearArgs& args);
bool linear_decode_norms(const LinearArgs& args);
/// OpTable::linear_pair of prompt rows: whether it can, and is faster; what lies between becomes
/// e4m3 codes in the memory of first.out.
bool linear_prompt_pairs(const LinearArgs& first, const LinearArgs& second);
void linear_prompt_pair(Stream& stream, const LinearArgs& first, const LinearArgs& second);
/// OpTable::linear_prepare of prompt rows.
bool linear_prompt_prepares(const LinearArgs& linear, const QkvPrepareArgs& prepare);
void linear_prompt_prepare(Stream& stream, const LinearArgs& linear, const QkvPrepareArgs& prepare);
/// OpTable::attention_linear of prompt rows, likewise by codes in the memory of linear.x.
bool attention_linear_prompt_pairs(const AttnArgs& attention, const LinearArgs& linear);
void attention_linear_prompt(Stream& stream, const AttnArgs& attention, const LinearArgs& linear);

int64_t moe_prompt_scratch(const WeightShape& gate_up, int64_t rows, int top_k);
int64_t moe_decode_scratch(const WeightShape& gate_up, int64_t rows, int top_k);
void moe_prompt(Stream& stream, const MoeArgs& args);
void moe_decode(Stream& stream, const MoeArgs& args);

/// The prompt rows of `args` ([0, prompt_rows)), and the other rows.
int64_t attention_prompt_scratch(const AttnShape& shape, int64_t num_sequences, int64_t num_keys);
int64_t attention_decode_scratch(const AttnShape& shape, int64_t num_sequences, int64_t num_keys);
void attention_prompt(Stream& stream, const AttnArgs& args);
/// attention_prompt, which reads bf16, over a quantised cache: beside its scratch memory this takes
/// an f16 copy of one sequence's K and V.
int64_t kv_gather_scratch(const AttnShape& shape, int64_t num_keys);
void attention_prompt_gathered(Stream& stream, const AttnArgs& args);
/// The same for rows that become codes (gemm.h) in place of args.out; null codes: args.out.
struct QuantizedRows;
bool attention_prompt_quantizes(const AttnShape& shape);
void attention_prompt_into(Stream& stream, const AttnArgs& args, const QuantizedRows& codes);
void attention_prompt_gathered_into(Stream& stream, const AttnArgs& args,
                                    const QuantizedRows& codes);
void attention_decode(Stream& stream, const AttnArgs& args);
void qkv_prepare(Stream& stream, const QkvPrepareArgs& args);

/// Elastic-Attention's router (sparse_args.h): k bf16, matrices bf16, the rest f32. One launch.
void route_heads(Stream& stream, const RouterArgs& args);
/// XAttention's lists (sparse_args.h). Scratch for one segment of `rows` rows that sees `keys`.
int64_t select_blocks_scratch(const AttnShape& shape, int64_t rows, int64_t keys, int stride);
void select_blocks(Stream& stream, const SelectArgs& args);

int64_t gdn_scratch(const GdnShape& shape, int64_t rows, int64_t num_sequences);
void gdn(Stream& stream, const GdnArgs& args);
void gated_norm(Stream& stream, const GatedNormArgs& args);

void embed(Stream& stream, const EmbedArgs& args);
void rms_norm(Stream& stream, const RmsNormArgs& args);
void moe_route(Stream& stream, const MoeRouteArgs& args);
void add(Stream& stream, const AddArgs& args);
void add_gated(Stream& stream, const AddGatedArgs& args);
void mul_sigmoid(Stream& stream, const MulSigmoidArgs& args);

/// Vision towers; widths are multiples of 8, heads at most 128 wide.
void layer_norm(Stream& stream, const LayerNormArgs& args);
void gelu(Stream& stream, const GeluArgs& args);
void interpolate(Stream& stream, const InterpolateArgs& args);
void axial_rope(Stream& stream, const AxialRopeArgs& args);
void segment_attention(Stream& stream, const SegmentAttnArgs& args);

/// Tokens and log-probabilities of rows of logits (runtime/sampler.h). One launch, no scratch.
void sample(Stream& stream, const SampleArgs& args);
/// sample() works up to this vocabulary.
inline constexpr int64_t kMaxSampledVocabulary = 384 * 1024;
void reset_counts(Stream& stream, const ResetCountsArgs& args);
void feed_tokens(Stream& stream, const FeedTokensArgs& args);
void accept_drafts(Stream& stream, const AcceptDraftsArgs& args);
/// Drafts from the texts themselves (ngram_args.h); no scratch.
void extend_ngrams(Stream& stream, const ExtendNgramsArgs& args);
void propose_ngrams(Stream& stream, const ProposeNgramsArgs& args);

/// What OpTable::choices says.
std::vector<KernelChoice> kernel_choices(const KernelNeeds& needs);

}  // namespace weft::cuda
