#include <atomic>
#include <new>

#include "kernels/cpu/gemm_columns.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {
namespace {

/// The blocks that one thread streams, in memory order. Who is done early takes from the others,
/// so that a thread which lost its CPU for a while holds nobody up.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

struct Blocks {
  int64_t first, count;
};

/// The next blocks for `worker`: `together` of them, or one where few are left, so that threads end
/// close to each other. None: a count of 0.
Blocks take_blocks(Share* shares, int threads, int worker, int64_t together) {
  for (int i = 0; i < threads; ++i) {
    Share& share = shares[worker + i < threads ? worker + i : worker + i - threads];
    int64_t next = share.next.load(std::memory_order_relaxed);
    while (next < share.end) {
      const int64_t count = share.end - next >= 2 * together ? together : 1;
      if (share.next.compare_exchange_weak(next, next + count, std::memory_order_relaxed))
        return {next, count};
    }
  }
  return {0, 0};
}

}  // namespace

void linear(Stream& stream, const LinearArgs& args) {
  const int64_t rows = args.x.shape[0];
  if (rows == 0) return;
  if (args.norm.weight.defined()) rms_norm(stream, args.norm);
  const Weight& weight = *args.weight;
  const bool grouped =
      weight.shape.format == WeightFormat::kInt8 || weight.shape.format == WeightFormat::kInt4;
  const bool f32 = weight.shape.format == WeightFormat::kF32;
  const int64_t n = weight.shape.n, k = weight.shape.k;
  const bool silu = args.epilogue == Epilogue::kSiluMul;
  ISA_CHECK(args.x.dtype == DType::kF32 && args.out.dtype == DType::kF32);
  ISA_CHECK(args.x.shape[1] == k && args.out.shape[0] == rows);
  ISA_CHECK(args.out.shape[1] == (silu ? n / 2 : n) && (!silu || n % 2 == 0));
  ISA_CHECK(args.x.stride[1] == 1 && args.out.stride[1] == 1);

  const ScratchScope scope(stream);
  ColumnJob job;
  job.matrix = packed_matrix(weight, 0);
  int64_t prompt = args.prompt_rows < 0 ? 0 : args.prompt_rows;
  if (!grouped || prompt > rows) prompt = rows;
  job.prompt = {nullptr, prompt, job.matrix.steps};
  job.prompt.data =
      static_cast<std::byte*>(scope.take(packed_rows_bytes(prompt, job.matrix.steps, f32)));
  const int64_t decode = rows - prompt;
  job.decode = int_rows(scope.take(int_rows_bytes(decode, job.matrix.steps)), decode, job.matrix);
  job.bias = static_cast<const float*>(args.bias.data);
  job.epilogue = args.epilogue;
  job.out = static_cast<float*>(args.out.data);
  job.out_stride = args.out.stride[0];
  const bool split = silu && n / 2 % kPanelWidth != 0;
  if (split) {  // gate and up share a panel: compute both, then combine
    job.epilogue = Epilogue::kStore;
    job.out = static_cast<float*>(scope.take(rows * n * 4));
    job.out_stride = n;
  }

  ThreadPool& pool = stream.pool();
  const int threads = pool.num_threads();
  const ColumnCut cut = cut_columns(job, threads);
  auto* scratch = static_cast<std::byte*>(scope.take(threads * kColumnScratchBytes));
  const auto* x = static_cast<const float*>(args.x.data);
  const int64_t x_stride = args.x.stride[0];
  // Padding rows of the last tile are packed too: the tiles read them.
  const int64_t padded = padded_rows(job.prompt);
  // Many rows: one queue in order, so that the threads share the weights in the cache.
  const int num_shares = cut.stream ? threads : 1;
  auto* shares = static_cast<Share*>(scope.take(num_shares * static_cast<int64_t>(sizeof(Share))));
  for (int i = 0; i < num_shares; ++i) {
    new (shares + i) Share{cut.blocks * i / num_shares, cut.blocks * (i + 1) / num_shares};
  }
  pool.parallel([&](int worker) {
    const int64_t all = padded + decode;
    for (int64_t i = all * worker / threads; i < all * (worker + 1) / threads; ++i) {
      if (i < padded) {
        pack_row(job.prompt, i, x + i * x_stride, k, f32);
      } else {
        pack_int_row(job.decode, i - padded, x + (prompt + i - padded) * x_stride, k);
      }
    }
    pool.barrier();
    std::byte* mine = scratch + worker * kColumnScratchBytes;
    multiply_begin();
    for (;;) {
      const Blocks take = take_blocks(shares, num_shares, cut.stream ? worker : 0, cut.together);
      if (take.count == 0) break;
      compute_blocks(job, cut, take.first, take.count, mine);
    }
    multiply_end();
    if (!split) return;
    pool.barrier();
    for (int64_t r = rows * worker / threads; r < rows * (worker + 1) / threads; ++r) {
      silu_mul_row(job.out + r * n, n / 2,
                   static_cast<float*>(args.out.data) + r * args.out.stride[0]);
    }
  });
}

}  // namespace weft::WEFT_ISA_NS
