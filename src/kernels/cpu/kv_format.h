#pragma once

// The KV cache formats: everything that knows how K and V lie in a block. A block holds, for each
// kv head, all of its K and then all of its V, in groups of 16 tokens:
//   K of a group: [D / pack][16 tokens][pack]   (tokens in lanes: q . k needs no horizontal sum)
//   V of a group: [16 / pack tokens][D][pack]   (dims in lanes: p . v neither)
// where pack is the number of elements that share a 32-bit lane: 1 float, or 2 bf16, the pair that
// vdpbf16ps and a row of an AMX tile take. Formats of codes keep them in the order of the bf16
// pairs that they are widened to where a tile's groups are found (Worker::run in attention.cc),
// int4 with the codes of two vectors of 32 in one of 32 bytes, and append the scales (f32) of K's
// rows, then of V's, to a head's part of the block: [scales a row][B]. Where codes are multiplied
// as whole numbers (kv_whole_numbers()) pack is 4, and the vectors that share bytes have 64 codes.

#include <cstring>

#include "kernels/cpu/kv_codes_simd.h"

namespace weft::WEFT_ISA_NS {

inline constexpr int kGroup = 16;     ///< tokens that share a vector
inline constexpr int kKeyTile = 128;  ///< keys of one softmax step, cut at absolute positions
inline constexpr int kTileGroups = kKeyTile / kGroup;

/// Where the groups of one tile of keys lie. Both parts of a group are 64-byte vectors.
struct KeyTile {
  const std::byte* k[kTileGroups];
  const std::byte* v[kTileGroups];
};

/// Layout common to the formats that store elements of kBytes bytes.
template <int kBytes>
struct KvLayout {
  static int64_t group_bytes(const KvShape& s) { return int64_t{kGroup} * s.head_dim * kBytes; }
  static int64_t plane_bytes(const KvShape& s) { return s.block_size / kGroup * group_bytes(s); }
  static int64_t head_bytes(const KvShape& s) { return 2 * plane_bytes(s); }
  static int64_t block_bytes(const KvShape& s) { return s.heads * head_bytes(s); }
  static std::byte* head(const PagedKv& kv, int64_t block, int64_t head) {
    return kv.data + block * kv.block_bytes + head * head_bytes(kv.shape);
  }
  static std::byte* k_group(const PagedKv& kv, std::byte* head, int64_t token) {
    return head + token / kGroup * group_bytes(kv.shape);
  }
  static std::byte* v_group(const PagedKv& kv, std::byte* head, int64_t token) {
    return head + plane_bytes(kv.shape) + token / kGroup * group_bytes(kv.shape);
  }
};

struct KvF32 : KvLayout<4> {
  static constexpr KvFormat kFormat = KvFormat::kF32;
  static constexpr int kPack = 1;

  static void store_token(const PagedKv& kv, std::byte* head, int64_t token, const float* k,
                          const float* v) {
    const int64_t lane = token % kGroup, d = kv.shape.head_dim;
    auto* k_out = reinterpret_cast<float*>(k_group(kv, head, token)) + lane;
    for (int64_t i = 0; i < d; ++i) k_out[i * kGroup] = k[i];
    memcpy(v_group(kv, head, token) + lane * d * 4, v, static_cast<size_t>(d) * 4);
  }
  static void load_token(const PagedKv& kv, std::byte* head, int64_t token, float* k, float* v) {
    const int64_t lane = token % kGroup, d = kv.shape.head_dim;
    const auto* k_in = reinterpret_cast<const float*>(k_group(kv, head, token)) + lane;
    for (int64_t i = 0; i < d; ++i) k[i] = k_in[i * kGroup];
    memcpy(v, v_group(kv, head, token) + lane * d * 4, static_cast<size_t>(d) * 4);
  }
  /// Copies the first `tokens` of a V group; the rest becomes 0.
  static void copy_v(const std::byte* from, int64_t tokens, int64_t d, std::byte* to) {
    memcpy(to, from, static_cast<size_t>(tokens * d * 4));
    memset(to + tokens * d * 4, 0, static_cast<size_t>((kGroup - tokens) * d * 4));
  }
};

struct KvBf16 : KvLayout<2> {
  static constexpr KvFormat kFormat = KvFormat::kBf16;
  static constexpr int kPack = 2;

