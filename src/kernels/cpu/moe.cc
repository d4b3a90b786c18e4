// Mixture of experts: the (token, expert) pairs are grouped by expert, each expert's rows go
// through two matrix products, and every token adds its experts' outputs in ascending expert id.
// Only the weights of chosen experts are read. All memory is scratch of the stream.

#include <atomic>

#include "kernels/cpu/gemm_columns.h"
#include "kernels/cpu/gemm_vec.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {
namespace {

static_assert(sizeof(ColumnJob) < 256);  // moe_scratch_bytes() counts 1 KiB a group

/// One expert with rows: pairs [begin, end) of the grouped order, the prompt rows first.
struct Group {
  int64_t expert = 0, begin = 0, end = 0, prompt = 0;
  ColumnJob up, down;
  ColumnCut up_cut, down_cut;
};

struct Plan {
  const MoeArgs& args;
  int64_t first = 0, tokens = 0;  ///< of args.x
  int64_t top_k = 0, pairs = 0;
  bool grouped = false, f32 = false;
  int32_t* token = nullptr;  ///< [pairs] grouped order -> token of the chunk
  int32_t* place = nullptr;  ///< [tokens, top_k] grouped indices, ascending
  float* weight = nullptr;   ///< [pairs] in grouped order
  Group* groups = nullptr;
  int64_t num_groups = 0;
  int64_t inner = 0, hidden = 0;
  bool split = false;        ///< gate and up share a panel
  float* gate_up = nullptr;  ///< [pairs, 2 inner] if split
  float* act = nullptr;      ///< [pairs, inner]
  float* y = nullptr;        ///< [pairs, hidden]
  int64_t up_blocks = 0, down_blocks = 0;
};

/// Counting sort of the chunk's pairs by expert; a token's places end up ascending.
void group_pairs(Plan& plan, const ScratchScope& scope) {
  const MoeArgs& a = plan.args;
  const int64_t experts = a.gate_up->shape.experts;
  auto* begin = static_cast<int64_t*>(scope.take((experts + 1) * 8));
  auto* prompt = static_cast<int64_t*>(scope.take((experts + 1) * 8));
  for (int64_t e = 0; e <= experts; ++e) begin[e] = prompt[e] = 0;
  const auto ids = [&](int64_t t) {
    return static_cast<const int32_t*>(a.ids.data) + (plan.first + t) * a.ids.stride[0];
  };
  for (int64_t t = 0; t < plan.tokens; ++t) {
    for (int64_t j = 0; j < plan.top_k; ++j) {
      const int64_t e = ids(t)[j];
      ISA_CHECK(e >= 0 && e < experts);
      ++begin[e + 1];
      if (!plan.grouped || plan.first + t < a.prompt_rows) ++prompt[e];
    }
  }
  plan.num_groups = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (begin[e + 1] > 0) {
      Group& g = plan.groups[plan.num_groups++];
      g.expert = e;
      g.begin = begin[e];
      g.end = begin[e] + begin[e + 1];
      g.prompt = prompt[e];
    }
    begin[e + 1] += begin[e];
  }
  for (int64_t t = 0; t < plan.tokens; ++t) {
    const auto* w =
        static_cast<const float*>(a.weights.data) + (plan.first + t) * a.weights.stride[0];
    int32_t* place = plan.place + t * plan.top_k;
    for (int64_t j = 0; j < plan.top_k; ++j) {
      const auto at = static_cast<int32_t>(begin[ids(t)[j]]++);
      plan.token[at] = static_cast<int32_t>(t);
      plan.weight[at] = w[j];
      int64_t i = j;
      for (; i > 0 && place[i - 1] > at; --i) place[i] = place[i - 1];
      place[i] = at;
    }
  }
}

