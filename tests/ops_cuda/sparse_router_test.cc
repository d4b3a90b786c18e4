// The router of Elastic-Attention against the oracle, and bit for bit in other company.

#include <memory>

#include "kernels/ref/ref.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

struct Router {
  int dim = 128, kv_heads = 8, group = 4;
  float bias[2] = {0, 0};  ///< of the last layer
};

/// `lengths`: rows of the segments; the keys of a segment are drawn from its length.
class Routing {
 public:
  Routing(const Router& router, std::vector<int> lengths) : r_(router), lengths_(lengths) {
    cu_q_ = {0};
    for (const int rows : lengths_) {
      cu_q_.push_back(cu_q_.back() + rows);
      const auto part =
          random_bf16(int64_t{rows} * r_.kv_heads * r_.dim, static_cast<uint64_t>(rows) + 17, 3);
      k_.insert(k_.end(), part.begin(), part.end());
    }
    const int dims[5][2] = {{4 * r_.dim, r_.dim},
                            {r_.dim, 4 * r_.dim},
                            {4 * r_.dim, r_.dim},
                            {r_.dim, 4 * r_.dim},
                            {2, r_.dim}};
    for (uint64_t i = 0; i < 5; ++i) {
      n_[i] = dims[i][0];
      weights_[i] = random_bf16(int64_t{dims[i][0]} * dims[i][1], 100 + i,
                                4 / std::sqrt(static_cast<float>(dims[i][1])));
      bias_[i] = random_bf16(dims[i][0], 200 + i, 0.5f);
    }
    for (size_t i = 0; i < 2; ++i) bias_[4][i] += r_.bias[i];
    norm_ = random_bf16(r_.dim, 300, 1);
  }

  void oracle() {
    RouterArgs args = common_args();
    args.k = TensorView(k_.data(), DType::kF32, {cu_q_.back(), r_.kv_heads, r_.dim});
    args.cu_q = TensorView(cu_q_.data(), DType::kI32, {static_cast<int64_t>(cu_q_.size())});
    args.k_norm = TensorView(norm_.data(), DType::kF32, {r_.dim});
    for (size_t i = 0; i < 5; ++i) {
      set(args.weights, i, TensorView(weights_[i].data(), DType::kF32, {n_[i], columns(i)}),
          TensorView(bias_[i].data(), DType::kF32, {n_[i]}));
    }
    logits.assign(lengths_.size() * static_cast<size_t>(r_.kv_heads) * 2, -7);
    kinds.assign(lengths_.size() * static_cast<size_t>(r_.kv_heads * r_.group), 99);
    args.logits = TensorView(logits.data(), DType::kF32, {segments(), r_.kv_heads, 2});
    args.kinds = TensorView(kinds.data(), DType::kI32, {segments(), r_.kv_heads * r_.group});
    ThreadPool pool(1);
    Arena scratch;
    Stream stream(pool, scratch);
    ref::route_heads(stream, args);
  }
  void run() {
    RouterArgs args = common_args();
    const int64_t width = r_.kv_heads * r_.dim;
    DeviceTensor k(DType::kBF16, {cu_q_.back(), width}, k_);
    DeviceTensor cu_q(cu_q_), norm(DType::kF32, {r_.dim}, norm_);
    args.k = k.view.split_last(r_.kv_heads, r_.dim);
    args.cu_q = cu_q.view;
    args.k_norm = norm.view;
    std::vector<std::unique_ptr<DeviceTensor>> owned;
    for (size_t i = 0; i < 5; ++i) {
      owned.push_back(std::make_unique<DeviceTensor>(
          DType::kBF16, std::initializer_list<int64_t>{n_[i], columns(i)}, weights_[i]));
      owned.push_back(std::make_unique<DeviceTensor>(
          DType::kF32, std::initializer_list<int64_t>{n_[i]}, bias_[i]));
      set(args.weights, i, owned[2 * i]->view, owned[2 * i + 1]->view);
    }
    DeviceTensor logits_out(DType::kF32, {segments(), r_.kv_heads, 2});
    DeviceTensor kinds_out(
        std::vector<int32_t>(lengths_.size() * static_cast<size_t>(r_.kv_heads * r_.group), 99));
    logits_out.poison();
    args.logits = logits_out.view;
    args.kinds = TensorView(kinds_out.view.data, DType::kI32, {segments(), r_.kv_heads * r_.group});
    CudaTestStream stream;
    cuda::route_heads(stream, args);
    stream.sync();
    logits = logits_out.floats();
    const std::vector<std::byte> bytes = kinds_out.bytes();
    kinds.resize(bytes.size() / 4);
    std::memcpy(kinds.data(), bytes.data(), bytes.size());
  }
  /// Of segment `s`.
  std::vector<float> logits_of(size_t s) const {
    const auto n = static_cast<int64_t>(2 * r_.kv_heads);
    return {logits.begin() + static_cast<int64_t>(s) * n,
            logits.begin() + static_cast<int64_t>(s + 1) * n};
  }

