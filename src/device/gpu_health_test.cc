#include "device/gpu_health.h"

#include <gtest/gtest.h>

#include <cstdio>

namespace weft {
namespace {

using Weight = GpuFinding::Weight;

/// A machine where all is well.
GpuFacts healthy() {
  GpuFacts facts{
      .on_bus = true, .has_node = true, .may_open = true, .runtime = "13.0", .driver = "13.1"};
  facts.devices.push_back({.name = "NVIDIA H100 80GB HBM3",
                           .sm_major = 9,
                           .total_bytes = int64_t{80} << 30,
                           .free_bytes = int64_t{79} << 30,
                           .num_sms = 132,
                           .has_code = true});
  facts.states.push_back({.mig = false, .ecc = true, .persistence = true, .uncorrected_errors = 0});
  return facts;
}

GpuFacts without_devices(const std::string& driver) {
  GpuFacts facts = healthy();
  facts.driver = driver;
  facts.cuda_error = "CUDA: no usable device: the error's name";
  facts.devices.clear();
  facts.states.clear();
  return facts;
}

/// The one finding, which has a remedy of one line.
GpuFinding only(const GpuFacts& facts) {
  const std::vector<GpuFinding> all = diagnose_gpus(facts);
  EXPECT_EQ(all.size(), 1u);
  if (all.empty()) return {};
  EXPECT_FALSE(all[0].remedy.empty());
  EXPECT_EQ(all[0].remedy.find('\n'), std::string::npos);
  EXPECT_EQ(usable_gpu(facts).ok(), all[0].weight != Weight::kUnfit && !facts.devices.empty());
  return all[0];
}

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(GpuHealth, NothingToSay) {
  EXPECT_TRUE(diagnose_gpus(healthy()).empty());
  EXPECT_EQ(usable_gpu(healthy())->num_sms, 132);
  GpuFacts silent = healthy();
  silent.states.clear();  // no NVML
  EXPECT_TRUE(diagnose_gpus(silent).empty());
}

TEST(GpuHealth, NoGpuIsNoFault) {
  GpuFacts facts;
  facts.runtime = "13.0";
  EXPECT_EQ(only(facts).weight, Weight::kNote);
  facts.cuda_build = false;
  EXPECT_EQ(only(facts).weight, Weight::kNote);
  EXPECT_FALSE(usable_gpu(facts).ok());
}

TEST(GpuHealth, BuiltWithoutCuda) {
  GpuFacts facts = without_devices("");
  facts.cuda_build = false;
  EXPECT_EQ(only(facts).weight, Weight::kUnfit);
  EXPECT_TRUE(says(only(facts).remedy, "make build CUDA=1"));
}

TEST(GpuHealth, DriverIsMissing) {
  GpuFacts facts = without_devices("");
  facts.has_node = facts.may_open = false;
  EXPECT_TRUE(says(only(facts).what, "no driver is loaded"));
  EXPECT_TRUE(says(only(facts).remedy, "580"));
  facts.has_node = true;
  EXPECT_TRUE(says(only(facts).what, "may not be opened"));
  facts.may_open = true;
  EXPECT_TRUE(says(only(facts).what, "libcuda"));
}

TEST(GpuHealth, DriverIsTooOld) {
  const GpuFinding finding = only(without_devices("12.4"));
  EXPECT_EQ(finding.weight, Weight::kUnfit);
  EXPECT_TRUE(says(finding.what, "12.4") && says(finding.what, "13.0"));
  EXPECT_TRUE(says(finding.remedy, "580") && says(finding.remedy, "CUDA 12"));
  // Of the same major version an older driver will do.
  EXPECT_TRUE(says(only(without_devices("13.0")).what, "the error's name"));
}

TEST(GpuHealth, DevicesAreHidden) {
  EXPECT_TRUE(says(only(without_devices("13.1")).remedy, "CUDA_VISIBLE_DEVICES"));
}

TEST(GpuHealth, AnotherArchitecture) {
  for (const auto& [major, minor] : {std::pair{8, 0}, {8, 9}, {10, 0}, {12, 0}}) {
    GpuFacts facts = healthy();
    facts.devices[0].sm_major = major;
    facts.devices[0].sm_minor = minor;
    facts.devices[0].has_code = false;
    const GpuFinding finding = only(facts);
    EXPECT_EQ(finding.weight, Weight::kUnfit);
    EXPECT_TRUE(says(finding.what, std::to_string(major) + "." + std::to_string(minor)));
    EXPECT_TRUE(says(usable_gpu(facts).error().message, finding.remedy));
  }
}

TEST(GpuHealth, BinaryWithoutCodeForIt) {
  GpuFacts facts = healthy();
  facts.devices[0].has_code = false;
  EXPECT_EQ(only(facts).weight, Weight::kUnfit);
  EXPECT_TRUE(says(only(facts).remedy, "sm_90a"));
}

TEST(GpuHealth, Warnings) {
  GpuFacts facts = healthy();
  facts.devices[0].free_bytes = int64_t{3} << 29;
  EXPECT_TRUE(says(only(facts).what, "only 1.5 of 80.0 GiB"));
  facts = healthy();
  facts.states[0].mig = true;
  facts.devices[0].num_sms = 16;
  EXPECT_TRUE(says(only(facts).what, "16 multiprocessors"));
  facts = healthy();
  facts.states[0].uncorrected_errors = 3;
  EXPECT_EQ(only(facts).weight, Weight::kWarning);
  facts = healthy();
  facts.states[0].ecc = false;
  EXPECT_TRUE(says(only(facts).what, "ECC is off"));
  facts = healthy();
  facts.states[0].persistence = false;
  EXPECT_EQ(only(facts).weight, Weight::kNote);
}

/// Weft runs on the first device; findings say which one they are about.
TEST(GpuHealth, SecondDevice) {
  GpuFacts facts = healthy();
  facts.devices.push_back(facts.devices[0]);
  facts.devices[1].sm_major = 8;
  facts.states.push_back({.persistence = false});
  const std::vector<GpuFinding> all = diagnose_gpus(facts);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].device, 1);
  EXPECT_EQ(all[0].weight, Weight::kUnfit);
  EXPECT_TRUE(says(all[1].remedy, "nvidia-smi"));
  EXPECT_TRUE(usable_gpu(facts).ok());
}

/// On this machine, whatever it has: every question is answered.
TEST(GpuHealth, LooksAtThisMachine) {
  const GpuFacts facts = gpu_facts();
  EXPECT_EQ(usable_gpu(facts).ok(),
            !facts.devices.empty() && facts.devices[0].has_code && facts.devices[0].sm_major == 9);
  for (const GpuState& state : facts.states) EXPECT_TRUE(state.ecc.has_value());
  for (const GpuFinding& finding : diagnose_gpus(facts)) {
    EXPECT_FALSE(finding.what.empty());
    std::printf("  here: %s (%s)\n", finding.what.c_str(), finding.remedy.c_str());
  }
}

}  // namespace
}  // namespace weft
