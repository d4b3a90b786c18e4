#include "kernels/cpu/kv_format.h"

namespace weft::WEFT_ISA_NS {
namespace {

/// Which head of its block this is: static scales are the channel's.
const float* static_scales(const PagedKv& kv, const std::byte* head, int plane) {
  const float* scales = plane == 0 ? kv.k_scale : kv.v_scale;
  ISA_CHECK(scales != nullptr);
  const int64_t g = (head - kv.data) % kv.block_bytes / KvCodeLayout(kv.shape).head_bytes;
  return scales + g * kv.shape.head_dim;
}

/// The codes of a row, one a byte; writes its scale and zero point.
void encode_row(const PagedKv& kv, std::byte* head, int plane, int64_t token, const float* x,
                uint8_t* codes) {
  const KvFormat format = kv.shape.format;
  const KvCodeLayout layout(kv.shape);
  const int64_t d = kv.shape.head_dim;
  if (kv_has_static_scales(format)) {
    const float* scales = static_scales(kv, head, plane);
    for (int64_t i = 0; i < d; i += kLanes) {
      const Vec inverse = splat(1) / load(scales + i);
      format == KvFormat::kInt8 ? int8_codes(x + i, inverse, codes + i)
                                : fp8_codes(x + i, inverse, codes + i);
    }
    return;
  }
  const int64_t part = format == KvFormat::kInt4 ? kKvInt4Group : d;
  for (int index = 0; index < layout.scales_per_row; ++index) {
    const int64_t first = index * part, end = first + part < d ? first + part : d;
    const RowRange range = row_range(x + first, end - first);
    float* scale = layout.scales(head, plane, index) + token;
    if (format == KvFormat::kInt4) {
      const KvInt4Scale s = int4_scale(range);
      for (int64_t i = first; i < end; i += kLanes) {
        int4_codes(x + i, splat(s.inverse), s.zero, codes + i);
      }
      *scale = s.scale;
    } else {
      const float amax = range.high > -range.low ? range.high : -range.low;
      const KvRowScale s = kv_row_scale(
          range.finite ? amax : std::numeric_limits<float>::infinity(), kv_largest_code(format));
      for (int64_t i = first; i < end; i += kLanes) {
        format == KvFormat::kInt8Dynamic ? int8_codes(x + i, splat(s.inverse), codes + i)
                                         : fp8_codes(x + i, splat(s.inverse), codes + i);
      }
      *scale = s.scale;
    }
    if (!range.finite) memset(codes + first, 0, static_cast<size_t>(end - first));
  }
}

/// Where codes lie in their group; of either way to multiply them.
struct CodeOrder {
  int pack;    // dims of K, tokens of V, that follow each other
  int vector;  // codes of a vector

