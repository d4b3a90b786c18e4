#pragma once

// Attention over quantised caches on the GPU: pieces of sequences as prompts, behind a prefix or
// not, or as decode and verification rows.

#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/kv_codes.h"
#include "tests/ops_cuda/attention_support.h"

namespace weft {

struct KvCase {
  KvFormat format;
  Heads heads;
  int block_size = 64;
  float q_scale = kQScale;
  /// Static scales are those of each channel's (of a head's) largest value, which clip nothing.
  bool calibrated = false;
  /// Writes over K (plane 1) or V (plane 2) of a token, [G, D], before it is stored.
  std::function<void(const Piece&, int position, int plane, std::vector<float>& row)> change = {};
};

/// Pieces over a quantised cache that qkv_prepare filled, and over a bf16 one that holds the same
/// values rounded.

class KvWorld {
 public:
  KvWorld(const KvCase& of, std::vector<Piece> pieces, uint64_t seed)
      : case_(of), pieces_(std::move(pieces)) {
    int64_t blocks = 3;
    cu_q_ = {0};
    for (const Piece& piece : pieces_) {
      cu_q_.push_back(cu_q_.back() + piece.rows);
      starts_.push_back(piece.start);
      width_ = std::max(width_, blocks_of(piece));
      blocks += blocks_of(piece);
    }
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    for (size_t i = ids.size(); i > 1; --i) {
      std::swap(ids[i - 1], ids[philox4x32(seed, i, 0)[0] % i]);
    }
    table_.assign(pieces_.size() * static_cast<size_t>(width_), -1);
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (int64_t b = 0; b < blocks_of(pieces_[s]); ++b) {
        table_[s * static_cast<size_t>(width_) + static_cast<size_t>(b)] = ids.back();
        ids.pop_back();
      }
    }
    quantised_ = make(of.format, blocks);
    fill(quantised_, [&](const Piece& piece, int position, int plane) {
      return row_of(piece, position, plane);
    });
    const int64_t b = of.block_size, width = int64_t{of.heads.kv} * of.heads.dim;
    host_.resize(static_cast<size_t>(2 * blocks * b * width));
    for (int64_t i = 0; i < blocks; ++i) {
      const auto view = [&](int plane) {
        return TensorView(host_.data() + (2 * i + plane) * b * width, DType::kF32,
                          {b, of.heads.kv, of.heads.dim});
      };
      cuda::kv_read_block(quantised_.kv, i, view(0), view(1));
    }
    plain_ = make(KvFormat::kBf16, blocks);
    size_t at = 0;
    fill(plain_, [&](const Piece&, int, int plane) {
      const int64_t slot = slots_[at / 2];
      const float* row = host_.data() + ((slot / b * 2 + plane - 1) * b + slot % b) * width;
      at += 1;
      std::vector<float> out(row, row + width);
      for (float& x : out) x = bf16_to_float(float_to_bf16(x));
      return out;
    });
  }

  /// Bytes of out and lse.
  std::vector<std::byte> run(bool quantised, const HeadPlan* plan = nullptr) {
    return with_args(quantised, plan, [&](Stream& stream, const AttnArgs& args) {
      const bool gathered = quantised && case_.format != KvFormat::kBf16;
      const auto op = gathered ? cuda::attention_prompt_gathered : cuda::attention_prompt;
      op(stream, args);
      if (plan == nullptr) expect_same_in_any_tiles(stream, args, cu_q_.back(), op);
      const int64_t keys = width_ * case_.block_size;
      return cuda::attention_prompt_scratch(args.shape, args.num_prompt_segments, keys) +
             cuda::kv_gather_scratch(args.shape, keys);
    });
  }

  /// Over the quantised cache rows become codes too.
  void check_codes() {
    with_args(true, nullptr, [&](Stream& stream, const AttnArgs& args) {
      const bool gathered = case_.format != KvFormat::kBf16;
      (gathered ? cuda::attention_prompt_gathered : cuda::attention_prompt)(stream, args);
      expect_codes_of_attention(stream, args, cu_q_.back());
      return stream.scratch().peak();
    });
  }

  /// K (plane 1) or V (plane 2) of a token as it came, [G, D].
  std::vector<float> row_of(const Piece& piece, int position, int plane) const {
    std::vector<float> row =
        token(piece.sequence, position, plane, case_.heads.kv, case_.heads.dim);
    if (case_.change) case_.change(piece, position, plane, row);
    for (float& x : row) x = bf16_to_float(float_to_bf16(x));
    return row;
  }
  /// q of a token, [H, D].
  std::vector<float> q_of(const Piece& piece, int position) const {
    std::vector<float> row = token(piece.sequence, position, 0, case_.heads.q, case_.heads.dim);
    for (float& x : row) x = bf16_to_float(float_to_bf16(x * (case_.q_scale / kQScale)));
    return row;
  }