  static void store_token(const PagedKv& kv, std::byte* head, int64_t token, const float* k,
                          const float* v) {
    const int64_t lane = token % kGroup, d = kv.shape.head_dim;
    auto* k_out = reinterpret_cast<uint32_t*>(k_group(kv, head, token)) + lane;
    auto* v_out = reinterpret_cast<bf16*>(v_group(kv, head, token)) + lane / 2 * 2 * d + lane % 2;
    alignas(64) bf16 rounded[kLanes];
    for (int64_t i = 0; i < d; i += kLanes) {
      store_bf16(rounded, load(k + i));
      for (int64_t p = 0; p < kLanes / 2; ++p) {
        memcpy(k_out + (i / 2 + p) * kGroup, rounded + 2 * p, sizeof(uint32_t));
      }
      store_every_other(v_out + 2 * i, to_bf16(load(v + i)));
    }
  }
  static void load_token(const PagedKv& kv, std::byte* head, int64_t token, float* k, float* v) {
    const int64_t lane = token % kGroup, d = kv.shape.head_dim;
    const auto* k_in = reinterpret_cast<const bf16*>(k_group(kv, head, token)) + 2 * lane;
    const auto* v_in =
        reinterpret_cast<const bf16*>(v_group(kv, head, token)) + lane / 2 * 2 * d + lane % 2;
    for (int64_t i = 0; i < d; ++i) {
      const uint32_t kb = uint32_t{k_in[i / 2 * 2 * kGroup + i % 2]} << 16;
      const uint32_t vb = uint32_t{v_in[2 * i]} << 16;
      memcpy(k + i, &kb, sizeof(kb));
      memcpy(v + i, &vb, sizeof(vb));
    }
  }
  static void copy_v(const std::byte* from, int64_t tokens, int64_t d, std::byte* to) {
    const auto* in = reinterpret_cast<const uint32_t*>(from);
    auto* out = reinterpret_cast<uint32_t*>(to);
    for (int64_t pair = 0; pair < kGroup / 2; ++pair) {
      const int64_t left = tokens - 2 * pair;
      const uint32_t mask = left >= 2 ? 0xFFFFFFFFu : left == 1 ? 0xFFFFu : 0u;
      for (int64_t i = 0; i < d; ++i) out[pair * d + i] = in[pair * d + i] & mask;
    }
  }
};

/// Where codes and scales lie; of every quantised format.
struct KvCodeLayout {
  int64_t group_bytes, plane_bytes, head_bytes, block_size;
  int scales_per_row;  ///< of a token: 0 of static formats, 1, or one a group of dims

  WEFT_INLINE explicit KvCodeLayout(const KvShape& s)
      : group_bytes(int64_t{kGroup} * s.head_dim * kv_code_bits(s.format) / 8),
        plane_bytes(s.block_size / kGroup * group_bytes),
        head_bytes(2 * plane_bytes +
                   2 * 4 * s.block_size * kv_scales_per_row(s.format, s.head_dim)),
        block_size(s.block_size),
        scales_per_row(kv_scales_per_row(s.format, s.head_dim)) {}
  /// The group of a token; plane 0 is K, 1 is V.
  std::byte* group(std::byte* head, int plane, int64_t token) const {
    return head + plane * plane_bytes + token / kGroup * group_bytes;
  }
  float* scales(std::byte* head, int plane, int index) const {  // [B]
    return reinterpret_cast<float*>(head + 2 * plane_bytes) +
           (plane * scales_per_row + index) * block_size;
  }
};

/// The quantised formats.
struct KvCodes {
  static constexpr int64_t kMaxRow = 512;

  static int64_t block_bytes(const KvShape& s) { return s.heads * KvCodeLayout(s).head_bytes; }
  static std::byte* head(const PagedKv& kv, int64_t block, int64_t head) {
    return kv.data + block * kv.block_bytes + head * KvCodeLayout(kv.shape).head_bytes;
  }
  static void store_token(const PagedKv& kv, std::byte* head, int64_t token, const float* k,
                          const float* v);
  static void load_token(const PagedKv& kv, std::byte* head, int64_t token, float* k, float* v);
  /// The K group of `token` in the layout of KvF32, [D][16].
  static void load_k_group(const PagedKv& kv, std::byte* head, int64_t token, float* out);
};

/// What the products do with the codes of a format.
WEFT_INLINE CodeKind code_kind(KvFormat format) {
  if (format == KvFormat::kInt4) return CodeKind::kInt4;
  return format == KvFormat::kFp8 || format == KvFormat::kFp8Block ? CodeKind::kFp8
                                                                   : CodeKind::kInt8;
}

/// Whether attention multiplies the codes as whole numbers, on AMX tiles of 8 bits or by vpdpbusd
/// (attention_int8.h), and they lie for that.
WEFT_INLINE bool kv_whole_numbers(const KvShape& s) {
#if defined(WEFT_AVX512_BF16)
  return code_kind(s.format) != CodeKind::kFp8 && s.head_dim % 64 == 0;
#else
  return s.head_dim < 0;
#endif
}

/// The codes of 16 tokens of K or V.
struct KvGroup {
  const std::byte* codes;
  const float* scales;  ///< int4 alone: of the tokens, [16]
  int64_t stride;       ///< floats on to those of the next 64 dims
  int64_t d;
  bool is_v;
};
/// The group as bf16 pairs, in the layout of KvBf16.
void widen_group(CodeKind kind, const KvGroup& group, bf16* out);
#if defined(WEFT_AVX512_BF16)
/// A group of int4 for kv_whole_numbers() as differences to the zero points, in the layout of int8.
void widen_int4_bytes(const KvGroup& group, std::byte* out);
#endif

/// Calls body(Format{}) with the struct of a format.
template <class Body>
WEFT_INLINE auto with_kv_format(KvFormat format, Body&& body) {
  switch (format) {
    case KvFormat::kF32: return body(KvF32{});
    case KvFormat::kBf16: return body(KvBf16{});
    default: return body(KvCodes{});
  }
}

}  // namespace weft::WEFT_ISA_NS
