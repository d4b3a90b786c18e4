#include "nn/vision_plan.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace weft {
namespace {

/// Where position i of n lies on a side of `side` learned positions, ends on ends: the position
/// before, the one behind, and the part of the way between.
struct Between {
  int before = 0, behind = 0;
  float part = 0;
};

Between between(int i, int n, int side) {
  const float at =
      n == 1 ? 0.0f : static_cast<float>(static_cast<double>(i) * (side - 1) / (n - 1));
  Between out{.before = std::min(static_cast<int>(at), side - 1)};
  out.behind = std::min(out.before + 1, side - 1);
  out.part = at - static_cast<float>(out.before);
  return out;
}

class Planner {
 public:
  Planner(const VisionSpec& spec, VisionPlan& plan)
      : spec_(spec),
        plan_(plan),
        side_(static_cast<int>(std::lround(std::sqrt(static_cast<double>(spec.num_positions))))) {
    for (auto* list : {&plan.source, &plan.positions, &plan.grid_ids, &plan.windows, &plan.order}) {
      list->clear();
    }
    plan.grid_weights.clear();
    plan.frames.assign(1, 0);
    if (spec.window > 0) plan.windows.assign(1, 0);
  }

  void add(const VisionGrid& grid) {
    const int merge = spec_.merge_size;
    CHECK(grid.t > 0 && grid.h > 0 && grid.w > 0 && grid.h % merge == 0 && grid.w % merge == 0);
    grid_ = grid;
    for (int t = 0; t < grid.t; ++t) {
      const int rows = grid.h / merge, columns = grid.w / merge;
      const int step = spec_.window > 0 ? spec_.window : std::max(rows, columns);
      for (int row = 0; row < rows; row += step) {
        for (int column = 0; column < columns; column += step) {
          add_window({row, std::min(row + step, rows)}, {column, std::min(column + step, columns)});
        }
      }
      first_patch_ += int64_t{grid.h} * grid.w;
      plan_.frames.push_back(static_cast<int32_t>(plan_.source.size()));
    }
  }

  /// The inverse of the order of merge blocks.
  void finish() {
    if (spec_.window == 0) return;
    const auto merged = static_cast<size_t>(spec_.merge_patches());
    plan_.order.resize(plan_.source.size() / merged);
    for (size_t row = 0; row < plan_.order.size(); ++row) {
      const auto token = static_cast<size_t>(plan_.source[row * merged]) / merged;
      plan_.order[token] = static_cast<int32_t>(row);
    }
  }

 private:
  struct Range {
    int begin, end;
  };

  void add_window(Range rows, Range columns) {
    for (int row = rows.begin; row < rows.end; ++row) {
      for (int column = columns.begin; column < columns.end; ++column) add_block(row, column);
    }
    if (spec_.window > 0) plan_.windows.push_back(static_cast<int32_t>(plan_.source.size()));
  }

  void add_block(int block_row, int block_column) {
    const int merge = spec_.merge_size;
    const int64_t block = int64_t{block_row} * (grid_.w / merge) + block_column;
    for (int i = 0; i < merge * merge; ++i) {
      plan_.source.push_back(
          static_cast<int32_t>(first_patch_ + block * spec_.merge_patches() + i));
      const int row = block_row * merge + i / merge, column = block_column * merge + i % merge;
      plan_.positions.push_back(row);
      plan_.positions.push_back(column);
      if (spec_.num_positions > 0) add_grid(row, column);
    }
  }

  void add_grid(int row, int column) {
    const Between y = between(row, grid_.h, side_), x = between(column, grid_.w, side_);
    const auto tap = [&](int at_row, int at_column, float weight) {
      plan_.grid_ids.push_back(at_row * side_ + at_column);
      plan_.grid_weights.push_back(weight);
    };
    tap(y.before, x.before, (1 - y.part) * (1 - x.part));
    tap(y.before, x.behind, (1 - y.part) * x.part);
    tap(y.behind, x.before, y.part * (1 - x.part));
    tap(y.behind, x.behind, y.part * x.part);
  }

  const VisionSpec& spec_;
  VisionPlan& plan_;
  const int side_;
  VisionGrid grid_;
  int64_t first_patch_ = 0;  // of the frame
};

}  // namespace

void plan_vision(const VisionSpec& spec, std::span<const VisionGrid> grids, VisionPlan& plan) {
  Planner planner(spec, plan);
  for (const VisionGrid& grid : grids) planner.add(grid);
  planner.finish();
}

}  // namespace weft
