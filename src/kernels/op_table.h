#pragma once

#include <span>
#include <vector>

#include "device/cpu_info.h"
#include "device/stream.h"
#include "kernels/args.h"
#include "kernels/ngram_args.h"
#include "kernels/sample_args.h"
#include "kernels/vision_args.h"

namespace weft {

struct KernelChoice;
struct KernelNeeds;

/// One op of a backend. No default constructor: a table that forgets an op does not compile.
template <class F>
class Op;
template <class R, class... A>
class Op<R(A...)> {
 public:
  constexpr Op(R (*fn)(A...)) : fn_(fn) {}  // NOLINT: implicit by design
  template <class Lambda>
  constexpr Op(Lambda fn) : fn_(fn) {}  // NOLINT: a lambda without captures
  R operator()(A... args) const { return fn_(static_cast<A>(args)...); }

 private:
  R (*fn_)(A...);
};

/// Sampling on the device (sample_args.h).
struct SampleOps {
  Op<void(Stream&, const SampleArgs&)> sample;
  Op<void(Stream&, const ResetCountsArgs&)> reset_counts;
  Op<void(Stream&, const FeedTokensArgs&)> feed_tokens;
  Op<void(Stream&, const AcceptDraftsArgs&)> accept_drafts;
  /// Drafts from the texts themselves (ngram_args.h).
  Op<void(Stream&, const ExtendNgramsArgs&)> extend_ngrams;
  Op<void(Stream&, const ProposeNgramsArgs&)> propose_ngrams;
};

/// What vision towers need besides (vision_args.h).
struct VisionOps {
  Op<void(Stream&, const LayerNormArgs&)> layer_norm;
  Op<void(Stream&, const GeluArgs&)> gelu;
  Op<void(Stream&, const InterpolateArgs&)> interpolate;
  Op<void(Stream&, const AxialRopeArgs&)> axial_rope;
  Op<void(Stream&, const SegmentAttnArgs&)> segment_attention;
};

struct CountArgs;  // count_args.h

/// What plans of heads in prompts need besides (sparse_args.h).
struct SparseOps {
  Op<void(Stream&, const RouterArgs&)> route;
  Op<void(Stream&, const SelectArgs&)> select;
  /// Upper bound of what `select` takes of Stream::scratch() for `rows` rows of sequences of at
  /// most `num_keys`.
  Op<int64_t(const AttnShape&, int stride, int64_t rows, int64_t num_keys, int num_threads)>
      select_scratch;
  /// Null where plans lie in host memory.
  void (*count)(Stream&, const CountArgs&) = nullptr;
};

/// A backend: every op, typed. The whole contract is in args.h.
struct OpTable {
  std::string_view name;
  DeviceKind device = DeviceKind::kCpu;  ///< whose memory the ops work on
  DType activation = DType::kF32;        ///< of activations (args.h)
  const SampleOps* sampling = nullptr;   ///< null: the host samples (runtime/sampler.h)
  const VisionOps* vision = nullptr;     ///< null: no images
  const SparseOps* sparse = nullptr;     ///< null: every head sees all keys
  bool fp8_blocks = false;               ///< has WeightFormat::kFp8Block
  /// Of a head for drafts alone; `linear` takes it, too.
  WeightFormat draft_format = WeightFormat::kInt4;
  /// Which kernels a model gets (choose.h). Null: every op has one that can do everything.
  std::vector<KernelChoice> (*choices)(const KernelNeeds&) = nullptr;

  /// pack_weight of rows from `first_row` on alone (a multiple of kFp8Block), so that large weights
  /// need little staging memory. Null: weights are packed whole.
  void (*pack_rows)(Stream&, const Weight& weight, int64_t expert, int64_t first_row,
                    std::span<const TensorView> pieces) = nullptr;

  /// qkv_prepare, then attention, as one op with the same bits; q is left as it was. False, and
  /// nothing was done: not for these shapes. Null: for none. Of the cache nothing else that it
  /// reads was written since the last copy or graph launch of the stream.
  bool (*prepared_attention)(Stream&, const QkvPrepareArgs&, const AttnArgs&) = nullptr;

  /// linear whose out is q, k and v, then qkv_prepare, as one op with the same bits; what out has
  /// of k and v then is undefined. False, and nothing was done: not for these. Null: for none.
  bool (*linear_prepare)(Stream&, const LinearArgs&, const QkvPrepareArgs&) = nullptr;

  /// Two `linear` as one op with the same bits: second.x is first.out, which nobody else reads, and
  /// what is left there has a form of the backend's. False, and nothing was done: not for these.
  /// Null: for none.
  bool (*linear_pair)(Stream&, const LinearArgs& first, const LinearArgs& second) = nullptr;
  /// Likewise attention, then linear of its out as rows [T, H D].
  bool (*attention_linear)(Stream&, const AttnArgs&, const LinearArgs&) = nullptr;
  /// `linear` of rows that only drafts come of, then sampling->sample() of its out: drafts decide
  /// no bit of an answer, so the arithmetic is whatever is fastest (of a bf16 or f32 weight that of
  /// linear's rows that decode), and what out has then is undefined. Null: one after the other.
  void (*draft_tokens)(Stream&, const LinearArgs&, const SampleArgs&) = nullptr;

