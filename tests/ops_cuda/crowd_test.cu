// One request, one answer, for single ops: whatever other kernels run on the device meanwhile, an
// op gives the bits that it gave alone. Several streams run ops of all kinds at once, for
// WEFT_CROWD_SECONDS (10 unless set); several copies of this test beside each other under CUDA MPS
// crowd a device more than one process can (docs/gpu.md).

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "kernels/cuda/common/launch.h"
#include "tests/ops_cuda/product_support.h"

namespace weft {
namespace {

constexpr int kStreams = 6;

/// The largest exponent and the signs of random values.
struct Values {
  int exponent = 126;
  bool negative = true;
};

__global__ void fill_random(uint16_t* out, int64_t count, uint64_t seed, Values values) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t x = (static_cast<uint64_t>(i) + seed * 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 29) * 0x94D049BB133111EB;
    // No byte is a NaN of e4m3.
    const uint64_t exponent = static_cast<uint64_t>(values.exponent) - (x >> 52) % 7;
    out[i] = static_cast<uint16_t>((x >> 32 & (values.negative ? 0x8077 : 0x0077)) | exponent << 7);
  }
}

__global__ void count_differing(const uint32_t* a, const uint32_t* b, int64_t words,
                                unsigned long long* counter) {
  unsigned long long differing = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < words;
       i += int64_t{gridDim.x} * blockDim.x) {
    differing += a[i] != b[i];
  }
  if (differing > 0) atomicAdd(counter, differing);
}

/// Random bf16 values of seven exponents: of magnitude 2^-7 to 1 unless `values` says otherwise.
DeviceTensor random_values(std::initializer_list<int64_t> dims, uint64_t seed,
                           const Values& values = {}) {
  DeviceTensor out(DType::kBF16, dims);
  fill_random<<<256, 256>>>(out.view.ptr<uint16_t>(), out.view.size(), seed, values);
  cuda::check(cudaDeviceSynchronize(), "values");
  return out;
}
DeviceTensor random_floats(std::initializer_list<int64_t> dims, uint64_t seed, float scale) {
  const int64_t count = TensorView(nullptr, DType::kF32, dims).size();
  return {DType::kF32, dims, random_bf16(count, seed, scale)};
}

/// An op with inputs of its own or shared, and the bits that it gives alone.
class Op {
 public:
  using Run = std::function<void(Stream&)>;
  /// `outs` are 0 before each run.
  Op(std::string name, Run run, std::vector<TensorView> outs)
      : name_(std::move(name)), run_(std::move(run)), outs_(std::move(outs)) {
    for (const TensorView& out : outs_)
      first_.emplace_back(DType::kU8, std::initializer_list<int64_t>{out.bytes()});
    counter_ = DeviceTensor(std::vector<int64_t>{0});
  }

  void alone(CudaTestStream& stream) {
    enqueue(stream);
    for (size_t i = 0; i < outs_.size(); ++i) {
      cuda::check(
          cudaMemcpyAsync(first_[i].view.data, outs_[i].data, static_cast<size_t>(outs_[i].bytes()),
                          cudaMemcpyDeviceToDevice, cuda::native(stream)),
          "first");
    }
    stream.sync();
    for (const TensorView& out : outs_) expect_finite(out);
  }
  void again(CudaTestStream& stream) {
    enqueue(stream);
    for (size_t i = 0; i < outs_.size(); ++i) {
      count_differing<<<64, 256, 0, cuda::native(stream)>>>(
          outs_[i].ptr<uint32_t>(), first_[i].view.ptr<uint32_t>(), outs_[i].bytes() / 4,
          counter_.view.ptr<unsigned long long>());
    }
    ++runs_;
  }
  const std::string& name() const { return name_; }
  int64_t runs() const { return runs_; }
  /// Words of all runs that were not those of the first; synchronises.
  int64_t differing() const {
    int64_t count = 0;
    std::memcpy(&count, counter_.bytes().data(), 8);
    return count;
  }

