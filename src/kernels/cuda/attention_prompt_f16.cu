// Attention of prompts over blocks of f16 that a quantised cache became, before it or beside it.
// docs/kernels/kv_gather.md

#include "kernels/cuda/attention_prompt_kernel.cuh"

namespace weft::cuda {

bool can_gather_beside(const AttnArgs& args, const KvBlockLayout& from) {
  return args.heads == nullptr && args.shape.head_dim <= 128 && from.scales <= 2;
}

void attention_prompt_f16(Stream& stream, const AttnArgs& args, const QuantizedRows& codes,
                          const GatherParams& gather) {
  check_prompt(args, codes);
  if (!can_gather_beside(args, gather.from)) {
    return launch_prompt<KvOperands::kF16>(stream, args, codes, gather);
  }
  constexpr KvOperands kBeside = KvOperands::kF16Beside;
  if (args.shape.head_dim <= 64) {
    launch_dense<PrefillShape<64, 192, 3, PlanPart::kFull, false, kBeside>>(stream, args, codes,
                                                                            gather);
  } else {
    launch_dense<PrefillShape<128, 128, 3, PlanPart::kFull, false, kBeside>>(stream, args, codes,
                                                                             gather);
  }
}

}  // namespace weft::cuda
