#include "runtime/sampler.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "base/align.h"
#include "base/check.h"
#include "base/philox.h"
#include "runtime/logits_math.h"

namespace weft {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Ascending keys are descending logits, then ascending ids.
uint64_t rank_key(float logit, int32_t id) {
  const auto bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0 and +0 are one value
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{~ascending} << 32 | static_cast<uint32_t>(id);
}

int32_t key_id(uint64_t key) {
  return static_cast<int32_t>(static_cast<uint32_t>(key));
}

bool cuts_top_k(const SamplingParams& params, size_t num_ids) {
  return params.top_k > 0 && static_cast<size_t>(params.top_k) < num_ids;
}

double draw_uniform(uint64_t seed, int64_t position) {
  const auto bits = philox4x32(seed, static_cast<uint64_t>(position), 0);
  return static_cast<double>((uint64_t{bits[0]} << 32 | bits[1]) >> 11) * 0x1.0p-53;
}

}  // namespace

/// Working memory of one thread, and the passes over one row. `pool` is set while one row has the
/// whole pool for itself.
struct Sampler::Scratch {
  explicit Scratch(int64_t vocab_size)
      : scans(static_cast<size_t>(divide_up(vocab_size, kLogitSegment))),
        sums(scans.size()),
        block_maxima(static_cast<size_t>(2 * divide_up(vocab_size, kLogitBlock))),
        raw(static_cast<size_t>(vocab_size)),
        ids(static_cast<size_t>(vocab_size)) {
    keys.reserve(static_cast<size_t>(vocab_size));
  }

  static int64_t bytes(int64_t vocab_size) {
    return divide_up(vocab_size, kLogitSegment) * static_cast<int64_t>(sizeof(LogitScan) + 8) +
           2 * divide_up(vocab_size, kLogitBlock) * 4 + vocab_size * (4 + 4 + 8);
  }

  void sample(const SampleRow& row, SampledToken& out);
  void logprob(const LogprobRow& row, LogprobResult& out);

  template <class Body>
  void for_segments(int64_t n, Body&& body) {
    const int64_t num_segments = divide_up(n, kLogitSegment);
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        body(s, s * kLogitSegment, std::min(kLogitSegment, n - s * kLogitSegment));
      }
    };
    if (pool == nullptr) {
      run(0, num_segments);
    } else {
      pool->for_each(num_segments, 4, run);
    }
  }

  LogitScan scan(std::span<const float> x);
  double weight_sum(std::span<const float> x, float max, float temperature);
  int32_t first_of(std::span<const float> x, float value);
  void select_top(std::span<const float> x, int64_t count);
  void top_logprobs(std::span<const float> x, double log_z, int num, TokenLogprob& out);

  bool adjust(const SampleRow& row);
  bool list_allowed(const SampleRow& row);
  int32_t draw(std::span<const float> x, float max, const SampleRow& row);
  int32_t draw_filtered(std::span<const float> x, float max, const SampleRow& row, bool listed);
  bool takes_draft(std::span<const float> x, float max, const SampleRow& row);
  void list_candidates(std::span<const float> x, float max, const SamplingParams& params,
                       double* total);
  void keep_top_p(float max, const SamplingParams& params, std::span<const float> x, double total);

  ThreadPool* pool = nullptr;
  std::vector<LogitScan> scans;
  std::vector<double> sums;
  std::vector<float> block_maxima;  // maxima, and a copy to select in
  std::vector<float> raw;           // the logits before adjust()
  std::vector<int32_t> ids;
  std::vector<uint64_t> keys;  // candidates
};

LogitScan Sampler::Scratch::scan(std::span<const float> x) {
  const auto n = static_cast<int64_t>(x.size());
  for_segments(n, [&](int64_t s, int64_t begin, int64_t count) {
    scans[static_cast<size_t>(s)] = scan_logits(x.data() + begin, count);
  });
  LogitScan all{kMinusInfinity, false};
  for (int64_t s = 0; s < divide_up(n, kLogitSegment); ++s) {
    const LogitScan& part = scans[static_cast<size_t>(s)];
    all.invalid |= part.invalid;
    all.max = std::max(all.max, part.max);
  }
  return all;
}

