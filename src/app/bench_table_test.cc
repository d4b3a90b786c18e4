#include "app/bench_table.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(BenchTable, StatsAreOfTheSamples) {
  const SampleStats stats = sample_stats({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(stats.mean, 2.5);
  EXPECT_DOUBLE_EQ(stats.median, 2.5);
  EXPECT_DOUBLE_EQ(stats.best, 4);
  EXPECT_NEAR(stats.stddev, 1.2909944, 1e-6);
  EXPECT_EQ(sample_stats({7}).stddev, 0);
}

TEST(BenchTable, RowsLineUpWithTheHeader) {
  const BenchSubject subject{.model = "demo",
                             .bytes = 27e6,
                             .params = 13.6e6,
                             .backend = "cpu amx",
                             .format = "bf16",
                             .threads = 2};
  const BenchRow row{.test = "pp512", .num_prompt = 512, .samples = {100, 110}};
  const std::string header = bench_table_header(subject), line = bench_table_row(subject, row);
  EXPECT_EQ(header.find('\n') + 1, line.size() - 1);  // "±" has one byte more than columns
  EXPECT_NE(line.find("105.00 ± 7.07"), std::string::npos);
  EXPECT_NE(bench_json_row(subject, row).find("\"samples_ts\":[100.0,110.0]"), std::string::npos);
}

}  // namespace
}  // namespace weft