 private:
  /// Bits of NaN would be equal whatever was read.
  void expect_finite(const TensorView& out) const {
    if (out.dtype == DType::kF32) {
      std::vector<float> values(static_cast<size_t>(out.size()));
      cuda::check(cudaMemcpy(values.data(), out.data, values.size() * 4, cudaMemcpyDeviceToHost),
                  "values");
      for (const float x : values) ASSERT_TRUE(std::isfinite(x));
    }
    if (out.dtype != DType::kBF16) return;
    std::vector<bf16> values(static_cast<size_t>(out.size()));
    cuda::check(cudaMemcpy(values.data(), out.data, values.size() * 2, cudaMemcpyDeviceToHost),
                "values");
    int64_t zeros = 0;
    for (const bf16 value : values) {
      const float x = bf16_to_float(value);
      ASSERT_TRUE(std::isfinite(x));
      zeros += x == 0;
    }
    EXPECT_LT(zeros, out.size() / 2);
  }
  void enqueue(CudaTestStream& stream) {
    for (const TensorView& out : outs_) {
      cuda::check(
          cudaMemsetAsync(out.data, 0, static_cast<size_t>(out.bytes()), cuda::native(stream)),
          "zero");
    }
    // launch() sets attributes of a kernel, and stands for one thread.
    static std::mutex launches;
    const std::lock_guard lock(launches);
    run_(stream);
  }

  std::string name_;
  Run run_;
  std::vector<TensorView> outs_;
  std::vector<DeviceTensor> first_;
  DeviceTensor counter_;
  int64_t runs_ = 0;
};

using Ops = std::vector<std::unique_ptr<Op>>;
template <class T>
using Shared = std::shared_ptr<T>;

// ---- Products

struct Product {
  WeightFormat format;
  int64_t n, k;
  Epilogue epilogue;
};
constexpr Product kProducts[] = {
    {WeightFormat::kFp8Block, 6144, 4096, Epilogue::kStore},
    {WeightFormat::kFp8Block, 4096, 4096, Epilogue::kAdd},
    {WeightFormat::kFp8Block, 8192, 4096, Epilogue::kSiluMul},
    {WeightFormat::kFp8Block, 2048, 12288, Epilogue::kAdd},
    {WeightFormat::kInt8, 6144, 4096, Epilogue::kStore},
    {WeightFormat::kInt8, 4096, 4096, Epilogue::kAdd},
    {WeightFormat::kInt4, 6144, 4096, Epilogue::kStore},
    {WeightFormat::kInt4, 4096, 4096, Epilogue::kAdd},
    {WeightFormat::kBf16, 6144, 4096, Epilogue::kStore},
    {WeightFormat::kBf16, 4096, 4096, Epilogue::kAdd},
    {WeightFormat::kBf16, 4096, 4096, Epilogue::kSiluMul},
};

struct Rows {
  const char* of;
  void (*product)(Stream&, const LinearArgs&);
};
constexpr Rows kDecoded = {"", cuda::linear_decode}, kPrompt = {" prompt", cuda::linear_prompt},
               kDrafts = {" drafts", cuda::draft_logits};

/// `rows` rows, normed first as in a model: what the product reads is new.
void add_product(Ops& ops, const Product& p, const Shared<PackedWeight>& weight, int64_t rows,
                 const Rows& kind) {
  struct Own {
    DeviceTensor x, norm, normed, out;
  };
  const int64_t columns = p.epilogue == Epilogue::kSiluMul ? p.n / 2 : p.n;
  const auto own = std::make_shared<Own>();
  own->x = random_floats({rows, p.k}, 4, 3.0f);
  own->norm = random_floats({p.k}, 5, 1.0f);
  own->normed = DeviceTensor(DType::kBF16, {rows, p.k});
  own->out =
      DeviceTensor(p.epilogue == Epilogue::kAdd ? DType::kF32 : DType::kBF16, {rows, columns});
  const auto run = [=](Stream& stream) {
    const RmsNormArgs norm{.x = own->x.view,
                           .residual = {},
                           .weight = own->norm.view,
                           .out = own->normed.view,
                           .eps = 1e-5f};
    cuda::rms_norm(stream, norm);
    LinearArgs args;
    args.x = own->normed.view;
    args.weight = &weight->weight;
    args.epilogue = p.epilogue;
    args.out = own->out.view;
    kind.product(stream, args);
  };
  ops.push_back(std::make_unique<Op>(std::string(weight_format_name(p.format)) + " product " +
                                         std::to_string(rows) + " x " + std::to_string(p.n) +
                                         " x " + std::to_string(p.k) + kind.of,
                                     run, std::vector<TensorView>{own->out.view}));
}