/// Leaves the sums of the segments in `sums`.
double Sampler::Scratch::weight_sum(std::span<const float> x, float max, float temperature) {
  const auto n = static_cast<int64_t>(x.size());
  for_segments(n, [&](int64_t s, int64_t begin, int64_t count) {
    sums[static_cast<size_t>(s)] = softmax_sum(x.data() + begin, count, max, temperature);
  });
  double total = 0;
  for (int64_t s = 0; s < divide_up(n, kLogitSegment); ++s) total += sums[static_cast<size_t>(s)];
  return total;
}

/// Follows a scan() of x: the maxima of the segments say where to look.
int32_t Sampler::Scratch::first_of(std::span<const float> x, float value) {
  const auto n = static_cast<int64_t>(x.size());
  for (int64_t s = 0; s * kLogitSegment < n; ++s) {
    if (scans[static_cast<size_t>(s)].max != value) continue;
    const int64_t begin = s * kLogitSegment;
    const int64_t count = std::min(kLogitSegment, n - begin);
    return static_cast<int32_t>(begin + find_value(x.data() + begin, count, value));
  }
  CHECK(false, "the maximum of a row is in none of its segments");
}

/// keys = the `count` first of the ranking (all that are above -inf where there are fewer), in no
/// order. As many blocks as `count` have a maximum at or above the count-th greatest of them, so
/// everything below that can't be among the first.
void Sampler::Scratch::select_top(std::span<const float> x, int64_t count) {
  const auto n = static_cast<int64_t>(x.size());
  const int64_t num_blocks = divide_up(n, kLogitBlock);
  float bound = std::numeric_limits<float>::lowest();
  if (count <= num_blocks) {
    block_max(x.data(), n, block_maxima.data());
    float* copy = block_maxima.data() + num_blocks;
    std::copy_n(block_maxima.data(), num_blocks, copy);
    std::nth_element(copy, copy + count - 1, copy + num_blocks, std::greater<>());
    bound = std::max(bound, copy[count - 1]);
  }
  const int64_t found = collect_at_least(x.data(), n, bound, 0, ids.data());
  keys.clear();
  for (int64_t i = 0; i < found; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    keys.push_back(rank_key(x[static_cast<size_t>(id)], id));
  }
  if (found > count) {
    std::nth_element(keys.begin(), keys.begin() + count, keys.end());
    keys.resize(static_cast<size_t>(count));
  }
}

void Sampler::Scratch::top_logprobs(std::span<const float> x, double log_z, int num,
                                    TokenLogprob& out) {
  if (num == 0) return;
  select_top(x, num);
  std::sort(keys.begin(), keys.end());
  out.top.reserve(keys.size());
  for (const uint64_t key : keys) {
    const float logit = x[static_cast<size_t>(key_id(key))];
    out.top.push_back({key_id(key), static_cast<float>(logit - log_z)});
  }
}

void Sampler::Scratch::logprob(const LogprobRow& row, LogprobResult& out) {
  out = {};
  const LogitScan all = scan(row.logits);
  if (all.invalid || all.max == kMinusInfinity) {
    out.numeric_error = true;
    return;
  }
  const double log_z = all.max + std::log(weight_sum(row.logits, all.max, 1.0f));
  out.logprob.logprob = static_cast<float>(row.logits[static_cast<size_t>(row.token)] - log_z);
  top_logprobs(row.logits, log_z, row.num_top, out.logprob);
}

/// Leaves the tokens that may come next, and the stop ids exactly where the text may end.
void apply_grammar(GrammarMatcher& grammar, std::span<const int32_t> stop_ids, std::span<float> x) {
  const auto size = static_cast<int32_t>(x.size());
  std::vector<float> stops;
  for (const int32_t id : stop_ids) {
    stops.push_back(id >= 0 && id < size ? x[static_cast<size_t>(id)] : kMinusInfinity);
  }
  const std::span<const uint32_t> mask = grammar.mask();
  for (size_t i = 0; i < x.size(); ++i) {
    const bool allowed = i / 32 < mask.size() && ((mask[i / 32] >> (i % 32)) & 1) != 0;
    if (!allowed) x[i] = kMinusInfinity;
  }
  const bool may_end = grammar.may_end();
  for (size_t k = 0; k < stop_ids.size(); ++k) {
    if (stop_ids[k] < 0 || stop_ids[k] >= size) continue;
    x[static_cast<size_t>(stop_ids[k])] = may_end ? stops[k] : kMinusInfinity;
  }
}

