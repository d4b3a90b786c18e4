#include "kernels/cpu/gemm_columns.h"

#include "kernels/cpu/gemm_vec.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kMaxPanels = 16;             // of a block, gate and up counted
constexpr int64_t kMaxRowTiles = 32;           // of a block
constexpr int64_t kStreamRows = 2 * kRowTile;  // up to these a job streams its weights
constexpr int64_t kStepsPerPass = 16;  // K = 512: two bf16 panels are 32 KiB, about the L1 cache
#if WEFT_AMX
constexpr int kPanelsPerPass = 2;
#else
constexpr int kPanelsPerPass = 4;
#endif
static_assert(kMaxPanels * kMaxRowTiles * 1024 + kPanelsPerPass * kStepsPerPass * 1024 <=
              kColumnScratchBytes);

WEFT_INLINE int64_t min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}
WEFT_INLINE int64_t max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}
WEFT_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// The weight panels of output panels [begin, end): for kSiluMul the gate panels, then the up ones.
struct PanelList {
  const std::byte* at[kMaxPanels];
  int count = 0;
  int64_t columns = 0;  ///< output panels
};

PanelList list_panels(const ColumnJob& job, int64_t begin, int64_t end) {
  PanelList list;
  list.columns = end - begin;
  for (int64_t p = begin; p < end; ++p) list.at[list.count++] = job.matrix.panel(p);
  if (job.epilogue == Epilogue::kSiluMul) {
    for (int64_t p = begin; p < end; ++p)
      list.at[list.count++] = job.matrix.panel(job.matrix.panels / 2 + p);
  }
  return list;
}

/// Bytes of `steps` K steps of a panel.
WEFT_INLINE int64_t step_bytes(WeightFormat format, int64_t steps) {
  switch (format) {
    case WeightFormat::kF32: return steps * kStep * kPanelWidth * 4;
    case WeightFormat::kBf16: return steps * kStep * kPanelWidth * 2;
    case WeightFormat::kInt8: return steps / 2 * kInt8PairBytes;
    case WeightFormat::kInt4: return steps / 2 * kInt4PairBytes;
    case WeightFormat::kFp8Block:
    case WeightFormat::kDraft4: break;  // refused at packing
  }
  return 0;
}

/// Row tiles [tile, tile + tiles) of the prompt rows against all panels of the list, into
/// c [count][tiles * 16][16].
void prompt_block(const ColumnJob& job, const PanelList& list, int64_t tile, int64_t tiles,
                  float* c, std::byte* dequantized) {
  const WeightFormat format = job.matrix.format;
  const bool grouped = format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
  const bool stream = tiles <= kStreamRows / kRowTile && !grouped;
  const int64_t pass = stream ? job.matrix.steps : kStepsPerPass;
  const int per_pass = stream ? list.count : kPanelsPerPass;
  for (int64_t step = 0; step < job.matrix.steps; step += pass) {
    Block block;
    block.tile = tile;
    block.tiles = tiles;
    block.step = step;
    block.steps = min64(pass, job.matrix.steps - step);
    block.accumulate = step > 0;
    for (int p = 0; p < list.count; p += per_pass) {
      const std::byte* panels[kMaxPanels];
      const std::byte* ahead[kMaxPanels];
      block.count = static_cast<int>(min64(per_pass, list.count - p));
      block.panels = panels;
      block.c = c + p * tiles * kRowTile * kPanelWidth;
      for (int i = 0; i < block.count; ++i) {
        panels[i] = list.at[p + i] + step_bytes(format, step);
        // The next panels of this pass, or the first ones of the next pass or block.
        const int next = p + per_pass + i;
        ahead[i] = next < list.count ? list.at[next] + step_bytes(format, step)
                   : stream          ? list.at[i] + list.columns * job.matrix.panel_bytes
                                     : list.at[i] + step_bytes(format, step + pass);
        if (grouped) {
          std::byte* out = dequantized + i * kStepsPerPass * 1024;
          dequantize_panel(panels[i], format == WeightFormat::kInt4, block.steps,
                           reinterpret_cast<uint16_t*>(out));
          panels[i] = out;
        }
      }
      const bool more = p + per_pass < list.count || step + pass < job.matrix.steps;
      block.ahead = stream || more ? ahead : nullptr;
      block.ahead_bytes = stream ? 0 : step_bytes(format, block.steps);
      if (format == WeightFormat::kF32) {
        multiply_f32(job.prompt, block);
      } else {
        multiply_bf16(job.prompt, block);
      }
    }
  }
}

/// Rows of the output that a block in c [panels][c_rows][16] holds the results of.
struct OutputRows {
  int64_t c_rows, row, rows;
};

