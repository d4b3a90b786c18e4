// The wrappers of kernels/cuda/common: what the instruction descriptors and fragments mean, on
// small integers, for which every product is exact.

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/common/wgmma.h"
#include "tests/ops_cuda/support.h"

namespace weft::cuda {
namespace {

enum class Mode {
  kBf16,
  kBf16TransposedB,
  kBf16A,
  kBf16ATransposedB,
  kBf16TransposedA,
  kE4m3,
  kE4m3A
};

constexpr int kRowBytes = 128;  // of a K-major tile: K = 64 bf16 or 128 e4m3
constexpr int kTileA = 64 * kRowBytes;

/// out [64, N] f32 = A B. K-major operands are [rows][K], transposed ones [K = 64][rows].
template <Mode M, int N>
__global__ void __launch_bounds__(128, 1)
    multiply(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
             float* out) {
  constexpr bool kTransposedB = M == Mode::kBf16TransposedB || M == Mode::kBf16ATransposedB;
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ Barrier loaded;
  uint8_t* a = shared;
  uint8_t* b = shared + kTileA;
  const int t = static_cast<int>(threadIdx.x);
  if (warp_index() == 0 && elect_one()) {
    barrier_init(&loaded, 1);
    fence_barrier_init();
    arrive_expect(&loaded, kTileA + N * kRowBytes);
    tma_load(a, &a_map, &loaded, Coords{0, 0});
    if (kTransposedB) {
      for (int panel = 0; panel < N / 64; ++panel) {
        tma_load(b + panel * 64 * 128, &b_map, &loaded, Coords{64 * panel, 0});
      }
    } else {
      tma_load(b, &b_map, &loaded, Coords{0, 0});
    }
  }
  __syncthreads();
  wait(&loaded, 0);
  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = 1e30f;  // accumulate = 0 must overwrite
  uint32_t fragments[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    // Lanes 0-15 give rows 0-15 of the left 16 bytes, lanes 16-31 of the right ones.
    const uint32_t row = 16 * (t / 32) + t % 16;
    load_matrices(fragments[k], shared_address(a) + swizzled_128(row, 32 * k + 16 * (t % 32 / 16)));
    hold(fragments[k]);
  }
  hold(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint64_t desc_a = M == Mode::kBf16TransposedA ? advance(mn_major_128(a, kTileA), 2048 * k)
                                                        : advance(k_major_128(a), 32 * k);
    const uint64_t desc_b = kTransposedB ? advance(mn_major_128(b, 64 * 128), 2048 * k)
                                         : advance(k_major_128(b), 32 * k);
    if constexpr (M == Mode::kBf16) {
      Wgmma<N>::bf16(d, desc_a, desc_b, k != 0);
    } else if constexpr (M == Mode::kBf16TransposedB) {
      Wgmma<N>::template bf16<false, true>(d, desc_a, desc_b, k != 0);
    } else if constexpr (M == Mode::kBf16TransposedA) {
      Wgmma<N>::template bf16<true, false>(d, desc_a, desc_b, k != 0);
    } else if constexpr (M == Mode::kBf16A) {
      Wgmma<N>::bf16_a(d, fragments[k], desc_b, k != 0);
    } else if constexpr (M == Mode::kBf16ATransposedB) {
      Wgmma<N>::template bf16_a<true>(d, fragments[k], desc_b, k != 0);
    } else if constexpr (M == Mode::kE4m3) {
      Wgmma<N>::e4m3(d, desc_a, desc_b, k != 0);
    } else {
      Wgmma<N>::e4m3_a(d, fragments[k], desc_b, k != 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  hold(d);
  const int row = 16 * (t / 32) + t % 32 / 4;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const int column = i / 4 * 8 + 2 * (t % 4) + i % 2;
    out[(row + i % 4 / 2 * 8) * N + column] = d[i];
  }
}

/// e4m3 of the integers -3 .. 3.
uint8_t e4m3_of(int value) {
  constexpr uint8_t kCodes[] = {0x00, 0x38, 0x40, 0x44};
  return static_cast<uint8_t>(kCodes[std::abs(value)] | (value < 0 ? 0x80 : 0));
}

template <Mode M, int N>
void check_multiply() {
  constexpr bool kE4 = M == Mode::kE4m3 || M == Mode::kE4m3A;
  constexpr bool kTransposedB = M == Mode::kBf16TransposedB || M == Mode::kBf16ATransposedB;
  constexpr bool kTransposedA = M == Mode::kBf16TransposedA;
  constexpr int kK = kE4 ? 128 : 64;
  std::vector<int> a(64 * kK), b(N * kK);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<int>(philox4x32(1, i, 0)[0] % 7) - 3;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<int>(philox4x32(2, i, 0)[0] % 7) - 3;
  const auto device = [&](const std::vector<int>& v, int rows, bool transposed) {
    if (kE4) {
      std::vector<int32_t> raw(v.size() / 4);
      for (size_t i = 0; i < v.size(); ++i) {
        raw[i / 4] |= static_cast<int32_t>(uint32_t{e4m3_of(v[i])} << (i % 4 * 8));
      }
      return DeviceTensor(raw);
    }
    std::vector<float> f(v.size());
    for (int r = 0; r < rows; ++r) {
      for (int k = 0; k < kK; ++k) {
        f[static_cast<size_t>(transposed ? k * rows + r : r * kK + k)] =
            static_cast<float>(v[static_cast<size_t>(r * kK + k)]);
      }
    }
    return DeviceTensor(DType::kBF16, {static_cast<int64_t>(f.size())}, f);
  };
  const DeviceTensor da = device(a, 64, kTransposedA), db = device(b, N, kTransposedB);
  DeviceTensor out(DType::kF32, {64, N});
  out.poison();
  const auto map = [&](const DeviceTensor& tensor, int rows, bool transposed) {
    MatrixMap m{.type = kE4 ? MapType::kE4M3 : MapType::kBF16,
                .rows = rows,
                .columns = kK,
                .row_bytes = kRowBytes,
                .box_rows = static_cast<uint32_t>(rows),
                .box_columns = kK};
    if (transposed) {
      m.rows = 64;
      m.columns = rows;
      m.row_bytes = rows * 2;
      m.box_rows = 64;
      m.box_columns = 64;
    }
    return encode_map(tensor.view.data, m);
  };
  CudaTestStream stream;
  launch(stream, {.grid = 1, .block = 128, .shared_bytes = kTileA + N * kRowBytes}, multiply<M, N>,
         map(da, 64, kTransposedA), map(db, N, kTransposedB), static_cast<float*>(out.view.data));
  stream.sync();
  const std::vector<float> result = out.floats();
  int wrong = 0;
  for (int r = 0; r < 64; ++r) {
    for (int n = 0; n < N; ++n) {
      int expected = 0;
      for (int k = 0; k < kK; ++k) {
        expected += a[static_cast<size_t>(r * kK + k)] * b[static_cast<size_t>(n * kK + k)];
      }
      wrong += result[static_cast<size_t>(r * N + n)] != static_cast<float>(expected);
    }
  }
  EXPECT_EQ(wrong, 0) << "mode " << static_cast<int>(M) << ", N " << N;
}

TEST(Wgmma, SmallBf16) {
  check_multiply<Mode::kBf16, 32>();
  check_multiply<Mode::kBf16, 64>();
  check_multiply<Mode::kBf16, 96>();
  check_multiply<Mode::kBf16, 128>();
  check_multiply<Mode::kBf16, 192>();
  check_multiply<Mode::kBf16, 256>();
}

TEST(Wgmma, SmallTransposedB) {
  check_multiply<Mode::kBf16TransposedB, 64>();
  check_multiply<Mode::kBf16TransposedB, 128>();
  check_multiply<Mode::kBf16TransposedB, 256>();
}

TEST(Wgmma, SmallTransposedA) {
  check_multiply<Mode::kBf16TransposedA, 64>();
}

TEST(Wgmma, SmallAInRegisters) {
  check_multiply<Mode::kBf16A, 64>();
  check_multiply<Mode::kBf16A, 128>();
  check_multiply<Mode::kBf16ATransposedB, 64>();
  check_multiply<Mode::kBf16ATransposedB, 256>();
}

TEST(Wgmma, SmallE4m3) {
  check_multiply<Mode::kE4m3, 64>();
  check_multiply<Mode::kE4m3, 128>();
  check_multiply<Mode::kE4m3A, 128>();
}

}  // namespace
}  // namespace weft::cuda