/// Packed rows of a group for a matrix.
void take_rows(const Plan& plan, const Group& g, const ScratchScope& scope, ColumnJob& job) {
  const int64_t steps = job.matrix.steps, decode = g.end - g.begin - g.prompt;
  job.prompt = {nullptr, g.prompt, steps};
  job.prompt.data =
      static_cast<std::byte*>(scope.take(packed_rows_bytes(g.prompt, steps, plan.f32)));
  job.decode = int_rows(scope.take(int_rows_bytes(decode, steps)), decode, job.matrix);
}

void plan_jobs(Plan& plan, const ScratchScope& scope, int threads) {
  plan.up_blocks = plan.down_blocks = 0;
  for (int64_t i = 0; i < plan.num_groups; ++i) {
    Group& g = plan.groups[i];
    g.up = ColumnJob{};
    g.up.matrix = packed_matrix(*plan.args.gate_up, g.expert);
    g.up.epilogue = plan.split ? Epilogue::kStore : Epilogue::kSiluMul;
    g.up.out_stride = plan.split ? 2 * plan.inner : plan.inner;
    g.up.out = (plan.split ? plan.gate_up : plan.act) + g.begin * g.up.out_stride;
    take_rows(plan, g, scope, g.up);
    g.down = ColumnJob{};
    g.down.matrix = packed_matrix(*plan.args.down, g.expert);
    g.down.out = plan.y + g.begin * plan.hidden;
    g.down.out_stride = plan.hidden;
    take_rows(plan, g, scope, g.down);
    g.up_cut = cut_columns(g.up, threads);
    g.down_cut = cut_columns(g.down, threads);
    plan.up_blocks += g.up_cut.blocks;
    plan.down_blocks += g.down_cut.blocks;
  }
}

/// Row i of the group's packed rows (padding rows of the prompt tiles included) from x(i).
template <class Rows>
void pack_group(const Plan& plan, const Group& g, const ColumnJob& job, int64_t k,
                const Rows& rows) {
  const int64_t padded = padded_rows(job.prompt);
  for (int64_t i = 0; i < padded; ++i)
    pack_row(job.prompt, i, i < g.prompt ? rows(g.begin + i) : nullptr, k, plan.f32);
  for (int64_t i = 0; i < job.decode.rows; ++i)
    pack_int_row(job.decode, i, rows(g.begin + g.prompt + i), k);
}

/// Takes blocks of all groups' jobs until none is left.
void compute(const Plan& plan, ColumnJob Group::*job, ColumnCut Group::*cut, int64_t blocks,
             std::atomic<int64_t>& next, std::byte* scratch) {
  int64_t group = -1, base = 0, end = 0;
  multiply_begin();
  for (;;) {
    const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
    if (index >= blocks) break;
    while (index >= end) {
      base = end;
      end += (plan.groups[++group].*cut).blocks;
    }
    const Group& g = plan.groups[group];
    compute_blocks(g.*job, g.*cut, index - base, 1, scratch);
  }
  multiply_end();
}

/// out[t] (+)= sum of the weighted expert outputs, ascending expert id.
void combine(const Plan& plan, int64_t t) {
  float* out = static_cast<float*>(plan.args.out.data) + (plan.first + t) * plan.args.out.stride[0];
  for (int64_t i = 0; i < plan.hidden; i += 16) {
    const int n = plan.hidden - i < 16 ? static_cast<int>(plan.hidden - i) : 16;
    Vec sum = vec_zero();
    for (int64_t j = 0; j < plan.top_k; ++j) {
      const int64_t at = plan.place[t * plan.top_k + j];
      sum = vec_fma(vec_set(plan.weight[at]), vec_load(plan.y + at * plan.hidden + i, n), sum);
    }
    if (plan.args.accumulate) sum = vec_add(vec_load(out + i, n), sum);
    vec_store(out + i, sum, n);
  }
}

