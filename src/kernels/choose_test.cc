#include "kernels/choose.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

std::string below_ten(const int& n) {
  return n < 10 ? "" : std::to_string(n) + " is not below 10";
}
std::string even(const int& n) {
  return n % 2 == 0 ? "" : std::to_string(n) + " is odd";
}

constexpr Candidate<int> kRivals[] = {{"fast", below_ten}, {"plain", even}};

TEST(Choose, TakesTheFirstThatCan) {
  const KernelChoice both = choose<int>("op", kRivals, 4);
  EXPECT_EQ(both.name, "fast");
  ASSERT_EQ(both.others.size(), 1u);
  EXPECT_EQ(both.others[0].why_not, "slower");
  const KernelChoice second = choose<int>("op", kRivals, 12);
  EXPECT_EQ(second.name, "plain");
  EXPECT_EQ(second.others[0].why_not, "12 is not below 10");
  const KernelChoice none = choose<int>("op", kRivals, 13);
  EXPECT_TRUE(none.name.empty());
  EXPECT_EQ(none.others.size(), 2u);
}

TEST(Choose, TableHasALineAChoice) {
  const std::vector<KernelChoice> choices = {choose<int>("a", kRivals, 13),
                                             choose<int>("long", kRivals, 3)};
  EXPECT_EQ(choices_table(choices),
            "  a     none; not fast: 13 is not below 10; not plain: 13 is odd\n"
            "  long  fast; not plain: 3 is odd\n");
}

}  // namespace
}  // namespace weft