/// Drafts of 64 rows.
void add_drafts(Ops& ops, const Shared<PackedWeight>& weight) {
  struct Own {
    DeviceTensor x, norm, normed, logits, specs, last_token, results;
  };
  constexpr int64_t kRows = 64;
  const WeightShape& shape = weight->weight.shape;
  const auto own = std::make_shared<Own>();
  own->x = random_floats({kRows, shape.k}, 4, 3.0f);
  own->norm = random_floats({shape.k}, 5, 1.0f);
  own->normed = DeviceTensor(DType::kBF16, {kRows, shape.k});
  own->logits = DeviceTensor(DType::kF32, {kRows, shape.n});
  std::vector<SampleSpec> specs;
  for (int i = 0; i < kRows; ++i) specs.push_back({.slot = i, .temperature = 0});
  own->specs = upload_structs(specs);
  own->last_token = DeviceTensor(DType::kI32, {kRows});
  own->results = upload_structs(std::vector<SampleResult>(kRows));
  const auto run = [=](Stream& stream) {
    cuda::rms_norm(stream, {.x = own->x.view,
                            .residual = {},
                            .weight = own->norm.view,
                            .out = own->normed.view,
                            .eps = 1e-5f});
    LinearArgs args;
    args.x = own->normed.view;
    args.weight = &weight->weight;
    args.out = own->logits.view;
    cuda::draft_tokens(stream, args,
                       {.logits = own->logits.view,
                        .specs = static_cast<const SampleSpec*>(own->specs.view.data),
                        .last_token = own->last_token.view,
                        .results = static_cast<SampleResult*>(own->results.view.data),
                        .only_greedy = true});
  };
  ops.push_back(std::make_unique<Op>(
      "drafts", run, std::vector<TensorView>{own->results.view, own->last_token.view}));
}

// ---- Attention

struct Attention {
  KvFormat format;
  int q_heads, kv_heads, dim;
  std::vector<int64_t> keys;
  int64_t rows = 1;  ///< of each sequence
  bool prompt = false;
  std::vector<HeadKind> kinds = {};  ///< of heads of prompts, in turn; kBlocks sees half
};

struct Cache {
  PagedKv kv;
  DeviceTensor memory, scales;
};
Shared<Cache> make_cache(const Attention& a) {
  constexpr int kBlock = 64;
  const auto cache = std::make_shared<Cache>();
  cache->kv.shape = {a.format, a.kv_heads, a.dim, kBlock};
  cache->kv.block_bytes = cuda::kv_block_bytes(cache->kv.shape);
  for (const int64_t keys : a.keys) cache->kv.num_blocks += (keys + kBlock - 1) / kBlock;
  // Random bytes are codes of every format, and two of these values a scale of 2^-15 to 2^-8.
  cache->memory = random_values(
      {cache->kv.num_blocks, cache->kv.block_bytes / 2}, 11,
      a.format == KvFormat::kBf16 ? Values{} : Values{.exponent = 118, .negative = false});
  cache->kv.data = static_cast<std::byte*>(cache->memory.view.data);
  if (kv_has_static_scales(a.format)) {
    std::vector<float> scales = random_bf16(int64_t{2} * a.kv_heads * a.dim, 12, 0.01f);
    for (float& scale : scales) scale = std::abs(scale) + 1e-3f;
    cache->scales = DeviceTensor(DType::kF32, {2, a.kv_heads, a.dim}, scales);
    cache->kv.k_scale = cache->scales.view.ptr<float>();
    cache->kv.v_scale = cache->kv.k_scale + int64_t{a.kv_heads} * a.dim;
  }
  return cache;
}