  explicit CodeOrder(const KvShape& s)
      : pack(kv_whole_numbers(s) ? 4 : 2), vector(kv_whole_numbers(s) ? 64 : kWiden) {}
  /// Of dim i of a token, as a number of codes of 8 bits.
  int64_t place(bool is_v, int64_t lane, int64_t i, int64_t d) const {
    return is_v ? lane / pack * pack * d + pack * i + lane % pack
                : i / pack * pack * kGroup + pack * lane + i % pack;
  }
  /// The same for int4: byte, and nibble in the lowest bit. The two codes of a byte are of one
  /// token.
  int64_t place4(bool is_v, int64_t lane, int64_t i, int64_t d) const {
    const int64_t at = place(is_v, lane, i, d), index = at / vector;
    return (index / 2 * vector + at % vector) * 2 + index % 2;
  }
  /// From a dim whose code is a low nibble to the one whose code is the high nibble beside it.
  int64_t partner(bool is_v) const { return is_v ? vector / pack : pack; }
};

void scatter(const KvShape& shape, bool is_v, int64_t lane, const uint8_t* codes,
             std::byte* group) {
  auto* out = reinterpret_cast<uint8_t*>(group);
  const CodeOrder order(shape);
  const int64_t d = shape.head_dim;
  if (shape.format != KvFormat::kInt4) {
    for (int64_t i = 0; i < d; ++i) out[order.place(is_v, lane, i, d)] = codes[i];
    return;
  }
  for (int64_t i = 0; i < d; ++i) {
    const int64_t at = order.place4(is_v, lane, i, d);
    if (at % 2 != 0) continue;
    out[at / 2] = static_cast<uint8_t>(codes[i] | codes[i + order.partner(is_v)] << 4);
  }
}

float code_value(KvFormat format, const uint8_t* group, int64_t at8, int64_t at4, float scale) {
  if (format == KvFormat::kInt4) {
    uint32_t bits;
    memcpy(&bits, &scale, sizeof(bits));
    const int code = at4 % 2 == 0 ? group[at4 / 2] & 15 : group[at4 / 2] >> 4;
    return static_cast<float>(code - static_cast<int>(bits & 15)) * scale;
  }
  if (code_kind(format) == CodeKind::kFp8) return fp8_value(group[at8]) * scale;
  return static_cast<float>(static_cast<int8_t>(group[at8])) * scale;
}

}  // namespace

void KvCodes::store_token(const PagedKv& kv, std::byte* head, int64_t token, const float* k,
                          const float* v) {
  const KvCodeLayout layout(kv.shape);
  alignas(64) uint8_t codes[kMaxRow];
  for (int plane = 0; plane < 2; ++plane) {
    encode_row(kv, head, plane, token, plane == 0 ? k : v, codes);
    scatter(kv.shape, plane == 1, token % kGroup, codes, layout.group(head, plane, token));
  }
}

void KvCodes::load_token(const PagedKv& kv, std::byte* head, int64_t token, float* k, float* v) {
  const KvFormat format = kv.shape.format;
  const KvCodeLayout layout(kv.shape);
  const CodeOrder order(kv.shape);
  const int64_t d = kv.shape.head_dim, lane = token % kGroup;
  for (int plane = 0; plane < 2; ++plane) {
    float* out = plane == 0 ? k : v;
    const auto* group = reinterpret_cast<const uint8_t*>(layout.group(head, plane, token));
    const float* channels = kv_has_static_scales(format) ? static_scales(kv, head, plane) : nullptr;
    for (int64_t i = 0; i < d; ++i) {
      const bool is_v = plane == 1;
      const int index = format == KvFormat::kInt4 ? static_cast<int>(i / kKvInt4Group) : 0;
      const float scale = channels ? channels[i] : layout.scales(head, plane, index)[token];
      out[i] = code_value(format, group, order.place(is_v, lane, i, d),
                          order.place4(is_v, lane, i, d), scale);
    }
  }
}

namespace {

/// Steps [begin, end) of 64 codes that share zero points.
void widen_int4_part(const std::byte* codes, int64_t begin, int64_t end, const ZeroVec& zero,
                     bf16* out) {
  for (int64_t i = begin; i < end; i += 2 * kWiden) {
    const CodeVec both = load_codes(codes + i / 2);
    store_words(out + i, widen_int4(subtract(low_nibbles(both), zero)));
    store_words(out + i + kWiden, widen_int4(subtract(high_nibbles(both), zero)));
  }
}

}  // namespace

void widen_group(CodeKind kind, const KvGroup& group, bf16* out) {
  const auto& [codes, scales, stride, d, is_v] = group;
  const int64_t num = kGroup * d;
  if (kind == CodeKind::kInt8) {
    for (int64_t i = 0; i < num; i += kWiden) {
      store_words(out + i, widen_int8(codes + i));
    }
    return;
  }
  if (kind == CodeKind::kFp8) {
#if defined(__AVX512VBMI__)
    if (num % 64 == 0) return widen_fp8_all(codes, num, out);
#endif
    for (int64_t i = 0; i < num; i += kWiden) {
      store_words(out + i, widen_fp8(load_codes(codes + i)));
    }
    return;
  }
  for (int64_t first = 0; first < d; first += kKvInt4Group) {
    const int64_t end = first + kKvInt4Group < d ? first + kKvInt4Group : d;
    uint8_t zeros[kGroup];
    zero_points(scales + first / kKvInt4Group * stride, zeros);
    if (!is_v) {
      widen_int4_part(codes, first * kGroup, end * kGroup, k_zeros(zeros), out);
      continue;
    }
    for (int64_t pair = 0; pair < kGroup / 2; ++pair) {
      const int64_t row = pair * 2 * d;
      widen_int4_part(codes, row + 2 * first, row + 2 * end, v_zeros(zeros + 2 * pair), out);
    }
  }
}

#if defined(WEFT_AVX512_BF16)

void widen_int4_bytes(const KvGroup& group, std::byte* out) {
  const auto& [codes, scales, stride, d, is_v] = group;
  const std::byte* from = codes;
  const __m512i mask = _mm512_set1_epi8(15);
  const auto unpack = [=](int64_t begin, int64_t end, __m512i zero) {
    for (int64_t i = begin; i < end; i += 128) {
      const __m512i both = _mm512_loadu_si512(from + i / 2);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
      _mm512_storeu_si512(out + i, _mm512_sub_epi8(_mm512_and_si512(both, mask), zero));
      _mm512_storeu_si512(out + i + 64, _mm512_sub_epi8(high, zero));
    }
  };
  for (int64_t first = 0; first < d; first += kKvInt4Group) {
    const __m512i bits = _mm512_loadu_si512(scales + first / kKvInt4Group * stride);
    // A token's zero point in each byte of its lane.
    const __m512i zeros = _mm512_mullo_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(15)),
                                             _mm512_set1_epi32(0x01010101));
    if (!is_v) {
      unpack(first * kGroup, (first + kKvInt4Group) * kGroup, zeros);
      continue;
    }
    // Those of four tokens in each lane.
    alignas(16) uint8_t of_tokens[kGroup];
    _mm_store_si128(reinterpret_cast<__m128i*>(of_tokens), _mm512_cvtepi32_epi8(zeros));
    for (int64_t quad = 0; quad < kGroup / 4; ++quad) {
      int four;
      memcpy(&four, of_tokens + 4 * quad, sizeof(four));
      const int64_t begin = 4 * (quad * d + first);
      unpack(begin, begin + 4 * kKvInt4Group, _mm512_set1_epi32(four));
    }
  }
}