/// Masks, biases and penalties, in place. True if anything was done.
bool Sampler::Scratch::adjust(const SampleRow& row) {
  const SamplingParams& params = *row.params;
  const std::span<float> x = row.logits;
  const auto in_range = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < x.size(); };
  bool done = false;
  const auto mask = [&](int32_t id) {
    if (in_range(id)) x[static_cast<size_t>(id)] = kMinusInfinity;
    done = true;
  };
  for (const int32_t id : params.banned_ids) mask(id);
  for (const auto& [id, bias] : params.logit_bias) {
    if (in_range(id)) x[static_cast<size_t>(id)] += bias;
    done = true;
  }
  if (row.grammar != nullptr && row.grammar->binds()) {
    apply_grammar(*row.grammar, params.stop_ids, x);
    done = true;
  } else if (row.grammar != nullptr) {
    for (const int32_t id : params.stop_ids) mask(id);  // the thought ends first, then the text
  }
  if (row.num_generated < params.min_tokens) {
    for (const int32_t id : params.stop_ids) mask(id);
  }
  if (!uses_penalties(params)) return done;
  for (const TokenCounts::Entry& entry : row.history->counts().entries()) {
    if (!in_range(entry.token)) continue;
    float& logit = x[static_cast<size_t>(entry.token)];
    if (params.repetition_penalty != 1.0f) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    if (entry.generated > 0) {
      logit -= params.frequency_penalty * static_cast<float>(entry.generated);
      logit -= params.presence_penalty;
    }
  }
  return true;
}