void add_attention(Ops& ops, const Attention& a, const Shared<Cache>& cache) {
  struct Own {
    DeviceTensor q, out, cu_q, kv_start, table, kinds, blocks, counts;
    std::vector<int32_t> host_cu_q, host_kv_start;
    HeadPlan plan;
    AttnArgs args;
    Shared<Cache> cache;
  };
  const auto own = std::make_shared<Own>();
  own->cache = cache;
  const auto segments = static_cast<int64_t>(a.keys.size());
  const int64_t rows = segments * a.rows, block = cache->kv.shape.block_size;
  const int64_t width = (*std::max_element(a.keys.begin(), a.keys.end()) + block - 1) / block;
  own->q = random_values({rows, a.q_heads, a.dim}, 13);
  own->out = DeviceTensor(DType::kBF16, {rows, a.q_heads, a.dim});
  own->host_cu_q = {0};
  std::vector<int32_t> table(static_cast<size_t>(segments * width), -1);
  int64_t next = cache->kv.num_blocks;
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t keys = a.keys[static_cast<size_t>(s)];
    own->host_cu_q.push_back(static_cast<int32_t>((s + 1) * a.rows));
    own->host_kv_start.push_back(static_cast<int32_t>(keys - a.rows));
    for (int64_t i = 0; i * block < keys; ++i)
      table[static_cast<size_t>(s * width + i)] = static_cast<int32_t>(--next);
  }
  own->cu_q = DeviceTensor(own->host_cu_q);
  own->kv_start = DeviceTensor(own->host_kv_start);
  own->table = DeviceTensor(table);
  AttnArgs& args = own->args;
  args.shape = {a.q_heads, a.kv_heads, a.dim, 4 / std::sqrt(static_cast<float>(a.dim))};
  args.q = own->q.view;
  args.out = own->out.view;
  args.kv = cache->kv;
  args.seqs.cu_q = own->cu_q.view;
  args.seqs.kv_start = own->kv_start.view;
  args.seqs.block_table = {own->table.view.data, DType::kI32, {segments, width}};
  args.seqs.num_segments = static_cast<int>(segments);
  args.max_decode_len = static_cast<int>(a.rows);
  if (a.prompt) {
    args.num_prompt_segments = args.seqs.num_segments;
    args.prompt_rows = rows;
    args.seqs.host_cu_q = own->host_cu_q.data();
    args.seqs.host_kv_start = own->host_kv_start.data();
  }
  if (!a.kinds.empty()) {
    const int64_t row_blocks = (a.rows + HeadPlan::kBlock - 1) / HeadPlan::kBlock,
                  words = (width * block / HeadPlan::kBlock + 31) / 32;
    std::vector<int32_t> kinds;
    for (int64_t i = 0; i < segments * a.q_heads; ++i)
      kinds.push_back(static_cast<int32_t>(a.kinds[static_cast<size_t>(i) % a.kinds.size()]));
    own->kinds = DeviceTensor(kinds);
    own->blocks = DeviceTensor(std::vector<int32_t>(
        static_cast<size_t>(segments * a.q_heads * row_blocks * words), 0x55555555));
    own->counts = DeviceTensor(std::vector<int32_t>(
        static_cast<size_t>(segments * a.q_heads * row_blocks), static_cast<int32_t>(words * 16)));
    own->plan.kinds = {own->kinds.view.data, DType::kI32, {segments, a.q_heads}};
    own->plan.blocks = {
        own->blocks.view.data, DType::kI32, {segments, a.q_heads, row_blocks, words}};
    own->plan.counts = {own->counts.view.data, DType::kI32, {segments, a.q_heads, row_blocks}};
    args.heads = &own->plan;
  }
  std::string name = std::string(kv_format_name(a.format)) + (a.prompt ? " prompt" : " decode") +
                     " attention D" + std::to_string(a.dim) + " " + std::to_string(segments) +
                     " x " + std::to_string(a.rows) + " of " + std::to_string(a.keys[0]) +
                     (a.kinds.empty() ? "" : " planned");
  const auto run = [=](Stream& stream) {
    if (!a.prompt) {
      cuda::attention_decode(stream, own->args);
    } else {
      (a.format == KvFormat::kBf16 ? cuda::attention_prompt : cuda::attention_prompt_gathered)(
          stream, own->args);
    }
  };
  ops.push_back(std::make_unique<Op>(std::move(name), run, std::vector<TensorView>{own->out.view}));
}