  std::vector<float> logits;
  std::vector<int32_t> kinds;

 private:
  RouterArgs common_args() const {
    RouterArgs args;
    args.num_segments = static_cast<int>(lengths_.size());
    args.retrieval = HeadKind::kBlocks;
    args.sparse = HeadKind::kStreaming;
    return args;
  }
  static void set(RouterWeights& weights, size_t i, TensorView weight, TensorView bias) {
    (i < 2 ? weights.feature[i] : weights.router[i - 2]) = weight;
    (i < 2 ? weights.feature_bias[i] : weights.router_bias[i - 2]) = bias;
  }
  int64_t columns(size_t i) const { return i % 2 == 0 ? r_.dim : 4 * r_.dim; }
  int64_t segments() const { return static_cast<int64_t>(lengths_.size()); }

  Router r_;
  std::vector<int> lengths_;
  std::vector<int32_t> cu_q_;
  std::vector<float> k_, norm_, weights_[5], bias_[5];
  int64_t n_[5] = {};
};

void expect_oracle(const Router& router, const std::vector<int>& lengths) {
  Routing routing(router, lengths);
  routing.oracle();
  const auto want = routing.logits;
  const auto kinds = routing.kinds;
  routing.run();
  const auto width = static_cast<size_t>(router.kv_heads * router.group);
  for (size_t s = 0; s < lengths.size(); ++s) {
    if (lengths[s] == 0) continue;  // nothing is written
    for (size_t i = 0; i < width; ++i) {
      const size_t head =
          s * static_cast<size_t>(router.kv_heads) + i / static_cast<size_t>(router.group);
      const float low = want[2 * head], high = want[2 * head + 1];
      ASSERT_NEAR(routing.logits[2 * head], low, 1e-4) << lengths[s];
      ASSERT_NEAR(routing.logits[2 * head + 1], high, 1e-4) << lengths[s];
      if (std::abs(high - low) > 3e-4f || high == low) {
        ASSERT_EQ(routing.kinds[s * width + i], kinds[s * width + i]);
      }
    }
  }
}

TEST(SparseRouter, SmallAgainstOracle) {
  expect_oracle({.dim = 64, .kv_heads = 2, .group = 2}, {1, 0, 3});
}

TEST(SparseRouter, LengthsAgainstOracle) {
  expect_oracle({}, {1, 99, 100, 101, 150, 199, 200, 201, 0, 777});
  expect_oracle({.dim = 256, .kv_heads = 2, .group = 8}, {130, 3});
  expect_oracle({.dim = 256, .kv_heads = 6, .group = 1}, {130, 3, 7});
  expect_oracle({.dim = 40, .kv_heads = 3, .group = 1}, {230});
}

TEST(SparseRouter, BiasDecides) {
  for (const bool retrieval : {false, true}) {
    Routing routing({.bias = {retrieval ? -99.0f : 99.0f, 0}}, {300, 20});
    routing.run();
    for (const int32_t kind : routing.kinds) {
      EXPECT_EQ(kind, static_cast<int32_t>(retrieval ? HeadKind::kBlocks : HeadKind::kStreaming));
    }
  }
}

TEST(SparseRouter, SameBitsInAnyCompany) {
  Routing all({}, {150, 40, 1, 512});
  all.run();
  Routing other({}, {512, 0, 150});
  other.run();
  EXPECT_EQ(all.logits_of(3), other.logits_of(0));
  EXPECT_EQ(all.logits_of(0), other.logits_of(2));
  Routing alone({}, {512});  // clusters of other sizes
  alone.run();
  EXPECT_EQ(all.logits_of(3), alone.logits_of(0));
  Routing many({}, {512, 33, 34, 35, 36, 37, 38, 39, 150});
  many.run();
  EXPECT_EQ(alone.logits_of(0), many.logits_of(0));
  EXPECT_EQ(all.logits_of(0), many.logits_of(8));
}

}  // namespace
}  // namespace weft