namespace {

/// load_k_group() of codes that are whole numbers.
void load_whole_k_group(const PagedKv& kv, std::byte* head, int64_t token, float* out) {
  const KvCodeLayout layout(kv.shape);
  const int64_t d = kv.shape.head_dim;
  alignas(64) std::byte wide[kGroup * KvCodes::kMaxRow];
  const bool rows = layout.scales_per_row > 0, int4 = kv.shape.format == KvFormat::kInt4;
  const float* scales = rows ? layout.scales(head, 0, 0) + token : nullptr;
  const float* channels = rows ? nullptr : static_scales(kv, head, 0);
  const std::byte* codes = layout.group(head, 0, token);
  if (int4) {
    widen_int4_bytes({codes, scales, layout.block_size, d, false}, wide);
    codes = wide;
  }
  const int64_t part = int4 ? kKvInt4Group : d;
  for (int64_t i = 0; i < d; ++i) {
    // Byte i % 4 of the lanes, up to the top and down again.
    const __m512i four = _mm512_loadu_si512(codes + i / 4 * 64);
    const __m128i up = _mm_cvtsi32_si128(static_cast<int>(24 - i % 4 * 8));
    const __m512i code = _mm512_srai_epi32(_mm512_sll_epi32(four, up), 24);
    const Vec scale = rows ? load(scales + i / part * layout.block_size) : splat(channels[i]);
    store(out + i * kGroup, Vec{_mm512_cvtepi32_ps(code)} * scale);
  }
}

}  // namespace

#endif

void KvCodes::load_k_group(const PagedKv& kv, std::byte* head, int64_t token, float* out) {
#if defined(WEFT_AVX512_BF16)
  if (kv_whole_numbers(kv.shape)) return load_whole_k_group(kv, head, token, out);
#endif
  const KvCodeLayout layout(kv.shape);
  const int64_t d = kv.shape.head_dim;
  alignas(64) bf16 wide[kGroup * kMaxRow];
  const bool rows = layout.scales_per_row > 0;
  const float* scales = rows ? layout.scales(head, 0, 0) + token : nullptr;
  const float* channels = rows ? nullptr : static_scales(kv, head, 0);
  widen_group(code_kind(kv.shape.format),
              {layout.group(head, 0, token), scales, layout.block_size, d, false}, wide);
  const int64_t part = kv.shape.format == KvFormat::kInt4 ? kKvInt4Group : d;
  for (int64_t i = 0; i < d; i += 2) {
    const Pairs pairs = load_pairs(wide + i * kGroup);
    const Vec row = rows ? load(scales + i / part * layout.block_size) : splat(0);
    store(out + i * kGroup, first_of(pairs) * (rows ? row : splat(channels[i])));
    store(out + (i + 1) * kGroup, second_of(pairs) * (rows ? row : splat(channels[i + 1])));
  }
}

int64_t kv_block_bytes(const KvShape& shape) {
  ISA_CHECK(shape.block_size > 0 && shape.block_size % kGroup == 0);
  ISA_CHECK(shape.head_dim > 0 && shape.head_dim % kLanes == 0);
  ISA_CHECK(shape.head_dim <= KvCodes::kMaxRow);
  ISA_CHECK(shape.format != KvFormat::kInt4 || shape.head_dim % (2 * kLanes) == 0);
  return with_kv_format(shape.format, [&](auto format) { return format.block_bytes(shape); });
}

void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v) {
  with_kv_format(kv.shape.format, [&](auto format) {
    for (int64_t g = 0; g < kv.shape.heads; ++g) {
      std::byte* head = format.head(kv, block, g);
      for (int64_t token = 0; token < kv.shape.block_size; ++token) {
        format.load_token(kv, head, token,
                          static_cast<float*>(k.data) + token * k.stride[0] + g * k.stride[1],
                          static_cast<float*>(v.data) + token * v.stride[0] + g * v.stride[1]);
      }
    }
  });
}

}  // namespace weft::WEFT_ISA_NS