// ---- What heads see

/// XAttention's lists of two thirds of the heads, of 2048 rows that see 4096 keys.
void add_selection(Ops& ops, const Attention& a, const Shared<Cache>& cache, int stride) {
  struct Own {
    DeviceTensor q, cu_q, kv_start, table, kinds, thresholds, blocks, counts, mass;
    std::vector<int32_t> host_cu_q, host_kv_start;
    HeadPlan plan;
    AttnArgs args;
    Shared<Cache> cache;
  };
  const auto own = std::make_shared<Own>();
  own->cache = cache;
  const int64_t keys = a.keys[0], block = cache->kv.shape.block_size, pages = keys / block;
  const int64_t row_blocks = a.rows / HeadPlan::kBlock, words = (keys / HeadPlan::kBlock + 31) / 32;
  own->q = random_values({a.rows, a.q_heads, a.dim}, 14);
  own->host_cu_q = {0, static_cast<int32_t>(a.rows)};
  own->host_kv_start = {static_cast<int32_t>(keys - a.rows)};
  own->cu_q = DeviceTensor(own->host_cu_q);
  own->kv_start = DeviceTensor(own->host_kv_start);
  std::vector<int32_t> table, kinds;
  for (int64_t i = pages; i > 0; --i) table.push_back(static_cast<int32_t>(i - 1));
  for (int h = 0; h < a.q_heads; ++h)
    kinds.push_back(static_cast<int32_t>(h % 3 == 2 ? HeadKind::kFull : HeadKind::kBlocks));
  own->table = DeviceTensor(table);
  own->kinds = DeviceTensor(kinds);
  own->thresholds = DeviceTensor(DType::kF32, {a.q_heads},
                                 std::vector<float>(static_cast<size_t>(a.q_heads), 0.9f));
  own->blocks = DeviceTensor(DType::kI32, {1, a.q_heads, row_blocks, words});
  own->counts = DeviceTensor(DType::kI32, {1, a.q_heads, row_blocks});
  own->mass = DeviceTensor(DType::kF32, {1, a.q_heads, row_blocks});
  own->plan.kinds = {own->kinds.view.data, DType::kI32, {1, a.q_heads}};
  own->plan.blocks = own->blocks.view;
  own->plan.counts = own->counts.view;
  AttnArgs& args = own->args;
  args.shape = {a.q_heads, a.kv_heads, a.dim, 4 / std::sqrt(static_cast<float>(a.dim))};
  args.q = own->q.view;
  args.kv = cache->kv;
  args.heads = &own->plan;
  args.seqs.cu_q = own->cu_q.view;
  args.seqs.kv_start = own->kv_start.view;
  args.seqs.block_table = {own->table.view.data, DType::kI32, {1, pages}};
  args.seqs.num_segments = args.num_prompt_segments = 1;
  args.seqs.host_cu_q = own->host_cu_q.data();
  args.seqs.host_kv_start = own->host_kv_start.data();
  args.prompt_rows = a.rows;
  const auto run = [=](Stream& stream) {
    SelectArgs select;
    select.attention = &own->args;
    select.stride = stride;
    select.norm = 0.2f;
    select.thresholds = own->thresholds.view;
    select.mass = own->mass.view;
    cuda::select_blocks(stream, select);
  };
  ops.push_back(std::make_unique<Op>(
      std::string(kv_format_name(a.format)) + " selection D" + std::to_string(a.dim) + " stride " +
          std::to_string(stride),
      run, std::vector<TensorView>{own->blocks.view, own->counts.view, own->mass.view}));
}