void run_chunk(Stream& stream, Plan& plan) {
  const ScratchScope scope(stream);
  plan.token = static_cast<int32_t*>(scope.take(plan.pairs * 4));
  plan.place = static_cast<int32_t*>(scope.take(plan.pairs * 4));
  plan.weight = static_cast<float*>(scope.take(plan.pairs * 4));
  const int64_t experts = plan.args.gate_up->shape.experts;
  const int64_t most = experts < plan.pairs ? experts : plan.pairs;
  plan.groups = static_cast<Group*>(scope.take(most * static_cast<int64_t>(sizeof(Group))));
  group_pairs(plan, scope);
  plan.act = static_cast<float*>(scope.take(plan.pairs * plan.inner * 4));
  plan.y = static_cast<float*>(scope.take(plan.pairs * plan.hidden * 4));
  if (plan.split) plan.gate_up = static_cast<float*>(scope.take(plan.pairs * 2 * plan.inner * 4));
  ThreadPool& pool = stream.pool();
  const int threads = pool.num_threads();
  plan_jobs(plan, scope, threads);
  auto* scratch = static_cast<std::byte*>(scope.take(threads * kColumnScratchBytes));
  const MoeArgs& a = plan.args;
  std::atomic<int64_t> next_pack{0}, next_up{0}, next_act{0}, next_down{0};
  const auto x_row = [&](int64_t pair) {
    return static_cast<const float*>(a.x.data) + (plan.first + plan.token[pair]) * a.x.stride[0];
  };
  const auto act_row = [&](int64_t pair) {
    float* row = plan.act + pair * plan.inner;
    if (plan.split) silu_mul_row(plan.gate_up + pair * 2 * plan.inner, plan.inner, row);
    return row;
  };
  pool.parallel([&](int worker) {
    std::byte* mine = scratch + worker * kColumnScratchBytes;
    for (int64_t i; (i = next_pack.fetch_add(1, std::memory_order_relaxed)) < plan.num_groups;)
      pack_group(plan, plan.groups[i], plan.groups[i].up, plan.hidden, x_row);
    pool.barrier();
    compute(plan, &Group::up, &Group::up_cut, plan.up_blocks, next_up, mine);
    pool.barrier();
    for (int64_t i; (i = next_act.fetch_add(1, std::memory_order_relaxed)) < plan.num_groups;)
      pack_group(plan, plan.groups[i], plan.groups[i].down, plan.inner, act_row);
    pool.barrier();
    compute(plan, &Group::down, &Group::down_cut, plan.down_blocks, next_down, mine);
    pool.barrier();
    for (int64_t t = plan.tokens * worker / threads; t < plan.tokens * (worker + 1) / threads; ++t)
      combine(plan, t);
  });
}

}  // namespace

void moe(Stream& stream, const MoeArgs& args) {
  const int64_t rows = args.x.shape[0], top_k = args.ids.shape[1];
  if (rows == 0) return;
  const WeightShape &up = args.gate_up->shape, &down = args.down->shape;
  ISA_CHECK(args.x.shape[1] == up.k && up.n == 2 * down.k && down.n == up.k);
  ISA_CHECK(up.experts == down.experts && up.format == down.format);
  ISA_CHECK(args.x.dtype == DType::kF32 && args.out.dtype == DType::kF32);
  Plan plan{.args = args};
  plan.top_k = top_k;
  plan.f32 = up.format == WeightFormat::kF32;
  plan.grouped = up.format == WeightFormat::kInt8 || up.format == WeightFormat::kInt4;
  plan.inner = down.k;
  plan.hidden = up.k;
  plan.split = plan.inner % kPanelWidth != 0;
  // Chunks bound the scratch memory; a row's bits don't depend on them.
  const int64_t chunk = kMoePairs / top_k < 1 ? 1 : kMoePairs / top_k;
  for (plan.first = 0; plan.first < rows; plan.first += chunk) {
    plan.tokens = rows - plan.first < chunk ? rows - plan.first : chunk;
    plan.pairs = plan.tokens * top_k;
    run_chunk(stream, plan);
  }
}

}  // namespace weft::WEFT_ISA_NS
