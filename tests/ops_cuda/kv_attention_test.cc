// Attention over quantised caches on the GPU: against float64 over what the cache holds, and
// against float64 over the rows before they were stored, within a bound.

#include <array>
#include <map>

#include "tests/ops_cuda/kv_world.h"
#include "tests/support/kv_bound.h"

namespace weft {
namespace {

constexpr KvFormat kFormats[] = {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt8,
                                 KvFormat::kFp8, KvFormat::kInt4};
constexpr KvFormat kAllFormats[] = {KvFormat::kBf16, KvFormat::kInt8Dynamic, KvFormat::kFp8Block,
                                    KvFormat::kInt8, KvFormat::kFp8,         KvFormat::kInt4};
// Relative L2 of a call or a piece. Rounding outputs to bf16 gives 1.7e-3 (1.9e-3 in a small
// piece). Attention over codes adds little; weights of a bf16 cache are bf16 too
// (docs/kernels/attention_decode.md).
double tolerance(KvFormat format) {
  return format == KvFormat::kBf16 ? 2.8e-3 : 2e-3;
}

/// Largest errors by format: of decode, of prompts.
struct Worst {
  std::map<KvFormat, std::array<double, 2>> of;

  void add(KvFormat format, bool decoded, double error) {
    double& worst = of[format][decoded ? 0 : 1];
    worst = std::max(worst, error);
  }
  void print() const {
    for (const auto& [format, errors] : of) {
      std::printf("largest relative L2, %s: decode %.2e, prompts %.2e\n",
                  std::string(kv_format_name(format)).c_str(), errors[0], errors[1]);
    }
  }
};

double error_of(const std::vector<float>& got, const std::vector<float>& want) {
  for (const float x : got) EXPECT_FALSE(std::isnan(x));
  return relative_l2(got, want);
}

TEST(KvAttentionTest, EveryFormatAndShapeMatchesFloat64) {
  Worst worst;
  // Prompts; prompts behind a hit; decode; verification rows of ragged lengths.
  const std::vector<Piece> prompts[] = {{{1, 0, 63}, {2, 0, 17}, {3, 0, 0}, {4, 0, 1}},
                                        {{5, 128, 12}, {6, 64, 20}, {7, 192, 130}}};
  const std::vector<Piece> decodes[] = {
      {{1, 0, 1}, {2, 14, 1}, {3, 15, 1}, {4, 63, 1}, {5, 64, 1}, {6, 126, 1}, {8, 139, 1}},
      {{8, 135, 5}, {5, 60, 5}, {3, 62, 1}, {6, 0, 16}, {7, 300, 2}}};
  for (const KvFormat format : kFormats) {
    for (const int dim : {64, 128, 256}) {
      for (const int group : {1, 4, 8, 16}) {
        SCOPED_TRACE(testing::Message()
                     << kv_format_name(format) << " D " << dim << " group " << group);
        const int kv_heads = group == 1 ? 3 : 1;
        const KvCase of{format, {group * kv_heads, kv_heads, dim}, dim == 128 ? 32 : 64, 1.7f};
        for (const auto& pieces : prompts) {
          KvWorld world(of, pieces, 7);
          const double error = error_of(world.prompts(), world.oracle());
          worst.add(format, false, error);
          EXPECT_LE(error, tolerance(format));
        }
        for (const auto& pieces : decodes) {
          KvWorld world(of, pieces, 7);
          const double error = error_of(world.decoded(), world.oracle());
          worst.add(format, true, error);
          EXPECT_LE(error, tolerance(format));
        }
      }
    }
  }
  worst.print();
}

// Tiles of which rows see all, some or nothing, wherever the tile's border lies.
void check_keys_before_the_rows(const KvCase& of, Worst& worst) {
  std::vector<Piece> pieces;
  for (int before = 0; before <= 256; ++before) {  // k_len - q_len
    pieces.push_back({static_cast<uint64_t>(before + 1), before, 1 + before % 5});
  }
  KvWorld world(of, pieces, 5);
  const std::vector<float> want = world.oracle(), decoded = world.decoded(),
                           prompts = world.prompts();
  EXPECT_LE(error_of(decoded, want), tolerance(of.format));
  EXPECT_LE(error_of(prompts, want), tolerance(of.format));
  // The rounding of a single row of 64 dims to bf16 is up to 1.3 times the usual: 2.25e-3 seen.
  const double of_few = of.heads.q == 1 ? 1.25 : 1;
  size_t at = 0;
  for (const Piece& piece : pieces) {
    const size_t end = at + static_cast<size_t>(piece.rows * of.heads.q * of.heads.dim);
    const auto of_piece = [&](const std::vector<float>& x) {
      return std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(at),
                                x.begin() + static_cast<std::ptrdiff_t>(end));
    };
    for (const auto* got : {&decoded, &prompts}) {
      const double error = error_of(of_piece(*got), of_piece(want));
      worst.add(of.format, got == &decoded, error);
      EXPECT_LE(error, of_few * tolerance(of.format))
          << piece.start << " keys before " << piece.rows
          << (got == &decoded ? " decoded" : " of a prompt");
    }
    at = end;
  }
}

TEST(KvAttentionTest, EveryNumberOfKeysBeforeTheRows) {
  Worst worst;
  for (const KvFormat format : kAllFormats) {
    for (const int dim : {64, 128, 256}) {
      for (const int group : {1, 4, 8, 16}) {
        SCOPED_TRACE(testing::Message()
                     << kv_format_name(format) << " D " << dim << " group " << group);
        check_keys_before_the_rows({format, {group, 1, dim}, 64, 1.7f}, worst);
      }
    }
  }
  worst.print();
}

// Rows in front of position 0, beside rows of their tile that see keys.
TEST(KvAttentionTest, RowsWithoutKeysAreZero) {
  for (const KvFormat format : kAllFormats) {
    for (const int dim : {64, 128, 256}) {
      SCOPED_TRACE(testing::Message() << kv_format_name(format) << " D " << dim);
      KvWorld world({format, {4, 1, dim}, 64, 1.7f}, {{1, -3, 5}, {2, 70, 3}, {3, -1, 2}}, 5);
      const std::vector<float> want = world.oracle();
      const std::vector<std::byte> prompts = world.run(true);
      const auto row = static_cast<size_t>(4 * dim);
      for (const auto& got : {world.decoded(), world.floats(prompts)}) {
        EXPECT_LE(error_of(got, want), tolerance(format));
        for (const size_t empty : {0, 1, 2, 8}) {
          for (size_t i = empty * row; i < (empty + 1) * row; ++i) ASSERT_EQ(got[i], 0.0f) << i;
        }
      }
      for (size_t i = 0; i < 10 * 4; ++i) {
        float lse = 0;
        std::memcpy(&lse, prompts.data() + 10 * row * 2 + i * 4, 4);
        const size_t at = i / 4;
        const bool empty = at < 3 || at == 8;
        EXPECT_EQ(std::isinf(lse) && lse < 0, empty) << at << ": " << lse;
        EXPECT_FALSE(std::isnan(lse)) << at;
      }
    }
  }
}

// So much work that shares are cut at nodes of 64 chunks: the bits of each sequence alone.
TEST(KvAttentionTest, LongSequencesBesideEachOther) {
  constexpr int64_t kHeads = 8, kDim = 128, kBlock = 64, kBlocks = 16, kSequences = 8;
  const DeviceTensor scales(DType::kF32, {kHeads, kDim}, std::vector<float>(kHeads * kDim, 0.008f));
  for (const KvFormat format : kAllFormats) {
    const KvShape shape{format, kHeads, kDim, kBlock};
    const DeviceTensor pool(DType::kU8, {kBlocks, cuda::kv_block_bytes(shape)});
    AttnArgs args;
    args.kv = {shape, static_cast<std::byte*>(pool.view.data), pool.view.dim(1), kBlocks};
    if (kv_has_static_scales(format)) args.kv.k_scale = args.kv.v_scale = scales.view.ptr<float>();
    std::vector<int64_t> slots(kBlocks * kBlock);
    std::iota(slots.begin(), slots.end(), 0);
    write_rows(args.kv, kHeads, kDim, random_bf16(kBlocks * kBlock * kHeads * kDim, 1),
               random_bf16(kBlocks * kBlock * kHeads * kDim, 2), slots);
    const DeviceTensor q(DType::kBF16, {kSequences, kHeads, kDim},
                         random_bf16(kSequences * kHeads * kDim, 3, 2));
    const int64_t width = 33000 / kBlock + 1;
    std::vector<int32_t> blocks, first_rows{0}, starts;
    for (int64_t s = 0; s < kSequences; ++s) {
      for (int64_t b = 0; b < width; ++b) {
        blocks.push_back(static_cast<int32_t>((b * (2 * s + 1) + b / kBlocks + s) % kBlocks));
      }
      first_rows.push_back(static_cast<int32_t>(s + 1));
      starts.push_back(static_cast<int32_t>(32767 + 29 * (s % 2) - 131 * (s / 6)));
    }
    const DeviceTensor table(blocks), cu_q(first_rows), kv_start(starts);
    args.shape = {kHeads, kHeads, kDim, 1 / std::sqrt(float{kDim}), format};
    args.max_decode_len = 1;
    const auto run = [&](int64_t begin, int64_t end) {
      DeviceTensor out(DType::kBF16, {end - begin, kHeads, kDim});
      out.poison();
      args.q = q.view.rows(begin, end);
      args.out = out.view;
      args.seqs.num_segments = static_cast<int>(end - begin);
      args.seqs.cu_q = cu_q.view.rows(0, end - begin + 1);
      args.seqs.kv_start = kv_start.view.rows(begin, end);
      args.seqs.block_table = {
          table.view.row<int32_t>(0) + begin * width, DType::kI32, {end - begin, width}};
      CudaTestStream stream;
      cuda::attention_decode(stream, args);
      stream.sync();
      return out.bytes();
    };
    std::vector<std::byte> alone;
    for (int64_t s = 0; s < kSequences; ++s) {
      const auto row = run(s, s + 1);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    EXPECT_EQ(run(0, kSequences), alone) << kv_format_name(format);
  }
}

TEST(KvAttentionTest, StoringMovesResultsWithinTheBound) {
  constexpr int kDim = 64, kHeads = 8, kKeys = 17, kSequences = 500;
  int64_t cases = 0, beyond[2] = {0, 0};
  for (const KvFormat format : kFormats) {
    for (uint64_t kind = 0; kind < 5; ++kind) {
      const auto change = [&](const Piece&, int position, int, std::vector<float>& row) {
        for (size_t i = 0; i < row.size(); ++i) {
          if (kind == 1 && i % kDim == 5) row[i] *= 64;                    // outlier channels
          if (kind == 2 && position == 3) row[i] *= 512;                   // one huge token
          if (kind == 3) row[i] = row[i / kDim * kDim];                    // constant rows
          if (kind == 4 && i % kDim >= 32) row[i] = std::abs(row[i]) + 2;  // all of one sign
        }
      };
      const KvCase of{format, {kHeads, kHeads, kDim}, 32, 1.7f, true, change};
      std::vector<Piece> pieces;
      for (uint64_t s = 0; s < kSequences; ++s) {
        pieces.push_back({1 + s + kind * kSequences, kKeys - 1, 1});
      }
      KvWorld world(of, pieces, 50 + kind);
      const std::vector<float> got[2] = {world.decoded(), world.prompts()};
      std::vector<float> tops[2];
      for (auto& top : tops) top.resize(kHeads * kDim);
      std::vector<std::vector<float>> rows[2];
      for (const Piece& piece : pieces) {
        for (int t = 0; t < kKeys; ++t) {
          for (const int plane : {0, 1}) {
            rows[plane].push_back(world.row_of(piece, t, plane + 1));
            for (size_t i = 0; i < kHeads * kDim; ++i) {
              tops[plane][i] = std::max(tops[plane][i], std::abs(rows[plane].back()[i]));
            }
          }
        }
      }
      for (auto& top : tops) {
        for (size_t i = 0; i < top.size() && format == KvFormat::kFp8; i += kDim) {  // of a head
          const auto begin = top.begin() + static_cast<std::ptrdiff_t>(i), end = begin + kDim;
          std::fill(begin, end, *std::max_element(begin, end));
        }
      }
      for (size_t s = 0; s < pieces.size(); ++s) {
        const std::vector<float> q = world.q_of(pieces[s], kKeys - 1);
        for (int h = 0; h < kHeads; ++h) {
          const auto part = [&](const std::vector<float>& from) {
            return std::vector<float>(from.begin() + h * kDim, from.begin() + (h + 1) * kDim);
          };
          KvRows of_head{.q = part(q), .keys = kKeys, .dim = kDim};
          if (kv_has_static_scales(format)) {
            of_head.k_top = part(tops[0]);
            of_head.v_top = part(tops[1]);
          }
          for (size_t t = 0; t < kKeys; ++t) {
            for (const auto& [to, plane] : {std::pair(&of_head.k, 0), {&of_head.v, 1}}) {
              const std::vector<float> row = part(rows[plane][s * kKeys + t]);
              to->insert(to->end(), row.begin(), row.end());
            }
          }
          for (int i = 0; i < 2; ++i) {
            ++cases;
            const float* at = got[i].data() + (static_cast<int64_t>(s) * kHeads + h) * kDim;
            beyond[i] += !within_bound(of_head, at, format, 1 / std::sqrt(double{kDim}));
          }
        }
      }
    }
  }
  EXPECT_EQ(beyond[0], 0) << "decode rows of " << cases / 2;
  EXPECT_EQ(beyond[1], 0) << "prompt rows of " << cases / 2;
  EXPECT_EQ(cases, 200000);
}

}  // namespace
}  // namespace weft