/// The router of `segments` prompts of 300 rows.
void add_router(Ops& ops, int segments) {
  constexpr int64_t kDim = 128, kHeads = 8, kGroup = 4, kRows = 300;
  struct Own {
    DeviceTensor k, norm, cu_q, weights[5], bias[5], logits, kinds;
    RouterArgs args;
  };
  const auto own = std::make_shared<Own>();
  own->k = random_values({segments * kRows, kHeads, kDim}, 15);
  own->norm = random_floats({kDim}, 16, 1);
  std::vector<int32_t> cu_q;
  for (int s = 0; s <= segments; ++s) cu_q.push_back(static_cast<int32_t>(s * kRows));
  own->cu_q = DeviceTensor(cu_q);
  RouterArgs& args = own->args;
  constexpr int64_t kSizes[5][2] = {
      {4 * kDim, kDim}, {kDim, 4 * kDim}, {4 * kDim, kDim}, {kDim, 4 * kDim}, {2, kDim}};
  for (uint64_t i = 0; i < 5; ++i) {
    own->weights[i] = random_values({kSizes[i][0], kSizes[i][1]}, 40 + i);
    own->bias[i] = random_floats({kSizes[i][0]}, 50 + i, 0.5f);
    (i < 2 ? args.weights.feature[i] : args.weights.router[i - 2]) = own->weights[i].view;
    (i < 2 ? args.weights.feature_bias[i] : args.weights.router_bias[i - 2]) = own->bias[i].view;
  }
  own->logits = DeviceTensor(DType::kF32, {segments, kHeads, 2});
  own->kinds = DeviceTensor(DType::kI32, {segments, kHeads * kGroup});
  args.k = own->k.view;
  args.k_norm = own->norm.view;
  args.cu_q = own->cu_q.view;
  args.num_segments = segments;
  args.retrieval = HeadKind::kBlocks;
  args.sparse = HeadKind::kStreaming;
  args.logits = own->logits.view;
  args.kinds = own->kinds.view;
  ops.push_back(std::make_unique<Op>(
      "router of " + std::to_string(segments),
      [own](Stream& stream) { cuda::route_heads(stream, own->args); },
      std::vector<TensorView>{own->logits.view, own->kinds.view}));
}

// ---- Gated delta rule

struct Recurrence {
  int sequences, rows;
  bool prompt = false;
  DType state = DType::kF32;
};

