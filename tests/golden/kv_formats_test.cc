// Every format of the KV cache through whole tiny models: the bits of chunks are those of one
// piece, in the layers and in the MTP module, and the logits stay near those of a bf16 cache.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"
#include "tests/support/oracle.h"

namespace weft::testing {
namespace {

constexpr KvFormat kFormats[] = {KvFormat::kInt8Dynamic, KvFormat::kFp8Block, KvFormat::kInt8,
                                 KvFormat::kFp8, KvFormat::kInt4};

std::vector<int32_t> some_tokens(const Driver& driver, size_t count) {
  std::vector<int32_t> out;
  for (size_t i = 0; i < count; ++i) {
    out.push_back(
        static_cast<int32_t>((i * i * 31 + 7 * i + 3) % static_cast<size_t>(driver.vocab())));
  }
  return out;
}

class KvFormats : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Driver> load(const OpTable& ops, KvFormat format) const {
    const std::string dir = oracle_dir() + "/models/" + GetParam();
    return Driver::load(dir, {.ops = &ops, .format = WeightFormat::kBf16, .kv_format = format})
        .value();
  }
};

TEST_P(KvFormats, ChunksHaveTheBitsOfOnePieceAndStayNearBf16) {
  const OpTable& ops = cpu_ops(cpu_info().isa);
  const auto exact = load(ops, KvFormat::kBf16);
  const std::vector<int32_t> ids = some_tokens(*exact, 300);
  const std::vector<float> near = exact->prefill(ids, 0);
  for (const KvFormat format : kFormats) {
    const auto driver = load(ops, format);
    const std::vector<float> whole = driver->prefill(ids, 0);
    const auto d = difference(whole, near);
    EXPECT_GT(d.relative_l2(), 0.0) << kv_format_name(format) << " is not in use";
    EXPECT_LT(d.relative_l2(), format == KvFormat::kInt4 ? 0.25 : 0.1) << kv_format_name(format);
    driver->reset();
    EXPECT_EQ(driver->prefill(ids, 64), whole) << kv_format_name(format);
  }
}

TEST_P(KvFormats, TheMtpModulesCacheToo) {
  const OpTable& ops = cpu_ops(cpu_info().isa);
  for (const KvFormat format : kFormats) {
    const auto driver = load(ops, format);
    if (!driver->model().spec().mtp) return;
    const std::vector<int32_t> ids = some_tokens(*driver, 150);
    driver->prefill(ids, 0);
    const std::vector<float> hidden = driver->hidden_rows();
    const std::vector<int32_t> next(ids.begin() + 1, ids.end());
    const auto width = static_cast<size_t>(driver->model().spec().hidden);
    const std::vector<float> whole =
        driver->mtp(next, 0, std::span(hidden).first(next.size() * width), nullptr);
    std::vector<float> pieces;
    for (size_t at = 0; at < next.size(); at += 64) {
      const size_t n = std::min<size_t>(64, next.size() - at);
      const std::vector<float> part =
          driver->mtp(std::span(next).subspan(at, n), static_cast<int64_t>(at),
                      std::span(hidden).subspan(at * width, n * width), nullptr);
      pieces.insert(pieces.end(), part.begin(), part.end());
    }
    EXPECT_EQ(pieces, whole) << kv_format_name(format);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, KvFormats, ::testing::Values("qwen3", "qwen3_5_mtp", "ernie4_5"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace weft::testing
