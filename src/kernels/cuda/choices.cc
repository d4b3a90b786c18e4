#include "kernels/choose.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/supports.h"

namespace weft::cuda {
namespace {

std::string number(int64_t n) {
  return std::to_string(n);
}
template <class Need>
std::string nothing(const Need&) {
  return "";
}

// ---- Attention

/// A layer's heads and its cache.
struct AttnNeed {
  AttnShape shape;
  KvFormat format = KvFormat::kBf16;
};
template <int Width>
std::string why_not_width(const AttnNeed& need) {
  const AttnShape& s = need.shape;
  if (!attention_reads(need.format)) {
    return "it reads no cache of " + std::string(kv_format_name(need.format));
  }
  const std::string dim = "D " + number(s.head_dim);
  if (!attention_supports(s)) return dim + " is not a multiple of 8 up to 256";
  if (attention_width(s) == Width) return "";
  return dim + (s.head_dim > Width ? " is wider" : " fits into a smaller one");
}
constexpr Candidate<AttnNeed> kPrompt[] = {{"wgmma, width 64", why_not_width<64>},
                                           {"wgmma, width 128", why_not_width<128>},
                                           {"wgmma, width 256", why_not_width<256>}};
constexpr Candidate<AttnNeed> kDecode[] = {{"split KV, width 64", why_not_width<64>},
                                           {"split KV, width 128", why_not_width<128>},
                                           {"split KV, width 256", why_not_width<256>}};

// ---- Gated delta rule

std::string dims(const GdnShape& s) {
  return "K " + number(s.key_dim) + ", V " + number(s.value_dim) + ", W " + number(s.conv_width);
}
std::string why_not_chunks(const GdnShape& s) {
  if (gdn_chunks_support(s)) return "";
  if (s.value_heads / s.key_heads > kGdnMaxGroup) {
    return number(s.value_heads / s.key_heads) + " value heads a key head are more than " +
           number(kGdnMaxGroup);
  }
  return dims(s) + " is not K 128, V 128, W 4";
}
std::string why_not_registers(const GdnShape& s) {
  return gdn_decode_supports(s) ? "" : dims(s) + " is not K = V = 64 or 128, W 4";
}
constexpr Candidate<GdnShape> kGdnPrompt[] = {{"chunks of 64, wgmma", why_not_chunks},
                                              {"token by token", nothing<GdnShape>}};
constexpr Candidate<GdnShape> kGdnDecode[] = {
    {"token by token, state in registers", why_not_registers},
    {"token by token, any shape", nothing<GdnShape>}};

// ---- Matrices

using Matrix = KernelNeeds::Matrix;

std::string format_is(const Matrix& m, WeightFormat format) {
  if (m.shape.format == format) return "";
  return "the weights are " + std::string(weight_format_name(m.shape.format));
}
std::string why_not_bf16(const Matrix& m) {
  return format_is(m, WeightFormat::kBf16);
}
std::string why_not_fp8(const Matrix& m) {
  std::string format = format_is(m, WeightFormat::kFp8Block);
  if (!format.empty() || fp8_product_supports(m.shape, m.epilogue)) return format;
  return "half of N (" + number(m.shape.n / 2) + ") is not a multiple of " + number(kFp8ScaleRows);
}
std::string why_not_codes(const Matrix& m) {
  if (code_product_supports(m.shape, m.epilogue)) return "";
  if (m.shape.format != WeightFormat::kInt8 && m.shape.format != WeightFormat::kInt4) {
    return "the weights are " + std::string(weight_format_name(m.shape.format));
  }
  if (m.shape.experts <= 1) return "one matrix: faster made bf16";
  return "half of N (" + number(m.shape.n / 2) + ") is not a multiple of " + number(kQuantTile);
}
std::string why_not_converted(const Matrix& m) {
  if (m.shape.format == WeightFormat::kBf16) return "the weights are bf16";
  if (m.shape.format == WeightFormat::kF32) return "f32 weights of a prompt";
  return "";
}
std::string why_not_streamed(const Matrix& m) {
  return m.shape.format == WeightFormat::kF32 ? "the weights are f32" : "";
}
std::string why_not_plain(const Matrix& m) {
  return format_is(m, WeightFormat::kF32);
}
constexpr Candidate<Matrix> kProduct[] = {{"wgmma bf16", why_not_bf16},
                                          {"wgmma e4m3, scales by block", why_not_fp8},
                                          {"wgmma bf16 of codes, by expert", why_not_codes},
                                          {"wgmma bf16 of weights made bf16", why_not_converted}};
constexpr Candidate<Matrix> kStream[] = {{"weights streamed, K in one order", why_not_streamed},
                                         {"f32 multiply-adds", why_not_plain}};

// ---- Sampling

std::string why_not_device(const int64_t& vocab) {
  return vocab <= kMaxSampledVocabulary
             ? ""
             : number(vocab) + " ids are more than " + number(kMaxSampledVocabulary);
}
constexpr Candidate<int64_t> kSampling[] = {{"a cluster of eight blocks a row", why_not_device}};

void add_matrices(const std::string& what, const std::vector<Matrix>& matrices,
                  std::vector<KernelChoice>& out) {
  for (const Matrix& m : matrices) {
    const std::string shape = what + ", N " + number(m.shape.n) + " K " + number(m.shape.k);
    out.push_back(choose<Matrix>(shape + ": prompts", kProduct, m));
    out.push_back(choose<Matrix>(shape + ": decode", kStream, m));
  }
}

}  // namespace

std::vector<KernelChoice> kernel_choices(const KernelNeeds& needs) {
  std::vector<KernelChoice> out;
  for (const AttnShape& s : needs.attention) {
    const std::string shape = "attention, D " + number(s.head_dim) + ", " + number(s.q_heads) +
                              "/" + number(s.kv_heads) + " heads";
    const AttnNeed need{s, needs.kv_format};
    out.push_back(choose<AttnNeed>(shape + ": prompts", kPrompt, need));
    out.push_back(choose<AttnNeed>(shape + ": decode", kDecode, need));
  }
  for (const GdnShape& s : needs.gdn) {
    const std::string shape =
        "gated delta rule, " + number(s.key_heads) + "/" + number(s.value_heads) + " heads";
    out.push_back(choose<GdnShape>(shape + ": prompts", kGdnPrompt, s));
    out.push_back(choose<GdnShape>(shape + ": decode", kGdnDecode, s));
  }
  add_matrices("matrices", needs.dense, out);
  add_matrices("experts", needs.experts, out);
  out.push_back(choose<int64_t>("sampling", kSampling, needs.vocab));
  return out;
}

}  // namespace weft::cuda
