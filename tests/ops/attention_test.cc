#include "attention_world.h"
#include "tests/support/sanitized.h"

namespace weft {
namespace {

/// Relative L2 of a call. bf16 compares with an oracle whose q and p stay fp32.
double tolerance(KvFormat format) {
  return format == KvFormat::kF32 ? 2e-6 : 6e-3;
}

class Attention : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(Attention);

TEST_P(Attention, MatchesTheOracle) {
  struct Case {
    int heads, kv_heads, dim, block;
    std::vector<int> lengths;
  };
  const std::vector<Case> cases = {
      {2, 1, 64, 64, {0, 1, 63, 64, 65, 127}},
      {4, 2, 128, 64, {140, 0, 17}},
      {6, 2, 256, 32, {97, 33}},
      {5, 5, 16, 16, {50}},
      {3, 1, 48, 48, {131}},
      {14, 2, 64, 128, {90}},
      {1, 1, 80, 16, {1, 15, 16, 17}},
      {40, 1, 32, 64, {40}},
      {1, 1, 32, 64, {600}},
  };
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16}) {
    for (const Case& c : cases) {
      World world{{c.heads, c.kv_heads, c.dim, 1.0f / std::sqrt(static_cast<float>(c.dim))},
                  format,
                  c.block,
                  c.lengths};
      Cache ours(ops_, stream_, world, 7), oracle(ref_ops(), stream_, world, 7);
      const Floats q = queries(world, 3, 3.0f);
      const Floats got = ours.attend(stream_, q, whole(world));
      const Floats want = oracle.attend(stream_, q, whole(world));
      EXPECT_LT(relative_l2(got.data, want.data), tolerance(format))
          << "H " << c.heads << " G " << c.kv_heads << " D " << c.dim << " B " << c.block;
    }
  }
}

TEST_P(Attention, BitsDependOnPositionAndKeysAlone) {
  std::vector<KvFormat> formats = {KvFormat::kF32, KvFormat::kBf16};
  formats.insert(formats.end(), std::begin(kQuantisedFormats), std::end(kQuantisedFormats));
  if (kSanitized) formats = {KvFormat::kBf16, KvFormat::kInt4};
  for (const KvFormat format : formats) {
    const World world{{6, 2, 64, 0.125f}, format, 64, {700, 130, 1, 1100}};
    Cache cache(ops_, stream_, world, 11);
    const Floats q = queries(world, 5);
    const Floats all = cache.attend(stream_, q, whole(world));
    const auto expect_same = [&](Stream& stream, const std::vector<Slice>& slices) {
      const Floats part = cache.attend(stream, q, slices);
      const int64_t width = 6 * 64;
      int64_t row = 0;
      for (const Slice& s : slices) {
        const float* want = all.data.data() + cache.row_of(s.sequence, s.start) * width;
        EXPECT_EQ(std::memcmp(part.data.data() + row * width, want,
                              static_cast<size_t>(s.rows * width) * sizeof(float)),
                  0)
            << "sequence " << s.sequence << " start " << s.start << " rows " << s.rows;
        row += s.rows;
      }
    };
    TestStream one(1), three(3), starved(2, 4096);
    // Decode rows: alone, in a batch, without scratch for partial results.
    const std::vector<Slice> decode = {{0, 699, 1}, {3, 1099, 1}, {2, 0, 1}, {3, 511, 1},
                                       {3, 512, 1}, {1, 64, 1},   {0, 0, 0}};
    for (Stream* stream : {&static_cast<Stream&>(stream_), &static_cast<Stream&>(one),
                           &static_cast<Stream&>(three), &static_cast<Stream&>(starved)}) {
      expect_same(*stream, decode);
    }
    for (const Slice& s : decode) expect_same(stream_, {s});
    // Chunks of a prompt, beside decode rows and verification rows.
    for (const int chunk : {1, 3, 7, 64, 640}) {
      if (chunk < 8) {
        expect_same(stream_, {{3, 1080, chunk}, {3, 509, chunk}, {0, 62, chunk}});
        continue;
      }
      for (int start = 0; start < 1100; start += chunk) {
        expect_same(three, {{3, start, std::min(chunk, 1100 - start)}, {0, 650, 1}});
      }
    }
    expect_same(one, whole(world));
  }
}

TEST_P(Attention, LargeScoresDontOverflow) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16}) {
    const World world{{2, 1, 64, 1.0f}, format, 64, {90}};
    Cache ours(ops_, stream_, world, 1), oracle(ref_ops(), stream_, world, 1);
    const Floats q = queries(world, 2, 2e3f);
    const Floats got = ours.attend(stream_, q, whole(world));
    const Floats want = oracle.attend(stream_, q, whole(world));
    EXPECT_LT(relative_l2(got.data, want.data), format == KvFormat::kF32 ? 1e-2 : 0.5);
  }
}

TEST_P(Attention, RowWithoutKeysIsZero) {
  const World world{{2, 1, 64, 1.0f}, KvFormat::kBf16, 64, {70}};
  Cache cache(ops_, stream_, world, 1);
  const Floats out = cache.attend(stream_, queries(world, 2), {{0, -2, 2}});
  for (float x : out.data) EXPECT_EQ(x, 0.0f);
}

}  // namespace
}  // namespace weft
