#pragma once

// Which of the rival kernels of an op a model gets, and why not the others: decided by shapes and
// formats alone, once at load, and printed. Dispatch inside the ops asks the same predicates.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/args.h"

namespace weft {

/// The shapes and formats that a model asks kernels for, each once.
struct KernelNeeds {
  struct Matrix {
    WeightShape shape;
    Epilogue epilogue = Epilogue::kStore;
  };
  std::vector<AttnShape> attention;
  KvFormat kv_format = KvFormat::kBf16;  ///< of all of them
  std::vector<GdnShape> gdn;
  std::vector<Matrix> dense, experts;
  int64_t vocab = 0;
};

struct KernelChoice {
  struct Other {
    std::string name, why_not;
  };
  std::string op;    ///< "attention, D 128, 32/8 heads: prompts"
  std::string name;  ///< the chosen kernel; empty: there is none
  std::vector<Other> others;
};

/// One of the rivals for an op.
template <class Need>
struct Candidate {
  std::string_view name;
  /// Empty where it can.
  std::string (*why_not)(const Need&);
};

/// The first of `rivals` (the fastest stands first) that can.
template <class Need>
KernelChoice choose(std::string op, std::span<const Candidate<Need>> rivals, const Need& need) {
  KernelChoice choice{.op = std::move(op)};
  for (const Candidate<Need>& rival : rivals) {
    std::string why_not = rival.why_not(need);
    if (why_not.empty() && choice.name.empty()) {
      choice.name = rival.name;
      continue;
    }
    if (why_not.empty()) why_not = "slower";
    choice.others.push_back(KernelChoice::Other{std::string(rival.name), std::move(why_not)});
  }
  return choice;
}

/// A line a choice: "  op  kernel; not RIVAL: reason; not ...".
std::string choices_table(std::span<const KernelChoice> choices);

}  // namespace weft