  /// The outputs among the bytes of out and lse.
  std::vector<float> floats(const std::vector<std::byte>& bytes) const {
    std::vector<float> out(
        static_cast<size_t>(int64_t{cu_q_.back()} * case_.heads.q * case_.heads.dim));
    for (size_t i = 0; i < out.size(); ++i) {
      bf16 value;
      std::memcpy(&value, bytes.data() + 2 * i, 2);
      out[i] = bf16_to_float(value);
    }
    return out;
  }
  /// Rows of all pieces, [T, H, D], over the quantised cache.
  std::vector<float> prompts() { return floats(run(true)); }
  std::vector<float> decoded() {
    return floats(with_args(true, nullptr, [&](Stream& stream, AttnArgs& args) {
      for (const Piece& piece : pieces_) {
        args.max_decode_len = std::max(args.max_decode_len, piece.rows);
      }
      args.num_prompt_segments = 0;
      args.prompt_rows = 0;
      args.lse = {};
      cuda::attention_decode(stream, args);
      return cuda::attention_decode_scratch(args.shape, args.seqs.num_segments,
                                            width_ * case_.block_size);
    }));
  }
  /// The same in float64 over what the cache holds.
  std::vector<float> oracle() {
    std::vector<float> out;
    with_args(true, nullptr, [&](Stream& stream, AttnArgs& args) {
      std::vector<float> q = q_values();
      out.resize(q.size());
      args.q = {q.data(), DType::kF32, {cu_q_.back(), case_.heads.q, case_.heads.dim}};
      args.out = {out.data(), DType::kF32, {cu_q_.back(), case_.heads.q, case_.heads.dim}};
      args.lse = {};
      args.kv.shape.format = KvFormat::kF32;
      args.kv.data = reinterpret_cast<std::byte*>(host_.data());
      args.kv.block_bytes = int64_t{2} * case_.heads.kv * case_.block_size * case_.heads.dim * 4;
      args.seqs.cu_q.data = cu_q_.data();
      args.seqs.kv_start.data = starts_.data();
      args.seqs.block_table.data = table_.data();
      ref::attention(stream, args);
      return int64_t{0};
    });
    return out;
  }

  /// The lists of XAttention, of all heads, and what a prompt that goes by them gives.
  struct Listed {
    std::vector<std::byte> words, counts, mass, out;
    bool operator==(const Listed&) const = default;
  };
  Listed listed(bool quantised, int stride) {
    const auto segments = static_cast<int64_t>(pieces_.size());
    const int64_t heads = case_.heads.q, keys = width_ * case_.block_size;
    const int64_t row_blocks = keys / HeadPlan::kBlock + 1, words = row_blocks / 32 + 1;
    const auto count = static_cast<size_t>(segments * heads * row_blocks);
    const DeviceTensor kinds(std::vector<int32_t>(static_cast<size_t>(segments * heads),
                                                  static_cast<int32_t>(HeadKind::kBlocks)));
    const DeviceTensor lists(std::vector<int32_t>(count * static_cast<size_t>(words)));
    const DeviceTensor counts((std::vector<int32_t>(count)));
    const DeviceTensor mass(DType::kF32, {segments, heads, row_blocks});
    const DeviceTensor thresholds(DType::kF32, {heads},
                                  std::vector<float>(static_cast<size_t>(heads), 0.7f));
    HeadPlan plan;
    plan.kinds = {kinds.view.data, DType::kI32, {segments, heads}};
    plan.blocks = {lists.view.data, DType::kI32, {segments, heads, row_blocks, words}};
    plan.counts = {counts.view.data, DType::kI32, {segments, heads, row_blocks}};
    with_args(quantised, &plan, [&](Stream& stream, const AttnArgs& args) {
      cuda::select_blocks(stream, {.attention = &args,
                                   .stride = stride,
                                   .norm = 0.2f,
                                   .thresholds = thresholds.view,
                                   .mass = mass.view});
      return cuda::select_blocks_scratch(args.shape, args.prompt_rows, keys, stride);
    });
    return {lists.bytes(), counts.bytes(), mass.bytes(), run(quantised, &plan)};
  }