/// With allowed_ids: keys = those that may be sampled, each once.
bool Sampler::Scratch::list_allowed(const SampleRow& row) {
  if (row.params->allowed_ids.empty()) return false;
  keys.clear();
  for (const int32_t id : row.params->allowed_ids) {
    if (id < 0 || static_cast<size_t>(id) >= row.logits.size()) continue;
    const float logit = row.logits[static_cast<size_t>(id)];
    if (logit == kMinusInfinity) continue;
    keys.push_back(rank_key(logit, id));
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return true;
}

void Sampler::Scratch::sample(const SampleRow& row, SampledToken& out) {
  out = {};
  const SamplingParams& params = *row.params;
  LogitScan all = scan(row.logits);
  if (all.invalid || all.max == kMinusInfinity) {
    out.numeric_error = true;
    return;
  }
  double log_z = 0;
  const bool wants_logprob = params.logprobs >= 0;
  if (wants_logprob) {
    log_z = all.max + std::log(weight_sum(row.logits, all.max, 1.0f));
    top_logprobs(row.logits, log_z, params.logprobs, out.logprob);
    std::copy(row.logits.begin(), row.logits.end(), raw.begin());
  }

  if (adjust(row)) all = scan(row.logits);
  const bool listed = list_allowed(row);
  if (listed && !keys.empty()) all.max = row.logits[static_cast<size_t>(key_id(keys.front()))];
  if (all.invalid || all.max == kMinusInfinity || (listed && keys.empty())) {
    out = {};
    out.numeric_error = true;
    return;
  }

  if (params.temperature == 0) {
    out.token = listed ? key_id(keys.front()) : first_of(row.logits, all.max);
  } else if (listed || cuts_top_k(params, row.logits.size()) || params.top_p < 1 ||
             params.min_p > 0) {
    out.token = draw_filtered(row.logits, all.max, row, listed);
  } else {
    out.token = draw(row.logits, all.max, row);
  }
  if (row.draft >= 0 && row.draft != out.token && takes_draft(row.logits, all.max, row)) {
    out.token = row.draft;
  }
  if (wants_logprob) {
    out.logprob.logprob = static_cast<float>(raw[static_cast<size_t>(out.token)] - log_z);
  }
}

/// The draw from the whole vocabulary: first the segment, then the id within.
int32_t Sampler::Scratch::draw(std::span<const float> x, float max, const SampleRow& row) {
  const float temperature = row.params->temperature;
  const auto n = static_cast<int64_t>(x.size());
  const double total = weight_sum(x, max, temperature);
  const double target = draw_uniform(row.params->seed, row.position) * total;
  // The last segment with weight, should rounding leave the target above every cumulative sum.
  int64_t segment = 0;
  double before = 0, sum = 0;
  for (int64_t s = 0; s * kLogitSegment < n; ++s) {
    const double part = sums[static_cast<size_t>(s)];
    if (part > 0) {
      segment = s;
      before = sum;
    }
    sum += part;
    if (sum > target) break;
  }
  int64_t last = -1;
  double cumulative = before;
  const int64_t begin = segment * kLogitSegment;
  const int64_t end = std::min(n, begin + kLogitSegment);
  for (int64_t i = begin; i < end; i += 8) {
    float padded[8], weights[8];
    const int64_t count = std::min<int64_t>(8, end - i);
    std::fill(std::copy_n(x.data() + i, count, padded), padded + 8, kMinusInfinity);
    softmax_weights8(padded, max, temperature, weights);
    for (int64_t j = 0; j < count; ++j) {
      if (weights[j] == 0) continue;
      last = i + j;
      cumulative += weights[j];
      if (cumulative > target) return static_cast<int32_t>(last);
    }
  }
  return static_cast<int32_t>(last);
}

/// VerifyStrategy::kTopP. Its candidates are what the definitions above keep, in their ranking.
bool Sampler::Scratch::takes_draft(std::span<const float> x, float max, const SampleRow& row) {
  const SamplingParams& params = *row.params;
  const auto most = static_cast<size_t>(std::max(row.max_candidates, 2));
  const bool listed = list_allowed(row);
  const bool cut = cuts_top_k(params, listed ? keys.size() : x.size());
  const size_t first = cut ? static_cast<size_t>(params.top_k) : 0;  // of the ranking; 0: all
  if (!listed) {
    select_top(x, static_cast<int64_t>(std::min(x.size(), std::max(most, first))));
    std::sort(keys.begin(), keys.end());
  }
  const auto found = std::find_if(keys.begin(), keys.end(),
                                  [&](uint64_t key) { return key_id(key) == row.draft; });
  const auto rank = static_cast<size_t>(found - keys.begin());
  if (found == keys.end()) return false;
  if (rank == 1 && row.takes_second) return true;
  if (params.temperature == 0) return rank == 0;
  if (rank >= static_cast<size_t>(row.max_candidates) || (first > 0 && rank >= first)) return false;
  const auto weight = [&](uint64_t key) {
    return softmax_weight(x[static_cast<size_t>(key_id(key))], max, params.temperature);
  };
  if (weight(*found) < params.min_p) return false;
  if (params.top_p >= 1 || rank == 0) return true;
  const auto sum = [&](size_t count) {
    double out = 0;
    for (size_t i = 0; i < count; ++i) out += weight(keys[i]);
    return out;
  };
  const double total = first > 0 || listed
                           ? sum(std::min(keys.size(), first > 0 ? first : keys.size()))
                           : weight_sum(x, max, params.temperature);
  return sum(rank) < static_cast<double>(params.top_p) * total;
}

/// keys = a superset of what top-k, top-p and min-p keep, which includes everything ranked before
/// any of it; *total = the weight that top-p is a fraction of.
void Sampler::Scratch::list_candidates(std::span<const float> x, float max,
                                       const SamplingParams& params, double* total) {
  if (cuts_top_k(params, x.size())) {
    select_top(x, params.top_k);
    *total = 0;
    return;
  }
  // Ids of weight below (1 - p) total / V hold together less than 1 - p of the total, so top-p
  // is full before it comes to them. A small margin covers the rounding of this bound.
  double least = params.min_p;
  if (params.top_p < 1) {
    *total = weight_sum(x, max, params.temperature);
    least = std::max(least, (1.0 - params.top_p) * *total / static_cast<double>(x.size()));
  }
  double bound = std::numeric_limits<float>::lowest();
  if (least > 0) {
    const double margin = 1e-3 * params.temperature + 1e-5 * std::abs(max) + 1e-30;
    bound = std::max(bound, max + params.temperature * std::log(least) - margin);
  }
  const auto n = static_cast<int64_t>(x.size());
  const int64_t found = collect_at_least(x.data(), n, static_cast<float>(bound), 0, ids.data());
  keys.clear();
  for (int64_t i = 0; i < found; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    keys.push_back(rank_key(x[static_cast<size_t>(id)], id));
  }
}

/// Cuts keys to the shortest beginning of the ranking that holds top_p of `total`. The ranking is
/// sorted only as far as needed.
void Sampler::Scratch::keep_top_p(float max, const SamplingParams& params, std::span<const float> x,
                                  double total) {
  const double enough = static_cast<double>(params.top_p) * total;
  double before = 0;
  size_t sorted = 0, kept = 0;
  while (kept < keys.size() && (kept == 0 || before < enough)) {
    if (kept == sorted) {
      const size_t end = std::min(keys.size(), std::max<size_t>(64, 4 * sorted));
      const auto from = keys.begin() + static_cast<ptrdiff_t>(sorted);
      const auto to = keys.begin() + static_cast<ptrdiff_t>(end);
      if (end < keys.size()) std::nth_element(from, to, keys.end());
      std::sort(from, to);
      sorted = end;
    }
    const auto id = static_cast<size_t>(key_id(keys[kept++]));
    before += softmax_weight(x[id], max, params.temperature);
  }
  keys.resize(kept);
}

/// `listed`: the candidates are in keys already (allowed_ids).
int32_t Sampler::Scratch::draw_filtered(std::span<const float> x, float max, const SampleRow& row,
                                        bool listed) {
  const SamplingParams& params = *row.params;
  double total = 0;
  if (!listed) {
    list_candidates(x, max, params, &total);
  } else if (cuts_top_k(params, keys.size())) {
    keys.resize(static_cast<size_t>(params.top_k));  // sorted by rank
  }
  const auto weight = [&](int32_t id) {
    return softmax_weight(x[static_cast<size_t>(id)], max, params.temperature);
  };
  const auto by_id = [](uint64_t a, uint64_t b) { return key_id(a) < key_id(b); };
  if (params.top_p < 1) {
    if (total == 0) {  // not the whole vocabulary
      std::sort(keys.begin(), keys.end(), by_id);
      for (const uint64_t key : keys) total += weight(key_id(key));
    }
    keep_top_p(max, params, x, total);
  }
  std::sort(keys.begin(), keys.end(), by_id);
  if (params.min_p > 0) {
    std::erase_if(keys, [&](uint64_t key) { return weight(key_id(key)) < params.min_p; });
  }
  double kept = 0;
  for (const uint64_t key : keys) kept += weight(key_id(key));
  const double target = draw_uniform(params.seed, row.position) * kept;
  double cumulative = 0;
  int32_t last = -1;
  for (const uint64_t key : keys) {
    const float w = weight(key_id(key));
    if (w == 0) continue;
    last = key_id(key);
    cumulative += w;
    if (cumulative > target) break;
  }
  return last;
}

Sampler::Sampler(int64_t vocab_size, int num_threads) : vocab_size_(vocab_size) {
  CHECK(vocab_size > 0 && num_threads > 0);
  for (int i = 0; i < num_threads; ++i) scratch_.push_back(std::make_unique<Scratch>(vocab_size));
}

Sampler::~Sampler() = default;
Sampler::Sampler(Sampler&&) noexcept = default;

int64_t Sampler::scratch_bytes(int64_t vocab_size, int num_threads) {
  return num_threads * Scratch::bytes(vocab_size);
}

template <class Body>
void Sampler::for_rows(ThreadPool& pool, size_t num_rows, Body&& body) {
  CHECK(static_cast<size_t>(pool.num_threads()) <= scratch_.size());
  if (num_rows < static_cast<size_t>(pool.num_threads())) {
    Scratch& scratch = *scratch_[0];
    scratch.pool = &pool;
    for (size_t i = 0; i < num_rows; ++i) body(scratch, i);
    scratch.pool = nullptr;
    return;
  }
  std::atomic<size_t> next{0};
  pool.parallel([&](int worker) {
    for (;;) {
      const size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_rows) return;
      body(*scratch_[static_cast<size_t>(worker)], i);
    }
  });
}

void Sampler::sample(ThreadPool& pool, std::span<const SampleRow> rows,
                     std::span<SampledToken> out) {
  CHECK(rows.size() == out.size());
  for (const SampleRow& row : rows) {
    CHECK(static_cast<int64_t>(row.logits.size()) == vocab_size_);
    CHECK(row.history != nullptr || !uses_penalties(*row.params));
  }
  for_rows(pool, rows.size(), [&](Scratch& scratch, size_t i) { scratch.sample(rows[i], out[i]); });
}

void Sampler::logprobs(ThreadPool& pool, std::span<const LogprobRow> rows,
                       std::span<LogprobResult> out) {
  CHECK(rows.size() == out.size());
  for (const LogprobRow& row : rows) {
    CHECK(static_cast<int64_t>(row.logits.size()) == vocab_size_);
    CHECK(row.token >= 0 && row.token < vocab_size_);
  }
  for_rows(pool, rows.size(),
           [&](Scratch& scratch, size_t i) { scratch.logprob(rows[i], out[i]); });
}

}  // namespace weft
