#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/ref/ref.h"

namespace weft::ref {
namespace {

using Values = std::vector<double>;

Values layer(const TensorView& weight, const TensorView& bias, const Values& x, bool activate) {
  Values y(static_cast<size_t>(weight.dim(0)));
  for (size_t n = 0; n < y.size(); ++n) {
    y[n] = bias.ptr<float>()[n];
    const float* row = weight.row<float>(static_cast<int64_t>(n));
    for (size_t k = 0; k < x.size(); ++k) y[n] += x[k] * row[k];
    if (activate) y[n] /= 1 + std::exp(-y[n]);
  }
  return y;
}

/// Adds the normed row to `sum`.
void add_key(const RouterArgs& args, int64_t row, int64_t head, Values& sum) {
  const float* k = row3(args.k, row, head);
  double mean = 0;
  for (size_t i = 0; i < sum.size(); ++i) mean += double{k[i]} * k[i] / double(sum.size());
  for (size_t i = 0; i < sum.size(); ++i) {
    sum[i] += args.k_norm.defined()
                  ? k[i] / std::sqrt(mean + double{args.eps}) * args.k_norm.ptr<float>()[i]
                  : k[i];
  }
}

}  // namespace

void route_heads(Stream&, const RouterArgs& args) {
  const int64_t kv_heads = args.k.dim(1), group = args.kinds.dim(1) / kv_heads;
  for (int s = 0; s < args.num_segments; ++s) {
    const int64_t begin = args.cu_q.ptr<int32_t>()[s], end = args.cu_q.ptr<int32_t>()[s + 1];
    if (begin == end) continue;
    const int64_t pooled = std::min<int64_t>(end - begin, RouterArgs::kPooled);
    for (int64_t g = 0; g < kv_heads; ++g) {
      Values x(static_cast<size_t>(args.k.dim(2)), 0.0);
      for (int64_t i = 0; i < pooled; ++i) {
        add_key(args, begin + i, g, x);
        add_key(args, end - 1 - i, g, x);
      }
      for (double& value : x) value /= 2.0 * static_cast<double>(pooled);
      const RouterWeights& w = args.weights;
      x = layer(w.feature[0], w.feature_bias[0], x, true);
      x = layer(w.feature[1], w.feature_bias[1], x, false);
      x = layer(w.router[0], w.router_bias[0], x, true);
      x = layer(w.router[1], w.router_bias[1], x, true);
      x = layer(w.router[2], w.router_bias[2], x, false);
      float* logits = args.logits.row<float>(s) + g * 2;
      logits[0] = static_cast<float>(x[0]);
      logits[1] = static_cast<float>(x[1]);
      const HeadKind kind = logits[1] > logits[0] ? args.retrieval : args.sparse;
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        kind_of(args.kinds, args.rows, s, h) = static_cast<int32_t>(kind);
      }
    }
  }
}

