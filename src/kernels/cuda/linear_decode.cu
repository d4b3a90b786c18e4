// out (+)= x W^T + bias with decode arithmetic: cuts the product and picks the kernel of the
// weight's format. docs/kernels/gemm_decode.md.

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int64_t kMostFewBytes = 160 * 1024;
constexpr int64_t kWideWeight = 20480;               // rows
constexpr int64_t kShortWeight = int64_t{64} << 20;  // bytes: read in some 20 us

/// K that a stage of the kernel takes.
int stage_columns(WeightFormat format) {
  return format == WeightFormat::kBf16 ? 64 : 128;
}

/// Bytes of W in a stage of shared memory for a unit of 64 rows.
int stage_weight_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kInt8: return 2 * kInt8TileBytes;
    case WeightFormat::kInt4: return 2 * kInt4TileBytes;
    default: return 8192;
  }
}

/// Room for the other ranks' sums.
int64_t decode_received_bytes(const DecodeCut& cut) {
  return 16 * (cut.split - 1) * (ceil_div(cut.row_tile * cut.units * 16, cut.split) + 1);
}

/// Whether gate and up of a column can lie in one block.
bool fused_gate(const WeightShape& shape) {
  const int64_t inner = shape.n / 2;
  switch (shape.format) {
    case WeightFormat::kInt8:
    case WeightFormat::kInt4: return inner % kQuantTile == 0;
    case WeightFormat::kFp8Block: return inner % kFp8ScaleRows == 0;
    case WeightFormat::kBf16: return true;
    case WeightFormat::kDraft4:
    case WeightFormat::kF32: return false;
  }
  return false;
}

/// out = silu(wide[:, :I]) * wide[:, I:], one block a row.
template <class Out>
__global__ void silu_mul_rows(const float* wide, Out* out, int64_t out_stride, int inner) {
  wait_for_predecessor();
  let_successor_begin();
  const float* row = wide + int64_t{blockIdx.x} * 2 * inner;
  for (int i = static_cast<int>(threadIdx.x); i < inner; i += static_cast<int>(blockDim.x)) {
    const float value = row[i] / (1.0f + __expf(-row[i])) * row[inner + i];
    if constexpr (sizeof(Out) == 2) {
      out[blockIdx.x * out_stride + i] = static_cast<uint16_t>(pack_bf16(value, 0.0f));
    } else {
      out[blockIdx.x * out_stride + i] = value;
    }
  }
}

void decode_fused(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  if (cut.chunks > 0) return decode_few(stream, gemm, cut);
  if (gemm.groups == nullptr && decode_takes_many(gemm.weight->shape, gemm.x.dim(0), cut)) {
    return decode_many(stream, gemm, cut);
  }
  switch (gemm.weight->shape.format) {
    case WeightFormat::kBf16: return decode_bf16(stream, gemm, cut);
    case WeightFormat::kFp8Block: return decode_fp8(stream, gemm, cut);
    case WeightFormat::kInt8: return decode_int8(stream, gemm, cut);
    case WeightFormat::kInt4: return decode_int4(stream, gemm, cut);
    case WeightFormat::kDraft4: CHECK(false, "linear: a head of drafts"); break;
    case WeightFormat::kF32: break;
  }
  CHECK(gemm.groups == nullptr, "decode gemm: experts in f32");
  LinearArgs args;
  args.x = gemm.x;
  args.weight = gemm.weight;
  args.bias = gemm.bias;
  args.out = gemm.out;
  args.epilogue = gemm.epilogue;
  linear_f32(stream, args);
}

}  // namespace

int64_t decode_shared_bytes(WeightFormat format, const DecodeCut& cut) {
  const int64_t x = cut.row_tile * stage_columns(format) * 2;
  const int64_t stage = ceil_div(stage_weight_bytes(format) * cut.units, 1024) * 1024 + 16;
  return cut.stages * stage + cut.x() * x + 8 + decode_received_bytes(cut);
}