void add_recurrence(Ops& ops, const Recurrence& r) {
  constexpr GdnShape kShape{16, 32, 128, 128, 4};
  constexpr int64_t kChannels = 2 * 16 * 128 + 32 * 128, kHeads = 32;
  struct Own {
    DeviceTensor qkv, a, b, conv, a_log, bias, windows, states, out, z, weight, cu_q, reads, writes,
        chains;
    std::vector<int32_t> host_cu_q;
    GdnArgs args;
  };
  const auto own = std::make_shared<Own>();
  const int64_t rows = int64_t{r.sequences} * r.rows, slots = 2 * int64_t{r.sequences};
  own->qkv = random_values({rows, kChannels}, 21);
  own->a = random_floats({rows, kHeads}, 22, 3);
  own->b = random_floats({rows, kHeads}, 23, 3);
  own->conv = random_floats({kChannels, 4}, 24, 1);
  own->a_log = random_floats({kHeads}, 25, 2);
  own->bias = random_floats({kHeads}, 26, 1);
  own->windows = random_floats({slots, 3, kChannels}, 27, 1);
  const int64_t per_slot = kHeads * 128 * 128;
  // Two bf16 values are an f32 one, too.
  own->states = random_values({slots, per_slot * (r.state == DType::kF32 ? 2 : 1)}, 28);
  own->out = DeviceTensor(DType::kBF16, {rows, kHeads, 128});
  own->z = random_values({rows, kHeads, 128}, 29);
  own->weight = random_floats({128}, 30, 1);
  std::vector<int32_t> reads, writes, chains;
  for (int i = 0; i <= r.sequences; ++i) {
    own->host_cu_q.push_back(i * r.rows);
    chains.push_back(i);
    if (i == r.sequences) break;
    reads.push_back(i);
    writes.push_back(r.sequences + i);
  }
  own->cu_q = DeviceTensor(own->host_cu_q);
  own->chains = DeviceTensor(chains);
  own->reads = DeviceTensor(reads);
  own->writes = DeviceTensor(writes);
  GdnArgs& args = own->args;
  args.shape = kShape;
  args.qkv = own->qkv.view;
  args.a = own->a.view;
  args.b = own->b.view;
  args.conv = own->conv.view;
  args.a_log = own->a_log.view;
  args.dt_bias = own->bias.view;
  args.state = {own->windows.view, {own->states.view.data, r.state, {slots, kHeads, 128, 128}}};
  args.cu_q = own->cu_q.view;
  args.read_slot = own->reads.view;
  args.write_slot = own->writes.view;
  args.chains = own->chains.view;
  args.num_segments = args.num_chains = r.sequences;
  args.num_prompt_segments = args.num_prompt_chains = r.prompt ? r.sequences : 0;
  args.host_cu_q = r.prompt ? own->host_cu_q.data() : nullptr;
  args.out = own->out.view;
  args.norm.z = own->z.view;
  args.norm.weight = own->weight.view;
  const int64_t bytes = per_slot * dtype_size(r.state);
  const TensorView written{static_cast<std::byte*>(own->states.view.data) + r.sequences * bytes,
                           DType::kU8,
                           {r.sequences * bytes}};
  ops.push_back(std::make_unique<Op>(
      "gated delta rule " + std::to_string(r.sequences) + " x " + std::to_string(r.rows) +
          (r.prompt ? " prompt" : "") + (r.state == DType::kF32 ? "" : " bf16 state"),
      [own](Stream& stream) { cuda::gdn(stream, own->args); },
      std::vector<TensorView>{own->out.view, written}));
}

// ---- The crowd

class Crowd {
 public:
  Crowd() {
    for (const Product& p : kProducts) {
      weights_.push_back(std::make_shared<PackedWeight>(WeightShape{p.format, p.n, p.k, 1}, 3,
                                                        PackedWeight::Options{.unpack = false}));
    }
    using enum KvFormat;
    for (const KvFormat format : {kBf16, kInt8Dynamic, kFp8Block, kInt4, kInt8, kFp8}) {
      attentions_.push_back({format, 32, 8, 128, {1000}});
      attentions_.push_back({format, 32, 8, 128, {32768}});
      attentions_.push_back({format, 32, 8, 128, {4100, 700, 9000, 64, 2048, 5000, 333, 4096}});
      attentions_.push_back({format, 32, 8, 128, {4100, 12000}, 4});
      attentions_.push_back({format, 16, 4, 64, {4100, 20000, 77}});
      attentions_.push_back({format, 16, 2, 256, {4100, 20000, 77}, 2});
    }
    attentions_.push_back({kBf16, 16, 8, 128, {1000}});
    for (const int dim : {64, 128, 256})
      attentions_.push_back({kBf16, 2048 / dim, 512 / dim, dim, {3000}, 1500, true});
    attentions_.push_back({kInt8Dynamic, 32, 8, 128, {3000}, 500, true});
    for (const int dim : {64, 128, 256}) {
      attentions_.push_back({kBf16,
                             2048 / dim,
                             512 / dim,
                             dim,
                             {4096},
                             2048,
                             true,
                             {HeadKind::kFull, HeadKind::kBlocks, HeadKind::kStreaming}});
    }
    for (const Attention& a : attentions_) caches_.push_back(make_cache(a));
  }

