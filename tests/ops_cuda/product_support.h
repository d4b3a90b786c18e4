#pragma once

// Tests of matrix products and of experts, with one weight or many: what a product gives against
// the oracle, and that the bits of a row are its own.

#include <optional>
#include <vector>

#include "tests/ops_cuda/support.h"

namespace weft {

/// A weight on the device, and what it holds for the oracle, in f32 on the host.
struct WeightPair {
  Weight weight, oracle;
};

/// Random values packed on the device.
class PackedWeight : public WeightPair {
 public:
  struct Options {
    float scale = 1;
    bool unpack = true;  ///< without: no oracle
  };
  PackedWeight(const WeightShape& shape, uint64_t seed, const Options& options);
  PackedWeight(const WeightShape& shape, uint64_t seed) : PackedWeight(shape, seed, Options()) {}

 private:
  DeviceTensor memory_;
  std::vector<float> values_;
};

// ---- One matrix

using LinearOp = void (*)(Stream&, const LinearArgs&);

struct LinearCase {
  int64_t m, n, k;
  Epilogue epilogue = Epilogue::kStore;
  DType out = DType::kBF16;
  bool bias = false;
  int64_t x_gap = 0, out_gap = 0;  ///< columns beside x and out in their buffers
};

struct LinearCheck {
  LinearOp op;
  float x_scale = 0.25f;
  double tolerance;                           ///< relative L2
  std::optional<int64_t> scratch_bytes = {};  ///< no more may be taken
};

/// Runs `check.op` on random rows and compares it with the oracle; nothing beside its columns may
/// be written, no padding read.
void check_linear(const LinearCheck& check, const WeightPair& weight, const LinearCase& c);

/// The same rows together, and in pieces of each of `cuts` (each adds up to the first's sum): the
/// same bits.
void check_linear_pieces(LinearOp op, const Weight& weight, Epilogue epilogue, DType out,
                         const std::vector<std::vector<int64_t>>& cuts);

/// No rows: no launch fails, nothing is touched.
void check_no_rows(LinearOp op, const Weight& weight);

// ---- Experts

using MoeOp = void (*)(Stream&, const MoeArgs&);

struct MoeCase {
  int64_t tokens, hidden, inner, experts;
  int top_k;
  bool accumulate = false;
  DType out = DType::kF32;
  int64_t one_expert = -1;  ///< all tokens choose it first

  WeightShape gate_up(WeightFormat format) const { return {format, 2 * inner, hidden, experts}; }
  WeightShape down(WeightFormat format) const { return {format, hidden, inner, experts}; }
};

/// Random experts of each token, [tokens, top_k].
std::vector<int32_t> choose_experts(const MoeCase& c);

struct MoeCheck {
  MoeOp op;
  double tolerance;  ///< relative L2
  int64_t scratch_bytes;
};

void check_moe(const MoeCheck& check, const WeightPair& gate_up, const WeightPair& down,
               const MoeCase& c);

/// All tokens together, and in pieces of each of `cuts`: the same bits. The last piece is cut
/// where the tokens end.
void check_moe_pieces(MoeOp op, const Weight& gate_up, const Weight& down, const MoeCase& c,
                      const std::vector<std::vector<int64_t>>& cuts);

/// No tokens: nothing is touched.
void check_no_tokens(MoeOp op, const Weight& gate_up, const Weight& down);

}  // namespace weft