std::vector<double> block_scores(const SelectArgs& args, int64_t segment, int64_t head, int64_t b) {
  const AttnArgs& attn = *args.attention;
  const int64_t begin = attn.seqs.cu_q.ptr<int32_t>()[segment];
  const int64_t start = attn.seqs.kv_start.ptr<int32_t>()[segment];
  const int64_t end = start + attn.seqs.cu_q.ptr<int32_t>()[segment + 1] - begin;
  const int32_t* table = attn.seqs.block_table.row<int32_t>(segment);
  const int64_t stride = args.stride, dim = attn.shape.head_dim;
  const int64_t kv_head = head / (attn.shape.q_heads / attn.shape.kv_heads);
  const int64_t block_size = attn.kv.shape.block_size;
  std::vector<float> k(static_cast<size_t>(end * dim));
  for (int64_t p = 0; p < end; ++p) {
    kv_load(attn.kv, 0, table[p / block_size], p % block_size, static_cast<int>(kv_head),
            k.data() + p * dim);
  }
  std::vector<double> scores(static_cast<size_t>(b + 1), 0.0);
  for (int64_t i = b * HeadPlan::kBlock / stride;
       i < (b + 1) * HeadPlan::kBlock / stride && i * stride < end; ++i) {
    std::vector<double> a(static_cast<size_t>(i + 1), 0.0);
    for (int64_t j = 0; j <= i; ++j) {
      for (int64_t t = 0; t < stride; ++t) {
        const int64_t row = i * stride + stride - 1 - t, key = j * stride + t;
        if (row >= end || key >= end) continue;
        const float* q = row3(attn.q, begin + row - start, head);
        for (int64_t d = 0; d < dim; ++d) {
          a[static_cast<size_t>(j)] += double{q[d]} * k[static_cast<size_t>(key * dim + d)];
        }
      }
      a[static_cast<size_t>(j)] *=
          double{attn.shape.scale} / (static_cast<double>(stride) * double{args.norm});
    }
    const double top = *std::max_element(a.begin(), a.end());
    double total = 0;
    for (double& x : a) total += x = std::exp(x - top);
    for (int64_t j = 0; j <= i; ++j) {
      scores[static_cast<size_t>(j * stride / HeadPlan::kBlock)] +=
          a[static_cast<size_t>(j)] / total;
    }
  }
  return scores;
}

std::vector<bool> choose_blocks(const std::vector<double>& scores, double threshold, bool quirk) {
  const size_t b = scores.size() - 1;
  std::vector<bool> chosen(scores.size(), threshold >= 1);
  if (threshold >= 1) return chosen;
  chosen[b] = true;
  double mass = scores[b];
  if (!quirk && b > 0) {
    chosen[0] = true;
    mass += scores[0];
  }
  const double wanted = threshold * std::accumulate(scores.begin(), scores.end(), 0.0);
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t x, size_t y) { return scores[x] > scores[y]; });
  double late = quirk ? -1 : mass;  // what a block is weighed against
  for (const size_t c : order) {
    if (chosen[c]) continue;
    if (late >= wanted) break;
    chosen[c] = true;
    late = quirk ? mass : mass + scores[c];
    mass += scores[c];
  }
  chosen[0] = true;
  return chosen;
}

void select_blocks(Stream&, const SelectArgs& args) {
  const AttnArgs& attn = *args.attention;
  const HeadPlan& plan = *attn.heads;
  for (int s = 0; s < attn.num_prompt_segments; ++s) {
    const int64_t start = attn.seqs.kv_start.ptr<int32_t>()[s];
    const int64_t rows = attn.seqs.cu_q.ptr<int32_t>()[s + 1] - attn.seqs.cu_q.ptr<int32_t>()[s];
    for (int64_t h = 0; h < attn.shape.q_heads; ++h) {
      const int32_t kind = kind_of(plan.kinds, plan.rows, s, h);
      if (kind != static_cast<int32_t>(HeadKind::kBlocks)) continue;
      for (int64_t row = 0; row * HeadPlan::kBlock < rows; ++row) {
        const int64_t b = start / HeadPlan::kBlock + row;
        const std::vector<double> scores = block_scores(args, s, h, b);
        const std::vector<bool> chosen =
            choose_blocks(scores, args.thresholds.ptr<float>()[h], b < args.quirk_blocks);
        int32_t* words =
            plan.blocks.row<int32_t>(s) + h * plan.blocks.stride[1] + row * plan.blocks.stride[2];
        std::fill_n(words, plan.blocks.dim(3), 0);
        int32_t count = 0;
        double kept = 0;
        for (size_t c = 0; c < chosen.size(); ++c) {
          if (!chosen[c]) continue;
          kept += scores[c];
          words[c / 32] |= static_cast<int32_t>(1u << (c % 32));
          ++count;
        }
        plan.counts.row<int32_t>(s)[h * plan.counts.stride[1] + row] = count;
        if (args.mass.defined()) {
          args.mass.row<float>(s)[h * args.mass.stride[1] + row] =
              static_cast<float>(kept / std::accumulate(scores.begin(), scores.end(), 0.0));
        }
      }
    }
  }
}

}  // namespace weft::ref
