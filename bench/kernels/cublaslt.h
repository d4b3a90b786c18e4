#pragma once

// cuBLASLt as the anchor of GEMM benches: found at run time (dlopen), its best algorithm by timing.

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <vector>

#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"

namespace weft::bench {

/// out [m, n] bf16 = x [m, k] w [n, k]^T.
class CublasLt {
 public:
  CublasLt() {
    library_ = dlopen("libcublasLt.so.13", RTLD_NOW);
    if (!library_) library_ = dlopen("libcublasLt.so", RTLD_NOW);
    if (!library_) return;
    load(create_, "cublasLtCreate");
    load(desc_create_, "cublasLtMatmulDescCreate");
    load(desc_set_, "cublasLtMatmulDescSetAttribute");
    load(layout_create_, "cublasLtMatrixLayoutCreate");
    load(preference_create_, "cublasLtMatmulPreferenceCreate");
    load(preference_set_, "cublasLtMatmulPreferenceSetAttribute");
    load(heuristic_, "cublasLtMatmulAlgoGetHeuristic");
    load(matmul_, "cublasLtMatmul");
    create_(&handle_);
    workspace_ = Buffer::allocate(DeviceKind::kCuda, kWorkspace).value();
  }
  bool found() const { return library_ != nullptr; }

  struct Problem {
    int64_t m, n, k;
    /// Memory of call i.
    std::function<const void*(int)> x, w;
    std::function<void*(int)> out;
  };
  /// The best microseconds over the heuristic's first algorithms.
  double time_us(Gpu& gpu, const Problem& p, int calls) {
    cublasLtMatmulDesc_t desc;
    desc_create_(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    desc_set_(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    cublasLtMatrixLayout_t a, b, c;
    layout_create_(&a, CUDA_R_16BF, p.k, p.n, p.k);
    layout_create_(&b, CUDA_R_16BF, p.k, p.m, p.k);
    layout_create_(&c, CUDA_R_16BF, p.n, p.m, p.n);
    cublasLtMatmulPreference_t preference;
    preference_create_(&preference);
    const size_t workspace = kWorkspace;
    preference_set_(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                    sizeof workspace);
    cublasLtMatmulHeuristicResult_t results[8];
    int found = 0;
    heuristic_(handle_, desc, a, b, c, c, preference, 8, results, &found);
    const auto once = [&](int algorithm, int call) {
      const float one = 1, zero = 0;
      matmul_(handle_, desc, &one, p.w(call), a, p.x(call), b, &zero, p.out(call), c, p.out(call),
              c, &results[algorithm].algo, workspace_.data(), kWorkspace,
              cuda::native(gpu.stream()));
    };
    std::vector<std::pair<double, int>> times;
    for (int i = 0; i < found; ++i) {
      times.emplace_back(gpu.time_us([&](int call) { once(i, call); }, calls, 3), i);
    }
    if (times.empty()) return 0;
    std::sort(times.begin(), times.end());
    double best = 1e30;
    for (size_t i = 0; i < std::min<size_t>(2, times.size()); ++i) {
      best = std::min(best, gpu.time_us([&](int call) { once(times[i].second, call); }, calls));
    }
    return best;
  }

 private:
  static constexpr int64_t kWorkspace = int64_t{64} << 20;
  template <class F>
  void load(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(library_, name));
    CHECK(function != nullptr, name);
  }
  void* library_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  decltype(&cublasLtCreate) create_;
  decltype(&cublasLtMatmulDescCreate) desc_create_;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set_;
  decltype(&cublasLtMatrixLayoutCreate) layout_create_;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create_;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set_;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic_;
  decltype(&cublasLtMatmul) matmul_;
};

}  // namespace weft::bench