/// c to these rows of the output, columns of the panels [begin, end).
void finish(const ColumnJob& job, const float* c, const OutputRows& part, int64_t begin,
            int64_t end) {
  const int64_t columns = job.epilogue == Epilogue::kSiluMul ? job.matrix.n / 2 : job.matrix.n;
  const int64_t up = (end - begin) * part.c_rows * kPanelWidth;
  for (int64_t r = 0; r < part.rows; ++r) {
    float* out = job.out + (part.row + r) * job.out_stride;
    for (int64_t p = begin; p < end; ++p) {
      const float* from = c + ((p - begin) * part.c_rows + r) * kPanelWidth;
      const int64_t column = p * kPanelWidth;
      const int count = static_cast<int>(min64(kPanelWidth, columns - column));
      Vec y = vec_load(from);
      if (job.bias != nullptr) y = vec_add(y, vec_load(job.bias + column, count));
      if (job.epilogue == Epilogue::kSiluMul) {
        Vec u = vec_load(from + up);
        if (job.bias != nullptr) u = vec_add(u, vec_load(job.bias + columns + column, count));
        y = vec_mul(vec_silu(y), u);
      }
      if (count == kPanelWidth) {
        if (job.epilogue == Epilogue::kAdd) y = vec_add(vec_load(out + column), y);
        vec_store(out + column, y);
      } else {
        if (job.epilogue == Epilogue::kAdd) y = vec_add(vec_load(out + column, count), y);
        vec_store(out + column, y, count);
      }
    }
  }
}

}  // namespace

ColumnCut cut_columns(const ColumnJob& job, int num_threads) {
  const int64_t fused = job.epilogue == Epilogue::kSiluMul ? 2 : 1;
  const int64_t panels = job.out_panels();
  const int64_t tiles = ceil_div(job.prompt.rows, kRowTile);
  ColumnCut cut;
  cut.stream = job.rows() <= kStreamRows;
  if (cut.stream) {
    cut.panels = 4 / fused;
    cut.together = job.matrix.format == WeightFormat::kBf16 && job.rows() == 1 ? 2 : 1;
    cut.row_tiles = kMaxRowTiles;
  } else {
    // A few blocks a thread at least, so that none waits long for the others.
    const int64_t even = panels / (4 * num_threads) / 4 * 4;
    cut.panels = max64(4, min64(kMaxPanels, even * fused)) / fused;
    cut.row_blocks = max64(1, ceil_div(tiles, kMaxRowTiles));
    cut.row_tiles = ceil_div(tiles, cut.row_blocks);
    cut.row_tiles += cut.row_tiles % 2;
    if (tiles > 0) cut.row_blocks = ceil_div(tiles, cut.row_tiles);
  }
  cut.blocks = ceil_div(panels, cut.panels) * cut.row_blocks;
  return cut;
}

void compute_blocks(const ColumnJob& job, const ColumnCut& cut, int64_t index, int64_t count,
                    std::byte* scratch) {
  const int64_t begin = index / cut.row_blocks * cut.panels;
  const int64_t end = min64(job.out_panels(), begin + count * cut.panels);
  const int64_t row_block = index % cut.row_blocks;
  const PanelList list = list_panels(job, begin, end);
  auto* c = reinterpret_cast<float*>(scratch);
  std::byte* dequantized = scratch + kMaxPanels * kMaxRowTiles * 1024;
  const int64_t all_tiles = ceil_div(job.prompt.rows, kRowTile);
  const int64_t tile = row_block * cut.row_tiles;
  const int64_t tiles = min64(cut.row_tiles, all_tiles - tile);
  if (tiles > 0) {
    prompt_block(job, list, tile, tiles, c, dequantized);
    const int64_t row = tile * kRowTile;
    const int64_t rows = min64(tiles * kRowTile, job.prompt.rows - row);
    finish(job, c, {tiles * kRowTile, row, rows}, begin, end);
  }
  if (row_block > 0) return;
  const std::byte* ahead[kMaxPanels];
  for (int i = 0; i < list.count; ++i)
    ahead[i] = list.at[i] + list.columns * job.matrix.panel_bytes;
  for (int64_t t = 0; t < ceil_div(job.decode.rows, kRowTile); t += kMaxRowTiles) {
    Block block;
    block.ahead = ahead;
    block.tile = t;
    block.tiles = min64(kMaxRowTiles, ceil_div(job.decode.rows, kRowTile) - t);
    block.panels = list.at;
    block.count = list.count;
    block.steps = job.matrix.steps;
    block.c = c;
    multiply_int(job.decode, block, job.matrix.format == WeightFormat::kInt4);
    const int64_t rows = min64(block.tiles * kRowTile, job.decode.rows - t * kRowTile);
    finish(job, c, {block.tiles * kRowTile, job.prompt.rows + t * kRowTile, rows}, begin, end);
  }
}

void silu_mul_row(const float* gate_up, int64_t inner, float* out) {
  for (int64_t i = 0; i < inner; i += kPanelWidth) {
    const int count = static_cast<int>(min64(inner - i, kPanelWidth));
    const Vec g = vec_load(gate_up + i, count), u = vec_load(gate_up + inner + i, count);
    vec_store(out + i, vec_mul(vec_silu(g), u), count);
  }
}

}  // namespace weft::WEFT_ISA_NS
