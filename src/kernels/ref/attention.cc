#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/ref/ref.h"

namespace weft::ref {
namespace {

/// One query row of a head of segment `segment` over the keys up to its own position.
void attend(const AttnArgs& args, int64_t segment, int64_t row, int head) {
  const int64_t block_size = args.kv.shape.block_size;
  const size_t head_dim = static_cast<size_t>(args.shape.head_dim);
  const int kv_head = head / (args.shape.q_heads / args.shape.kv_heads);
  const int32_t* table = args.seqs.block_table.row<int32_t>(segment);
  const int64_t start = args.seqs.kv_start.ptr<int32_t>()[segment];
  const int64_t position = start + row - args.seqs.cu_q.ptr<int32_t>()[segment];
  const int64_t num_keys = std::max<int64_t>(position + 1, 0);  // a row before position 0 has none
  const float* q = row3(args.q, row, head);
  float* out = row3(args.out, row, head);
  const bool planned = args.heads != nullptr && segment < args.num_prompt_segments;
  std::vector<float> values(head_dim);
  std::vector<double> scores(static_cast<size_t>(num_keys)), sum(head_dim, 0.0);
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t p = 0; p < num_keys; ++p) {
    double& score = scores[static_cast<size_t>(p)];
    score = -std::numeric_limits<double>::infinity();
    if (planned && !sees(*args.heads, segment, head, start, position, p)) continue;
    kv_load(args.kv, 0, table[p / block_size], p % block_size, kv_head, values.data());
    double dot = 0;
    for (size_t i = 0; i < head_dim; ++i) dot += static_cast<double>(q[i]) * values[i];
    score = dot * args.shape.scale;
    largest = std::max(largest, score);
  }
  double total = 0;
  for (int64_t p = 0; p < num_keys; ++p) {
    const double weight = std::exp(scores[static_cast<size_t>(p)] - largest);
    if (weight == 0) continue;
    total += weight;
    kv_load(args.kv, 1, table[p / block_size], p % block_size, kv_head, values.data());
    for (size_t i = 0; i < head_dim; ++i) sum[i] += weight * values[i];
  }
  for (size_t i = 0; i < head_dim; ++i) {
    out[i] = num_keys > 0 ? static_cast<float>(sum[i] / total) : 0.0f;
  }
  if (args.lse.defined()) {
    args.lse.row<float>(row)[head] = static_cast<float>(largest + std::log(total));
  }
}

}  // namespace

void attention(Stream& stream, const AttnArgs& args) {
  for (int s = 0; s < args.seqs.num_segments; ++s) {
    const int64_t begin = args.seqs.cu_q.ptr<int32_t>()[s];
    const int64_t end = args.seqs.cu_q.ptr<int32_t>()[s + 1];
    stream.pool().for_each(end - begin, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        for (int h = 0; h < args.shape.q_heads; ++h) attend(args, s, begin + i, h);
      }
    });
  }
}

}  // namespace weft::ref