  /// Ops of one stream.
  Ops ops() const {
    Ops out;
    for (size_t i = 0; i < std::size(kProducts); ++i) {
      for (const int64_t rows : {1, 5, 8, 16, 24, 32, 64, 160})
        add_product(out, kProducts[i], weights_[i], rows, kDecoded);
      add_product(out, kProducts[i], weights_[i], 300, kPrompt);
      if (kProducts[i].format == WeightFormat::kInt4 && kProducts[i].epilogue == Epilogue::kStore) {
        add_product(out, kProducts[i], weights_[i], 64, kDrafts);
        add_drafts(out, weights_[i]);
      }
    }
    for (size_t i = 0; i < attentions_.size(); ++i) {
      add_attention(out, attentions_[i], caches_[i]);
      if (attentions_[i].kinds.empty()) continue;
      for (const int stride : {4, 8, 16}) add_selection(out, attentions_[i], caches_[i], stride);
    }
    for (const int segments : {1, 2, 5}) add_router(out, segments);
    for (const DType state : {DType::kF32, DType::kBF16}) {
      for (const Recurrence& r : {Recurrence{1, 1}, Recurrence{8, 1}, Recurrence{40, 1},
                                  Recurrence{8, 4}, Recurrence{2, 400, true}}) {
        add_recurrence(out, {r.sequences, r.rows, r.prompt, state});
      }
    }
    return out;
  }

 private:
  std::vector<Shared<PackedWeight>> weights_;
  std::vector<Attention> attentions_;
  std::vector<Shared<Cache>> caches_;
};

TEST(Crowd, BitsOfEveryOpAreThoseOfTheOpAlone) {
  const char* set = std::getenv("WEFT_CROWD_SECONDS");
  const double seconds = set ? std::atof(set) : 10;
  const Crowd crowd;
  std::vector<Ops> ops(kStreams);
  std::vector<std::unique_ptr<CudaTestStream>> streams;
  for (Ops& of : ops) {
    of = crowd.ops();
    streams.push_back(std::make_unique<CudaTestStream>());
    for (const auto& op : of) {
      SCOPED_TRACE(op->name());
      op->alone(*streams.back());
    }
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::vector<std::thread> threads;
  for (int s = 0; s < kStreams; ++s) {
    threads.emplace_back([&, s] {
      const auto seed = static_cast<uint64_t>(getpid()) * kStreams + static_cast<uint64_t>(s);
      Ops& mine = ops[static_cast<size_t>(s)];
      for (uint64_t i = 0; std::chrono::steady_clock::now() < end; ++i) {
        const auto pick = philox4x32(seed, i, 0);
        Op& op = *mine[pick[0] % mine.size()];
        for (uint32_t times = 1 + pick[1] % 8; times > 0; --times)
          op.again(*streams[static_cast<size_t>(s)]);
        if (i % 4 == 3) streams[static_cast<size_t>(s)]->sync();
      }
      streams[static_cast<size_t>(s)]->sync();
    });
  }
  for (std::thread& thread : threads) thread.join();
  int64_t runs = 0;
  for (size_t i = 0; i < ops[0].size(); ++i) {
    for (const Ops& of : ops) {
      runs += of[i]->runs();
      EXPECT_EQ(of[i]->differing(), 0)
          << "words of " << of[i]->name() << " in " << of[i]->runs() << " runs";
    }
  }
  std::printf("%lld runs of %zu ops on %d streams\n", static_cast<long long>(runs), ops[0].size(),
              kStreams);
  EXPECT_GT(runs, static_cast<int64_t>(ops[0].size()));
}

}  // namespace
}  // namespace weft
