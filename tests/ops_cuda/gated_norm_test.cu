#include "kernels/ref/ref.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

struct Case {
  int64_t rows, heads, dim;
  GateActivation activation;
};

/// Runs both; z is strided (the last columns of wider rows). Returns our output.
std::vector<float> compare(const Case& c, bool in_place) {
  const int64_t width = c.heads * c.dim, z_row = 2 * width + 8;
  const std::vector<float> x = random_bf16(c.rows * width, 1, 3);
  const std::vector<float> z = random_bf16(c.rows * z_row, 2, 4);
  std::vector<float> weight = random_bf16(c.dim, 3), want(x.size() + 1), host_x = x, host_z = z;
  ThreadPool pool(1);
  Arena none;
  Stream host(pool, none);
  const auto columns = [&](const TensorView& v) {
    return v.columns(width + 8, 2 * width + 8).split_last(c.heads, c.dim);
  };
  GatedNormArgs args{.x = {host_x.data(), DType::kF32, {c.rows, c.heads, c.dim}},
                     .z = columns({host_z.data(), DType::kF32, {c.rows, z_row}}),
                     .weight = {weight.data(), DType::kF32, {c.dim}},
                     .out = {want.data(), DType::kF32, {c.rows, c.heads, c.dim}},
                     .eps = 1e-5f,
                     .activation = c.activation};
  ref::gated_norm(host, args);
  want.pop_back();

  const DeviceTensor device_x(DType::kBF16, {c.rows, c.heads, c.dim}, x);
  const DeviceTensor device_z(DType::kBF16, {c.rows, z_row}, z);
  const DeviceTensor device_weight(DType::kF32, {c.dim}, weight);
  DeviceTensor out(DType::kBF16, {c.rows, c.heads, c.dim});
  out.poison();
  args.x = device_x.view;
  args.z = columns(device_z.view);
  args.weight = device_weight.view;
  args.out = in_place ? device_x.view : out.view;
  CudaTestStream stream;
  cuda::gated_norm(stream, args);
  stream.sync();
  const std::vector<float> got = in_place ? device_x.floats() : out.floats();
  EXPECT_LT(relative_l2(got, want), 2e-3) << c.rows << " " << c.heads << " " << c.dim;
  return got;
}

TEST(GatedNormCuda, SmallMatchesTheOracle) {
  for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kSigmoid}) {
    for (const int64_t rows : {0, 1, 5, 33}) {
      for (const int64_t dim : {128, 64, 16, 40}) {
        const Case c{rows, 3, dim, activation};
        EXPECT_EQ(compare(c, false), compare(c, true));
      }
    }
  }
}

TEST(GatedNormCuda, RowsAreTheSameBitsInAnyNumber) {
  for (const int64_t dim : {128, 64, 48}) {
    const std::vector<float> one = compare({1, 4, dim, GateActivation::kSilu}, false);
    std::vector<float> many = compare({77, 4, dim, GateActivation::kSilu}, false);
    many.resize(one.size());
    EXPECT_EQ(one, many);
  }
}

}  // namespace
}  // namespace weft
