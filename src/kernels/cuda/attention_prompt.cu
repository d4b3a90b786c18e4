// Attention of prompts over a cache of bf16. docs/kernels/attention_prefill.md

#include "kernels/cuda/attention_prompt_kernel.cuh"

namespace weft::cuda {

int& prompt_tile_rows() {
  thread_local int rows = 0;
  return rows;
}

int64_t attention_prompt_scratch(const AttnShape& shape, int64_t, int64_t) {
  // The items of a HeadPlan's three launches.
  return 3 * (int64_t{PrefillPlan::kMaxTiles} * shape.q_heads * 4 + 512);
}

bool attention_prompt_quantizes(const AttnShape& shape) {
  return shape.head_dim % 128 == 0;
}

void attention_prompt(Stream& stream, const AttnArgs& args) {
  attention_prompt_into(stream, args, {});
}

void attention_prompt_into(Stream& stream, const AttnArgs& args, const QuantizedRows& codes) {
  if (args.prompt_rows == 0 || args.num_prompt_segments == 0) return;
  CHECK(args.kv.shape.format == KvFormat::kBf16);
  check_prompt(args, codes);
  launch_prompt<KvOperands::kBf16>(stream, args, codes, {});
}

}  // namespace weft::cuda