 private:
  std::vector<float> q_values() const {
    std::vector<float> values;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i) {
        const auto row = q_of(piece, piece.start + i);
        values.insert(values.end(), row.begin(), row.end());
      }
    }
    return values;
  }
  /// Calls run(stream, args), which gives the bound of its scratch memory; bytes of out and lse.
  template <class Run>
  std::vector<std::byte> with_args(bool quantised, const HeadPlan* plan, const Run& run) {
    const Heads& h = case_.heads;
    const int64_t rows = cu_q_.back();
    const DeviceTensor q(DType::kBF16, {rows, h.q, h.dim}, q_values());
    DeviceTensor out(DType::kBF16, {rows, h.q, h.dim}), lse(DType::kF32, {rows, h.q});
    out.poison();
    lse.poison();
    const DeviceTensor cu_q(cu_q_), starts(starts_), table(table_);
    AttnArgs args;
    args.shape = {h.q, h.kv, h.dim, 1.0f / std::sqrt(static_cast<float>(h.dim)), case_.format};
    args.q = q.view;
    args.out = out.view;
    args.lse = lse.view;
    args.kv = quantised ? quantised_.kv : plain_.kv;
    args.seqs.cu_q = cu_q.view;
    args.seqs.kv_start = starts.view;
    const auto segments = static_cast<int64_t>(pieces_.size());
    args.seqs.block_table = {table.view.data, DType::kI32, {segments, width_}};
    args.seqs.num_segments = args.num_prompt_segments = static_cast<int>(segments);
    args.seqs.host_cu_q = cu_q_.data();
    args.seqs.host_kv_start = starts_.data();
    args.prompt_rows = rows;
    args.heads = plan;
    CudaTestStream stream;
    const int64_t most = run(stream, args);
    stream.sync();
    EXPECT_LE(static_cast<Stream&>(stream).scratch().peak(), most);
    std::vector<std::byte> all = out.bytes(), more = lse.bytes();
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  struct Cache {
    PagedKv kv;
    DeviceTensor pool, scales;
  };
  int64_t blocks_of(const Piece& piece) const {
    return piece.rows == 0 ? 0
                           : (piece.start + piece.rows + case_.block_size - 1) / case_.block_size;
  }
  Cache make(KvFormat format, int64_t blocks) const {
    Cache cache;
    const KvShape shape{format, case_.heads.kv, case_.heads.dim, case_.block_size};
    const int64_t bytes = cuda::kv_block_bytes(shape);
    cache.pool = DeviceTensor(DType::kU8, {blocks, bytes});
    cache.pool.poison();
    cache.kv = {shape, static_cast<std::byte*>(cache.pool.view.data), bytes, blocks};
    if (kv_has_static_scales(format)) {
      const std::vector<float> scales = static_scales(format);
      cache.scales = DeviceTensor(DType::kF32, {static_cast<int64_t>(scales.size())}, scales);
      cache.kv.k_scale = cache.scales.view.ptr<float>();
      cache.kv.v_scale = cache.kv.k_scale + case_.heads.kv * case_.heads.dim;
    }
    return cache;
  }
  std::vector<float> static_scales(KvFormat format) const {
    const int width = case_.heads.kv * case_.heads.dim;
    const int same = format == KvFormat::kInt8 ? 1 : case_.heads.dim;
    std::vector<float> scales;
    for (int i = 0; i < 2 * width; ++i) {
      scales.push_back(0.004f * (1 + 0.3f * static_cast<float>(i / same % 5)));
    }
    if (!case_.calibrated) return scales;
    std::fill(scales.begin(), scales.end(), 1e-9f);
    for (const Piece& piece : pieces_) {
      for (int at = 0; at < piece.start + piece.rows; ++at) {
        for (const int plane : {1, 2}) {
          const std::vector<float> row = row_of(piece, at, plane);
          for (int i = 0; i < width; ++i) {
            float& scale = scales[static_cast<size_t>((plane - 1) * width + i / same * same)];
            scale =
                std::max(scale, std::abs(row[static_cast<size_t>(i)]) / kv_largest_code(format));
          }
        }
      }
    }
    for (int i = 0; i < 2 * width; ++i) {
      scales[static_cast<size_t>(i)] = scales[static_cast<size_t>(i / same * same)];
    }
    return scales;
  }
  /// value(piece, position, plane 1: K, 2: V), asked for K and V of each key in turn.
  template <class F>
  void fill(const Cache& cache, const F& value) {
    slots_.clear();
    for (size_t s = 0; s < pieces_.size(); ++s) {
      if (pieces_[s].rows == 0) continue;
      for (int at = 0; at < pieces_[s].start + pieces_[s].rows; ++at) {
        const int32_t block =
            table_[s * static_cast<size_t>(width_) + static_cast<size_t>(at / case_.block_size)];
        slots_.push_back(int64_t{block} * case_.block_size + at % case_.block_size);
      }
    }
    std::vector<float> rows[2];
    for (const Piece& piece : pieces_) {
      if (piece.rows == 0) continue;
      for (int at = 0; at < piece.start + piece.rows; ++at) {
        for (const int plane : {1, 2}) {
          const std::vector<float> row = value(piece, at, plane);
          rows[plane - 1].insert(rows[plane - 1].end(), row.begin(), row.end());
        }
      }
    }
    write_rows(cache.kv, case_.heads.kv, case_.heads.dim, rows[0], rows[1], slots_);
  }

  KvCase case_;
  std::vector<Piece> pieces_;
  std::vector<int32_t> cu_q_, starts_, table_;
  std::vector<int64_t> slots_;
  int64_t width_ = 0;
  Cache quantised_, plain_;
  std::vector<float> host_;  // what the quantised one holds: [N][K, V][B, G, D]
};

}  // namespace weft
