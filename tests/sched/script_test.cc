#include "sched/script.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace weft {
namespace {

const std::filesystem::path kScripts = std::filesystem::path(WEFT_SOURCE_DIR) / "tests/sched";

std::vector<std::string> script_names() {
  std::vector<std::string> names;
  for (const auto& file : std::filesystem::directory_iterator(kScripts)) {
    if (file.path().extension() == ".sched") names.push_back(file.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class SchedScripts : public testing::TestWithParam<std::string> {};

TEST_P(SchedScripts, Holds) {
  std::ifstream in(kScripts / (GetParam() + ".sched"));
  std::ostringstream text;
  text << in.rdbuf();
  ASSERT_FALSE(text.str().empty());
  EXPECT_EQ(SchedScript::run(text.str()), "");
}

INSTANTIATE_TEST_SUITE_P(All, SchedScripts, testing::ValuesIn(script_names()),
                         [](const auto& info) { return info.param; });

// The runner itself must be able to fail.
TEST(SchedScript, ReportsTheLineThatDoesNotHold) {
  const std::string text = "config\nsubmit a prompt=10 max=2\nstep\nexpect plan a:0-11p*\n";
  EXPECT_EQ(SchedScript::run(text), "line 4: expect plan a:0-11p*\n  planned: a:0-10p*");
  EXPECT_NE(SchedScript::run("config blocks=4\nexpect blocks free=3\n"), "");
  EXPECT_NE(SchedScript::run("config\nsubmit a prompt=10\nexpect finished a\n"), "");
  EXPECT_NE(SchedScript::run("dance\n"), "");
}

}  // namespace
}  // namespace weft