  // Layouts that belong to the backend.
  Op<int64_t(const WeightShape&)> weight_bytes;  ///< packed bytes of one expert, a multiple of 64
  /// Packs [sum of rows, K] from consecutive pieces ([rows_i, K] bf16, f16 or f32, contiguous) into
  /// `weight` (expert `expert`), quantising to its format. Runs on the stream's threads. For
  /// kFp8Block a piece may also be e4m3 codes [rows_i, K], followed by a piece of the f32 scales of
  /// its blocks; pieces after the first begin at a multiple of kFp8PieceRows.
  Op<void(Stream&, const Weight& weight, int64_t expert, std::span<const TensorView> pieces)>
      pack_weight;
  /// The inverse, for tests and for tools: one expert as [N, K] f32.
  Op<void(const Weight& weight, int64_t expert, TensorView out)> unpack_weight;
  /// The matrix (its first expert) as a table that this backend's embed can read, in a form of the
  /// backend's; rank 0 where it can't. The data may be null still.
  Op<TensorView(const Weight& weight)> weight_rows;
  Op<int64_t(const KvShape&)> kv_block_bytes;  ///< bytes of one block of one layer, multiple of 64
  /// One block as k, v [B, G, D] f32 (tests, tools).
  Op<void(const PagedKv&, int64_t block, TensorView k, TensorView v)> kv_read_block;

  // Upper bounds of what an op takes of Stream::scratch() on a pool of `num_threads`.
  Op<int64_t(const WeightShape&, Epilogue, int64_t rows, int num_threads)> linear_scratch;
  Op<int64_t(const WeightShape& gate_up, int64_t rows, int top_k, int num_threads)> moe_scratch;
  Op<int64_t(const GdnShape&, int64_t rows, int64_t num_sequences, int num_threads)> gdn_scratch;
  /// With less than this attention still works, in another cut of its work and to the same bits.
  Op<int64_t(const AttnShape&, int64_t num_sequences, int64_t num_keys)> attention_scratch;

  Op<void(Stream&, const EmbedArgs&)> embed;
  Op<void(Stream&, const RmsNormArgs&)> rms_norm;
  Op<void(Stream&, const LinearArgs&)> linear;
  Op<void(Stream&, const MoeRouteArgs&)> moe_route;
  Op<void(Stream&, const MoeArgs&)> moe;
  Op<void(Stream&, const AddArgs&)> add;
  Op<void(Stream&, const AddGatedArgs&)> add_gated;
  Op<void(Stream&, const MulSigmoidArgs&)> mul_sigmoid;
  Op<void(Stream&, const QkvPrepareArgs&)> qkv_prepare;
  Op<void(Stream&, const AttnArgs&)> attention;
  Op<void(Stream&, const GdnArgs&)> gdn;
  Op<void(Stream&, const GatedNormArgs&)> gated_norm;
};

/// qkv_prepare; true: and attention too, for the backend does both at once.
inline bool prepare_attention(const OpTable& ops, Stream& stream, const QkvPrepareArgs& prepare,
                              const AttnArgs& attention) {
  const auto together = ops.prepared_attention;
  if (together != nullptr && together(stream, prepare, attention)) return true;
  ops.qkv_prepare(stream, prepare);
  return false;
}

/// linear, then another one of what it gave, which is of use to nobody else.
inline void linear_of_linear(const OpTable& ops, Stream& stream, const LinearArgs& first,
                             const LinearArgs& second) {
  if (ops.linear_pair != nullptr && ops.linear_pair(stream, first, second)) return;
  ops.linear(stream, first);
  ops.linear(stream, second);
}

/// attention, then linear of what it gave, as [T, H D], which is of use to nobody else.
inline void linear_of_attention(const OpTable& ops, Stream& stream, const AttnArgs& attention,
                                const LinearArgs& linear) {
  if (ops.attention_linear != nullptr && ops.attention_linear(stream, attention, linear)) return;
  ops.attention(stream, attention);
  ops.linear(stream, linear);
}

/// draft_tokens, or linear and sampling.
inline void tokens_of_drafts(const OpTable& ops, Stream& stream, const LinearArgs& args,
                             const SampleArgs& choice) {
  if (ops.draft_tokens != nullptr) return ops.draft_tokens(stream, args, choice);
  ops.linear(stream, args);
  ops.sampling->sample(stream, choice);
}

/// The CUDA backend for Hopper GPUs, or null in a build without CUDA.
const OpTable* cuda_ops();

/// Plain float loops, the oracle of every backend. Slow.
const OpTable& ref_ops();

/// The CPU backend for an instruction set that this machine has; of one that was not compiled the
/// narrowest.
const OpTable& cpu_ops(CpuIsa isa);
/// The instruction sets that this machine has and this build was made for, narrowest first; with
/// AddressSanitizer the narrowest and the widest alone, with ThreadSanitizer the narrowest.
std::vector<CpuIsa> cpu_isas();

}  // namespace weft
