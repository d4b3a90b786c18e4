#include "text/bpe.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <queue>

#include "base/check.h"
#include "text/unicode.h"

namespace weft::text {
namespace {

constexpr uint32_t kNoRank = UINT32_MAX;
constexpr size_t kShortSymbols = 48;  // up to here a plain scan for the lowest rank is faster
constexpr std::string_view kMetaspace = "\xE2\x96\x81";

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}
uint64_t pair_hash(uint64_t key) {
  key *= 0x9E3779B97F4A7C15ull;
  return key ^ key >> 29;
}

size_t table_size(size_t entries) {
  size_t size = 16;
  while (size < entries * 2) size *= 2;
  return size;
}

}  // namespace

Vocab::Vocab(size_t num_ids) : entries_(num_ids), slots_(table_size(num_ids), kNoToken) {}

bool Vocab::has(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < entries_.size() &&
         entries_[static_cast<size_t>(id)].used;
}

std::string_view Vocab::token(int32_t id) const {
  if (!has(id)) return {};
  const Entry& e = entries_[static_cast<size_t>(id)];
  return std::string_view(bytes_).substr(e.offset, e.length);
}

int32_t Vocab::find(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  for (size_t i = XXH3_64bits(token.data(), token.size()) & mask;; i = (i + 1) & mask) {
    const int32_t id = slots_[i];
    if (id == kNoToken || this->token(id) == token) return id;
  }
}

void Vocab::grow() {
  std::vector<int32_t> old(slots_.size() * 2, kNoToken);
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const int32_t id : old) {
    if (id == kNoToken) continue;
    const std::string_view t = token(id);
    size_t i = XXH3_64bits(t.data(), t.size()) & mask;
    while (slots_[i] != kNoToken) i = (i + 1) & mask;
    slots_[i] = id;
  }
}

bool Vocab::add(std::string_view token, int32_t id) {
  if (has(id) || find(token) != kNoToken) return false;
  if (static_cast<size_t>(id) >= entries_.size()) entries_.resize(static_cast<size_t>(id) + 1);
  if (++num_used_ * 2 > slots_.size()) grow();
  Entry& e = entries_[static_cast<size_t>(id)];
  e = {static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(token.size()), true};
  bytes_.append(token);
  const size_t mask = slots_.size() - 1;
  size_t i = XXH3_64bits(token.data(), token.size()) & mask;
  while (slots_[i] != kNoToken) i = (i + 1) & mask;
  slots_[i] = id;
  return true;
}

/// State of one long word: a linked list of symbols and, for each rank that occurs, the positions
/// of its pairs. New positions mostly come in ascending order; the others go to a small heap.
struct BpeScratch::Long {
  struct Bucket {
    uint32_t rank = 0;
    bool queued = false;
    size_t cursor = 0;
    std::vector<int32_t> ascending;
    std::vector<int32_t> heap;
    bool empty() const { return cursor == ascending.size() && heap.empty(); }
    void push(int32_t position) {
      if (cursor == ascending.size()) {
        ascending.clear();
        cursor = 0;
      }
      if (ascending.empty() || position > ascending.back()) {
        ascending.push_back(position);
      } else {
        heap.push_back(position);
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      }
    }
    int32_t pop() {
      if (!heap.empty() && (cursor == ascending.size() || heap.front() <= ascending[cursor])) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        const int32_t p = heap.back();
        heap.pop_back();
        return p;
      }
      return ascending[cursor++];
    }
  };
  /// A symbol and its neighbours, together because they are read together.
  struct Node {
    int32_t id, previous, next;
  };
  std::unique_ptr<Node[]> nodes;
  size_t capacity = 0;
  std::vector<int32_t> bucket_of;  // by rank, -1: none; all -1 between words
  std::vector<Bucket> buckets;
  size_t num_buckets = 0;
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ranks;

  void add(uint32_t rank, int32_t position) {
    int32_t& index = bucket_of[rank];
    if (index < 0) {
      index = static_cast<int32_t>(num_buckets++);
      if (num_buckets > buckets.size()) buckets.emplace_back();
      buckets[static_cast<size_t>(index)].rank = rank;
    }
    Bucket& b = buckets[static_cast<size_t>(index)];
    b.push(position);
    if (!b.queued) {
      b.queued = true;
      ranks.push(rank);
    }
  }
  void clear() {
    for (size_t i = 0; i < num_buckets; ++i) {
      Bucket& b = buckets[i];
      bucket_of[b.rank] = -1;
      b.queued = false;
      b.cursor = 0;
      b.ascending.clear();
      b.heap.clear();
    }
    num_buckets = 0;
  }
};