DecodeCut decode_cut(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  const bool tiled = shape.format == WeightFormat::kInt8 || shape.format == WeightFormat::kInt4;
  const bool bf16 = shape.format == WeightFormat::kBf16;
  const bool pairs = tiled && epilogue == Epilogue::kSiluMul;
  const int64_t steps = ceil_div(shape.k, stage_columns(shape.format));
  DecodeCut cut;
  cut.units = pairs ? 2 : 1;
  // Enough blocks for the 132 processors; a small weight is split less, for latency. Of experts
  // some eight work at a time.
  const bool small = shape.n * shape.k <= (int64_t{8} << 20) && shape.experts == 1;
  const int64_t tiles = ceil_div(shape.n, 64 * cut.units), busy = shape.experts > 1 ? 8 : 1;
  const int64_t enough = small || bf16 ? 96 : 200, most_split = small ? 4 : 8;
  while (cut.split < most_split && tiles * busy * cut.split < enough && steps >= cut.split * 4) {
    cut.split *= 2;
  }
  // A wide bf16 weight has tiles enough for blocks of 256 rows of x, each with all of K.
  const bool wide = bf16 && shape.experts == 1 && shape.n >= kWideWeight;
  cut.turns = pairs || wide || steps < cut.split * 2 ? 1 : 2;

  if (small && bf16 && rows <= 8 && shape.k % 64 == 0) {
    // About a block a processor; the rest of its memory is for the kernels before and behind.
    cut.chunks = static_cast<int>(std::clamp<int64_t>(ceil_div(shape.n, 16 * 100), 1, 4));
    while (cut.chunks * cut.split * cut.turns > 8) --cut.chunks;
    if (decode_few_bytes(shape, epilogue, rows, cut) > kMostFewBytes) cut.chunks = 0;
  }

  cut.row_tile = rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
  if (bf16 && rows > 64) cut.row_tile = 128;
  // A weight of few rows is a matter of latency: more blocks, of fewer rows of x each, read it.
  while (small && bf16 && cut.row_tile > 8 && tiles * cut.split <= 4 &&
         tiles * cut.split * ceil_div(rows, cut.row_tile) < 64) {
    cut.row_tile /= 2;
  }
  // The start and the end of a short product weigh most: its successor begins behind the last
  // pieces, with less of its W in L2, which is fetched while this one sums up.
  const bool brief = bf16 && !small && shape.experts == 1 && shape.n * shape.k * 2 <= kShortWeight;
  if (brief) cut.let_in = cut.split > 1 && rows <= 32 ? 12 : 8;
  const int64_t blocks = tiles * busy * cut.split * ceil_div(rows, cut.row_tile);
  const int64_t rest = 8 + decode_received_bytes(cut);
  DecodeCut one = cut;
  one.stages = 1;
  const int64_t bytes = decode_shared_bytes(shape.format, one) - rest;
  // All blocks at once if they fit: the fewer share a processor, the deeper their rings. Clusters
  // leave gaps. Of many more blocks three finish at different times, two have deeper rings.
  const int64_t slots = cut.split > 2 ? 119 : 132;
  const int64_t together = std::min<int64_t>(ceil_div(blocks, slots), cut.row_tile > 32 ? 3 : 4);
  int64_t budget = together == 1 ? 212 : 226 / together - 1;
  if (brief && cut.split > 1) budget = 112;  // the successor's blocks beside these
  if (blocks > 528) budget = cut.row_tile > 32 ? 111 : 74;
  const int64_t sums = int64_t{4} * cut.turns * cut.row_tile * (cut.units * 64 + 4);
  const int64_t fewest = std::max<int64_t>(2 * cut.turns, ceil_div(sums, bytes));
  const int64_t most = std::max(fewest, ceil_div(steps, cut.split));
  const int64_t stages = std::clamp((budget * 1024 - rest) / bytes, fewest, most);
  cut.stages = static_cast<int>(std::max(stages, ceil_div(fewest, cut.turns) * cut.turns)) /
               cut.turns * cut.turns;
  if (blocks <= 400) {
    const int64_t weight_bytes = stage_weight_bytes(shape.format) * cut.units;
    cut.ahead = static_cast<int>((int64_t{brief ? 4 : 8} << 20) / blocks / weight_bytes);
  }
  return cut;
}

int64_t decode_gemm_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  if (epilogue != Epilogue::kSiluMul || fused_gate(shape)) return 0;
  return ceil_div(rows * shape.n * 4, 256) * 256;
}

void decode_gemm(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  const WeightShape& shape = gemm.weight->shape;
  if (gemm.epilogue != Epilogue::kSiluMul || fused_gate(shape)) {
    return decode_fused(stream, gemm, cut);
  }
  const int64_t rows = gemm.x.dim(0);
  ArenaScope scope(stream.scratch());
  DecodeGemm wide = gemm;
  wide.epilogue = Epilogue::kStore;
  wide.out = TensorView(stream.scratch().take(rows * shape.n * 4), DType::kF32, {rows, shape.n});
  decode_fused(stream, wide, cut);
  const LaunchShape at{.grid = static_cast<unsigned>(rows), .block = 256, .overlap = true};
  const auto* from = static_cast<const float*>(wide.out.data);
  const int inner = static_cast<int>(shape.n / 2);
  if (gemm.out.dtype == DType::kF32) {
    launch(stream, at, silu_mul_rows<float>, from, gemm.out.ptr<float>(), gemm.out.stride[0],
           inner);
  } else {
    launch(stream, at, silu_mul_rows<uint16_t>, from, static_cast<uint16_t*>(gemm.out.data),
           gemm.out.stride[0], inner);
  }
}

int64_t linear_decode_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  return decode_gemm_scratch(shape, epilogue, rows);
}

bool linear_decode_norms(const LinearArgs& args) {
  const RmsNormArgs& norm = args.norm;
  const int64_t rows = args.x.dim(0);
  if (!norm.weight.defined() || norm.residual.defined() || norm.x.dtype != DType::kF32)
    return false;
  const DecodeCut cut = decode_cut(args.weight->shape, args.epilogue, rows);
  return cut.chunks > 0 && decode_few_norms(args.weight->shape, rows, cut);
}

void linear_decode(Stream& stream, const LinearArgs& args) {
  const int64_t rows = args.x.dim(0);
  if (rows == 0) return;
  DecodeGemm gemm;
  gemm.x = args.x;
  gemm.weight = args.weight;
  gemm.bias = args.bias;
  gemm.out = args.out;
  gemm.epilogue = args.epilogue;
  if (linear_decode_norms(args)) gemm.norm = &args.norm;
  decode_gemm(stream, gemm, decode_cut(args.weight->shape, args.epilogue, rows));
}

}  // namespace weft::cuda
