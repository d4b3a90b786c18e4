// Attention over quantised caches: against float64 over what the cache holds, and against float64
// over the rows before they were stored, within a bound.
#include <cmath>
#include <map>
#include <memory>
#include <tuple>

#include "attention_world.h"
#include "tests/support/kv_bound.h"
#include "tests/support/sanitized.h"

namespace weft {
namespace {

class KvAttention : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(KvAttention);

constexpr double kTolerance = 2e-3;  // relative L2 of a call

float scale_of(int dim) {
  return 1.0f / std::sqrt(static_cast<float>(dim));
}

/// What the oracle gives, computed once for all instruction sets.
class Oracle {
 public:
  explicit Oracle(const World& world, uint64_t seed, const Floats& q)
      : world_(world), seed_(seed), q_(q) {}
  const std::vector<float>& attend(Stream& stream, const std::string& key,
                                   const std::vector<Slice>& slices) {
    static std::map<std::string, std::vector<float>> known;
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
    if (!cache_) cache_ = std::make_unique<Cache>(ref_ops(), stream, world_, seed_);
    return known[key] = cache_->attend(stream, q_, slices).data;
  }

 private:
  const World& world_;
  uint64_t seed_;
  const Floats& q_;
  std::unique_ptr<Cache> cache_;
};

TEST_P(KvAttention, EveryFormatAndShapeMatchesTheOracle) {
  double worst = 0;
  // Prompts; prompts behind a hit; decode; verification and prompt rows side by side.
  const std::vector<std::vector<Slice>> calls = {
      {{3, 0, 63}, {5, 0, 17}},
      {{8, 128, 12}, {7, 64, 20}},
      {{0, 0, 1}, {1, 14, 1}, {2, 15, 1}, {4, 63, 1}, {5, 64, 1}, {6, 126, 1}, {8, 139, 1}},
      {{8, 135, 5}, {5, 60, 5}, {3, 62, 1}, {6, 0, 19}}};
  for (const KvFormat format : kQuantisedFormats) {
    for (const int dim : {64, 128, 256}) {
      for (const int group : {1, 4, 8, 16}) {
        if (kSanitized && group != 4 && dim != 128) continue;
        const int kv_heads = group == 1 ? 3 : 1;
        const World world{{group * kv_heads, kv_heads, dim, scale_of(dim)},
                          format,
                          dim == 128 ? 32 : 64,
                          {1, 15, 16, 63, 64, 65, 127, 129, 140}};
        const Floats q = queries(world, 3, 1.7f);
        Cache ours(ops_, stream_, world, 7);
        Oracle oracle(world, 7, q);
        for (size_t c = 0; c < calls.size(); ++c) {
          const std::string what = std::string(kv_format_name(format)) + " D " +
                                   std::to_string(dim) + " group " + std::to_string(group) +
                                   " call " + std::to_string(c);
          const Floats got = ours.attend(stream_, q, calls[c]);
          const double error = relative_l2(got.data, oracle.attend(stream_, what, calls[c]));
          worst = std::max(worst, error);
          EXPECT_LE(error, kTolerance) << what;
        }
      }
    }
  }
  std::printf("largest relative L2: %.2e\n", worst);
}

// A row's bits depend on its position and its keys alone: the same in a whole prompt, in chunks of
// it, behind a hit, among verified drafts, alone, and beside others.
TEST_P(KvAttention, ARowIsTheSameInEveryCall) {
  const int length = 700;  // more than a segment
  for (const KvFormat format : kQuantisedFormats) {
    for (const auto& [dim, group, block] : {std::tuple(64, 4, 16), std::tuple(128, 2, 64),
                                            std::tuple(256, 16, 32), std::tuple(96, 8, 128)}) {
      if (kSanitized && dim != (format == KvFormat::kInt4 ? 96 : 128)) continue;
      const World world{{group, 1, dim, scale_of(dim)}, format, block, {length, 77}};
      const std::string what = std::string(kv_format_name(format)) + " D " + std::to_string(dim);
      const Floats q = queries(world, 6, 1.7f);
      Cache cache(ops_, stream_, world, 8);
      const Floats prompt = cache.attend(stream_, q, {{0, 0, length}});
      const auto row_size = static_cast<size_t>(group * dim);
      const auto compare = [&](const Floats& got, size_t got_row, int position, int rows) {
        EXPECT_EQ(std::memcmp(got.data.data() + got_row * row_size,
                              prompt.data.data() + static_cast<size_t>(position) * row_size,
                              static_cast<size_t>(rows) * row_size * sizeof(float)),
                  0)
            << what << ": rows " << position << " + " << rows;
      };
      for (int first = 0; first < length; first += 192) {  // chunks; behind a hit
        const int rows = std::min(192, length - first);
        compare(cache.attend(stream_, q, {{0, first, rows}}), 0, first, rows);
      }
      for (const int position : {0, 15, 16, 63, 64, 127, 128, 300, 511, 512, 699}) {
        compare(cache.attend(stream_, q, {{0, position, 1}}), 0, position, 1);
        const int drafts = std::min(5, length - position);
        const Floats beside = cache.attend(
            stream_, q, {{1, 3, 20}, {0, position, drafts}, {1, 76, 1}, {0, position, 1}});
        compare(beside, 20, position, drafts);
        compare(beside, 21 + static_cast<size_t>(drafts), position, 1);
      }
    }
  }
}

TEST_P(KvAttention, RowsWithoutKeysAndTilesWithoutKeys) {
  double worst = 0;
  std::vector<KvFormat> formats = {KvFormat::kF32, KvFormat::kBf16};
  formats.insert(formats.end(), std::begin(kQuantisedFormats), std::end(kQuantisedFormats));
  for (const auto& [dim, group] : {std::pair(64, 4), {128, 1}, {128, 16}, {256, 8}}) {
    if (kSanitized && dim * group > 256) continue;
    for (const KvFormat format : formats) {
      // Beside a bf16 cache q and the weights are rounded to 8 bits.
      const double tolerance = format == KvFormat::kBf16 ? 2.5 * kTolerance : kTolerance;
      const World world{{group, 1, dim, scale_of(dim)}, format, 64, {300}};
      const Floats q = queries(world, 2);
      Cache ours(ops_, stream_, world, 5);
      Oracle oracle(world, 5, q);
      for (int before = 0; before <= 256; ++before) {  // k_len - q_len
        // Of more than one tile of 32 rows now and then.
        const int rows = before % 32 == 0 ? 32 / group + 2 : 1 + before % (group > 4 ? 1 : 3);
        const std::string what = std::string(kv_format_name(format)) + " D " + std::to_string(dim) +
                                 " group " + std::to_string(group) + " before " +
                                 std::to_string(before);
        const std::vector<Slice> slice = {{0, before, rows}};
        const Floats got = ours.attend(stream_, q, slice);
        const double error = relative_l2(got.data, oracle.attend(stream_, what, slice));
        if (format != KvFormat::kBf16) worst = std::max(worst, error);
        EXPECT_LE(error, tolerance) << what;
      }
      const Floats none = ours.attend(stream_, q, {{0, -2, 2}});
      for (float x : none.data) EXPECT_EQ(x, 0.0f);
      const Floats some = ours.attend(stream_, q, {{0, -3, 5}});
      for (size_t i = 0; i < static_cast<size_t>(3 * group * dim); ++i) {
        EXPECT_EQ(some.data[i], 0.0f);
      }
      for (float x : some.data) EXPECT_FALSE(std::isnan(x));
      Floats lse({1});
      EXPECT_TRUE(ours.attend(stream_, q, {{0, -3, 5}}, &lse).same_bits(some));
      for (size_t i = 0; i < lse.data.size(); ++i) {
        const bool empty = i < static_cast<size_t>(3 * group);
        EXPECT_TRUE(empty ? lse.data[i] == -std::numeric_limits<float>::infinity()
                          : std::isfinite(lse.data[i]))
            << kv_format_name(format) << " D " << dim << ": " << lse.data[i];
      }
    }
  }
  std::printf("largest relative L2: %.2e\n", worst);
}

TEST_P(KvAttention, ANotFiniteTokenStaysWhereItIsSeen) {
  for (const KvFormat format : {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt4}) {
    World world{{2, 1, 64, 0.125f}, format, 64, {100}};
    const Floats q = queries(world, 2);
    Cache clean(ops_, stream_, world, 5);
    world.change_rows = [](Floats& k, Floats& v) {
      k.data[70 * 64 + 3] = kNaN;
      v.data[70 * 64 + 5] = std::numeric_limits<float>::infinity();
    };
    Cache hurt(ops_, stream_, world, 5);
    const Floats want = clean.attend(stream_, q, {{0, 0, 100}});
    const Floats got = hurt.attend(stream_, q, {{0, 0, 100}});
    const size_t seen = 70 * 2 * 64;
    EXPECT_EQ(std::memcmp(got.data.data(), want.data.data(), seen * sizeof(float)), 0);
    for (size_t i = seen; i < got.data.size(); ++i) EXPECT_TRUE(std::isnan(got.data[i])) << i;
  }
}

TEST_P(KvAttention, StoringMovesResultsWithinTheBound) {
  constexpr int kDim = 64, kHeads = 8, kKeys = 17;
  constexpr uint64_t kSeeds = kSanitized ? 4 : 24;  // every one of four kinds
  int64_t cases = 0, beyond = 0;
  for (const KvFormat format : kQuantisedFormats) {
    for (uint64_t n = 0; n < kSeeds; ++n) {
      const uint64_t seed = static_cast<uint64_t>(GetParam()) * kSeeds + n;
      World world{{kHeads, kHeads, kDim, scale_of(kDim)}, format, 32, std::vector<int>(40, kKeys)};
      world.calibrated = true;
      Floats k_rows, v_rows;
      world.change_rows = [&](Floats& k, Floats& v) {
        const auto row = [&](Floats& x, int64_t token, int64_t head) {
          return x.data.data() + (token * kHeads + head) * kDim;
        };
        const int64_t tokens = k.view.dim(0);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t h = 0; h < kHeads; ++h) {
            switch (seed % 4) {
              case 1:  // outlier channels
                row(k, t, h)[5] *= 40;
                row(v, t, h)[9] *= 100;
                break;
              case 2:  // one huge token
                if (t % kKeys == 3) {
                  for (int i = 0; i < kDim; ++i) {
                    row(k, t, h)[i] *= 30;
                    row(v, t, h)[i] *= 1000;
                  }
                }
                break;
              case 3:  // constant rows
                std::fill_n(row(k, t, h), kDim, row(k, t, h)[0]);
                std::fill_n(row(v, t, h), kDim, row(v, t, h)[0]);
                break;
              default: break;
            }
          }
        }
        k_rows = k;
        v_rows = v;
      };
      Cache cache(ops_, stream_, world, 50 + seed);
      const Floats q = queries(world, 90 + seed);
      const auto top_of = [&](const Floats& from, int head) {
        std::vector<float> top(kDim, 0.0f);
        for (int64_t t = 0; t < 40 * kKeys; ++t) {
          const float* row = from.data.data() + (t * kHeads + head) * kDim;
          for (size_t i = 0; i < kDim; ++i) top[i] = std::max(top[i], std::abs(row[i]));
        }
        return top;
      };
      std::vector<std::vector<float>> k_tops, v_tops;
      for (int h = 0; h < kHeads && kv_has_static_scales(format); ++h) {
        k_tops.push_back(top_of(k_rows, h));
        v_tops.push_back(top_of(v_rows, h));
      }
      std::vector<Slice> decode;
      for (int s = 0; s < 40; ++s) decode.push_back({s, kKeys - 1, 1});
      const Floats got = cache.attend(stream_, q, decode);
      for (int s = 0; s < 40; ++s) {
        for (int h = 0; h < kHeads; ++h) {
          KvRows rows{.keys = kKeys, .dim = kDim};
          if (!k_tops.empty()) {
            rows.k_top = k_tops[static_cast<size_t>(h)];
            rows.v_top = v_tops[static_cast<size_t>(h)];
          }
          const auto take = [&](const Floats& from, int token, std::vector<float>& to) {
            const float* at = from.data.data() + (int64_t{token} * kHeads + h) * kDim;
            to.insert(to.end(), at, at + kDim);
          };
          for (int t = 0; t < kKeys; ++t) {
            take(k_rows, s * kKeys + t, rows.k);
            take(v_rows, s * kKeys + t, rows.v);
          }
          take(q, s * kKeys + kKeys - 1, rows.q);
          const float* out = got.data.data() + (s * kHeads + h) * kDim;
          ++cases;
          beyond += !within_bound(rows, out, format, scale_of(kDim));
        }
      }
    }
  }
  EXPECT_EQ(beyond, 0) << "of " << cases;
  EXPECT_EQ(cases, kSeeds * 1600);  // other ones for every instruction set
}

}  // namespace
}  // namespace weft