BpeScratch::BpeScratch(size_t text_bytes) {
  size_t entries = kFewWords;
  while (entries < (1u << 14) && entries * 16 < text_bytes) entries *= 2;
  if (entries == kFewWords) return;
  constexpr size_t kLine = sizeof(CachedWord);
  size_t space = (entries + 1) * kLine;
  many_ = std::make_unique_for_overwrite<std::byte[]>(space);
  void* begin = many_.get();
  CHECK(std::align(kLine, entries * kLine, begin, space) != nullptr);
  cache_ = static_cast<CachedWord*>(begin);
  std::uninitialized_value_construct_n(cache_, entries);
  cache_mask_ = entries - 1;
}
BpeScratch::~BpeScratch() = default;

Result<Bpe> Bpe::make(Vocab vocab, std::vector<Merge> merges, BpeOptions options) {
  Bpe bpe;
  bpe.vocab_ = std::move(vocab);
  bpe.merges_ = std::move(merges);
  bpe.options_ = options;
  bpe.pairs_.resize(table_size(bpe.merges_.size()));
  const size_t mask = bpe.pairs_.size() - 1;
  for (size_t r = 0; r < bpe.merges_.size(); ++r) {
    const uint64_t key = pair_key(bpe.merges_[r].left, bpe.merges_[r].right);
    size_t i = pair_hash(key) & mask;
    while (bpe.pairs_[i].key != ~0ull) {
      if (bpe.pairs_[i].key == key) {
        return invalid_argument("model.merges[" + std::to_string(r) + "] repeats merge " +
                                std::to_string(bpe.pairs_[i].rank));
      }
      i = (i + 1) & mask;
    }
    bpe.pairs_[i] = {key, static_cast<uint32_t>(r)};
  }
  for (int b = 0; b < 256; ++b) {
    if (options.byte_level) {
      const char c = static_cast<char>(b);
      bpe.byte_ids_[b] = bpe.vocab_.find({&c, 1});
    } else {
      static constexpr char kHex[] = "0123456789ABCDEF";
      const char name[] = {'<', '0', 'x', kHex[b >> 4], kHex[b & 15], '>'};
      bpe.byte_ids_[b] = bpe.vocab_.find({name, sizeof name});
    }
  }
  bpe.cut_before_metaspace_ = !options.byte_level && bpe.vocab_.find(kMetaspace) != kNoToken;
  for (const Merge& m : bpe.merges_) {
    // Inside a token, U+2581 may only follow another U+2581.
    const std::string_view t = bpe.vocab_.token(m.result);
    for (size_t at = t.find(kMetaspace, 1); at != std::string_view::npos;
         at = t.find(kMetaspace, at + 1)) {
      if (at < 3 || t.substr(at - 3, 3) != kMetaspace) bpe.cut_before_metaspace_ = false;
    }
  }
  if (options.byte_level && std::count(bpe.byte_ids_, bpe.byte_ids_ + 256, kNoToken) == 0) {
    bpe.joins_.resize(1 << 16);
    for (const Merge& m : bpe.merges_) {
      const std::string_view t = bpe.vocab_.token(m.result);
      for (size_t i = 0; i + 1 < t.size(); ++i) {
        bpe.joins_[size_t{static_cast<unsigned char>(t[i])} << 8 |
                   static_cast<unsigned char>(t[i + 1])] = true;
      }
    }
  }
  return bpe;
}

/// End of the part of `word` from `begin` that can be merged on its own: no merge joins the two
/// bytes there, because no token holds them side by side.
size_t Bpe::next_cut(std::string_view word, size_t begin) const {
  if (joins_.empty()) return word.size();
  for (size_t i = begin + 1; i < word.size(); ++i) {
    if (!joins_[size_t{static_cast<unsigned char>(word[i - 1])} << 8 |
                static_cast<unsigned char>(word[i])]) {
      return i;
    }
  }
  return word.size();
}

uint32_t Bpe::rank(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  const size_t mask = pairs_.size() - 1;
  for (size_t i = pair_hash(key) & mask;; i = (i + 1) & mask) {
    if (pairs_[i].key == key) return pairs_[i].rank;
    if (pairs_[i].key == ~0ull) return kNoRank;
  }
}

void Bpe::encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const {
  using Cached = BpeScratch::CachedWord;
  if (word.size() > Cached::kBytes) return encode_uncached(word, scratch, out);
  const uint64_t hash = XXH3_64bits(word.data(), word.size());
  Cached& line = scratch.cache_[hash & scratch.cache_mask_];
  if (line.length == word.size() && std::memcmp(line.bytes, word.data(), word.size()) == 0) {
    out.insert(out.end(), line.ids, line.ids + line.count);
    return;
  }
  const size_t before = out.size();
  encode_uncached(word, scratch, out);
  const size_t count = out.size() - before;
  if (count > Cached::kIds || word.empty()) return;
  line.length = static_cast<uint8_t>(word.size());
  line.count = static_cast<uint8_t>(count);
  std::memcpy(line.bytes, word.data(), word.size());
  std::copy(out.begin() + static_cast<ptrdiff_t>(before), out.end(), line.ids);
}

void Bpe::encode_uncached(std::string_view word, BpeScratch& scratch,
                          std::vector<int32_t>& out) const {
  if (options_.ignore_merges) {
    if (const int32_t id = vocab_.find(word); id != kNoToken) {
      out.push_back(id);
      return;
    }
  }
  auto& symbols = scratch.symbols_;
  for (size_t begin = 0; begin < word.size();) {
    const size_t end = word.size() <= kShortSymbols ? word.size() : next_cut(word, begin);
    symbols.clear();
    symbols.reserve(end - begin);
    append_symbols(word.substr(begin, end - begin), symbols);
    if (symbols.size() <= kShortSymbols) {
      merge_short(symbols, out);
    } else {
      merge_long(scratch, out);
    }
    begin = end;
  }
}

void Bpe::append_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
  bool pending_unk = false;
  const auto unknown = [&] {
    if (options_.unk_id == kNoToken) return;
    if (!(pending_unk && options_.fuse_unk)) symbols.push_back(options_.unk_id);
    pending_unk = true;
  };
  if (options_.byte_level) {
    for (const char c : word) {
      const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
      if (id == kNoToken) {
        unknown();
      } else {
        symbols.push_back(id);
        pending_unk = false;
      }
    }
    return;
  }
  for (size_t i = 0; i < word.size();) {
    const auto length = static_cast<size_t>(decode_valid(word.data() + i).length);
    const std::string_view c = word.substr(i, length);
    i += length;
    const int32_t id = vocab_.find(c);
    if (id != kNoToken) {
      symbols.push_back(id);
      pending_unk = false;
      continue;
    }
    const auto byte_id = [&](char b) { return byte_ids_[static_cast<unsigned char>(b)]; };
    if (options_.byte_fallback &&
        std::all_of(c.begin(), c.end(), [&](char b) { return byte_id(b) != kNoToken; })) {
      for (const char b : c) symbols.push_back(byte_id(b));
      pending_unk = false;
    } else {
      unknown();
    }
  }
}

void Bpe::merge_short(std::vector<int32_t>& symbols, std::vector<int32_t>& out) const {
  size_t n = symbols.size();
  uint32_t ranks[kShortSymbols];
  for (size_t i = 0; i + 1 < n; ++i) ranks[i] = rank(symbols[i], symbols[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = merges_[ranks[best]].result;
    for (size_t i = best + 1; i + 1 < n; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i] = ranks[i + 1];
    }
    --n;
    if (best > 0) ranks[best - 1] = rank(symbols[best - 1], symbols[best]);
    if (best + 1 < n) ranks[best] = rank(symbols[best], symbols[best + 1]);
  }
  out.insert(out.end(), symbols.begin(), symbols.begin() + static_cast<ptrdiff_t>(n));
}

void Bpe::merge_long(BpeScratch& scratch, std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols_;
  if (!scratch.long_) {
    scratch.long_ = std::make_unique<BpeScratch::Long>();
    scratch.long_->bucket_of.assign(merges_.size(), -1);
  }
  BpeScratch::Long& state = *scratch.long_;
  const auto n = static_cast<int32_t>(symbols.size());
  if (state.capacity < symbols.size()) {
    state.nodes = std::make_unique_for_overwrite<BpeScratch::Long::Node[]>(symbols.size());
    state.capacity = symbols.size();
  }
  BpeScratch::Long::Node* const node = state.nodes.get();
  for (int32_t i = 0; i < n; ++i) {
    node[i] = {symbols[static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1};
  }
  const auto add = [&](int32_t position) {
    const uint32_t r = rank(node[position].id, node[node[position].next].id);
    if (r != kNoRank) state.add(r, position);
  };
  for (int32_t i = 0; i + 1 < n; ++i) add(i);
  while (!state.ranks.empty()) {
    const uint32_t r = state.ranks.top();
    auto& bucket = state.buckets[static_cast<size_t>(state.bucket_of[r])];
    if (bucket.empty()) {
      bucket.queued = false;
      state.ranks.pop();
      continue;
    }
    const int32_t at = bucket.pop();
    const Merge& merge = merges_[r];
    auto& left = node[at];
    if (left.id != merge.left || left.next < 0 || node[left.next].id != merge.right)
      continue;  // stale
    auto& right = node[left.next];
    left.id = merge.result;
    left.next = right.next;
    right.id = kNoToken;
    if (left.next >= 0) {
      node[left.next].previous = at;
      add(at);
    }
    if (left.previous >= 0) add(left.previous);
  }
  state.clear();
  for (int32_t i = 0; i >= 0; i = node[i].next) out.push_back(node[i].id);
}

}  // namespace weft::text
